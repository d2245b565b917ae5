"""Processes in slots: starts them, notices their end, passes a request to stop on to them."""

import datetime
import enum
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.plan import LOGS_FOLDER, Run
from recogdrive.launch.run_record import ATTEMPT_MARK, last_words, was_started
from recogdrive.launch.shell import shell_line
from recogdrive.launch.slots import Slot, nvidia_libraries

PREEMPTED_EXIT_CODE = 75
"""With which a run ends that saved and stopped on request; `recogdrive.training.preemption` imports jax."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class State(enum.Enum):
    """How a run of a launch stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE_BEFORE = "done before"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "FAILED"
    STOPPED = "stopped"
    SKIPPED = "skipped"


@dataclass
class Progress:
    """One row of the table.

    Attributes:
      run: What it is about.
      state: How it stands.
      slot: Where it runs or ran.
      started: When its process did, by the monotonic clock, in seconds.
      seconds: How long it ran, once it ended.
      exit_code: Of its process; negative for a signal.
      note: Why it failed, was skipped, or is worth a look.
    """

    run: Run
    state: State = State.WAITING
    slot: str = ""
    started: float = 0.0
    seconds: float = 0.0
    exit_code: int | None = None
    note: str = ""

    def elapsed_s(self) -> float:
        """Seconds since its process started, or those it ran."""
        return time.monotonic() - self.started if self.state is State.RUNNING else self.seconds


class Fleet:
    """Runs in slots, each with a log of its own in `root/logs`.

    Entered, it holds a lock on `root` that its processes hold too: a second launcher in the same folder is refused as
    long as any of them lives, even if the first was killed.

    Args:
      root: Folder of the launch; made if absent.
      slots: One run each at a time.
      command: What a run is started by; empty for this Python's `-m recogdrive.main`.

    Raises (when entered):
      ConfigurationError: The folder is taken, or cannot be written.
    """

    def __init__(self, root: Path, slots: Sequence[Slot], command: Sequence[str] = ()) -> None:
        self.root = root
        self.slots = list(slots)
        self._command = list(command) or [sys.executable, "-m", "recogdrive.main"]
        self._processes: dict[str, tuple[subprocess.Popen[bytes], Progress]] = {}
        self._libraries = nvidia_libraries() if any(slot.kind == "gpu" for slot in slots) else []
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        lock = self.root / "launch.lock"
        try:
            (self.root / LOGS_FOLDER).mkdir(parents=True, exist_ok=True)
            self._lock = lock.open("a+")
        except OSError as error:
            raise ConfigurationError(f"Cannot write the folder {self.root}: {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip()
            self._lock.close()
            raise ConfigurationError(
                f"A launcher (process {holder}), or a run that it started, is still at work in {self.root}. Wait for "
                f"it, stop it (kill {holder}; fuser {lock} lists runs of one that is gone), or take another workdir."
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:  # Only by a defect of the launcher: nothing may go on unseen.
            self.signal(signal.SIGTERM)
        self._lock.close()

    @property
    def running(self) -> list[Progress]:
        """Rows whose process lives."""
        return [progress for _, progress in self._processes.values()]

    def log(self, run: Run) -> Path:
        """Where a run's output goes."""
        return self.root / LOGS_FOLDER / f"{run.name}.log"

    def free_slot(self, kind: str | None) -> Slot | None:
        """A slot of a kind, or of any, that nothing runs in."""
        taken = {progress.slot for progress in self.running}
        return next((s for s in self.slots if s.name not in taken and kind in (None, s.kind)), None)

    def environment(self, run: Run, slot: Slot) -> dict[str, str]:
        """Variables of a run beside those of the launcher; its own XLA_FLAGS are added to the slot's."""
        variables = self.slot_environment(slot)
        own = dict(run.env)
        if "XLA_FLAGS" in own:
            before = variables.get("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
            own["XLA_FLAGS"] = f"{before} {own['XLA_FLAGS']}".strip()
        return {**variables, **own}

    def slot_environment(self, slot: Slot) -> dict[str, str]:
        """Variables that a slot gives its runs."""
        return {"PYTHONUNBUFFERED": "1", **slot.environment(os.environ, self._libraries)}

    def command(self, run: Run) -> list[str]:
        """The command of a run."""
        return [*self._command, *run.arguments()]

    def start(self, progress: Progress, slot: Slot) -> None:
        """Starts a run in a slot; one that cannot be started has failed."""
        run = progress.run
        variables = self.environment(run, slot)
        progress.slot, progress.started, progress.state = slot.name, time.monotonic(), State.RUNNING
        progress.exit_code, progress.note = None, "continues" if was_started(run) else ""
        with self.log(run).open("ab") as log:
            log.write(f"{ATTEMPT_MARK}{_now()} {shell_line(variables, self.command(run))}\n".encode())
            log.flush()
            try:
                process = subprocess.Popen(
                    self.command(run),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | variables,
                    # Ctrl-C of the terminal reaches the launcher alone, which passes it on.
                    start_new_session=True,
                    pass_fds=[self._lock.fileno()] if self._lock else [],
                )
            except OSError as error:
                progress.state = State.FAILED
                progress.note = f"{self.command(run)[0]} cannot be started: {error.strerror}"
                return
        self._processes[run.name] = (process, progress)

    def poll(self) -> list[Progress]:
        """Rows of the runs that ended since, with how they ended."""
        ended = []
        for name, (process, progress) in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self._processes[name]
            progress.seconds = progress.elapsed_s()
            progress.exit_code = code
            progress.state, progress.note = _outcome(code, last_words(self.log(progress.run)))
            ended.append(progress)
        return ended

    def signal(self, number: int, name: str | None = None) -> None:
        """Sends a signal to the process of one run, or of each; SIGKILL to all that they started too."""
        for process, progress in self._processes.values():
            if name not in (None, progress.run.name):
                continue
            try:
                (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
            except ProcessLookupError:
                continue  # It ended just now; the next poll says how.


def _outcome(code: int, words: str) -> tuple[State, str]:
    if code == 0:
        return State.FINISHED, ""
    if code == PREEMPTED_EXIT_CODE:
        return State.STOPPED, "saved; the same command continues it"
    if code in (-signal.SIGTERM, -signal.SIGINT):
        return State.STOPPED, "ended at once: it was not training; the same command runs it again"
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return State.FAILED, f"killed by {signal.Signals(-code).name}{hint}" + (f": {words}" if words else "")
    return State.FAILED, words or f"exit code {code}"


class StopRequests:
    """While entered, counts SIGINT, SIGTERM and SIGHUP instead of ending the launcher; what nohup ignores stays so."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.count += 1


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
