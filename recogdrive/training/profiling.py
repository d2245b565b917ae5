"""XProf traces of some steps of a run, where TensorBoard looks for them."""

import contextlib
import contextvars
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jax
from absl import logging
from packaging.requirements import Requirement

from recogdrive.training.step import Metrics
from recogdrive.training.time_account import OTHER, TimeAccount
from recogdrive.training.window import wait_for

PROFILE_FOLDER = "plugins/profile"
"""Within TensorBoard's folder: one folder a trace, in it one file a process."""

_STEP = "train"


@dataclass(frozen=True)
class StepRange:
    """Steps to trace: `first`, counted from 1, up to and without `end`.

    Raises:
      ValueError: It is empty, or begins before the first step.
    """

    first: int
    end: int

    def __post_init__(self) -> None:
        if not 1 <= self.first < self.end:
            raise ValueError(
                f"profile_steps={self} names no steps: A must be at least 1 and B, which is not included, above A."
            )

    def __str__(self) -> str:
        return f"{self.first}:{self.end}"

    @classmethod
    def parse(cls, text: str) -> "StepRange":
        """Reads `A:B`.

        Raises:
          ValueError: It is not of that form, or names no steps.
        """
        if not (match := re.fullmatch(r"\s*(-?\d+)\s*:\s*(-?\d+)\s*", text)):
            raise ValueError(f"profile_steps={text!r} must be A:B, such as 10:13 for steps 10, 11 and 12.")
        return cls(int(match[1]), int(match[2]))

    def require_within(self, steps: int) -> None:
        """Refuses steps that the run does not have.

        Raises:
          ValueError: Names the last step there is.
        """
        if self.end > steps + 1:
            raise ValueError(
                f"profile_steps={self} asks for steps up to {self.end - 1}, but the run has {steps}; B may be up to "
                f"{steps + 1}."
            )


_requested: contextvars.ContextVar[StepRange | None] = contextvars.ContextVar("profile_steps", default=None)


def requested_steps(steps: int) -> StepRange | None:
    """What `tracing` asks for; None where nothing is to be traced.

    Args:
      steps: Length of the run.

    Raises:
      ValueError: The run does not have these steps, or JAX cannot trace here.
    """
    requested = _requested.get()
    if requested is not None:
        requested.require_within(steps)
        _require_matching_libtpu()
    return requested


def _require_matching_libtpu() -> None:
    """Refuses what would end the process: jaxlib calls the profiler of a loaded libtpu by its own release's layout."""
    wanted = next((r for r in map(Requirement, metadata.requires("jax") or ()) if r.name == "libtpu"), None)
    if wanted is None or not _is_loaded("libtpu.so"):
        return
    try:
        found = metadata.version("libtpu")
    except metadata.PackageNotFoundError:  # The system's own, of which nothing is known.
        return
    if found not in wanted.specifier:
        raise ValueError(
            f"profile_steps: libtpu {found} is loaded, and the profiler of jax {jax.__version__} crashes with "
            f"any but {wanted.specifier}. Without a TPU set JAX_PLATFORMS=cpu (or cuda), which leaves libtpu out; on a "
            "TPU install 'recogdrive[tpu]'."
        )


def _is_loaded(library: str) -> bool:
    try:
        return library in Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:  # No Linux, no libtpu.
        return False


@contextlib.contextmanager
def tracing(steps: StepRange | None) -> Iterator[None]:
    """Within it, a training run traces these steps: a wish for one start of it, so no part of its configuration."""
    token = _requested.set(steps)
    try:
        yield
    finally:
        _requested.reset(token)


def step_annotation(step: int) -> contextlib.AbstractContextManager:
    """Marks what belongs to a step, for XProf's table of steps; costs next to nothing where nothing is traced."""
    return jax.profiler.StepTraceAnnotation(_STEP, step_num=step)


class StepProfiler:
    """Traces a range of steps of one start of a run.

    A run continued behind the first of them traces those that are left; one continued behind the last says that it
    traces none.

    Args:
      steps: What to trace; None traces nothing.
      folder: TensorBoard's folder of the run.
      done: Updates done when the run starts.
      account: Of the run's time; starting and writing a trace is `OTHER`.
    """

    def __init__(self, steps: StepRange | None, folder: Path, done: int, account: TimeAccount) -> None:
        self._account = account
        self._folder = folder / PROFILE_FOLDER
        # Processes of one host would write the same file. Not where TensorBoard looks; made when the trace is written.
        self._working = folder.parent / f".trace-{os.getpid()}"
        self._is_tracing = False
        self._last_traced = 0
        self._first, self._end = (0, 0) if steps is None else (max(steps.first, done + 1), steps.end)
        if steps is None or steps.first > done:
            return
        if self._first < self._end:
            logging.warning(
                "profile_steps=%s begins before step %d, the next one: tracing from there", steps, done + 1
            )  # fmt: skip
        else:
            logging.warning(
                "profile_steps=%s is over, the run continues with step %d: no trace. Name later steps, or start in a "
                "new --workdir.", steps, done + 1,
            )  # fmt: skip

    def before(self, step: int, newest: Metrics | None) -> None:
        """Called before each step; starts the trace before the first of the range.

        Args:
          step: Number of the step about to run.
          newest: Metrics of the step before, None at the start: steps under way do not belong to the trace.
        """
        if step != self._first or self._first >= self._end:
            return
        if newest is not None:
            wait_for(newest)
        options = jax.profiler.ProfileOptions()
        options.session_id = self._name
        options.python_tracer_level = 0  # Tracing every call would slow down the loop that is looked at.
        try:
            with self._account.phase(OTHER):
                jax.profiler.start_trace(self._working, profiler_options=options)
            self._is_tracing = True
        except RuntimeError as error:
            logging.error("steps %d to %d are not traced: %s", self._first, self._end - 1, error)

    @property
    def _name(self) -> str:
        # Known to every process without asking, and the same again where these steps are traced again.
        return f"steps_{self._first}_to_{self._end - 1}"

    def after(self, step: int, newest: Metrics) -> None:
        """Called after each step; writes the trace after the last of the range, once the devices have done it."""
        if not self._is_tracing:
            return
        self._last_traced = step
        if step + 1 >= self._end:
            wait_for(newest)
            self.close()

    def close(self) -> None:
        """Writes what was traced, where the run ends within the range; a trace that cannot be written ends no run."""
        if not self._is_tracing:
            return
        self._is_tracing = False
        try:
            with self._account.phase(OTHER):
                jax.profiler.stop_trace()
                self._move()
        except (OSError, RuntimeError) as error:
            logging.error("the trace of steps %d to %d was lost: %s", self._first, self._last_traced, error)
        finally:
            shutil.rmtree(self._working, ignore_errors=True)

    def _move(self) -> None:
        target = self._folder / self._name
        target.mkdir(parents=True, exist_ok=True)
        number = f".{jax.process_index()}" if jax.process_count() > 1 else ""
        for file in sorted(self._working.glob(f"{PROFILE_FOLDER}/*/*")):
            host, kind = _split(file.name)
            file.replace(target / f"{host}{number}{kind}")
        logging.info("trace of steps %d to %d: %s", self._first, self._last_traced, target)


def _split(name: str) -> tuple[str, str]:
    """Name of the host and kind of file, such as `.xplane.pb`."""
    kind = next((kind for kind in (".xplane.pb", ".trace.json.gz") if name.endswith(kind)), Path(name).suffix)
    return name.removesuffix(kind), kind


def traces(tensorboard_folder: Path) -> list[Path]:
    """Folders of the traces there, oldest first."""
    return sorted((tensorboard_folder / PROFILE_FOLDER).glob("*"), key=lambda path: path.stat().st_mtime)
