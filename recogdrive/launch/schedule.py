"""Works through runs: each when those before it are done and a slot is free, until all ended or a stop is asked for."""

import json
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.board import Board
from recogdrive.launch.fleet import PREEMPTED_EXIT_CODE, Fleet, Progress, State, StopRequests
from recogdrive.launch.plan import Run
from recogdrive.launch.run_record import is_done, is_older_than
from recogdrive.run_folder import write_text

SUMMARY_FILE = "launch.json"
_GOOD = (State.FINISHED, State.DONE_BEFORE, State.PRUNED)
_DRAW_EVERY_S = 1.0


class Work(Protocol):
    """Where runs come from.

    Attributes:
      rows: All that there are so far, for the table.
    """

    rows: list[Progress]

    def next(self, fleet: Fleet) -> Progress | None:
        """A run that can start now, and has a slot."""
        ...

    def ended(self, row: Progress) -> Iterable[Progress]:
        """Hears that a run ended; returns other rows that this changed."""
        ...

    def watch(self, fleet: Fleet) -> None:
        """Called again and again while runs are at work."""
        ...

    def over(self) -> bool:
        """Whether nothing is left to start."""
        ...


class PlannedWork:
    """The runs of a launch file: skips what is done, and what builds on a run that failed.

    Args:
      runs: In the order to start them.
      kinds: Kinds of the slots there are.

    Raises:
      ConfigurationError: A run needs a kind of slot that there is not.
    """

    def __init__(self, runs: Sequence[Run], kinds: Iterable[str]) -> None:
        kinds = sorted(set(kinds))
        for run in runs:
            if run.on is not None and run.on not in kinds:
                raise ConfigurationError(
                    f"{run.name} runs on {run.on}, and the slots are {', '.join(kinds)}; add one with --slots."
                )
        self.rows = [Progress(run) for run in runs]
        self._by_name = {row.run.name: row for row in self.rows}
        for row in self.rows:
            if is_done(row.run):
                row.state = State.DONE_BEFORE
                older = [n for n in row.run.after if is_older_than(row.run, self._by_name[n].run)]
                if older:
                    row.note = f"older than {', '.join(older)}; delete {row.run.workdir} to run it again"

    def next(self, fleet: Fleet) -> Progress | None:
        """The first run whose turn it is."""
        for row in self.rows:
            ready = all(self._by_name[name].state in _GOOD for name in row.run.after)
            if row.state is State.WAITING and ready and fleet.free_slot(row.run.on) is not None:
                return row
        return None

    def ended(self, row: Progress) -> list[Progress]:
        """Skips what a failed run was needed for, directly or not."""
        skipped: list[Progress] = []
        lost = [row] if row.state is State.FAILED else []
        while lost:
            cause = lost.pop()
            for other in self.rows:
                if other.state is State.WAITING and cause.run.name in other.run.after:
                    other.state = State.SKIPPED
                    other.note = f"needs {cause.run.name}, which {_word(cause.state)}"
                    skipped.append(other)
                    lost.append(other)
        return skipped

    def watch(self, fleet: Fleet) -> None:
        """Nothing to do."""

    def over(self) -> bool:
        """Whether none waits that could still start; what waits for a stopped run cannot."""
        if any(row.state is State.RUNNING for row in self.rows):
            return False
        return not any(
            row.state is State.WAITING and all(self._by_name[n].state in _GOOD for n in row.run.after)
            for row in self.rows
        )


def _word(state: State) -> str:
    return {State.FAILED: "failed", State.SKIPPED: "was skipped"}[state]


def work_through(work: Work, fleet: Fleet, board: Board, poll_s: float = 0.2) -> int:
    """Runs everything; returns the exit code of the launch.

    The first SIGINT, SIGTERM or SIGHUP goes to every process as SIGTERM, upon which training saves and stops; nothing
    more is started, and their end is awaited. A second one only says so, a third kills them.

    Args:
      work: What to run.
      fleet: Where, entered.
      board: What a person sees.
      poll_s: Seconds between two looks at the processes.

    Returns:
      0 if all finished or were done, 1 if one failed or was skipped, else 75 if one was stopped or not started.
    """
    drawn, answered = 0.0, 0
    for row in work.rows:
        if row.state is not State.WAITING:
            board.event(row)
    with StopRequests() as stop:
        while True:
            for row in fleet.poll():
                changed = [row, *work.ended(row)]
                if row.state is State.STOPPED and stop.count == 0:
                    row.note += "; somebody else stopped it"
                for other in changed:
                    board.event(other)
            if stop.count > answered:
                answered = stop.count
                _pass_on(answered, fleet, board)
            while not stop.count and (row := work.next(fleet)) is not None:
                fleet.start(row, fleet.free_slot(row.run.on))
                board.event(row)
                if row.state is State.FAILED:
                    for other in work.ended(row):
                        board.event(other)
            if not fleet.running and (stop.count or work.over()):
                break
            work.watch(fleet)
            if time.monotonic() - drawn >= _DRAW_EVERY_S:
                drawn = time.monotonic()
                board.draw(work.rows)
            time.sleep(poll_s)
    for row in work.rows:
        if row.state is State.WAITING:
            row.note = row.note or "not started"
    board.close(work.rows)
    return exit_code(work.rows)


def _pass_on(count: int, fleet: Fleet, board: Board) -> None:
    """Answers the request to stop of that number."""
    names = ", ".join(row.run.name for row in fleet.running) or "none"
    if count == 1:
        fleet.signal(signal.SIGTERM)
        board.say(f"asked to stop: starting nothing more, waiting for checkpoints of {names}")
    elif count == 2:
        board.say(f"still waiting for {names}; a third signal kills without saving")
    else:
        fleet.signal(signal.SIGKILL)
        board.say(f"killing {names}")


def exit_code(rows: Sequence[Progress]) -> int:
    """The launch's exit code, as `work_through` describes it."""
    states = {row.state for row in rows}
    if states & {State.FAILED, State.SKIPPED}:
        return 1
    return 0 if states <= set(_GOOD) else PREEMPTED_EXIT_CODE


def write_summary(path: Path, rows: Sequence[Progress], logs: Mapping[str, Path]) -> None:
    """Writes how every run of a launch ended as JSON.

    Args:
      path: Where to.
      rows: The runs.
      logs: Name of a run -> its log.
    """
    entries = {
        row.run.name: {
            "state": row.state.value.lower(),
            "note": row.note,
            "slot": row.slot or None,
            "seconds": round(row.seconds, 1),
            "exit_code": row.exit_code,
            "workdir": str(row.run.workdir),
            "log": str(logs[row.run.name]),
        }
        for row in rows
    }
    write_text(path, json.dumps({"exit_code": exit_code(rows), "runs": entries}, indent=2) + "\n")
