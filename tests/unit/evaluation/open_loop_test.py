import math
import warnings

import numpy as np
import pytest

from recogdrive.evaluation.agents import ConstantVelocity, Human
from recogdrive.evaluation.open_loop import (
    bootstrap_interval,
    evaluate_open_loop,
    summarise,
    trajectory_errors,
)


def test_errors_of_a_trajectory_worked_by_hand():
    driven = np.zeros((8, 3))
    predicted = np.zeros((8, 3))
    predicted[:, 0] = [0, 0, 0, 0, 0, 0, 0, 3]
    predicted[:, 1] = [1, 0, 0, 0, 0, 0, 0, 4]
    predicted[:, 2] = [0.1, -0.1, 0, 0, 0, 0, 0, 0.2]

    errors = trajectory_errors(predicted, driven)

    assert errors["ade"] == pytest.approx((1 + 5) / 8)
    assert errors["fde"] == 5.0
    assert errors["miss"]
    assert errors["heading_error"] == pytest.approx(0.4 / 8)
    assert errors["final_heading_error"] == pytest.approx(0.2)


def test_headings_on_both_sides_of_pi_are_close():
    driven, predicted = np.zeros((8, 3)), np.zeros((8, 3))
    driven[:, 2] = np.pi - 0.01
    predicted[:, 2] = -np.pi + 0.02
    predicted[-1, 2] += 4 * np.pi  # whole turns change nothing

    errors = trajectory_errors(predicted, driven)

    assert errors["heading_error"] == pytest.approx(0.03)
    assert errors["final_heading_error"] == pytest.approx(0.03)


@pytest.mark.parametrize(("distance_m", "miss"), [(1.999, False), (2.0, False), (2.001, True)])
def test_a_miss_ends_more_than_two_metres_away(distance_m, miss):
    predicted = np.zeros((8, 3))
    predicted[-1, 1] = distance_m

    assert trajectory_errors(predicted, np.zeros((8, 3)))["miss"] == miss


def test_errors_of_a_batch_equal_those_of_a_loop_over_poses():
    rng = np.random.default_rng(3)
    predicted, driven = rng.normal(size=(2, 5, 8, 3)) * 4

    errors = trajectory_errors(predicted, driven)

    for i in range(5):
        distances = [math.dist(p[:2], d[:2]) for p, d in zip(predicted[i], driven[i], strict=True)]
        turns = [abs(math.remainder(p[2] - d[2], math.tau)) for p, d in zip(predicted[i], driven[i], strict=True)]
        assert errors["ade"][i] == pytest.approx(sum(distances) / 8)
        assert errors["fde"][i] == pytest.approx(distances[-1])
        assert errors["heading_error"][i] == pytest.approx(sum(turns) / 8)


def test_summary_holds_the_headline_split_under_plain_names_and_every_split_under_its_own(make_scene, fixed_agent):
    first = [make_scene(i) for i in range(3)]
    second = [make_scene(i, speed_mps=10.0, velocity=(7.0, 0.0)) for i in range(10, 12)]
    agents = [fixed_agent("planner", 3.0), ConstantVelocity(), Human()]

    summary = summarise(evaluate_open_loop(agents, [("val", first), ("train", second)]).rows)

    assert list(summary) == ["planner", "constant_velocity", "human"]
    planner = summary["planner"]
    assert planner["fde"] == planner["val/fde"] == planner["train/fde"] == 3.0
    assert planner["miss_rate"] == 1.0
    assert (planner["scenes"], planner["val/scenes"], planner["train/scenes"]) == (3, 3, 2)
    assert summary["constant_velocity"]["fde"] == 0.0
    # 3 m/s too slow: 12 m behind after 4 s, on average 3 * 2.25 s.
    assert summary["constant_velocity"]["train/fde"] == pytest.approx(12.0)
    assert summary["constant_velocity"]["train/ade"] == pytest.approx(6.75)


def test_the_human_has_no_error_although_agents_answer_in_float32(make_scene):
    scenes = [make_scene(0, future=np.full((8, 3), 1 / 3))]

    summary = summarise(evaluate_open_loop([Human()], [("val", scenes)]).rows)

    assert {summary["human"][m] for m in ("ade", "fde", "heading_error", "fde_ci95_high")} == {0.0}


def test_an_invalid_prediction_stays_as_a_row_and_marks_the_mean_as_partial(make_scene, fixed_agent):
    scenes = [make_scene(i) for i in range(4)]
    agent = fixed_agent("planner", 1.0, failing=(scenes[2].token,))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = evaluate_open_loop([agent], [("val", scenes)])

    row = evaluation.rows[2]
    assert [r.valid for r in evaluation.rows] == [True, True, False, True]
    assert (row.token, row.ade, row.fde, row.miss) == (scenes[2].token, None, None, None)
    assert row.problem == "5 of 8 poses are not finite"
    summary = summarise(evaluation.rows)["planner"]
    assert (summary["scenes"], summary["invalid_scenes"], summary["partial"]) == (4, 1, 1)
    assert summary["fde"] == 1.0
    assert np.isnan(evaluation.splits[0].predictions["planner"][2, 3:]).all()


def test_an_agent_without_any_valid_prediction_has_no_mean(make_scene, fixed_agent):
    scene = make_scene(1)

    summary = summarise(evaluate_open_loop([fixed_agent(failing=(scene.token,))], [("val", [scene])]).rows)

    assert math.isnan(summary["planner"]["fde"]) and math.isnan(summary["planner"]["fde_ci95_low"])
    assert summary["planner"]["invalid_scenes"] == 1


def test_chunks_do_not_change_rows_or_their_order(make_scene, fixed_agent):
    scenes = [make_scene(i, speed_mps=i, log_name=f"log_{i % 2}") for i in range(7)]
    agents = [fixed_agent(), ConstantVelocity()]

    whole = evaluate_open_loop(agents, [("val", scenes)])
    chunked = evaluate_open_loop(agents, [("val", scenes)], chunk_size=3)

    assert chunked.rows == whole.rows
    assert [row.token for row in chunked.rows_of("val", "planner")] == [scene.token for scene in scenes]
    np.testing.assert_array_equal(chunked.splits[0].predictions["planner"], whole.splits[0].predictions["planner"])


def test_a_row_says_where_its_scene_comes_from(make_scene):
    scene = make_scene(5, log_name="log_x", velocity=(3.0, 4.0), metadata={"layout": "merge"})

    (row,) = evaluate_open_loop([Human()], [("val", [scene])]).rows

    assert (row.split, row.log_name, row.layout, row.command) == ("val", "log_x", "merge", "straight")
    assert row.speed_mps == 5.0


def test_a_plan_of_the_wrong_shape_is_refused_with_the_agents_name(make_scene):
    class Short:
        name = "short"

        def plan(self, scenes):
            return np.zeros((len(scenes), 6, 3))

    with pytest.raises(ValueError, match=r"'short' returned shape \(1, 6, 3\) for 1 scenes, not \(1, 8, 3\)"):
        evaluate_open_loop([Short()], [("val", [make_scene()])])


@pytest.mark.parametrize(
    ("agents", "splits", "message"),
    [
        ([], ["val"], "no agent"),
        ([Human()], [], "no split"),
        ([Human(), Human()], ["val"], "'human' occurs 2 times"),
        ([Human()], ["val", "val"], "'val' occurs 2 times"),
        ([Human()], ["a/b"], "'a/b' cannot be used"),
    ],
)
def test_ambiguous_or_missing_names_are_refused(make_scene, agents, splits, message):
    with pytest.raises(ValueError, match=message):
        evaluate_open_loop(agents, [(name, [make_scene()]) for name in splits])


def test_an_empty_split_is_refused_by_name():
    with pytest.raises(ValueError, match="'navtest' holds no scenes"):
        evaluate_open_loop([Human()], [("navtest", [])])


def test_a_scene_without_future_cannot_be_evaluated(make_scene):
    with pytest.raises(ValueError, match="no recorded future"):
        evaluate_open_loop([ConstantVelocity()], [("val", [make_scene(future=None)])])


def test_summarising_nothing_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        summarise([])


def test_bootstrap_interval_of_a_fair_coin_is_the_binomial_one():
    values = np.tile([0.0, 1.0], 200)

    low, high = bootstrap_interval(values)

    # Normal approximation: 0.5 -+ 1.96 * 0.5 / sqrt(400).
    assert low == pytest.approx(0.451, abs=0.006)
    assert high == pytest.approx(0.549, abs=0.006)
    assert bootstrap_interval(values) == (low, high)


def test_an_answer_without_a_trajectory_is_counted_and_means_leave_it_out(make_scene, talking_agent, caplog):
    scenes = [make_scene(i) for i in range(4)]
    agents = [talking_agent(mumbled=(scenes[1].token,)), Human()]

    with caplog.at_level("WARNING"):
        evaluation = evaluate_open_loop(agents, [("val", scenes)], chunk_size=3)

    rows = evaluation.rows_of("val", "vlm_text")
    assert [row.parsed for row in rows] == [True, False, True, True]
    assert [row.valid for row in rows] == [True, False, True, True] and rows[1].ade is None
    assert rows[1].problem == "the answer states no trajectory: no pose in it"
    assert np.isnan(evaluation.splits[0].predictions["vlm_text"][1]).all(), "never zeros"
    assert list(evaluation.splits[0].answers["vlm_text"]) == [scene.token for scene in scenes]
    summary = summarise(evaluation.rows)
    assert (summary["vlm_text"]["invalid"], summary["vlm_text"]["parse_rate"]) == (1, 0.75)
    assert summary["vlm_text"]["val/ade"] == pytest.approx(1.0) and summary["vlm_text"]["invalid_scenes"] == 1
    assert "parse_rate" not in summary["human"] and {row.parsed for row in evaluation.rows_of("val", "human")} == {None}
    assert "1 of 4 answers state no trajectory" in caplog.text and "not finite" not in caplog.text


def test_a_broken_plan_of_an_agent_that_answered_is_no_invalid_answer(make_scene, talking_agent, caplog):
    scenes = [make_scene(i) for i in range(2)]

    evaluation = evaluate_open_loop([talking_agent(failing=(scenes[0].token,))], [("val", scenes)])

    row = evaluation.rows_of("val", "vlm_text")[0]
    assert (row.valid, row.parsed, row.problem) == (False, True, "5 of 8 poses are not finite")
    assert summarise(evaluation.rows)["vlm_text"]["invalid"] == 0
    assert "1 of 2 predictions are not finite" in caplog.text


def test_zeros_in_place_of_an_answer_that_states_nothing_are_refused(make_scene, talking_agent):
    class Pretending(talking_agent):
        def plan(self, scenes):
            return np.nan_to_num(super().plan(scenes))

    with pytest.raises(ValueError, match=r"'vlm_text' on scene 0{15}1: an answer has poses, or a problem and a plan"):
        evaluate_open_loop([Pretending(mumbled=(f"{1:016x}",))], [("val", [make_scene(0), make_scene(1)])])


def test_a_plan_without_its_answer_is_refused(make_scene, talking_agent):
    class Silent(talking_agent):
        def plan(self, scenes):
            planned = super().plan(scenes)
            self.answers.clear()
            return planned

    with pytest.raises(ValueError, match="'vlm_text' has no answer to scene 0{16}"):
        evaluate_open_loop([Silent()], [("val", [make_scene(0)])])
