"""What a run folder tells the launcher: whether its run is done, how far it is, what it last said."""

import json
from pathlib import Path
from typing import Any

from recogdrive.launch.plan import Run

ATTEMPT_MARK = "======== "
"""Begins the line of a log with which an attempt starts."""
_AFTER_THE_REASON = ("(traceback in ", "The step is saved; ")
"""How lines begin that `recogdrive.stages.base` writes below the reason of an end."""
_TAIL_BYTES = 16_384
_SHOWN = ("loss", "eval/loss", "eval/pdms")


def is_done(run: Run) -> bool:
    """Whether the last attempt finished and had the configuration that it would be started with now."""
    record = read_json(run.workdir / "run.json")
    attempts = record.get("attempts") if isinstance(record, dict) else None
    if not attempts or attempts[-1].get("status") != "finished":
        return False
    config = run.workdir / "config.gin"
    return config.is_file() and without_comments(config.read_text()) == without_comments(run.configuration())


def was_started(run: Run) -> bool:
    """Whether there is something to continue."""
    return (run.workdir / "run.json").exists()


def is_older_than(run: Run, before: Run) -> bool:
    """Whether a done run began before one that it builds on ended for the last time."""
    try:
        began = read_json(run.workdir / "run.json")["attempts"][-1]["started"]
        ended = read_json(before.workdir / "run.json")["attempts"][-1]["finished"]
    except (TypeError, KeyError, IndexError):
        return False
    return began < ended  # Both in UTC and ISO format, which sorts as time does.


def without_comments(text: str) -> list[str]:
    """Lines of a configuration that count: comments name paths of files, which another checkout has elsewhere."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def read_json(path: Path) -> Any:
    """Content of a JSON file; None where there is none, or it is being written."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Records of `metrics.jsonl` so far; a last line that is being written is left out."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def progress(workdir: Path, log: Path) -> str:
    """In a few words how far a run is: its last point of the loss curve, else the last line of its log."""
    try:
        curve = (workdir / "metrics.jsonl").stat().st_mtime
    except OSError:
        curve = 0.0
    if curve:
        for line in reversed(_last_lines(workdir / "metrics.jsonl")):
            try:
                record = json.loads(line)
                shown = [name for name in _SHOWN if name in record]
                return f"step {record['step']}" + "".join(f"  {name} {record[name]:.4g}" for name in shown)
            except (ValueError, KeyError, TypeError):
                continue
    return last_words(log)


def last_words(log: Path) -> str:
    """What the last attempt in a log last said, without what a progress bar overwrote; an `error:` line before it."""
    lines = _last_lines(log)
    starts = [i for i, line in enumerate(lines) if line.startswith(ATTEMPT_MARK)]
    lines = lines[starts[-1] + 1 :] if starts else lines
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    return next((line for line in reversed(lines) if not line.startswith(_AFTER_THE_REASON)), "")


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [words for line in text.split("\n") if (words := line.rstrip("\r").split("\r")[-1].strip())]
