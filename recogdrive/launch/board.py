"""What a person sees of a launch: a table that is drawn anew on a terminal, a line an event elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO

from recogdrive.launch.fleet import Progress, State

_COLOURS = {
    State.RUNNING: "36",
    State.FINISHED: "32",
    State.DONE_BEFORE: "32",
    State.PRUNED: "32",
    State.FAILED: "31",
    State.STOPPED: "33",
    State.SKIPPED: "33",
    State.WAITING: "90",
}
_FULL_TABLE_ROWS = 40


class Board:
    """Shows rows while they change.

    Args:
      words: Row -> what to say of a running one.
      stream: Where to; by default standard output. The table is redrawn if it is a terminal.
    """

    def __init__(self, words: Callable[[Progress], str], stream: IO[str] | None = None) -> None:
        self._words = words
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._drawn = 0
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Writes a line above the table."""
        self._erase()
        self._stream.write(f"[{duration(time.monotonic() - self._began)}] {text}\n")
        self._stream.flush()

    def event(self, row: Progress) -> None:
        """Says how a row changed; on a terminal the table says it."""
        if self._terminal:
            return
        where = f" in {row.slot}" if row.slot and row.state is State.RUNNING else ""
        after = f" after {duration(row.elapsed_s())}" if row.exit_code is not None else ""
        self.say(f"{row.run.name}: {row.state.value}{where}{after}{f' ({row.note})' if row.note else ''}")

    def draw(self, rows: Sequence[Progress]) -> None:
        """Draws the table anew on a terminal."""
        if not self._terminal:
            return
        width, height = shutil.get_terminal_size()
        lines = table(_most_telling(rows, min(height - 3, _FULL_TABLE_ROWS)), self._words, width - 1, colour=True)
        lines.append(_counts(rows))
        self._erase()
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()
        self._drawn = len(lines)

    def close(self, rows: Sequence[Progress]) -> None:
        """Leaves the final table."""
        self._erase()
        width = shutil.get_terminal_size().columns - 1 if self._terminal else None
        lines = table(rows, self._words, width, colour=self._terminal)
        self._stream.write("\n".join(["", *lines, _counts(rows)]) + "\n")
        self._stream.flush()

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0


def table(
    rows: Sequence[Progress], words: Callable[[Progress], str], width: int | None, *, colour: bool = False
) -> list[str]:
    """Lines of the table.

    Args:
      rows: What it shows.
      words: What to say of a row that runs.
      width: Columns to cut the lines to; None leaves them whole.
      colour: Whether the state is coloured.
    """
    cells = [("run", "state", "slot", "time", "")]
    for row in rows:
        time_cell = duration(row.elapsed_s()) if row.started else ""
        says = words(row) if row.state is State.RUNNING else row.note
        cells.append((row.run.name, row.state.value, row.slot, time_cell, says))
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    lines = []
    for cell, row in zip(cells, [None, *rows], strict=True):
        line = "  ".join(text.ljust(size) for text, size in zip(cell[:4], widths, strict=True)) + "  " + cell[4]
        line = line.rstrip()[:width]
        if colour and row is not None:
            begin, end = widths[0] + 2, widths[0] + 2 + widths[1]
            line = f"{line[:begin]}\x1b[{_COLOURS[row.state]}m{line[begin:end]}\x1b[0m{line[end:]}"
        lines.append(line)
    return lines


def duration(seconds: float) -> str:
    """Time as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _counts(rows: Sequence[Progress]) -> str:
    counted = [(state, sum(row.state is state for row in rows)) for state in State]
    return f"{len(rows)} runs: " + ", ".join(f"{count} {state.value}" for state, count in counted if count)


def _most_telling(rows: Sequence[Progress], room: int) -> list[Progress]:
    """Rows that fit on the screen, in their order: those that ended well go first, then those that wait."""
    if len(rows) <= room:
        return list(rows)
    dull = (State.DONE_BEFORE, State.FINISHED, State.PRUNED, State.WAITING, State.SKIPPED)
    ranked = sorted(rows, key=lambda row: dull.index(row.state) if row.state in dull else len(dull), reverse=True)
    kept = set(map(id, ranked[: max(room, 1)]))
    return [row for row in rows if id(row) in kept]
