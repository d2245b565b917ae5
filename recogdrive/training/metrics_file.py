"""`metrics.jsonl`: the loss curve of a run, one JSON object a line."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
"""Name of the file within a run folder."""


class MetricsFile:
    """Appends records to the loss curve.

    Each record has `step`, the number of updates done. Everything but `perf` (timings) depends on configuration, seed
    and data only.

    Args:
      path: The file; made if absent.
      restored_step: Step the run continues from. Later lines, and a line cut short by a crash, are removed: the run is
        about to write them again.
    """

    def __init__(self, path: Path, restored_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines(keepends=True) if _reached(line, restored_step)]
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_bytes(b"".join(kept))
            temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record.

        Raises:
          ValueError: A value is not finite (JSON has no such numbers).
        """
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def flush_to_disk(self) -> None:
        """Makes the lines so far as durable as the checkpoint about to be saved."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _reached(line: bytes, step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def without_timings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that an interrupted and an uninterrupted run share to the bit."""
    return {name: value for name, value in record.items() if name != "perf"}


def first_non_finite(values: Mapping[str, float]) -> str | None:
    """Name of the first value that is not a finite number, or None."""
    return next((name for name, value in values.items() if not math.isfinite(value)), None)
