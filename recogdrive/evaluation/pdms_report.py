"""The report's part on PDM scores: what the page shows of them."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recogdrive.data.types import Scene
from recogdrive.evaluation.bev import figure_png
from recogdrive.evaluation.charts import score_charts
from recogdrive.evaluation.failure import COLLISION_COLOR, OFF_ROAD_COLOR, TTC_COLOR, failure_figure
from recogdrive.evaluation.open_loop import EvaluatedSplit, OpenLoopEvaluation, bootstrap_interval
from recogdrive.evaluation.pdms import Evidence, PdmsEvaluation, PdmsRow, partial_label, summarise_pdms
from recogdrive.evaluation.report_tables import MAX_LISTED, Column, Counts, break_down, summary_table

CONSTANT_VELOCITY = "constant_velocity"
PER_KIND = 2
"""How many scenes of a kind of loss that the worst ones do not show are drawn too."""

COLUMNS = (
    Column("pdms", "PDMS", ".1%", interval=True),
    Column("no_at_fault_collisions", "no at-fault collisions", ".1%"),
    Column("drivable_area_compliance", "drivable area", ".1%"),
    Column("driving_direction_compliance", "driving direction", ".1%"),
    Column("ego_progress", "ego progress", ".1%"),
    Column("time_to_collision_within_bound", "time to collision", ".1%"),
    Column("comfort", "comfort", ".1%"),
)
_COUNTS = Counts(scenes="pdms_scenes", missing="pdms_failed", partial="pdms_partial")
_CARD_COLUMNS = {
    "score": "PDMS",
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "driving_direction_compliance": "DDC",
    "ego_progress": "EP",
    "time_to_collision_within_bound": "TTC",
    "comfort": "C",
}
"""Field of a row -> its usual abbreviation."""


def pdms_context(
    pdms: PdmsEvaluation, evaluation: OpenLoopEvaluation, subject: str, worst_scenes: int
) -> dict[str, Any]:
    """Everything the page shows of PDM scores.

    Args:
      pdms: Scores of the evaluation's predictions.
      evaluation: Scenes and predictions.
      subject: Agent whose scenes are drawn.
      worst_scenes: How many scenes with the lowest score are drawn, for each split.
    """
    summary = summarise_pdms(pdms.rows)
    return {
        "headings": [column.heading for column in COLUMNS],
        "card_headings": list(_CARD_COLUMNS.values()),
        "colors": {"collision": COLLISION_COLOR, "off_road": OFF_ROAD_COLOR, "ttc": TTC_COLOR},
        "splits": [_split(pdms, evaluation, split, summary, subject, worst_scenes) for split in evaluation.splits],
        "failed": pdms.failed[:MAX_LISTED],
        "failed_count": len(pdms.failed),
    }


def drawn_evidence(evidence: Sequence[Evidence], count: int, per_kind: int = PER_KIND) -> list[Evidence]:
    """What to draw: the `count` worst, then the worst of every kind of loss that is not among them, worst first."""
    chosen = list(evidence[:count])
    kinds = {item.row.kind for item in chosen}
    further: dict[str, int] = {}
    for item in evidence[count:] if count else ():
        if item.row.kind not in kinds and further.get(item.row.kind, 0) < per_kind:
            further[item.row.kind] = further.get(item.row.kind, 0) + 1
            chosen.append(item)
    return chosen


def compare(ours: Sequence[PdmsRow], theirs: Sequence[PdmsRow]) -> str:
    """The difference of two agents' mean scores on the scenes that both have, in words; empty where there are none."""
    pairs = [(a.score, b.score) for a, b in zip(ours, theirs, strict=True)]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        return ""
    scores = 100 * np.array(pairs)
    difference = scores[:, 0] - scores[:, 1]
    means, change = scores.mean(axis=0), difference.mean()
    low, high = bootstrap_interval(difference * (1 if change >= 0 else -1))
    return (
        f"{abs(change):.1f} points {'above' if change >= 0 else 'below'} that of {theirs[0].agent} "
        f"({means[0]:.1f} to {means[1]:.1f}; 95 % interval of the difference {low:.1f} to {high:.1f}, scene by scene)"
    )


def _split(
    pdms: PdmsEvaluation,
    evaluation: OpenLoopEvaluation,
    split: EvaluatedSplit,
    summary: Mapping[str, Mapping[str, float]],
    subject: str,
    worst_scenes: int,
) -> dict[str, Any]:
    """What the page shows of one split."""
    by_agent = {subject: pdms.rows_of(split.name, subject)}
    by_agent |= {agent: pdms.rows_of(split.name, agent) for agent in split.predictions if agent != subject}
    table = summary_table(summary, split.name, COLUMNS, _COUNTS, high_is_better=True)
    for entry in table:
        entry["partial"] = partial_label(int(entry["scenes"]), int(entry["missing"]))
    rival = CONSTANT_VELOCITY if subject != CONSTANT_VELOCITY and CONSTANT_VELOCITY in by_agent else None
    speeds = evaluation.rows_of(split.name, subject)
    cards = []
    for item in drawn_evidence(pdms.evidence[split.name, subject], worst_scenes):
        rows = [rows[item.index] for rows in by_agent.values()]
        cards.append(_card(pdms, split, item, rows) | {"row": speeds[item.index]})
    breakdowns = (
        break_down(by_agent, key, lambda row: row.score, spec=".1%", high_is_worse=False)
        for key in ("layout", "log_name")
    )
    return {
        "name": split.name,
        "table": table,
        "comparison": compare(by_agent[subject], by_agent[rival]) if rival else "",
        "charts": score_charts(
            {a: np.array([row.score for row in rows if row.score is not None]) for a, rows in by_agent.items()}
        ),
        "breakdowns": [breakdown for breakdown in breakdowns if breakdown],
        "cards": cards,
    }


def _card(pdms: PdmsEvaluation, split: EvaluatedSplit, item: Evidence, rows: Sequence[PdmsRow]) -> dict[str, Any]:
    """A drawn scene with what went wrong and every agent's scores."""
    scene: Scene = split.scenes[item.index]
    planned = split.predictions[item.row.agent][item.index]
    picture = figure_png(failure_figure(scene, pdms.to_pdm_scene(scene), item, planned))
    return {
        "reason": item.row.reason,
        "picture": base64.b64encode(picture).decode("ascii"),
        "results": [
            {
                "agent": row.agent,
                "values": [_short(getattr(row, name)) for name in _CARD_COLUMNS] if row.valid else None,
                "missing": "failed" if row.score is None else "no trajectory in the answer: 0",
            }
            for row in rows
        ],
    }


def _short(value: float) -> str:
    """A sub-score with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
