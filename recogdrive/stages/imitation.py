"""Stage 2: the diffusion planner learns to drive as the recorded drivers did."""

from collections.abc import Mapping
from pathlib import Path

import gin
import jax
from absl import logging

from recogdrive.data.batching import BatchStream
from recogdrive.data.context import ContextSource
from recogdrive.data.samples import PlannerSamples
from recogdrive.data.splits import PlanningSplits
from recogdrive.models.planner.official_checkpoint import save_official
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.run_folder import RunFolder
from recogdrive.stages.open_loop import OpenLoop, headline
from recogdrive.stages.planner_weights import load_planner_weights, require_context
from recogdrive.training.loop import Trainer

EXPORT_FILE = Path("export") / "planner.ckpt"
"""Within a run folder: the evaluated weights in the official layout."""


@gin.register
class Imitation:
    """Trains a planner on driven trajectories and evaluates it.

    Args:
      planner: Network, diffusion process and sampler.
      splits: Training and evaluated scenes.
      trainer: The training loop.
      evaluation: Metrics, baselines, report.
      batch_size: Rows of a global batch.
      seed: Of the order of samples; the trainer has its own for weights and noise.
      context: Makes the context tokens; None describes the stage but cannot run it.
      num_threads: Threads that make samples.
      num_workers: Processes that make samples; 0 makes them in this process.
      keep_samples: Whether samples stay in memory once made.

    Source: upstream `ReCogDriveAgent` with `TrajectoryTargetBuilder`, imitation scripts.
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        splits: PlanningSplits,
        trainer: Trainer,
        evaluation: OpenLoop,
        *,
        batch_size: int = 16,
        seed: int = 0,
        context: ContextSource | None = None,
        num_threads: int = 1,
        num_workers: int = 0,
        keep_samples: bool = True,
    ) -> None:
        self._planner = planner
        self._splits = splits
        self._trainer = trainer
        self._evaluation = evaluation
        self._batch_size = batch_size
        self._seed = seed
        self._context = context
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._keep_samples = keep_samples

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Trains from scratch, or from the parent's weights, then evaluates and exports the final weights."""
        context = require_context(self._context, self._planner)
        initial = None if parent is None else load_planner_weights(self._planner, parent)
        train = self._splits.open_train()
        evaluated = self._splits.open_evaluate()
        folder.update(data=self._splits.describe(), seed=self._seed)
        logging.info("Training on %d scenes of %s", len(train), train.name)

        stream = BatchStream(
            PlannerSamples(train, context, keep=self._keep_samples),
            batch_size=self._batch_size,
            seed=self._seed,
            num_threads=self._num_threads,
            num_workers=self._num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        evaluate = self._evaluation.periodic(self._planner, context, evaluated)
        state = self._trainer.fit(self._planner, stream, folder.path, evaluate=evaluate, init_params=initial)
        stream.close()

        save_official(folder.path / EXPORT_FILE, state.weights, self._planner)
        agent = self._evaluation.agent(self._planner, state.weights, context)
        return headline(self._evaluation.final(folder.path, [agent], evaluated))
