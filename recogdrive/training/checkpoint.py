"""Checkpoints of a training run: saved in the background, sealed, verified before use, never half trusted."""

import contextlib
import logging as std_logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging

from recogdrive.hosts import member
from recogdrive.training import manifest
from recogdrive.training.preservation import Preservation
from recogdrive.training.saved import (
    CHECKPOINTS_FOLDER,
    LOOP,
    STATE,
    STREAM,
    Json,
    differences,
    listed,
    read_json,
    restore_arrays,
    saved_steps,
    stored_shapes,
    usable_steps,
)
from recogdrive.training.state import Params, TrainState, from_stored, to_stored

_ORBAX_FOLDER = str(Path(ocp.__file__).parent)
_TEMPORARY = ".orbax-checkpoint-tmp"


def quiet_orbax() -> None:
    """Keeps Orbax's notes on every part of every save out of the log; its warnings stay."""

    def is_wanted(record: std_logging.LogRecord) -> bool:
        if _ORBAX_FOLDER not in record.pathname:
            return True
        # Arrays are read from a part of a checkpoint; Orbax then misses a file that lies one folder higher.
        return record.levelno >= std_logging.WARNING and "Metadata file does not exist" not in str(record.msg)

    logger = logging.get_absl_logger()
    if not any(getattr(known, "__qualname__", "") == is_wanted.__qualname__ for known in logger.filters):
        logger.addFilter(is_wanted)


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved, or none of those there can be used."""


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds.

    Attributes:
      step: Updates done.
      state: Training state, placed as the template asked.
      stream_state: Position of the data stream.
      loop_state: What the training loop handed over.
    """

    step: int
    state: TrainState
    stream_state: Json
    loop_state: Json


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise CheckpointError(
            f"cannot write checkpoints to {folder}: {error}. Make the folder writable and free disk space, "
            f"or choose another --workdir."
        ) from error


class _Manager(ocp.CheckpointManager):
    """Orbax's, which asks nobody whether the run is to stop: that is the loop's to ask, once a step.

    Orbax asks too, in the background and for steps that are past. JAX takes a step that is asked about as the one its
    process is at: processes would agree on a step to stop at that one of them has left, and wait for it for ever.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints of one run, in one folder, one subfolder a step.

    A save runs in the background. Once its files are complete they are flushed and sealed with a manifest of sizes and
    checksums, and only then does the checkpoint take its final name; older ones go after that. `restore` uses
    the newest one whose seal holds.

    Args:
      folder: Where checkpoints are kept; made if absent.
      identity: What must be the same for a run to be continued (batch size, seed, ...); JSON-serialisable.
      keep_last: How many of the newest are kept.
      best_metric: Metric by which the best checkpoints are kept as well; None keeps none for its score.
      best_mode: "min" or "max".
      keep_best: How many of the best are kept.

    Raises:
      CheckpointError: The folder cannot be written to.
      ValueError: An argument out of range.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Json | None = None,
        keep_last: int = 2,
        best_metric: str | None = None,
        best_mode: str = "min",
        keep_best: int = 1,
    ) -> None:
        quiet_orbax()
        self._folder = folder.absolute()
        self._preservation = Preservation(self._folder, keep_last, best_metric, best_mode, keep_best)
        self._identity = dict(identity or {})
        self._best = {"metric": best_metric, "mode": best_mode}
        self._pending: int | None = None
        _require_writable(self._folder)
        self._remove_leftovers()
        # Orbax deletes nothing: a restart makes it forget scores, and a kill leaves it with half a checkpoint.
        self._options = ocp.CheckpointManagerOptions(
            # Folders made in the background would leave the writers waiting for ten minutes where one cannot be made.
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._seal_pending, create_directories_asynchronously=False
            ),
        )
        self._manager: _Manager | None = None

    def _remove_leftovers(self) -> None:
        """Deletes what saves and deletions cut short by a crash left behind; none of it has a step's name."""
        self._preservation.remove_leftovers()
        if jax.process_index() == 0:
            for path in self._folder.glob(f"*{_TEMPORARY}*"):
                logging.info("removing the remains of an interrupted save: %s", path)
                shutil.rmtree(path)

    def _seal_pending(self) -> None:
        """Orbax calls this in its background thread when all files are written, just before the final rename."""
        (temporary,) = self._folder.glob(f"{self._pending}{_TEMPORARY}*")
        manifest.seal(temporary)

    @property
    def _orbax(self) -> _Manager:
        # Made at the first save, so that it sees the folder as `restore` left it.
        if self._manager is None:
            self._manager = _Manager(self._folder, options=self._options)
        return self._manager

    def _failure(self, step: int, error: BaseException) -> CheckpointError:
        usable, _ = usable_steps(self._folder)
        last = f"the last good checkpoint is step {usable[-1]}" if usable else "there is no good checkpoint yet"
        return CheckpointError(
            f"saving step {step} to {self._folder} failed: {type(error).__name__}: {error}. Free disk space or make "
            f"the folder writable, then start the same command again; {last}."
        )

    def save(
        self,
        step: int,
        state: TrainState,
        stream_state: Json,
        loop_state: Json,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving in the background, after waiting for the save before; the state may be donated right after.

        Args:
          step: Updates done.
          state: Training state.
          stream_state: JSON-serialisable position of the data stream.
          loop_state: JSON-serialisable state of the loop.
          metrics: Scores of an evaluation at this step; None without one.

        Raises:
          CheckpointError: This save could not start or the one before failed.
        """
        self.wait()
        self._preservation.wait()  # What it deletes may be the room that this save needs.
        scores = None if metrics is None else {name: float(value) for name, value in metrics.items()}
        if scores is not None and self._best["metric"] not in (None, *scores):
            raise ValueError(
                f"the metric to keep the best by, {self._best['metric']!r}, is not among {sorted(scores)}."
            )
        self._pending = step
        try:
            self._orbax.save(
                step,
                args=ocp.args.Composite(
                    **{
                        STATE: ocp.args.PyTreeSave(to_stored(state)),
                        STREAM: ocp.args.JsonSave(stream_state),
                        LOOP: ocp.args.JsonSave(
                            {"loop": loop_state, "metrics": scores, "best": self._best, "identity": self._identity}
                        ),
                    }
                ),
                metrics=scores,
                force=True,
            )
        except Exception as error:
            self._pending = None
            raise self._failure(step, error) from error

    def check(self) -> None:
        """Surfaces the failure of a background save that has ended; cheap, for every step.

        Raises:
          CheckpointError: The save failed.
        """
        if self._pending is not None and not self._orbax.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the save under way; older checkpoints that it supersedes go.

        Raises:
          CheckpointError: It failed.
        """
        step = self._pending
        if step is None:
            return
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            raise self._failure(step, error) from error
        finally:
            self._pending = None
        self._preservation.prune()

    def close(self) -> None:
        """Waits for the save under way and frees the background threads.

        Raises:
          CheckpointError: The save failed.
        """
        try:
            self.wait()
        finally:
            if self._manager is not None:
                # A failure has been raised by `wait` already, or a more important error is on its way.
                with contextlib.suppress(Exception):
                    self._manager.close()
                self._manager = None
            self._preservation.wait()

    def restore(self, template: TrainState) -> Restored | None:
        """The newest sound checkpoint, or None where the folder holds none at all.

        Unsound ones newer than it are named in the log with the reason, and moved aside so that the run can save these
        steps again. Older ones that are not kept go, as they would have after the save.

        Args:
          template: Shapes, dtypes and shardings to restore to (abstract arrays do); any number of devices.

        Raises:
          CheckpointError: There are checkpoints and none can be used.
          ValueError: The checkpoint is of another run, model or optimiser; all differences are listed.
        """
        step, reasons = member.on_lead(self._newest_sound)  # All must choose the same one.
        unsound = {int(number): reason for number, reason in reasons.items()}
        if step is not None:
            folder = self._folder / str(step)
            self._require_same_run(step)
            wanted = to_stored(template)
            if different := differences(stored_shapes(folder), wanted):
                raise ValueError(
                    f"the checkpoint of step {step} in {self._folder} does not fit this configuration; resume with the "
                    f"one it was trained with or start in a new --workdir:{listed(different)}"
                )
            state = from_stored(restore_arrays(folder, wanted, partial=False), template)
            member.on_lead(lambda: self._set_aside(unsound))
            if unsound:
                logging.error("falling back to the checkpoint of step %d", step)
            self._preservation.prune()
            return Restored(step, state, read_json(folder, STREAM), read_json(folder, LOOP)["loop"])
        if unsound:
            raise CheckpointError(
                f"none of the {len(unsound)} checkpoints in {self._folder} can be used, and a run that has checkpoints "
                f"does not start over by itself; restore them from a backup, or start in a new --workdir:"
                + listed([f"step {step}: {reason}" for step, reason in unsound.items()])
            )
        return None

    def _newest_sound(self) -> tuple[int | None, dict[int, str]]:
        """The step of the newest checkpoint that can be used, and why newer ones cannot."""
        unsound: dict[int, str] = {}
        for step in reversed(saved_steps(self._folder)):
            reason = "; ".join(manifest.problems(self._folder / str(step)))
            if not reason:
                return step, unsound
            logging.error("the checkpoint of step %d in %s cannot be used: %s", step, self._folder, reason)
            unsound[step] = reason
        return None, unsound

    def _require_same_run(self, step: int) -> None:
        saved = read_json(self._folder / str(step), LOOP)["identity"]
        names = [name for name in sorted({*saved, *self._identity}) if saved.get(name) != self._identity.get(name)]
        if names:
            lines = [
                f"{name}: {saved.get(name)!r} in the checkpoint, {self._identity.get(name)!r} here" for name in names
            ]
            raise ValueError(
                f"the checkpoint of step {step} in {self._folder} belongs to a differently configured run; resume with "
                f"its values or start in a new --workdir:{listed(lines)}"
            )

    def _set_aside(self, unsound: Mapping[int, str]) -> None:
        for step in unsound:
            target = Path(tempfile.mkdtemp(prefix=f"unusable-{step}-", dir=self._folder))
            (self._folder / str(step)).rename(target / str(step))
            logging.error("moved the unusable checkpoint of step %d to %s", step, target)


def _best_or_latest(folder: Path, steps: list[int]) -> int:
    scores = {}
    for step in steps:
        loop = read_json(folder / str(step), LOOP)
        name = loop["best"]["metric"]
        if name is not None and loop["metrics"] is not None:
            scores[step] = loop["metrics"][name] * (1 if loop["best"]["mode"] == "min" else -1)
    return min(scores, key=scores.get) if scores else steps[-1]


def load_params(
    folder: Path,
    template: Mapping[str, jax.ShapeDtypeStruct | jax.Array] | None = None,
    *,
    prefer: str = "ema",
    which: str = "best",
) -> Params:
    """The weights of a run, for evaluation or to start another run from, without its optimiser state.

    They come to the first device of this process. Every process reads them for itself, at its own time.

    Args:
      folder: Run folder, its folder of checkpoints, or one checkpoint.
      template: Parameters (or their `jax.eval_shape`) that the weights must fit; None takes whatever is there.
      prefer: "ema" takes the moving average where the run kept one, "params" the trained weights.
      which: "best" by the run's metric, where it kept one, or "latest".

    Raises:
      FileNotFoundError: No checkpoint there.
      CheckpointError: None of those there can be used.
      ValueError: Names or shapes differ from `template`; all are listed.
    """
    if prefer not in ("ema", "params") or which not in ("best", "latest"):
        raise ValueError(f"prefer={prefer!r} must be 'ema' or 'params', which={which!r} must be 'best' or 'latest'.")
    quiet_orbax()
    folder = Path(folder).absolute()
    folder = folder / CHECKPOINTS_FOLDER if (folder / CHECKPOINTS_FOLDER).is_dir() else folder
    if (folder / manifest.MANIFEST).is_file() or (folder / STATE).is_dir():
        if found := manifest.problems(folder):
            raise CheckpointError(f"the checkpoint {folder} cannot be used: {'; '.join(found)}")
        checkpoint = folder
    else:
        usable, reasons = usable_steps(folder)
        for step, reason in reasons.items():
            logging.error("the checkpoint of step %d in %s cannot be used: %s", step, folder, reason)
        if not usable and reasons:
            found = [f"step {step}: {reason}" for step, reason in reasons.items()]
            raise CheckpointError(f"none of the checkpoints in {folder} can be used:{listed(found)}")
        if not usable:
            raise FileNotFoundError(f"no checkpoint in {folder}; train a run there first or name another folder.")
        checkpoint = folder / str(_best_or_latest(folder, usable) if which == "best" else usable[-1])
    shapes = stored_shapes(checkpoint)
    item = "ema" if prefer == "ema" and "ema" in shapes else "params"
    if template is not None and (different := differences(shapes[item], template)):
        raise ValueError(f"the weights in {checkpoint} do not fit this model:{listed(different)}")
    placement = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement) for name, leaf in shapes[item].items()
    }
    logging.info("loading %s of %s", item, checkpoint)
    return restore_arrays(checkpoint, {item: wanted}, partial=True)[item]
