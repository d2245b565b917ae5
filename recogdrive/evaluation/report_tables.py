"""Tables of the report's page: summaries of all agents, means over groups of scenes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from recogdrive.evaluation.bev import HUMAN

Row = TypeVar("Row")

MAX_LISTED = 15
"""Rows of a table of the page; the files next to it hold all."""
TITLES = {"layout": "layout", "log_name": "log", "command": "driving command"}
"""Property of a row -> what people call it."""


@dataclass(frozen=True)
class Column:
    """A column of a summary table: metric of the summary, heading, how a value reads, whether it has an interval."""

    metric: str
    heading: str
    spec: str
    interval: bool = False


@dataclass(frozen=True)
class Counts:
    """Names of the metrics of a summary that count scenes."""

    scenes: str
    missing: str
    partial: str


@dataclass(frozen=True)
class Breakdown:
    """Mean of a metric by a property of the scenes.

    Attributes:
      title: What people call the property.
      agents: Columns.
      groups: Rows: name, number of scenes, and the mean of every agent as text; worst of the first agent first.
      left_out: How many groups with better means are not among them.
    """

    title: str
    agents: tuple[str, ...]
    groups: tuple[dict[str, Any], ...]
    left_out: int


def summary_table(
    summary: Mapping[str, Mapping[str, float]],
    split: str,
    columns: Sequence[Column],
    counts: Counts,
    *,
    high_is_better: bool,
) -> list[dict[str, Any]]:
    """Rows of a split's summary; the best of the agents that drove themselves and on all scenes are marked.

    Args:
      summary: agent -> metric -> value.
      split: Whose metrics to show.
      columns: What to show of them.
      counts: Where the summary counts scenes.
      high_is_better: Which end of the metrics is good.
    """
    best: dict[str, float | None] = {}
    for column in columns:
        rivals = [
            metrics[f"{split}/{column.metric}"]
            for agent, metrics in summary.items()
            if agent != HUMAN and not metrics[f"{split}/{counts.partial}"]
        ]
        best[column.metric] = (max if high_is_better else min)(rivals) if len(rivals) > 1 else None
    table = []
    for agent, metrics in summary.items():
        partial = bool(metrics[f"{split}/{counts.partial}"])
        cells = []
        for column in columns:
            value = metrics[f"{split}/{column.metric}"]
            interval = None
            if column.interval and math.isfinite(value):
                ends = (metrics[f"{split}/{column.metric}_ci95_{end}"] for end in ("low", "high"))
                interval = " – ".join(format(end, column.spec) for end in ends)
            cells.append(
                {
                    "heading": column.heading,
                    "text": format(value, column.spec) if math.isfinite(value) else "none",
                    "interval": interval,
                    "best": agent != HUMAN and not partial and value == best[column.metric],
                }
            )
        missing, scenes = metrics[f"{split}/{counts.missing}"], metrics[f"{split}/{counts.scenes}"]
        table.append({"agent": agent, "cells": cells, "partial": partial, "missing": missing, "scenes": scenes})
    return table


def answer_table(summary: Mapping[str, Mapping[str, float]], split: str) -> list[dict[str, Any]]:
    """What became of the answers of agents that answer in words: counts, and scores with and without the unread ones.

    Args:
      summary: agent -> metric -> value.
      split: Whose metrics to show.
    """
    table = []
    for agent, metrics in summary.items():
        if f"{split}/parse_rate" not in metrics:
            continue
        names = {"PDMS": ("pdms", "pdms_valid"), "EPDMS": ("epdms", "epdms_valid")}
        scores = [
            {"name": name, "all": format(metrics[f"{split}/{whole}"], ".1%"), "valid": metrics[f"{split}/{valid}"]}
            for name, (whole, valid) in names.items()
            if f"{split}/{valid}" in metrics and math.isfinite(metrics[f"{split}/{whole}"])
        ]
        for score in scores:
            score["valid"] = format(score["valid"], ".1%") if math.isfinite(score["valid"]) else "none"
        table.append(
            {
                "agent": agent,
                "scenes": int(metrics[f"{split}/scenes"]),
                "invalid": int(metrics[f"{split}/invalid"]),
                "parse_rate": format(metrics[f"{split}/parse_rate"], ".1%"),
                "scores": scores,
            }
        )
    return table


def break_down(
    by_agent: Mapping[str, Sequence[Row]],
    key: str,
    value: Callable[[Row], float | None],
    *,
    spec: str,
    high_is_worse: bool,
    limit: int = MAX_LISTED,
    hidden: Sequence[str] = (),
) -> Breakdown | None:
    """Groups rows by a property and averages those with a value.

    Args:
      by_agent: Agent -> rows with the property.
      key: The property, one of `TITLES`.
      value: Metric of a row; None where it has none.
      spec: How a mean reads.
      high_is_worse: Which end of the metric is bad.
      limit: Number of groups to show.
      hidden: Agents without a column.

    Returns:
      None where all scenes share the property, or none share it: that would be the table of scenes again.
    """
    groups: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, int] = {}
    for number, (agent, rows) in enumerate(by_agent.items()):
        for row in rows:
            name = getattr(row, key)
            counts[name] = counts.get(name, 0) + (number == 0)
            values, found = groups.setdefault(name, {a: [] for a in by_agent})[agent], value(row)
            if found is not None:
                values.append(found)
    if len(groups) < 2 or max(counts.values()) < 2:
        return None
    means = {
        name: {agent: float(np.mean(values)) if values else math.nan for agent, values in group.items()}
        for name, group in groups.items()
    }
    first, sign = next(iter(by_agent)), -1 if high_is_worse else 1
    order = sorted(means, key=lambda name: -math.inf if math.isnan(means[name][first]) else sign * means[name][first])
    agents = tuple(agent for agent in by_agent if agent not in hidden)
    shown = tuple(
        {
            "name": name or "none",
            "scenes": counts[name],
            "values": ["none" if math.isnan(means[name][a]) else format(means[name][a], spec) for a in agents],
        }
        for name in order[:limit]
    )
    return Breakdown(TITLES[key], agents, shown, max(0, len(order) - limit))
