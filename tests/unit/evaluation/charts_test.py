import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from recogdrive.evaluation.charts import (
    TrainingCurves,
    agent_color,
    distribution_charts,
    line_chart,
    read_training_curves,
    score_charts,
    training_charts,
)


@pytest.fixture
def write_curve(tmp_path):
    def write(*records):
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records))
        return path

    return write


def points_of(svg, color):
    """Vertices of the line of a colour, in the chart's own pixels (y grows downwards); legend entries do not count."""
    (line,) = re.findall(r'<path d="([^"]+)" clip-path="[^"]+" style="fill: none; stroke: ' + color, svg)
    return np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", line), dtype=float)


def test_a_curve_keeps_each_metric_with_its_own_steps(write_curve):
    path = write_curve(
        {"step": 10, "loss": 0.5, "perf": {"samples_per_s": 7, "device": "cpu"}},
        {"step": 10, "eval/fde": 3.0},
        {"step": 20, "loss": 0.25, "resumed": True},
    )

    series = read_training_curves(path).series

    assert set(series) == {"loss", "perf/samples_per_s", "eval/fde"}
    np.testing.assert_array_equal(series["loss"], [[10, 20], [0.5, 0.25]])
    np.testing.assert_array_equal(series["eval/fde"], [[10], [3.0]])


def test_a_step_written_again_after_a_resume_counts_once(write_curve):
    path = write_curve({"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0}, {"step": 1, "loss": 5.0})

    np.testing.assert_array_equal(read_training_curves(path).series["loss"], [[1, 2], [5.0, 8.0]])


def test_lines_that_are_no_records_are_counted(write_curve):
    path = write_curve({"step": 1, "loss": 1.0}, "[1]\n", '{"loss": 2}\n', "\n", '{"step": 2, "lo')

    curves = read_training_curves(path)

    assert curves.unreadable_lines == 3
    assert list(curves.series) == ["loss"]


def test_a_run_without_training_has_no_curves(tmp_path):
    curves = read_training_curves(tmp_path / "metrics.jsonl")

    assert (dict(curves.series), curves.unreadable_lines) == ({}, 0)
    assert training_charts(curves) == []


def test_there_is_a_chart_for_each_of_loss_rate_norm_and_evaluation():
    line = (np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    names = ("train/loss", "lr", "grad_norm", "perf/step_s", "eval/fde", "eval/other_log/fde", "eval/ade")

    charts = training_charts(TrainingCurves(dict.fromkeys(names, line)))

    labels = [re.search(r'aria-label="([^"]+)"', chart)[1] for chart in charts]
    assert labels == ["Training loss", "Learning rate", "Gradient norm", "FDE at 4 s during training (m)"]
    assert "<!-- eval/fde -->" in charts[-1] and "<!-- eval/other_log/fde -->" in charts[-1]
    assert "<!-- eval/ade -->" not in charts[-1]


def test_a_single_evaluated_split_is_drawn_under_its_plain_name():
    (chart,) = training_charts(TrainingCurves({"eval/fde": (np.array([1.0, 2.0]), np.array([1.0, 3.0]))}))

    assert len(points_of(chart, "#d1604d")) == 2


def test_a_line_rises_with_its_values_from_left_to_right():
    svg = line_chart("t", {"a": (np.array([0.0, 5.0, 10.0]), np.array([1.0, 2.0, 4.0]))})

    x, y = points_of(svg, "#d1604d").T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=1e-3)
    assert (y[0] - y[1]) * 2 == pytest.approx(y[1] - y[2], abs=1e-3), "linear: twice the rise is twice the height"


def test_values_over_a_wide_range_get_a_logarithmic_axis():
    svg = line_chart("t", {"a": (np.array([0.0, 1.0, 2.0]), np.array([0.01, 0.1, 1.0]))})

    y = points_of(svg, "#d1604d")[:, 1]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=1e-3)


def test_a_long_line_is_reduced_to_means_that_keep_its_level():
    values = np.tile([1.0, 3.0], 10_000)

    svg = line_chart("t", {"a": (np.arange(20_000.0), values), "b": (np.array([0.0, 1.0]), np.array([2.0, 2.0]))})

    reduced, level = points_of(svg, "#d1604d"), points_of(svg, "#4e79a7")
    assert len(reduced) <= 500
    np.testing.assert_allclose(reduced[:, 1], level[0, 1], atol=0.05)


def test_non_finite_values_leave_a_gap_instead_of_breaking_the_chart():
    svg = line_chart("t", {"a": (np.arange(3.0), np.array([1.0, np.nan, 2.0]))})

    assert len(points_of(svg, "#d1604d")) == 2


def test_the_cumulative_chart_rises_to_the_share_of_scenes_below():
    _, cumulative = distribution_charts({"planner": np.array([0.5, 1.0, 1.5, 2.5])})

    y = points_of(cumulative, "#de7061")[:, 1]
    bottom, steps = y.max(), sorted({round(v, 3) for v in y}, reverse=True)
    heights = (bottom - np.array(steps)) / (bottom - min(steps))
    np.testing.assert_allclose(heights, [0, 0.25, 0.5, 0.75, 1.0], atol=1e-3)


def test_an_agent_without_valid_scenes_is_left_out_of_the_distributions():
    assert distribution_charts({"planner": np.array([])}) == []
    histogram, _ = distribution_charts({"planner": np.array([]), "other": np.array([1.0])})
    assert "<!-- other -->" in histogram and "<!-- planner -->" not in histogram


def test_charts_are_well_formed_and_take_the_pages_text_colour():
    (histogram, cumulative) = distribution_charts({"<b>$x": np.array([0.5, 1.0]), "planner": np.array([2.5])})

    for svg in (histogram, cumulative, line_chart('a "title" <i>', {"l": (np.arange(2.0), np.arange(2.0))})):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "currentColor" in svg and "#0a0b0c" not in svg


def test_an_agent_has_the_same_colour_everywhere():
    assert agent_color("human", 5) == "#59a14f"
    assert agent_color("ego_status_mlp", 1) != agent_color("other", 2)


def test_scores_fall_from_all_scenes_to_the_share_with_full_marks():
    _, shares = score_charts({"planner": np.array([0.0, 0.5, 1.0, 1.0])})

    y = points_of(shares, "#de7061")[:, 1]
    top, levels = y.min(), sorted({round(v, 3) for v in y})
    # All reach 0, three of four more than that, two reach 1.
    assert levels[0] == pytest.approx(top, abs=1e-3) and len(levels) == 3
    assert levels[1] - levels[0] == pytest.approx(levels[2] - levels[1], abs=1e-2)


def test_a_score_of_one_falls_into_the_last_bin():
    histogram, _ = score_charts({"planner": np.array([1.0, 1.0, 0.0])})

    (x, y) = points_of(histogram, "#de7061").T
    bottom = y.max()
    assert bottom - y[x > x.max() - 1].min() == pytest.approx(2 * (bottom - y[x < x.min() + 1].min()), rel=1e-3)


def test_agents_without_a_score_have_no_chart():
    assert score_charts({"planner": np.array([])}) == []


def test_the_pdm_score_of_evaluations_is_a_training_chart():
    step = np.array([1.0, 2.0])
    curves = TrainingCurves(
        dict.fromkeys(("eval/pdms", "eval/other/pdms", "reward_part/pdms", "loss"), (step, step / 3))
    )

    (chart,) = [svg for svg in training_charts(curves) if "PDM score during training" in svg]
    assert "<!-- eval/other/pdms -->" in chart and "reward_part" not in chart
