"""The report of a run: one HTML page that needs neither network nor server."""

import base64
import datetime
import importlib.resources
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from recogdrive.data.types import Scene
from recogdrive.evaluation.bev import HUMAN, figure_png, scene_figure, view_of
from recogdrive.evaluation.charts import distribution_charts, read_training_curves, training_charts
from recogdrive.evaluation.epdms import EpdmsEvaluation, summarise_epdms
from recogdrive.evaluation.epdms_report import epdms_context
from recogdrive.evaluation.open_loop import EvaluatedSplit, OpenLoopEvaluation, OpenLoopRow, summarise
from recogdrive.evaluation.pdms import PdmsEvaluation, summarise_pdms
from recogdrive.evaluation.pdms_report import CONSTANT_VELOCITY, pdms_context
from recogdrive.evaluation.report_tables import (
    MAX_LISTED,
    TITLES,
    Column,
    Counts,
    answer_table,
    break_down,
    summary_table,
)
from recogdrive.evaluation.tables import (
    ANSWERS_FILE,
    CSV_FILE,
    EPDMS_CSV_FILE,
    EPDMS_DIR,
    EPDMS_PARQUET_FILE,
    PARQUET_FILE,
    PDMS_CSV_FILE,
    PDMS_DIR,
    PDMS_PARQUET_FILE,
    SUMMARY_FILE,
    merge_summaries,
    replace_file,
)

REPORT_FILE = Path("report") / "index.html"
BASELINES = (HUMAN, CONSTANT_VELOCITY, "stopped", "ego_status_mlp")
_COUNTS = Counts(scenes="scenes", missing="invalid_scenes", partial="partial")
_COLUMNS = (
    Column("ade", "ADE (m)", ".3f", interval=True),
    Column("fde", "FDE at 4 s (m)", ".3f", interval=True),
    Column("miss_rate", "misses, FDE over 2 m", ".1%"),
    Column("heading_error", "heading error (rad)", ".4f"),
    Column("final_heading_error", "heading error at 4 s (rad)", ".4f"),
)


def write_report(
    run_dir: Path,
    evaluation: OpenLoopEvaluation,
    *,
    pdms: PdmsEvaluation | None = None,
    epdms: EpdmsEvaluation | None = None,
    subject: str | None = None,
    worst_scenes: int = 8,
    median_scenes: int = 4,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Writes `report/index.html` into a run folder.

    Args:
      run_dir: Run folder; its `run.json`, `config.gin` and `metrics.jsonl` are shown where they exist.
      evaluation: What to report.
      pdms: PDM scores of the same predictions, which then stand first.
      epdms: Extended scores of the same predictions, which then follow the PDM scores.
      subject: Agent whose scenes are ranked and drawn; by default the first that is no baseline.
      worst_scenes: How many scenes with the lowest PDM score, and with the largest FDE, are drawn of each split.
      median_scenes: How many scenes around the median FDE are drawn, for each split.
      facts: Further lines of the page's head.

    Returns:
      Path of the page.

    Raises:
      ValueError: `subject` was not evaluated, or there are extended scores without PDM scores.
    """
    if epdms is not None and pdms is None:
        raise ValueError("Extended scores stand beside PDM scores: pass pdms too.")
    agents = evaluation.agents
    if subject is None:
        subject = next((agent for agent in agents if agent not in BASELINES), agents[0])
    if subject not in agents:
        raise ValueError(f"Agent {subject!r} was not evaluated; subject can be one of {', '.join(agents)}.")
    summary = summarise(evaluation.rows)
    extended = {} if epdms is None else summarise_epdms(epdms.rows)
    everything = merge_summaries({} if pdms is None else summarise_pdms(pdms.rows), extended, summary)
    scores = None if pdms is None else pdms_context(pdms, evaluation, subject, worst_scenes)
    run = _read_run(run_dir)
    curves = read_training_curves(run_dir / "metrics.jsonl")
    invalid = [row for row in evaluation.rows if not row.valid]
    page = _template().render(
        experiment=str(run.get("experiment") or run_dir.resolve().name),
        description=str(run.get("description") or ""),
        facts=_facts(run, run_dir) | {k: str(v) for k, v in (facts or {}).items()},
        versions=run.get("versions") if isinstance(run.get("versions"), dict) else {},
        subject=subject,
        pdms=scores,
        epdms=None if epdms is None else epdms_context(epdms, pdms, evaluation),
        human=HUMAN,
        headings=[column.heading for column in _COLUMNS],
        splits=[
            _split_context(evaluation, split, summary, subject, worst_scenes, median_scenes)
            | {"answers": answer_table(everything, split.name)}
            for split in evaluation.splits
        ],
        training_charts=training_charts(curves),
        unreadable_lines=curves.unreadable_lines,
        invalid=invalid[:MAX_LISTED],
        invalid_count=len(invalid),
        files=_files(run_dir),
        commands=_commands(run_dir, run),
    )  # fmt: skip
    path = run_dir / REPORT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def worst_rows(rows: Sequence[OpenLoopRow], count: int) -> list[OpenLoopRow]:
    """The valid rows with the largest FDE, largest first."""
    return sorted((row for row in rows if row.valid), key=lambda row: row.fde, reverse=True)[:count]


def median_rows(rows: Sequence[OpenLoopRow], count: int) -> list[OpenLoopRow]:
    """The valid rows around the median FDE, largest first."""
    ranked = worst_rows(rows, len(rows))
    start = max(0, (len(ranked) - count) // 2)
    return ranked[start : start + count]


def _template() -> jinja2.Template:
    """The page's template, which is stored beside this file as are its parts."""
    folder = importlib.resources.files("recogdrive.evaluation")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _files(run_dir: Path) -> list[str]:
    """What the page links to, as far as it is there."""
    scores = (PDMS_CSV_FILE, PDMS_PARQUET_FILE, EPDMS_CSV_FILE, EPDMS_PARQUET_FILE)
    names = (*scores, CSV_FILE, PARQUET_FILE, ANSWERS_FILE, SUMMARY_FILE)
    folders = (run_dir / PDMS_DIR, run_dir / EPDMS_DIR)
    tables = [p.relative_to(run_dir).as_posix() for folder in folders for p in sorted(folder.rglob("*.csv"))]
    return [n for n in (*names, *tables, "run.json", "config.gin", "metrics.jsonl") if (run_dir / n).exists()]


def _read_run(run_dir: Path) -> dict[str, Any]:
    """Contents of `run.json`, empty where there is none."""
    path = run_dir / "run.json"
    if not path.exists():
        return {}
    run = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(run, dict):
        raise ValueError(f"{path} holds a {type(run).__name__}, not an object; restore it or move it away.")
    return run


def _facts(run: Mapping[str, Any], run_dir: Path) -> dict[str, str]:
    """Lines of the page's head: when, from what, on what."""
    attempts = run.get("attempts") or [{}]
    seed, config = run.get("seed"), run_dir / "config.gin"
    if seed is None and config.exists():
        definitions = re.findall(r"^SEED\s*=\s*(.+?)\s*(?:#.*)?$", config.read_text(encoding="utf-8"), re.MULTILINE)
        seed = definitions[-1] if definitions else None  # the last one wins, as in gin
    facts = {
        "report written": datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="minutes"),
        "run started": attempts[0].get("started"),
        "attempts": len(attempts) if len(attempts) > 1 else None,
        "commit": run.get("commit"),
        "device": _device(run.get("device")),
        "starts from": run.get("starts_from"),
        "parent": run.get("parent"),
        "seed": seed,
        "folder": run_dir.resolve(),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _device(device: object) -> str | None:
    """A device record in words."""
    if not isinstance(device, Mapping):
        return None if device is None else str(device)
    named = f"{device['count']} × {device['kind']}" if {"count", "kind"} <= set(device) else ""
    rest = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in device.items()
        if not named or name not in ("count", "kind")
    ]
    return ", ".join(filter(None, [named, *rest]))


def _commands(run_dir: Path, run: Mapping[str, Any]) -> dict[str, str]:
    """What to type next."""
    folder = run_dir.resolve()
    experiment = run.get("experiment")
    parts = ["python", "-m", "recogdrive.main"]
    if experiment and experiment != "custom":
        parts.append(f"--experiment={experiment}")
    if (run_dir / "config.gin").exists():
        parts.append(f"--gin_file={folder / 'config.gin'}")
    parts.append(f"--workdir={folder}")
    return {
        "Training curves and pictures in TensorBoard": shlex.join(["tensorboard", "--logdir", str(folder)]),
        "Evaluate again (a finished run goes straight to its evaluation)": shlex.join(parts),
    }


def _split_context(
    evaluation: OpenLoopEvaluation,
    split: EvaluatedSplit,
    summary: Mapping[str, Mapping[str, float]],
    subject: str,
    worst_scenes: int,
    median_scenes: int,
) -> dict[str, Any]:
    """Everything the page shows of one split."""
    by_agent = {agent: evaluation.rows_of(split.name, agent) for agent in evaluation.agents}
    rows = by_agent[subject]
    scene_numbers = {id(row): i for i, row in enumerate(rows)}
    worst = worst_rows(rows, worst_scenes)
    drawn = {row.token for row in worst}
    median = [row for row in median_rows(rows, median_scenes) if row.token not in drawn]

    def cards(chosen: Sequence[OpenLoopRow]) -> list[dict[str, Any]]:
        numbers = [scene_numbers[id(row)] for row in chosen]
        return [_card(split, i, split.scenes[i], [by_agent[agent][i] for agent in by_agent]) for i in numbers]

    fde = {a: np.array([r.fde for r in agent_rows if r.valid]) for a, agent_rows in by_agent.items() if a != HUMAN}
    return {
        "name": split.name,
        "logs": len({row.log_name for row in rows}),
        "scenes": len(rows),
        "table": summary_table(summary, split.name, _COLUMNS, _COUNTS, high_is_better=False),
        "comparison": _comparison(summary, split.name, subject),
        "charts": distribution_charts(fde),
        "breakdowns": [
            b
            for b in (
                break_down(by_agent, key, lambda row: row.fde, spec=".3f", high_is_worse=True, hidden=(HUMAN,))
                for key in TITLES
            )
            if b
        ],
        "worst": cards(worst),
        "median": cards(median),
    }


def _comparison(summary: Mapping[str, Mapping[str, float]], split: str, subject: str) -> str:
    """The subject's FDE against constant velocity's, in words."""
    rival = CONSTANT_VELOCITY
    if subject == rival or rival not in summary:
        return ""
    ours, theirs = summary[subject][f"{split}/fde"], summary[rival][f"{split}/fde"]
    if not (math.isfinite(ours) and math.isfinite(theirs) and theirs > 0):
        return ""
    change = 1 - ours / theirs
    return f"{abs(change):.0%} {'below' if change >= 0 else 'above'} that of {rival} ({ours:.3f} m to {theirs:.3f} m)"


def _card(split: EvaluatedSplit, number: int, scene: Scene, rows: Sequence[OpenLoopRow]) -> dict[str, Any]:
    """A drawn scene with its numbers."""
    order = sorted(split.predictions, key=lambda agent: (agent != HUMAN, agent not in BASELINES))
    trajectories = {agent: split.predictions[agent][number] for agent in order}
    if HUMAN not in trajectories and scene.future is not None:
        trajectories = {HUMAN: scene.future[: len(next(iter(trajectories.values())))], **trajectories}
    # Nearer than usual: errors of a metre should be seen.
    view = view_of(list(trajectories.values()), half_side_m=20.0)
    picture = figure_png(scene_figure(scene, trajectories, dpi=90, title="", view=view))
    return {
        "row": rows[0],
        "picture": base64.b64encode(picture).decode("ascii"),
        "results": [row for row in rows if row.agent != HUMAN] or rows,
    }
