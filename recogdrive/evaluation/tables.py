"""Results as files: `summary.json`, `scenes.parquet` and `scenes.csv` of a run folder."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recogdrive.evaluation.open_loop import OpenLoopEvaluation, OpenLoopRow, summarise

SUMMARY_FILE = "summary.json"
PARQUET_FILE = "scenes.parquet"
CSV_FILE = "scenes.csv"

_ARROW_TYPES = {
    str: pa.string(),
    bool: pa.bool_(),
    float: pa.float64(),
    bool | None: pa.bool_(),
    float | None: pa.float64(),
}
SCHEMA = pa.schema([pa.field(f.name, _ARROW_TYPES[f.type]) for f in fields(OpenLoopRow)])
"""Columns of the per-scene tables, in file order: the fields of `OpenLoopRow`."""


def write_tables(run_dir: Path, evaluation: OpenLoopEvaluation) -> dict[str, dict[str, float]]:
    """Writes the per-scene tables, then the summary that stands for them; each file whole or not at all.

    Returns:
      The summary, agent -> metric -> value.
    """
    summary = summarise(evaluation.rows)
    write_rows(run_dir, evaluation.rows)
    write_summary(run_dir, summary)
    return summary


def write_rows(run_dir: Path, rows: Sequence[OpenLoopRow]) -> None:
    """Writes `scenes.parquet` and `scenes.csv` with equal content; metrics of invalid rows are empty cells."""
    run_dir.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    replace_file(run_dir / PARQUET_FILE, lambda path: pa.parquet.write_table(table, path))
    replace_file(run_dir / CSV_FILE, lambda path: pa.csv.write_csv(table, path))


def read_rows(run_dir: Path) -> tuple[OpenLoopRow, ...]:
    """Reads `scenes.parquet` back."""
    table = pa.parquet.read_table(run_dir / PARQUET_FILE)
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{run_dir / PARQUET_FILE} has columns {table.schema.names}, not {SCHEMA.names}.")
    return tuple(OpenLoopRow(**row) for row in table.to_pylist())


def write_summary(run_dir: Path, summary: Mapping[str, Mapping[str, float]]) -> None:
    """Writes `summary.json`; values that are not finite become null, since JSON has no NaN."""
    run_dir.mkdir(parents=True, exist_ok=True)
    plain = {
        agent: {metric: value if math.isfinite(value) else None for metric, value in metrics.items()}
        for agent, metrics in summary.items()
    }
    text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
    replace_file(run_dir / SUMMARY_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` fill a file beside `path` and renames it there, so that no reader ever sees half a file.

    Raises:
      OSError: From `write` or the rename; the earlier `path` is then untouched and the half-written file removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
