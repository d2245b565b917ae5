"""The report's part on extended PDM scores: what the page shows of them."""

import math
from collections.abc import Mapping
from typing import Any

from recogdrive.evaluation.epdms import FILTERED_PREFIX, UNFILTERED_PREFIX, EpdmsEvaluation, summarise_epdms
from recogdrive.evaluation.open_loop import OpenLoopEvaluation
from recogdrive.evaluation.pdms import PdmsEvaluation, partial_label, summarise_pdms
from recogdrive.evaluation.report_tables import MAX_LISTED, Column, Counts, summary_table
from recogdrive.evaluation.tables import merge_summaries

SPEC = ".1%"
SUB_SCORE_HEADINGS = {
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "driving_direction_compliance": "DDC",
    "traffic_light_compliance": "TLC",
    "ego_progress": "EP",
    "time_to_collision_within_bound": "TTC",
    "lane_keeping": "LK",
    "history_comfort": "HC",
    "two_frame_extended_comfort": "EC",
}
"""Sub-score -> its usual abbreviation, which the page explains."""
TOTALS = (
    Column("pdms", "PDMS", SPEC, interval=True),
    Column("epdms", "EPDMS", SPEC, interval=True),
    Column("epdms_unfiltered", "EPDMS without human filter", SPEC, interval=True),
)
SUB_SCORES = tuple(Column(f"{FILTERED_PREFIX}{name}", heading, SPEC) for name, heading in SUB_SCORE_HEADINGS.items())
_COUNTS = Counts(scenes="epdms_scenes", missing="epdms_failed", partial="epdms_partial")


def epdms_context(epdms: EpdmsEvaluation, pdms: PdmsEvaluation, evaluation: OpenLoopEvaluation) -> dict[str, Any]:
    """Everything the page shows of extended scores.

    Args:
      epdms: Extended scores of the evaluation's predictions.
      pdms: Their PDM scores, which stand beside them.
      evaluation: Scenes and predictions.
    """
    summary = merge_summaries(summarise_pdms(pdms.rows), summarise_epdms(epdms.rows))
    return {
        "splits": [{"name": split.name, "tables": _tables(summary, split.name)} for split in evaluation.splits],
        "failed": epdms.failed[:MAX_LISTED],
        "failed_count": len(epdms.failed),
    }


def _tables(summary: Mapping[str, Mapping[str, float]], split: str) -> list[dict[str, Any]]:
    """A split's table of scores and that of sub-scores, a row for every agent."""
    totals = summary_table(summary, split, TOTALS, _COUNTS, high_is_better=True)
    parts = summary_table(summary, split, SUB_SCORES, _COUNTS, high_is_better=True)
    for entry in (*totals, *parts):
        entry["partial"] = partial_label(int(entry["scenes"]), int(entry["missing"]))
        entry["pairs"] = int(summary[entry["agent"]][f"{split}/epdms_pairs"])
        for cell in entry["cells"]:
            cell["scenes"] = ""  # The row says it of all of them.
    for entry in totals:
        # PDMS may leave out other scenes than the rest of its row.
        pdms, metrics = entry["cells"][0], summary[entry["agent"]]
        scenes, missing = int(metrics[f"{split}/pdms_scenes"]), int(metrics[f"{split}/pdms_failed"])
        if missing != entry["missing"]:
            pdms["scenes"] = f"{scenes - missing} of {scenes} scenes"
        pdms["best"] &= not missing
    for entry in parts:
        metrics = summary[entry["agent"]]
        for cell, name in zip(entry["cells"], SUB_SCORE_HEADINGS, strict=True):
            unfiltered = metrics[f"{split}/{UNFILTERED_PREFIX}{name}"]
            if math.isfinite(unfiltered) and format(unfiltered, SPEC) != cell["text"]:
                cell["interval"] = f"({format(unfiltered, SPEC)})"
    return [
        {"headings": [column.heading for column in columns], "entries": entries, "has_counts": columns is TOTALS}
        for columns, entries in ((TOTALS, totals), (SUB_SCORES, parts))
    ]
