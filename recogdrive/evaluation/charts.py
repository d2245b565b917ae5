"""Charts of the report as inline SVG: training curves and error distributions.

Text and axes take the page's own text colour (`currentColor`), so that charts read in light and dark mode.
"""

import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recogdrive.evaluation.bev import FURTHER_COLORS, TRAJECTORY_COLORS
from recogdrive.evaluation.open_loop import MISS_THRESHOLD_M

_INK = "#0a0b0c"
"""Stands for the page's text colour while matplotlib draws; no series has this colour."""
_MAX_POINTS = 500
_HISTOGRAM_BINS = 40
_SCORE_BINS = 20

LINE_COLORS = ("#d1604d", "#4e79a7", "#59a14f", "#b07aa1", "#e38c47", "#00798c")

CURVES = (
    ("Training loss", ("loss", "train/loss")),
    ("Learning rate", ("lr", "learning_rate", "train/lr")),
    ("Gradient norm", ("grad_norm", "train/grad_norm")),
    ("Reward", ("reward", "group/best_reward")),
    ("Divergence from the reference policy", ("drift/kl",)),
)
"""Title of a chart -> names its values may have in the loss curve."""

EVALUATIONS = (
    ("pdms", "PDM score during training"),
    ("fde", "FDE at 4 s during training (m)"),
    ("tail_reverse_share", "Plans that end backwards, during training"),
    ("extended_comfort", "Two-frame extended comfort during training"),
)
"""Metric of a periodic evaluation -> title of its chart."""


@dataclass(frozen=True)
class TrainingCurves:
    """What `metrics.jsonl` holds.

    Attributes:
      series: Metric -> (steps, values), by ascending step; nested values are named `outer/inner`.
      unreadable_lines: How many lines are no record with a step, such as one cut short by a crash.
    """

    series: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    unreadable_lines: int = 0


def read_training_curves(path: Path) -> TrainingCurves:
    """Reads a loss curve; of a step that occurs again (after a resume) the later record counts."""
    if not path.exists():
        return TrainingCurves()
    found: dict[str, dict[float, float]] = {}
    unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = float(record.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            unreadable += 1
            continue
        for name, value in _numbers(record):
            found.setdefault(name, {})[step] = value
    series = {}
    for name, by_step in found.items():
        steps = np.array(sorted(by_step))
        series[name] = (steps, np.array([by_step[step] for step in steps]))
    return TrainingCurves(series, unreadable)


def training_charts(curves: TrainingCurves) -> list[str]:
    """One chart each for loss, learning rate, gradient norm, reward and drift, and for what evaluations found."""
    charts = []
    for title, names in CURVES:
        lines = {name: curves.series[name] for name in names if name in curves.series}
        if lines:
            charts.append(line_chart(title, lines))
    # The headline split has the plain name, further splits have theirs before it: a line each.
    for metric, title in EVALUATIONS:
        evaluations = {
            name: line
            for name, line in curves.series.items()
            if name.startswith("eval/") and name.split("/")[-1] == metric
        }
        if evaluations:
            charts.append(line_chart(title, evaluations, markers=True))
    return charts


def line_chart(title: str, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], *, markers: bool = False) -> str:
    """Values over training steps; a long line is shown by means over equal numbers of its values.

    The y axis is logarithmic where all values are positive and span more than a factor of 20.
    """
    figure, ax = _chart(title)
    for i, (name, (steps, values)) in enumerate(lines.items()):
        finite = np.isfinite(values)
        pieces = max(1, min(_MAX_POINTS, int(finite.sum())))
        x, y = ([p.mean() if len(p) else math.nan for p in np.array_split(v[finite], pieces)] for v in (steps, values))
        color = LINE_COLORS[i % len(LINE_COLORS)]
        ax.plot(
            x, y, color=color, linewidth=1.4, marker="o" if markers or len(x) == 1 else "", markersize=3, label=name
        )
    everything = np.concatenate([values[np.isfinite(values)] for _, values in lines.values()])
    if len(everything) and everything.min() > 0 and everything.max() > 20 * everything.min():
        ax.set_yscale("log")
    ax.set_xlabel("step")
    if len(lines) > 1:
        _legend(ax)
    return _svg(figure, title)


def distribution_charts(errors: Mapping[str, Float[np.ndarray, "N"]]) -> list[str]:
    """Histogram and cumulative share of final displacement errors in metres, agent by agent.

    The histogram's last bin holds everything beyond the 99th percentile of the widest spread agent.
    """
    errors = {agent: np.asarray(values, dtype=np.float64) for agent, values in errors.items() if len(values)}
    if not errors:
        return []
    end = max(MISS_THRESHOLD_M * 1.5, *(float(np.quantile(values, 0.99)) for values in errors.values()))
    edges = np.linspace(0.0, end, _HISTOGRAM_BINS + 1)
    figure, ax = _chart("FDE, scenes per bin")
    for i, (agent, values) in enumerate(errors.items()):
        counts, _ = np.histogram(np.minimum(values, end), edges)
        ax.stairs(counts, edges, color=agent_color(agent, i), fill=True, alpha=0.25)
        ax.stairs(counts, edges, color=agent_color(agent, i), linewidth=1.4, label=agent)
    _miss_line(ax)
    ax.set_xlabel("FDE at 4 s (m); the last bin holds all beyond")
    ax.set_ylabel("scenes")
    _legend(ax)
    histogram = _svg(figure, "Histogram of FDE")

    figure, ax = _chart("FDE, share of scenes below")
    for i, (agent, values) in enumerate(errors.items()):
        x = np.sort(values)
        if len(x) > _MAX_POINTS:
            x = np.quantile(x, np.linspace(0, 1, _MAX_POINTS))
        share = np.arange(1, len(x) + 1) / len(x)
        ax.step([0.0, *x], [0.0, *share], where="post", color=agent_color(agent, i), linewidth=1.6, label=agent)
    _miss_line(ax)
    ax.set_xlim(0.0, end)
    ax.set_ylim(0.0, 1.02)
    ax.set_xlabel("FDE at 4 s (m)")
    ax.set_ylabel("share of scenes")
    _legend(ax, loc="lower right")
    return [histogram, _svg(figure, "Cumulative distribution of FDE")]


def score_charts(scores: Mapping[str, Float[np.ndarray, "N"]]) -> list[str]:
    """Histogram of PDM scores in [0, 1] and share of scenes that reach a score, agent by agent.

    Scores are rounded to 4 decimals, so that one a rounding error below 1 counts as 1.
    """
    scores = {agent: np.round(np.asarray(values, np.float64), 4) for agent, values in scores.items() if len(values)}
    if not scores:
        return []
    edges = np.linspace(0.0, 1.0, _SCORE_BINS + 1)
    figure, ax = _chart("PDM score, scenes per bin")
    for i, (agent, values) in enumerate(scores.items()):
        counts, _ = np.histogram(np.clip(values, 0.0, 1.0), edges)
        ax.stairs(counts, edges, color=agent_color(agent, i), fill=True, alpha=0.15)
        ax.stairs(counts, edges, color=agent_color(agent, i), linewidth=1.4, label=agent)
    ax.set_xlabel("PDM score")
    ax.set_ylabel("scenes")
    _legend(ax, loc="upper center")
    histogram = _svg(figure, "Histogram of PDM scores")

    figure, ax = _chart("PDM score, share of scenes that reach it")
    for i, (agent, values) in enumerate(scores.items()):
        ranked = np.sort(values)
        x = np.unique(np.quantile(ranked, np.linspace(0, 1, _MAX_POINTS)) if len(ranked) > _MAX_POINTS else ranked)
        reach = 1 - np.searchsorted(ranked, x) / len(ranked)  # of scenes at x or above
        if x[-1] < 1:
            x, reach = np.append(x, 1.0), np.append(reach, 0.0)
        color = agent_color(agent, i)
        ax.step([0.0, *x], [1.0, *reach], where="pre", color=color, linewidth=1.6, label=agent)
    ax.set_xlim(0.0, 1.0)
    ax.set_ylim(0.0, 1.02)
    ax.set_xlabel("PDM score")
    ax.set_ylabel("share of scenes")
    _legend(ax, loc="lower left")
    return [histogram, _svg(figure, "Share of scenes by PDM score")]


def agent_color(agent: str, order: int) -> str:
    """The agent's colour in pictures and charts."""
    return TRAJECTORY_COLORS.get(agent, FURTHER_COLORS[order % len(FURTHER_COLORS)])


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, float]]:
    """Numeric leaves of a nested record; bools are none."""
    leaves: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            leaves += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            leaves.append((f"{prefix}{name}", float(value)))
    return leaves


def _chart(title: str) -> tuple[Figure, Axes]:
    """Empty axes on a transparent ground."""
    figure = Figure(figsize=(4.8, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    ax = figure.add_subplot()
    ax.patch.set_alpha(0.0)
    ax.set_title(title, fontsize=10, color=_INK, parse_math=False)
    ax.grid(color=_INK, alpha=0.15, linewidth=0.6)
    ax.tick_params(colors=_INK, which="both", labelsize=8)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
        spine.set_alpha(0.5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=_INK, fontsize=8)
    return figure, ax


def _legend(ax: Axes, loc: str = "upper right") -> None:
    for text in ax.legend(loc=loc, fontsize=8, frameon=False, labelcolor=_INK).get_texts():
        text.set_parse_math(False)


def _miss_line(ax: Axes) -> None:
    ax.axvline(MISS_THRESHOLD_M, color=_INK, linewidth=0.8, linestyle=":", label=f"miss, over {MISS_THRESHOLD_M:g} m")


def _svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element whose size follows the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    return text.replace("<svg", f'<svg class="chart" role="img" aria-label="{html.escape(label)}"', 1)
