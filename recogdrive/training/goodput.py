"""What came of a run's wall time: the account of every attempt on disk, and tables of it."""

import datetime
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging

from recogdrive.run_folder import GOODPUT_FILE, write_text
from recogdrive.training.time_account import (
    CHECKPOINT,
    COMPILE,
    EVALUATION,
    INPUT,
    KINDS,
    OTHER,
    START,
    STEPS,
    Spent,
    TimeAccount,
)

TITLES = {
    START: "start-up, restore",
    COMPILE: "compile",
    INPUT: "input wait",
    STEPS: "steps",
    CHECKPOINT: "checkpoints (blocking)",
    EVALUATION: "evaluation",
    OTHER: "other",
}


@dataclass(frozen=True)
class Attempt(Spent):
    """One start of a run, as far as it is known: of one that was killed, until its last log line or checkpoint.

    Attributes:
      started: When training began, ISO 8601 in UTC.
      from_step: Updates that were done before it.
      to_step: Updates done at its end.
    """

    started: str
    from_step: int
    to_step: int

    @property
    def steps(self) -> int:
        """Updates that it did."""
        return self.to_step - self.from_step

    def to_json(self) -> dict[str, Any]:
        """As it is kept on disk, to a millisecond."""
        share = self.seconds[STEPS] / self.wall if self.wall else 0.0
        return {
            "started": self.started,
            "from_step": self.from_step,
            "to_step": self.to_step,
            "goodput": round(share, 4),
            "wall_s": round(self.wall, 3),
            "seconds": {kind: round(value, 3) for kind, value in self.seconds.items()},
            "compiled_in": {kind: round(value, 3) for kind, value in self.compiled_in.items() if value},
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Attempt":
        """Inverse of `to_json`."""
        return cls(
            {kind: entry["seconds"].get(kind, 0.0) for kind in KINDS},
            entry["compiled_in"],
            entry["started"],
            entry["from_step"],
            entry["to_step"],
        )


def read_attempts(workdir: Path) -> list[Attempt]:
    """The attempts of a run, oldest first; none where nothing is known of them."""
    try:
        return [Attempt.from_json(entry) for entry in json.loads((workdir / GOODPUT_FILE).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        logging.warning("%s cannot be read and begins anew: %s", workdir / GOODPUT_FILE, error)
        return []


class GoodputFile:
    """Keeps the account of an attempt on disk beside those before it.

    Args:
      workdir: Run folder.
      account: Of this attempt.
      from_step: Updates that are done when it starts.
    """

    def __init__(self, workdir: Path, account: TimeAccount, from_step: int) -> None:
        self._path = workdir / GOODPUT_FILE
        self._earlier = [attempt.to_json() for attempt in read_attempts(workdir)]
        self._account = account
        self._from_step = from_step
        self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def note(self, step: int) -> Attempt:
        """Writes what is known after `step` updates; a killed attempt leaves what was noted last."""
        spent = self._account.read()
        attempt = Attempt(spent.seconds, spent.compiled_in, self._started, self._from_step, step)
        write_text(self._path, json.dumps([*self._earlier, attempt.to_json()], indent=1) + "\n")
        return attempt


@dataclass(frozen=True)
class Overall:
    """Several attempts together.

    Attributes:
      attempts: How many.
      wall: Seconds of training, the time between attempts left out.
      redone_steps: Updates of an attempt that the next one had to do again, because no checkpoint held them; at least
        as many, since the end of a killed attempt is not known.
      redone_seconds: What they took.
      productive_seconds: Of steps that were not done again.
    """

    attempts: int
    wall: float
    redone_steps: int
    redone_seconds: float
    productive_seconds: float


def overall(attempts: Sequence[Attempt]) -> Overall:
    """Sums up a run; steps that a restart lost are no productive time."""
    redone_steps, redone_seconds = 0, 0.0
    for attempt, following in itertools.pairwise(attempts):
        lost = max(0, attempt.to_step - following.from_step)
        redone_steps += lost
        # A fall-back behind the attempt's own start loses more than the attempt did.
        redone_seconds += attempt.seconds[STEPS] * min(1.0, lost / attempt.steps) if attempt.steps else 0.0
    productive = sum(attempt.seconds[STEPS] for attempt in attempts) - redone_seconds
    return Overall(len(attempts), sum(attempt.wall for attempt in attempts), redone_steps, redone_seconds, productive)


def table(attempts: Sequence[Attempt]) -> str:
    """Where the time of the last attempt went, and what came of all of them together."""
    attempt = attempts[-1]
    wall = attempt.wall or 1.0
    notes = {COMPILE: _compile_note(attempt), STEPS: _step_note(attempt)}
    rows = [(TITLES[kind], attempt.seconds[kind], notes.get(kind, "")) for kind in KINDS]
    rows.append(("time of training", attempt.wall, ""))
    width = max(len(title) for title, _, _ in rows)
    lines = [
        f"{title:<{width}} {seconds:>10,.1f} s {seconds / wall:>6.1%}  {note}".rstrip() for title, seconds, note in rows
    ]
    if len(attempts) > 1:
        lines.append(_overall_line(overall(attempts)))
    return "\n".join(lines)


def _compile_note(attempt: Attempt) -> str:
    parts = {kind: seconds for kind, seconds in attempt.compiled_in.items() if seconds >= 0.05}
    return ", ".join(f"{TITLES[kind]} {seconds:.1f} s" for kind, seconds in parts.items()) if len(parts) > 1 else ""


def _step_note(attempt: Attempt) -> str:
    if not attempt.steps:
        return ""
    return f"{attempt.steps} steps, {attempt.seconds[STEPS] / attempt.steps:.3g} s each"


def _overall_line(run: Overall) -> str:
    share = run.productive_seconds / (run.wall or 1.0)
    line = f"all {run.attempts} attempts: {share:.1%} of {run.wall:,.1f} s were steps that count"
    if run.redone_steps:
        line += f"; at least {run.redone_steps} steps were done again ({run.redone_seconds:.1f} s)"
    return line
