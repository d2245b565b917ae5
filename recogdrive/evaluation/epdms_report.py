"""The report's part on extended PDM scores: what the page shows of them."""

import math
from collections.abc import Mapping
from typing import Any

from recogdrive.evaluation.epdms import UNFILTERED_PREFIX, EpdmsEvaluation, summarise_epdms
from recogdrive.evaluation.open_loop import OpenLoopEvaluation
from recogdrive.evaluation.pdms import PdmsEvaluation, partial_label, summarise_pdms
from recogdrive.evaluation.report_tables import MAX_LISTED, Column, Counts, summary_table
from recogdrive.evaluation.tables import merge_summaries

SPEC = ".1%"
SUB_SCORE_HEADINGS = {
    "no_at_fault_collisions": "no at-fault collisions",
    "drivable_area_compliance": "drivable area",
    "driving_direction_compliance": "driving direction",
    "traffic_light_compliance": "traffic lights",
    "ego_progress": "ego progress",
    "time_to_collision_within_bound": "time to collision",
    "lane_keeping": "lane keeping",
    "history_comfort": "history comfort",
    "two_frame_extended_comfort": "two-frame comfort",
}
COLUMNS = (
    Column("pdms", "PDMS", SPEC, interval=True),
    Column("epdms", "EPDMS, human filter on", SPEC, interval=True),
    Column("epdms_unfiltered", "EPDMS, human filter off", SPEC, interval=True),
    *(Column(f"epdms_{name}", heading, SPEC) for name, heading in SUB_SCORE_HEADINGS.items()),
)
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
        "headings": [column.heading for column in COLUMNS],
        "splits": [{"name": split.name, "table": _table(summary, split.name)} for split in evaluation.splits],
        "failed": epdms.failed[:MAX_LISTED],
        "failed_count": len(epdms.failed),
    }


def _table(summary: Mapping[str, Mapping[str, float]], split: str) -> list[dict[str, Any]]:
    """Rows of a split: every agent's scores, those without the filter in small print where they differ."""
    table = summary_table(summary, split, COLUMNS, _COUNTS, high_is_better=True)
    for entry in table:
        metrics = summary[entry["agent"]]
        entry["partial"] = partial_label(int(entry["scenes"]), int(entry["missing"]))
        entry["pairs"] = int(metrics[f"{split}/epdms_pairs"])
        pdms, *others = entry["cells"]
        missing = int(metrics[f"{split}/pdms_failed"])
        pdms["partial"] = partial_label(int(metrics[f"{split}/pdms_scenes"]), missing)
        pdms["best"] &= not missing
        for cell in others:
            cell["partial"] = ""  # The row says it of all of them.
        for cell, name in zip(entry["cells"][-len(SUB_SCORE_HEADINGS) :], SUB_SCORE_HEADINGS, strict=True):
            unfiltered = metrics[f"{split}/{UNFILTERED_PREFIX}{name}"]
            if math.isfinite(unfiltered) and format(unfiltered, SPEC) != cell["text"]:
                cell["interval"] = f"{format(unfiltered, SPEC)} unfiltered"
    return table
