"""Stage 2: a planner learns to drive as the recorded drivers did."""

from collections.abc import Mapping
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
from absl import logging

from recogdrive.data.batching import BatchStream
from recogdrive.data.context import ContextSource
from recogdrive.data.samples import planner_samples
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.types import FUTURE_FRAMES, HISTORY_FRAMES
from recogdrive.evaluation.planner_agent import TrainablePlanner, frozen_weights
from recogdrive.run_folder import RunFolder
from recogdrive.stages.base import Description
from recogdrive.stages.context_identity import context_shapes, describe_context, identified
from recogdrive.stages.open_loop import OpenLoop, headline
from recogdrive.stages.planner_weights import describe_parameters, export_weights, initial_weights, require_fit
from recogdrive.training.abstract_step import StepShapes
from recogdrive.training.loop import Trainer
from recogdrive.training.memory import training_memory

EXPORT_FOLDER = "export"
"""Within a run folder: the evaluated weights in the official layout, in a file named after the planner."""


@gin.register
class Imitation:
    """Trains a planner on driven trajectories and evaluates it.

    Args:
      planner: What learns: the diffusion planner, or the ego-status MLP.
      splits: Scenes to train on, to look at meanwhile, and to evaluate at the end.
      context: Makes the context tokens.
      trainer: The training loop.
      evaluation: Metrics, baselines, report.
      batch_size: Rows of a global batch.
      seed: Of the order of samples; the trainer has its own for weights and noise.
      num_threads: Threads that make samples.
      num_workers: Processes that make samples; 0 makes them in this process.
      keep_samples: Whether samples stay in memory once made; those of a hidden-state cache never do.

    Source: upstream `ReCogDriveAgent` with `TrajectoryTargetBuilder`, imitation scripts.
    """

    runs_on_several_processes = True

    def __init__(
        self,
        planner: TrainablePlanner,
        splits: PlanningSplits,
        context: ContextSource,
        trainer: Trainer,
        evaluation: OpenLoop,
        *,
        batch_size: int = 16,
        seed: int = 0,
        num_threads: int = 1,
        num_workers: int = 0,
        keep_samples: bool = True,
    ) -> None:
        require_fit(context, planner)
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
        self._evaluation.require()
        context = identified(self._context, self._planner)
        initial = initial_weights(self._planner, parent, self._trainer.seed)
        train = self._splits.open_train()
        evaluated, validated = self._splits.open_evaluate(), self._splits.open_validate()
        folder.update(data=self._splits.describe(), seed=self._seed, context=describe_context(context))
        logging.info("Training on %d scenes of %s", len(train), train.name)

        stream = BatchStream(
            planner_samples(train, self._context, keep=self._keep_samples),
            batch_size=self._batch_size,
            seed=self._seed,
            num_threads=self._num_threads,
            num_workers=self._num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        agent = self._evaluation.agent(self._planner, None, self._context)
        evaluate = self._evaluation.periodic(agent, self._context, validated)
        state = self._trainer.fit(
            self._planner,
            stream,
            folder.path,
            evaluate=evaluate,
            init_params=initial,
            frozen=frozen_weights(self._planner),
            identity=getattr(self._planner, "identity", dict)(),
        )
        stream.close()

        export_weights(self._planner, state.weights, folder.path / EXPORT_FOLDER)
        agent.params = state.weights  # `final` gathers them where they are spread over processes.
        return headline(self._evaluation.final(folder.path, [agent], evaluated))

    def step_shapes(self) -> StepShapes:
        """What a training step is compiled from."""
        rows = self._batch_size
        shapes = {name: ((rows, *shape), dtype) for name, (shape, dtype) in context_shapes(self._context).items()}
        shapes |= {
            "history_trajectory": ((rows, HISTORY_FRAMES, 3), jnp.float32),
            "status_feature": ((rows, 8), jnp.float32),
            "trajectory": ((rows, FUTURE_FRAMES, 3), jnp.float32),
            "index": ((rows,), jnp.int32),
        }
        return StepShapes(
            trainer=self._trainer,
            objective=self._planner,
            batch={name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()},
            frozen=getattr(self._planner, "frozen_shapes", dict)(),
        )

    def describe(self) -> Description:
        """Splits, weights, and the memory of one training step, as the compiler for this device reports it."""
        return Description(
            data=self._splits.describe(),
            parameters=describe_parameters(self._planner),
            memory_bytes=training_memory(self.step_shapes()),
        )
