"""Stage 3: the planner learns from the score of its own trajectories."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from recogdrive.data.batching import BatchStream
from recogdrive.data.context import ContextSource
from recogdrive.data.samples import SceneSource, TrainingSamples, planner_samples
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.types import FUTURE_FRAMES, HISTORY_FRAMES
from recogdrive.experiment import ConfigurationError
from recogdrive.hosts import member
from recogdrive.models.bridge import Params
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.pdm.rewards.reward import Reward
from recogdrive.pdm.rewards.samples import Records, RewardedSamples
from recogdrive.pdm.rewards.survey import Survey, survey
from recogdrive.run_folder import RunFolder, write_text
from recogdrive.stages.base import Description
from recogdrive.stages.context_identity import context_shapes, describe_context, require_same_context
from recogdrive.stages.imitation import EXPORT_FOLDER
from recogdrive.stages.open_loop import OpenLoop, headline
from recogdrive.stages.planner_weights import describe_parameters, export_weights, load_planner_weights, require_fit
from recogdrive.stages.previous_plans import WithPreviousPlans, previous_plan_shapes, previous_plans
from recogdrive.training.abstract_step import StepShapes
from recogdrive.training.checkpoint import load_params
from recogdrive.training.grpo import REFERENCE_PREFIX, DiffGrpoObjective, GrpoSettings
from recogdrive.training.loop import Trainer
from recogdrive.training.memory import training_memory
from recogdrive.training.saved import has_checkpoint
from recogdrive.training.sharding import DataParallel
from recogdrive.training.watch import MetricWatch

BEFORE = "imitation"
"""What tables and reports call the planner that reinforcement learning starts from."""
SURVEY_FILE = "reward_survey.json"


@gin.register
class DiffGrpo:
    """Trains a diffusion planner by reinforcement learning, and evaluates it beside the planner it started from.

    Scenes to score in come from `evaluation.pdm_scenes`. While it trains, `splits`' validation scenes are planned and
    scored; the checkpoint with the best score there is what is evaluated and exported at the end.

    Args:
      planner: Network and sampler.
      splits: Training, validation and evaluated scenes.
      context: Makes the context tokens.
      reward: What trajectories are worth.
      trainer: The training loop.
      evaluation: Metrics, baselines, report; it says what the PDM score needs to know of a scene.
      settings: Numbers of DiffGRPO.
      watch: Thresholds on what the run reports.
      batch_size: Scenes of a global batch; each is planned `settings.group_size` times.
      seed: Of the order of samples; the trainer has its own for noise.
      num_threads: Threads that make samples.
      num_workers: Processes that make samples, and that look at the scenes to score in first; 0 makes them here.
      keep_samples: Whether samples stay in memory once made; those of a hidden-state cache never do.
      allow_other_context: Whether a planner that was trained on another context is taken all the same.

    Raises:
      ValueError: Advantages are clipped to quantiles of a batch that is computed in parts.

    Source: upstream `ReCogDriveAgent` with `forward_grpo`, reinforcement-learning scripts.
    """

    runs_on_several_processes = True

    def __init__(
        self,
        planner: DiffusionPlanner,
        splits: PlanningSplits,
        context: ContextSource,
        reward: Reward,
        trainer: Trainer,
        evaluation: OpenLoop,
        settings: GrpoSettings | None = None,
        watch: MetricWatch | None = None,
        *,
        batch_size: int = 8,
        seed: int = 0,
        num_threads: int = 1,
        num_workers: int = 0,
        keep_samples: bool = True,
        allow_other_context: bool = False,
    ) -> None:
        if not isinstance(planner, DiffusionPlanner):
            raise ValueError(
                f"{type(planner).__name__} has no denoising chain to learn from; bind PLANNER to a DiffusionPlanner, "
                "without gin/option/online.gin."
            )
        require_fit(context, planner)
        self._settings = GrpoSettings() if settings is None else settings
        if self._settings.clips_advantages and trainer.accumulation_steps > 1:
            raise ValueError(
                f"advantages are clipped to quantiles of the whole batch, which accumulation_steps="
                f"{trainer.accumulation_steps} never has at once; set one of the two back."
            )
        self.planner = planner
        self._splits = splits
        self.context = context
        self._reward = reward
        self._trainer = trainer
        self.evaluation = evaluation
        self._watch = watch
        self._batch_size = batch_size
        self._seed = seed
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._keep_samples = keep_samples
        self._allow_other_context = allow_other_context
        sharding = trainer.sharding or DataParallel()
        self._objective = DiffGrpoObjective(planner, reward, self._settings, sharding.over_rows)

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Trains from the parent's weights, a run folder's or an official `.ckpt`'s; evaluates both planners."""
        self.evaluation.require()
        if self.evaluation.pdm_scenes is None:
            raise ConfigurationError(
                "Reinforcement learning needs scenes to score in: add --gin_file=gin/option/pdm_cache.gin with "
                "PDM_CACHE set to what an experiment such as mini_cache_metrics wrote."
            )
        start = self._start(folder.path, parent)
        train, validated = self._splits.open_train(), self._splits.open_validate()
        evaluated = self._splits.open_evaluate()
        folder.update(data=self._splits.describe(), seed=self._seed, context=describe_context(self.context))
        logging.info("Reinforcement learning on %d scenes of %s", len(train), train.name)

        samples = self._samples(folder, train, start)
        stream = BatchStream(
            samples,
            batch_size=self._batch_size,
            seed=self._seed,
            num_threads=self._num_threads,
            num_workers=self._num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        agent = self.evaluation.agent(self.planner, None, self.context)
        state = self._trainer.fit(
            self._objective,
            stream,
            folder.path,
            evaluate=self.evaluation.periodic(agent, self.context, validated),
            init_params=start,
            kept={REFERENCE_PREFIX + name: weight for name, weight in start.items()},
            identity={"group_size": self._settings.group_size},
            watch=self._watch,
        )
        stream.close()

        reference = {name.removeprefix(REFERENCE_PREFIX): weight for name, weight in state.kept.items()}
        reference = member.local_weights(reference)
        best = load_params(folder.path, template=start) if member.is_lead() else {}
        export_weights(self.planner, best, folder.path / EXPORT_FOLDER, reference=reference)
        agent.params = best
        before = self.evaluation.agent(self.planner, reference, self.context, name=BEFORE)
        return headline(self.evaluation.final(folder.path, [agent, before], evaluated))

    def _start(self, path: Path, parent: Path | None) -> Mapping[str, jax.Array | jax.ShapeDtypeStruct]:
        """The weights to start from; only their shapes where the run goes on from a checkpoint, which holds them."""
        if member.on_lead(lambda: has_checkpoint(path)):
            return jax.eval_shape(self.planner.init, jax.random.key(0))
        if parent is None:
            raise ConfigurationError(
                "Reinforcement learning starts from a planner: set PARENT to the folder of an imitation run or to an "
                "official .ckpt file."
            )
        require_same_context(self.context, parent, allowed=self._allow_other_context, binding="DiffGrpo")
        return load_planner_weights(self.planner, parent)

    def _samples(self, folder: RunFolder, train: SceneSource, start: Params) -> TrainingSamples:
        """What the planner sees of every scene, and what its trajectories are scored in."""
        records = Records(train, self.evaluation.pdm_scenes)
        self._reward.attach(records)
        samples = planner_samples(train, self.context, keep=self._keep_samples)
        with member.lead_first():
            surveyed = self._surveyed(folder.path, records)
        failed = surveyed.failures
        folder.update(scored_scenes=surveyed.num_records - len(failed), scenes_without_reward=dict(failed))
        if failed:
            logging.warning(
                "%d of %d training scenes cannot be scored; they are in batches, but in no loss (run.json lists them)",
                len(failed), surveyed.num_records,
            )  # fmt: skip
        rewarded = RewardedSamples(samples, records, self._reward.layouts, surveyed.sizes)
        if not self._reward.uses_previous_plans:
            return rewarded
        before = self.evaluation.agent(self.planner, start, self.context)
        with member.lead_first():
            plans = previous_plans(folder.path, records, samples, before, self._batch_size)
        return WithPreviousPlans(rewarded, plans)

    def _surveyed(self, path: Path, records: Records) -> Survey:
        """Sizes of all scenes to score in; read back where the run has looked at them before."""
        file = path / SURVEY_FILE
        if file.exists():
            found = Survey.from_json(json.loads(file.read_text(encoding="utf-8")), self._reward.layouts)
            if found.num_records == len(records):
                return found
            logging.warning("%s is of %d scenes, not %d; looking anew", file, found.num_records, len(records))
        found = survey(records, len(records), self._reward.layouts, self._num_workers)
        if member.is_lead():
            write_text(file, json.dumps(found.to_json(self._reward.layouts), indent=2) + "\n")
        return found

    def step_shapes(self) -> StepShapes:
        """What a training step is compiled from, with scenes to score in of default size."""
        weights = jax.eval_shape(self.planner.init, jax.random.key(0))
        kept = {REFERENCE_PREFIX + name: shape for name, shape in weights.items()}
        return StepShapes(self._trainer, self._objective, self._batch_shapes(), kept=kept)

    def describe(self) -> Description:
        """Splits, weights, and the memory of one training step, as the compiler for this device reports it."""
        layouts: Sequence[Any] = self._reward.layouts
        notes = [f"reward: {type(self._reward).__name__} of {', '.join(self._reward.part_names)}"]
        notes += [f"scenes to score in are taken to fit {layout.default_sizes}" for layout in layouts]
        return Description(
            data=self._splits.describe(),
            parameters=describe_parameters(self.planner),
            memory_bytes=training_memory(self.step_shapes()),
            notes=notes,
        )

    def _batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of a global batch, with scenes to score in of default size."""
        shapes = dict(context_shapes(self.context))
        shapes |= {
            "history_trajectory": ((HISTORY_FRAMES, 3), jnp.float32),
            "status_feature": ((8,), jnp.float32),
            "trajectory": ((FUTURE_FRAMES, 3), jnp.float32),
            "index": ((), jnp.int32),
            "reward/known": ((), np.bool_),
        }
        for layout in self._reward.layouts:
            shapes |= {name: (a.shape, a.dtype) for name, a in layout.blank(layout.default_sizes).items()}
        if self._reward.uses_previous_plans:
            shapes |= previous_plan_shapes()
        rows = self._batch_size
        return {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in shapes.items()}
