"""The loop that every training stage runs: steps, log lines, evaluations, checkpoints, and an exact way back in."""

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import gin
import jax
from absl import logging

from recogdrive.training.checkpoint import Checkpoints
from recogdrive.training.first_state import FirstState
from recogdrive.training.optim import AdamW
from recogdrive.training.preemption import Preempted, PreemptionGuard
from recogdrive.training.profiling import StepProfiler, StepRange, requested_steps, step_annotation
from recogdrive.training.run_log import RunLog
from recogdrive.training.saved import CHECKPOINTS_FOLDER
from recogdrive.training.sharding import DataParallel, DevicePrefetch, TrainingStream
from recogdrive.training.state import Params, TrainState
from recogdrive.training.step import Metrics, Objective, make_train_step
from recogdrive.training.step_timing import StepPace, StepWatch
from recogdrive.training.summary import TENSORBOARD_FOLDER, is_scalar
from recogdrive.training.time_account import CHECKPOINT, EVALUATION, OTHER, START, STEPS, TimeAccount
from recogdrive.training.watch import ThresholdReached, Watch
from recogdrive.training.window import Window, require_finite, wait_for

Evaluate = Callable[[Params, int], Mapping[str, Any]]
"""(weights, step) -> scalars by name; texts, Matplotlib figures and (H, W, 3) uint8 pictures among them go to
TensorBoard."""

_STEPS_IN_FLIGHT = 4
"""Steps the host may be ahead of the devices: bounds the memory of waiting batches, never leaves a device idle."""


@gin.register
class Trainer:
    """Trains an objective on a stream of batches, resuming by itself from the run folder.

    A run that was killed at any moment and started again ends with the same weights, average, optimiser state, loss
    curve and order of samples, to the bit, as one that was not.

    Args:
      steps: Updates of the whole run.
      optimizer: None is `AdamW()` with its warm-up and cosine.
      sharding: Placement on devices; None is `DataParallel()` over all of them.
      accumulation_steps: Microbatches a batch is computed in.
      ema_decay: Decay of a moving average of the weights, which is then what is evaluated; None keeps none.
      seed: Of initial weights and of all noise.
      log_every: Steps between log lines, each over the steps since the last.
      eval_every: Steps between evaluations; None evaluates after the last step only.
      eval_at_start: Whether the weights a run starts from are evaluated too; they never count as the best.
      save_every: Steps between checkpoints; the last step is saved in any case.
      keep_last: Newest checkpoints kept.
      best_metric: Result of `evaluate` by which the best checkpoint is kept too; None keeps none for its score.
      best_mode: "min" or "max".
      keep_best: Best checkpoints kept.
      prefetch: Batches put on the devices ahead of their step.

    Raises:
      ValueError: An argument out of range.
    """

    def __init__(
        self,
        steps: int,
        *,
        optimizer: AdamW | None = None,
        sharding: DataParallel | None = None,
        accumulation_steps: int = 1,
        ema_decay: float | None = None,
        seed: int = 0,
        log_every: int = 50,
        eval_every: int | None = None,
        eval_at_start: bool = False,
        save_every: int = 1000,
        keep_last: int = 2,
        best_metric: str | None = None,
        best_mode: str = "min",
        keep_best: int = 1,
        prefetch: int = 2,
    ) -> None:
        counts = {
            "steps": steps,
            "accumulation_steps": accumulation_steps,
            "log_every": log_every,
            "eval_every": 1 if eval_every is None else eval_every,
            "save_every": save_every,
            "keep_last": keep_last,
            "keep_best": keep_best,
            "prefetch": prefetch,
        }
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        if best_mode not in ("min", "max"):
            raise ValueError(f"best_mode={best_mode!r} must be 'min' or 'max'.")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay} must be in [0, 1), or None for no average.")
        self.steps = steps
        self.optimizer = optimizer or AdamW()
        self.sharding = sharding
        self.accumulation_steps = accumulation_steps
        self.ema_decay = ema_decay
        self.seed = seed
        self.log_every = log_every
        self.eval_every = eval_every
        self.eval_at_start = eval_at_start
        self.save_every = save_every
        self.keep_last = keep_last
        self.best_metric = best_metric
        self.best_mode = best_mode
        self.keep_best = keep_best
        self.prefetch = prefetch

    def fit(
        self,
        objective: Objective,
        stream: TrainingStream,
        workdir: Path | str,
        evaluate: Evaluate | None = None,
        init_params: Params | None = None,
        frozen: Params | None = None,
        identity: Mapping[str, Any] | None = None,
        kept: Params | None = None,
        watch: Watch | None = None,
    ) -> TrainState:
        """Trains until `steps` are done and returns the final state; returns at once where they already are.

        Args:
          objective: What is minimised.
          stream: Batches; its position is saved and restored with the weights.
          workdir: Run folder: checkpoints, `metrics.jsonl` and TensorBoard events go there.
          evaluate: Called with the average of the weights where one is kept, else with the weights.
          init_params: Weights to start from in place of `objective.init`; without effect on a resumed run, for which
            their shapes (`jax.ShapeDtypeStruct`) do, see `has_checkpoint`.
          frozen: Weights the objective needs and that do not train; they are in no checkpoint, so a resumed run is
            handed them again.
          identity: What else must be the same for a run to be continued, such as where `frozen` comes from;
            JSON-serialisable.
          kept: Weights the objective needs, that do not train and yet belong to the run, such as a reference policy:
            part of the state and of every checkpoint. For a resumed run, which restores them, their shapes do.
          watch: Told what is logged and evaluated; may stop the run.

        Raises:
          ValueError: The batch does not divide over devices and accumulation steps, `init_params` does not fit, the
            folder holds a differently configured run, weights of two kinds share a name, or only the shapes of those to
            start from are given and there is no checkpoint.
          CheckpointError: Saving failed, or no checkpoint of those there can be used.
          NonFiniteError: A metric is not finite; the last good checkpoint is left as it is.
          Preempted: SIGTERM or SIGINT came; everything is saved.
          ThresholdReached: The watch stops the run; everything is saved.
        """
        if evaluate is None and self.best_metric is not None:
            raise ValueError(
                f"best_metric={self.best_metric!r} needs an evaluation; hand one to `fit` or set it to None."
            )
        sharding = self.sharding or DataParallel()
        sharding.check_batch(stream.batch_size, self.accumulation_steps)
        profiled = requested_steps(self.steps)
        workdir = Path(workdir)
        account = TimeAccount()
        checkpoints = Checkpoints(
            workdir / CHECKPOINTS_FOLDER,
            identity={
                "batch_size": stream.batch_size,
                "samples_per_epoch": stream.samples_per_epoch,
                "seed": self.seed,
                "keeps_ema": self.ema_decay is not None,
                **(identity or {}),
            },
            keep_last=self.keep_last,
            best_metric=self.best_metric,
            best_mode=self.best_mode,
            keep_best=self.keep_best,
        )
        run = None
        with account.compilation_apart():
            try:
                with account.phase(START):
                    run = _Run(self, objective, stream, sharding, checkpoints, workdir, evaluate, watch, account)
                    run.start(init_params, frozen or {}, kept)
                run.train(profiled)
                return run.state
            finally:
                with account.phase(CHECKPOINT):
                    checkpoints.close()
                if run is not None and run.log is not None:
                    run.log.note_time(run.step)

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether an evaluation's score beats the best so far."""
        return best is None or (value < best if self.best_mode == "min" else value > best)


class _Run:
    """One call of `Trainer.fit`: what changes while it trains."""

    def __init__(
        self,
        trainer: Trainer,
        objective: Objective,
        stream: TrainingStream,
        sharding: DataParallel,
        checkpoints: Checkpoints,
        workdir: Path,
        evaluate: Evaluate | None,
        watch: Watch | None,
        account: TimeAccount,
    ) -> None:
        self.trainer = trainer
        self.objective = objective
        self.stream = stream
        self.sharding = sharding
        self.checkpoints = checkpoints
        self.workdir = workdir
        self.evaluate = evaluate
        self.watch = watch
        self.account = account
        self.log: RunLog | None = None
        self.reached: ThresholdReached | None = None
        self.transformation, self.learning_rate = trainer.optimizer.build(
            stream.batch_size, stream.samples_per_epoch, trainer.steps, getattr(objective, "decayed", None)
        )
        self.step = 0
        self.is_continued = False
        self.window = Window()
        self.best: float | None = None
        self.is_lead = jax.process_index() == 0

    def start(self, init_params: Params | None, frozen: Params, kept: Params | None) -> None:
        """Restores the newest usable checkpoint, or makes the first state."""
        if shared := sorted(set(frozen) & set(kept or {})):
            raise ValueError(f"weights {shared} are both frozen and kept; they belong to the run or they do not.")
        self.frozen = self.sharding.place(frozen)
        first = FirstState(
            self.objective,
            self.transformation,
            self.sharding,
            seed=self.trainer.seed,
            with_ema=self.trainer.ema_decay is not None,
            init_params=init_params,
            kept=kept,
        )
        self.train_step = make_train_step(
            self.objective,
            self.transformation,
            self.learning_rate,
            self.sharding,
            first.placement,
            accumulation_steps=self.trainer.accumulation_steps,
            ema_decay=self.trainer.ema_decay,
        )
        restored = self.checkpoints.restore(first.template)
        if restored is not None:
            self.state, self.step, self.is_continued = restored.state, restored.step, True
            self.stream.set_state(restored.stream_state)
            self.window = Window(restored.loop_state["pending"])
            self.best = restored.loop_state["best"]
            logging.info("resuming after step %d of %d", self.step, self.trainer.steps)
        else:
            self.state = first.make()
        if self.is_lead:
            size = sum(leaf.size for leaf in self.state.params.values())
            held = sum(leaf.size for leaf in jax.tree.leaves((frozen, self.state.kept)))
            logging.info(
                "training %d parameters on %d devices%s", size, self.sharding.num_devices,
                f", {held} more are frozen" if held else "",
            )  # fmt: skip
            logging.info("%s", self.sharding.describe_batch(self.stream.batch_size, self.trainer.accumulation_steps))

    def train(self, profiled: StepRange | None) -> None:
        """Runs the steps that are left, and traces some of them."""
        if self.step >= self.trainer.steps:
            logging.info("nothing to train: step %d of %d is done", self.step, self.trainer.steps)
            return
        self.batches = DevicePrefetch(self.stream, self.sharding, self.trainer.prefetch)
        self.log = RunLog(
            self.workdir, self.trainer.steps, self.step, is_continued=self.is_continued, account=self.account
        )
        self.profiler = StepProfiler(profiled, self.workdir / TENSORBOARD_FOLDER, self.step, self.account)
        self.running = StepWatch()
        try:
            with PreemptionGuard() as preemption, self.account.phase(STEPS):
                self._steps(preemption)
            with self.account.phase(CHECKPOINT):
                self.checkpoints.wait()
        finally:
            self.profiler.close()
            self.running.close()
            self.log.close()

    def _steps(self, preemption: PreemptionGuard) -> None:
        trainer = self.trainer
        in_flight: deque[Metrics] = deque()
        self.pace = StepPace(self.account)
        if self.evaluate and trainer.eval_at_start and not self.is_continued:
            self._evaluate()
        while self.step < trainer.steps:
            self.profiler.before(self.step + 1, in_flight[-1] if in_flight else None)
            with step_annotation(self.step + 1):
                with self.account.input_phase(self.running.idle_since):
                    batch = self.batches.take()
                self.state, metrics = self.train_step(self.state, batch.arrays, self.frozen)
                self.running.add(metrics)
                self.step += 1
                self.window.add(self.step, metrics)
                self.stream_state = batch.stream_state_after
                in_flight.append(metrics)
                last = self.step == trainer.steps
                if not last:
                    with self.account.input_phase(self.running.idle_since):
                        self.batches.fill()
                if len(in_flight) > _STEPS_IN_FLIGHT:
                    wait_for(in_flight.popleft())
            self.pace.advance()
            self.log.advance()
            self.checkpoints.check()
            stop = preemption.requested(self.step)
            if last or self.step % trainer.log_every == 0:
                self._log_window()
            scores, is_best = None, False
            if self.evaluate and (last or (trainer.eval_every and self.step % trainer.eval_every == 0)):
                scores = self._evaluate()
                is_best = self._note_best(scores)
            if stop or last or is_best or self.reached or self.step % trainer.save_every == 0:
                self._save(scores)
            self.profiler.after(self.step, metrics)
            if self.reached or (stop and not last):
                with self.account.phase(CHECKPOINT):
                    self.checkpoints.wait()
                raise self.reached or Preempted(self.step)

    def _log_window(self) -> None:
        self.window.fetch()
        with self.account.phase(OTHER):
            perf = self.pace.report(self.stream.batch_size)
            values = self.window.log()
            self.log.window(self.step, values, perf)
            self._let_watch({f"train/{name}": value for name, value in values.items()})
        self.pace.restart()

    def _evaluate(self) -> dict[str, float]:
        self.window.fetch()
        with self.account.phase(EVALUATION):
            start = perf_counter()
            results = self.evaluate(self.state.weights, self.step)
            scores = {name: float(value) for name, value in results.items() if is_scalar(value)}
            require_finite(self.step, scores)
            named = {f"eval/{name}": value for name, value in scores.items()}
            self.log.evaluation(self.step, named, results, {"eval_s": perf_counter() - start})
            self._let_watch(named)
        return scores

    def _let_watch(self, values: Mapping[str, float]) -> None:
        # A stop waits for the end of the step, so that its evaluation and its checkpoint are as in any other run.
        try:
            if self.watch:
                self.watch(self.step, values)
        except ThresholdReached as reached:
            self.reached = self.reached or reached

    def _note_best(self, scores: Mapping[str, float]) -> bool:
        name = self.trainer.best_metric
        if name is None:
            return False
        if name not in scores:
            raise ValueError(f"best_metric={name!r} is not among the evaluation's results {sorted(scores)}.")
        if not self.trainer.is_better(scores[name], self.best):
            return False
        self.best = scores[name]
        return True

    def _save(self, scores: Mapping[str, float] | None) -> None:
        # Nothing is saved before all its metrics are known to be finite.
        self.window.fetch()
        with self.account.phase(CHECKPOINT):
            self.log.flush()
            loop_state = {"pending": self.window.pending, "best": self.best}
            self.checkpoints.save(self.step, self.state, self.stream_state, loop_state, scores)
            self.log.note_time(self.step)
