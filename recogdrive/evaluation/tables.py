"""Results as files: `summary.json`, the tables of all scenes, and PDM scores in NAVSIM's own layouts."""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recogdrive.evaluation.epdms import ALL_SUB_SCORES, EpdmsEvaluation, EpdmsRow, summarise_epdms
from recogdrive.evaluation.open_loop import OpenLoopEvaluation, OpenLoopRow, summarise
from recogdrive.evaluation.pdms import SUB_SCORES, PdmsEvaluation, PdmsRow, summarise_pdms

SUMMARY_FILE = "summary.json"
PARQUET_FILE = "scenes.parquet"
CSV_FILE = "scenes.csv"
PDMS_PARQUET_FILE = "pdms.parquet"
PDMS_CSV_FILE = "pdms.csv"
PDMS_DIR = "pdms"
EPDMS_PARQUET_FILE = "epdms.parquet"
EPDMS_CSV_FILE = "epdms.csv"
EPDMS_DIR = "epdms"
ANSWERS_FILE = "answers.jsonl"
FAILED_FILE = "failed.csv"
"""Within `pdms/` and `epdms/`: rows without a score."""

NAVSIM_COLUMNS = ("token", "valid", *SUB_SCORES, "score")
AVERAGE_TOKEN = "average"
NAVSIM_V2_COLUMNS = ("token", "valid", *ALL_SUB_SCORES, "score")
AVERAGE_V2_TOKEN = "average_all_frames"
FILTERED, FILTERED_BEFORE_FIX, UNFILTERED = "filtered", "filtered_before_fix", "unfiltered"
"""Folders of a split within `epdms/`, see `write_epdms`."""

Scored = TypeVar("Scored", PdmsRow, EpdmsRow)

_ARROW_TYPES = {
    str: pa.string(),
    bool: pa.bool_(),
    float: pa.float64(),
    int | None: pa.int32(),
    bool | None: pa.bool_(),
    float | None: pa.float64(),
}
SCHEMA = pa.schema([pa.field(f.name, _ARROW_TYPES[f.type]) for f in fields(OpenLoopRow)])
"""Columns of `scenes.*`, in file order: the fields of `OpenLoopRow`."""
PDMS_SCHEMA = pa.schema([pa.field(f.name, _ARROW_TYPES[f.type]) for f in fields(PdmsRow)])
"""Columns of `pdms.*`: the fields of `PdmsRow`."""
EPDMS_SCHEMA = pa.schema([pa.field(f.name, _ARROW_TYPES[f.type]) for f in fields(EpdmsRow)])
"""Columns of `epdms.*`: the fields of `EpdmsRow`."""


def write_tables(
    run_dir: Path,
    evaluation: OpenLoopEvaluation,
    pdms: PdmsEvaluation | None = None,
    epdms: EpdmsEvaluation | None = None,
) -> dict[str, dict[str, float]]:
    """Writes the per-scene tables, then the summary that stands for them; each file whole or not at all.

    Returns:
      The summary, agent -> metric -> value; PDM scores and extended ones, where there are any, first.
    """
    summary = summarise(evaluation.rows)
    write_rows(run_dir, evaluation.rows)
    write_answers(run_dir, evaluation)
    if epdms is not None:
        write_epdms(run_dir, epdms)
        summary = merge_summaries(summarise_epdms(epdms.rows), summary)
    if pdms is not None:
        write_pdms(run_dir, pdms)
        summary = merge_summaries(summarise_pdms(pdms.rows), summary)
    write_summary(run_dir, summary)
    return summary


def write_rows(run_dir: Path, rows: Sequence[OpenLoopRow]) -> None:
    """Writes `scenes.parquet` and `scenes.csv` with equal content; metrics of invalid rows are empty cells."""
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_both(run_dir / PARQUET_FILE, run_dir / CSV_FILE, [asdict(row) for row in rows], SCHEMA)


def read_rows(run_dir: Path) -> tuple[OpenLoopRow, ...]:
    """Reads `scenes.parquet` back."""
    return tuple(OpenLoopRow(**row) for row in _read(run_dir / PARQUET_FILE, SCHEMA))


def write_answers(run_dir: Path, evaluation: OpenLoopEvaluation) -> None:
    """Writes `answers.jsonl` where agents answered in words: a JSON object for each answer, in the order of the scenes.

    Keys: `split`, `agent`, `token`, `text`, `valid`, `poses` (x, y in metres and heading in radians at 0.5 ... 4 s;
    null where the text states none) and `problem` (why it does not; else empty).
    """
    lines = [
        json.dumps(
            {
                "split": split.name,
                "agent": agent,
                "token": token,
                "text": answer.text,
                "valid": answer.poses is not None,
                "poses": None if answer.poses is None else answer.poses.tolist(),
                "problem": answer.problem,
            },
            ensure_ascii=False,
        )
        + "\n"
        for split in evaluation.splits
        for agent, answers in split.answers.items()
        for token, answer in answers.items()
    ]
    if lines:
        replace_file(run_dir / ANSWERS_FILE, lambda path: path.write_text("".join(lines), encoding="utf-8"))


def write_pdms(run_dir: Path, pdms: PdmsEvaluation) -> None:
    """Writes the PDM scores.

    `pdms.parquet` and `pdms.csv` hold every row with its diagnostics, `pdms/failed.csv` those without a score, and
    `pdms/<split>/<agent>.csv` one agent's scores in NAVSIM's layout, see `write_navsim_table`.
    """
    folder = run_dir / PDMS_DIR
    folder.mkdir(parents=True, exist_ok=True)
    _write_both(run_dir / PDMS_PARQUET_FILE, run_dir / PDMS_CSV_FILE, [asdict(row) for row in pdms.rows], PDMS_SCHEMA)
    _write_failed(folder, pdms.failed)
    for (split, agent), rows in _by_split_and_agent(pdms.rows).items():
        (folder / split).mkdir(exist_ok=True)
        write_navsim_table(folder / split / f"{agent}.csv", rows)


def read_pdms_rows(run_dir: Path) -> tuple[PdmsRow, ...]:
    """Reads `pdms.parquet` back."""
    return tuple(PdmsRow(**row) for row in _read(run_dir / PDMS_PARQUET_FILE, PDMS_SCHEMA))


def write_epdms(run_dir: Path, epdms: EpdmsEvaluation) -> None:
    """Writes the extended scores.

    `epdms.parquet` and `epdms.csv` hold every row with its diagnostics, `epdms/failed.csv` those without a score. One
    agent's scores in NAVSIM v2's layout stand in `epdms/<split>/<variant>/<agent>.csv`, see `write_navsim_v2_table`:

    - `filtered`: sub-scores with the human filter, and the score of these (NAVSIM v2.2);
    - `filtered_before_fix`: sub-scores with the human filter, but the score of the unfiltered ones (NAVSIM v2 before
      the fix of its issue #151);
    - `unfiltered`: sub-scores and score without the human filter (`scorer.human_penalty_filter=False`).
    """
    folder = run_dir / EPDMS_DIR
    folder.mkdir(parents=True, exist_ok=True)
    rows_as_cells = [asdict(row) for row in epdms.rows]
    _write_both(run_dir / EPDMS_PARQUET_FILE, run_dir / EPDMS_CSV_FILE, rows_as_cells, EPDMS_SCHEMA)
    _write_failed(folder, epdms.failed)
    for (split, agent), rows in _by_split_and_agent(epdms.rows).items():
        for variant in (FILTERED, FILTERED_BEFORE_FIX, UNFILTERED):
            (folder / split / variant).mkdir(parents=True, exist_ok=True)
            write_navsim_v2_table(folder / split / variant / f"{agent}.csv", rows, variant)


def read_epdms_rows(run_dir: Path) -> tuple[EpdmsRow, ...]:
    """Reads `epdms.parquet` back."""
    return tuple(EpdmsRow(**row) for row in _read(run_dir / EPDMS_PARQUET_FILE, EPDMS_SCHEMA))


def write_navsim_v2_table(path: Path, rows: Sequence[EpdmsRow], variant: str) -> None:
    """Writes the extended scores of one agent on one split as NAVSIM v2 does, without the unnamed index column.

    One line a token, cells that are not known empty; the last line has the token `average_all_frames`, is valid where
    all are, and holds means over the cells that are not empty.

    Args:
      path: The file.
      rows: Of one agent.
      variant: What the columns hold: `FILTERED`, `FILTERED_BEFORE_FIX` or `UNFILTERED`.

    Source: NAVSIM v2.2 `run_pdm_score_one_stage.py`.
    """
    totals = {FILTERED: "score", FILTERED_BEFORE_FIX: "score_before_fix", UNFILTERED: "score_unfiltered"}

    def cells(row: EpdmsRow) -> list[float | None]:
        shown = row.filtered if variant != UNFILTERED else lambda name: getattr(row, name)
        return [*(shown(name) for name in ALL_SUB_SCORES), getattr(row, totals[variant])]

    lines = [[row.token, row.valid, *cells(row)] for row in rows]
    average = [AVERAGE_V2_TOKEN, all(row.valid for row in rows), *_means_of_known([line[2:] for line in lines])]
    replace_file(path, lambda temporary: _write_csv(temporary, [NAVSIM_V2_COLUMNS, *lines, average]))


def write_navsim_table(path: Path, rows: Sequence[PdmsRow]) -> None:
    """Writes the PDM scores of one agent on one split as NAVSIM does, without the unnamed index column.

    One line a token, cells of failed scenes empty, those of an answer without trajectory but for its score of 0; the
    last line has the token `average`, is valid where all are, and holds means over the cells that are not empty.

    Source: NAVSIM `run_pdm_score.py`.
    """
    lines: list[list[object]] = [[getattr(row, name) for name in NAVSIM_COLUMNS] for row in rows]
    lines.append([AVERAGE_TOKEN, all(row.valid for row in rows), *_means_of_known([line[2:] for line in lines])])
    replace_file(path, lambda temporary: _write_csv(temporary, [NAVSIM_COLUMNS, *lines]))


def merge_summaries(*summaries: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """One summary of several; an agent's plain names, those of the headline split, come before the others."""
    merged: dict[str, dict[str, float]] = {}
    for summary in summaries:
        for agent, metrics in summary.items():
            merged.setdefault(agent, {}).update(metrics)
    return {agent: dict(sorted(m.items(), key=lambda item: "/" in item[0])) for agent, m in merged.items()}


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


def _write_failed(folder: Path, rows: Sequence[PdmsRow | EpdmsRow]) -> None:
    """The table of rows without a score."""
    columns = ["split", "agent", "token", "log_name", "problem"]
    lines = [[getattr(row, name) for name in columns] for row in rows]
    replace_file(folder / FAILED_FILE, lambda path: _write_csv(path, [columns, *lines]))


def _means_of_known(lines: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Mean of every column over its cells that are not empty; None where all are."""
    known = [[value for value in column if value is not None] for column in zip(*lines, strict=True)]
    return [math.fsum(values) / len(values) if values else None for values in known]


def _by_split_and_agent(rows: Sequence[Scored]) -> dict[tuple[str, str], list[Scored]]:
    groups: dict[tuple[str, str], list[Scored]] = {}
    for row in rows:
        groups.setdefault((row.split, row.agent), []).append(row)
    return groups


def _write_both(parquet: Path, csv_file: Path, rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> None:
    """The same table in both formats."""
    table = pa.Table.from_pylist(rows, schema=schema)
    replace_file(parquet, lambda path: pa.parquet.write_table(table, path))
    replace_file(csv_file, lambda path: pa.csv.write_csv(table, path))


def _read(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """Rows of a Parquet table with these columns."""
    table = pa.parquet.read_table(path)
    if table.schema.names != schema.names:
        raise ValueError(f"{path} has columns {table.schema.names}, not {schema.names}.")
    return table.to_pylist()


def _write_csv(path: Path, lines: Iterable[Sequence[object]]) -> None:
    """Lines of cells; None is an empty one."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
