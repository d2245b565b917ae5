"""PDM scores of agents, with a scorer that says what it is told to say."""

import math

import numpy as np
import pytest

from recogdrive.evaluation.agents import ConstantVelocity, Human
from recogdrive.evaluation.open_loop import bootstrap_interval, evaluate_open_loop
from recogdrive.evaluation.pdms import badness, evaluate_pdms, partial_label, summarise_pdms

HIT = {
    "no_at_fault_collisions": 0.0,
    "ego_progress": 0.0,
    "score": 0.0,
    "collision_step": 23,
    "collision_track": 0,
    "progress_m": 12.5,
}


@pytest.fixture
def scenes(make_scene):
    return [make_scene(i, metadata={"layout": "curve" if i % 2 else "merge"}) for i in range(5)]


@pytest.fixture
def evaluation(scenes, fixed_agent):
    return evaluate_open_loop([fixed_agent(), Human()], [("val", scenes[:3]), ("other", scenes[3:])])


def test_a_row_holds_scores_and_what_went_wrong(evaluation, scenes, pdm_scene, telling_scorer):
    pdms = evaluate_pdms(evaluation, pdm_scene, telling_scorer({(scenes[1].token, 0): HIT}))

    row = pdms.rows_of("val", "planner")[1]
    assert (row.split, row.agent, row.token, row.log_name) == ("val", "planner", scenes[1].token, "log_a")
    assert (row.layout, row.valid, row.problem) == ("curve", True, "")
    assert (row.no_at_fault_collisions, row.drivable_area_compliance, row.score) == (0.0, 1.0, 0.0)
    assert (row.kind, row.reason) == ("collision", "hits a vehicle after 2.3 s")
    assert (row.collision_step, row.collision_track, row.collision_type) == (23, 0, "vehicle")
    assert (row.progress_m, row.normaliser_progress_m) == (12.5, 20.0)
    assert (row.off_road_step, row.ttc_step, row.ttc_ahead_steps, row.ttc_track) == (None, None, None, None)
    assert (row.off_road_corner, row.ttc_type, row.comfort_failed) == ("", "", "")
    assert pdms.rows_of("val", "human")[1].score == 1.0


def test_off_road_and_projection_are_in_the_row(evaluation, scenes, pdm_scene, telling_scorer):
    told = {"off_road_step": 7, "off_road_corner": 2, "drivable_area_compliance": 0.0, "score": 0.0}
    told |= {"ttc_step": 4, "ttc_ahead_steps": 0, "ttc_track": 1, "time_to_collision_within_bound": 0.0}

    pdms = evaluate_pdms(evaluation, pdm_scene, telling_scorer({(scenes[0].token, 1): told}))

    row = pdms.rows_of("val", "human")[0]
    assert (row.off_road_step, row.off_road_corner) == (7, "rear right")
    assert (row.ttc_step, row.ttc_ahead_steps, row.ttc_track, row.ttc_type) == (4, 0, 1, "pedestrian")


def test_rows_stand_split_by_split_agent_by_agent_scene_by_scene(evaluation, scenes, pdm_scene, telling_scorer):
    scorer = telling_scorer()

    rows = evaluate_pdms(evaluation, pdm_scene, scorer, chunk_size=2).rows

    tokens = [scene.token for scene in scenes]
    assert [(r.split, r.agent, r.token) for r in rows] == [
        (split, agent, token)
        for split, part in (("val", tokens[:3]), ("other", tokens[3:]))
        for agent in ("planner", "human")
        for token in part
    ]
    # All agents of a scene in one call, chunk by chunk.
    assert [shape for _, shape in scorer.calls] == [(2, 2, 8, 3), (1, 2, 8, 3), (2, 2, 8, 3)]


def test_each_scene_is_made_once(evaluation, scenes, pdm_scene, telling_scorer):
    made = []

    def counting(scene):
        made.append(scene.token)
        return pdm_scene(scene)

    evaluate_pdms(evaluation, counting, telling_scorer(), chunk_size=2)

    assert made == [scene.token for scene in scenes]


def test_a_scene_that_cannot_be_made_is_a_failed_row_of_every_agent(
    make_scene, fixed_agent, pdm_scene, telling_scorer, caplog
):
    scenes = [make_scene(0), make_scene(1, metadata={"problem": "no route ahead"}), make_scene(2)]
    evaluation = evaluate_open_loop([fixed_agent(), Human()], [("val", scenes)])

    with caplog.at_level("ERROR"):
        pdms = evaluate_pdms(evaluation, pdm_scene, telling_scorer({(scenes[2].token, 0): HIT}))

    assert [(r.agent, r.token, r.problem) for r in pdms.failed] == [
        (agent, scenes[1].token, "no route ahead") for agent in ("planner", "human")
    ]
    assert {r.score for r in pdms.failed} == {None}
    assert [r.score for r in pdms.rows_of("val", "planner")] == [1.0, None, 0.0], "the others have their own scores"
    assert f"split=val agent=planner: PDMS is partial (2 of 3 scenes): {scenes[1].token}: no route ahead" in caplog.text


def test_at_most_five_failed_scenes_are_logged(make_scene, pdm_scene, telling_scorer, caplog):
    scenes = [make_scene(i, metadata={"problem": f"reason {i}"}) for i in range(7)]

    with caplog.at_level("ERROR"):
        evaluate_pdms(evaluate_open_loop([Human()], [("val", scenes)]), pdm_scene, telling_scorer())

    assert "partial (0 of 7 scenes)" in caplog.text and "and 2 more" in caplog.text
    assert "reason 4" in caplog.text and "reason 5" not in caplog.text


def test_a_scene_that_the_scorer_refuses_costs_no_other_its_score(evaluation, scenes, pdm_scene, telling_scorer):
    scorer = telling_scorer({(scenes[2].token, 0): HIT}, refused=(scenes[1].token,))

    rows = evaluate_pdms(evaluation, pdm_scene, scorer).rows_of("val", "planner")

    assert [row.valid for row in rows] == [True, False, True]
    assert [row.score for row in rows] == [1.0, None, 0.0]
    assert rows[1].problem == f"Scene {scenes[1].token} has no centre line."


def test_a_prediction_that_is_not_finite_is_a_failed_row_of_that_agent_alone(
    scenes, fixed_agent, pdm_scene, telling_scorer
):
    agents = [fixed_agent(failing=(scenes[1].token,)), Human()]

    pdms = evaluate_pdms(evaluate_open_loop(agents, [("val", scenes)]), pdm_scene, telling_scorer())

    (failed,) = pdms.failed
    assert (failed.agent, failed.token, failed.problem) == (
        *("planner", scenes[1].token),
        "5 of 8 poses are not finite",
    )


def test_a_finite_prediction_that_the_scorer_calls_invalid_says_so(evaluation, scenes, pdm_scene, telling_scorer):
    scorer = telling_scorer({(scenes[0].token, 0): {"valid": False}})

    (failed,) = evaluate_pdms(evaluation, pdm_scene, scorer).failed

    assert failed.problem == "the simulation of the trajectory is not finite"


def test_the_worst_of_every_kind_keep_their_states(make_scene, pdm_scene, telling_scorer):
    scenes = [make_scene(i) for i in range(6)]
    told = {(scenes[i].token, 0): HIT | {"driven_m": 10.0 * i} for i in (1, 3, 5)}
    told[scenes[2].token, 0] = {"ego_progress": 0.5, "score": 0.8}
    told[scenes[4].token, 0] = {"ego_progress": 0.2, "score": 0.7}

    pdms = evaluate_pdms(
        evaluate_open_loop([Human()], [("val", scenes)]), pdm_scene, telling_scorer(told), evidence_per_kind=2
    )

    evidence = pdms.evidence["val", "human"]
    assert [e.index for e in evidence] == [1, 3, 4, 2], "the third collision is left out; full marks are none"
    assert [e.row.token for e in evidence] == [scenes[e.index].token for e in evidence]
    # 100 - x is the second local coordinate: 30 m driven in scene 3.
    assert evidence[1].states.shape == (41, 11) and evidence[1].states[-1, 1] == pytest.approx(70.0)


def test_rows_of_equal_score_are_ranked_by_what_else_they_lost(evaluation, scenes, pdm_scene, telling_scorer):
    both = HIT | {"time_to_collision_within_bound": 0.0, "ttc_step": 1, "ttc_ahead_steps": 3, "ttc_track": 0}
    told = {(scenes[0].token, 0): HIT, (scenes[1].token, 0): both}

    rows = evaluate_pdms(evaluation, pdm_scene, telling_scorer(told)).rows_of("val", "planner")

    assert sorted(rows, key=badness) == [rows[1], rows[0], rows[2]]


def test_the_summary_holds_means_interval_and_counts(evaluation, scenes, pdm_scene, telling_scorer):
    told = {(scenes[0].token, 0): HIT, (scenes[1].token, 0): {"score": 0.7, "comfort": 0.0}}

    summary = summarise_pdms(evaluate_pdms(evaluation, pdm_scene, telling_scorer(told)).rows)

    planner = summary["planner"]
    assert planner["pdms"] == planner["val/pdms"] == pytest.approx((0.0 + 0.7 + 1.0) / 3)
    assert planner["no_at_fault_collisions"] == pytest.approx(2 / 3) and planner["comfort"] == pytest.approx(2 / 3)
    assert planner["other/pdms"] == 1.0
    assert (planner["pdms_ci95_low"], planner["pdms_ci95_high"]) == bootstrap_interval(np.array([0.0, 0.7, 1.0]))
    assert (planner["pdms_scenes"], planner["pdms_failed"], planner["pdms_partial"]) == (3, 0, 0)
    assert list(summary) == ["planner", "human"] and summary["human"]["pdms"] == 1.0


def test_means_leave_failed_scenes_out_and_are_marked_partial(scenes, fixed_agent, pdm_scene, telling_scorer):
    agents = [fixed_agent(failing=(scenes[0].token,)), ConstantVelocity()]
    told = {(scenes[1].token, 0): {"score": 0.5}}

    pdms = evaluate_pdms(evaluate_open_loop(agents, [("val", scenes[:3])]), pdm_scene, telling_scorer(told))

    summary = summarise_pdms(pdms.rows)
    assert summary["planner"]["pdms"] == pytest.approx((0.5 + 1.0) / 2)
    assert [summary["planner"][f"pdms_{name}"] for name in ("scenes", "failed", "partial")] == [3, 1, 1]
    assert [summary["constant_velocity"][f"pdms_{name}"] for name in ("scenes", "failed", "partial")] == [3, 0, 0]


def test_a_mean_over_no_scene_is_not_a_number(make_scene, pdm_scene, telling_scorer):
    scenes = [make_scene(0, metadata={"problem": "no route"})]

    summary = summarise_pdms(
        evaluate_pdms(evaluate_open_loop([Human()], [("val", scenes)]), pdm_scene, telling_scorer()).rows
    )

    assert math.isnan(summary["human"]["pdms"]) and math.isnan(summary["human"]["pdms_ci95_low"])


@pytest.mark.parametrize(("failed", "label"), [(0, ""), (3, "partial (9 of 12 scenes)")])
def test_an_average_over_fewer_scenes_is_labelled(failed, label):
    assert partial_label(12, failed) == label


@pytest.mark.parametrize("name", ["a/b", ".hidden"])
def test_an_agent_whose_name_is_no_file_name_is_refused_before_anything_is_scored(
    scenes, fixed_agent, pdm_scene, telling_scorer, name
):
    scorer = telling_scorer()
    with pytest.raises(ValueError, match="cannot be the name of a table"):
        evaluate_pdms(evaluate_open_loop([fixed_agent(name)], [("val", scenes)]), pdm_scene, scorer)
    assert scorer.calls == []


@pytest.mark.parametrize("arguments", [{"chunk_size": 0}, {"evidence_per_kind": -1}])
def test_counts_out_of_range_are_refused(evaluation, pdm_scene, telling_scorer, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        evaluate_pdms(evaluation, pdm_scene, telling_scorer(), **arguments)


def test_there_is_no_summary_of_nothing():
    with pytest.raises(ValueError, match="no rows to summarise"):
        summarise_pdms([])


def test_an_answer_without_a_trajectory_scores_0_and_is_not_failed(scenes, talking_agent, pdm_scene, telling_scorer):
    agents = [talking_agent(mumbled=(scenes[1].token,)), Human()]
    told = {(scenes[0].token, 0): {"score": 0.5}}

    pdms = evaluate_pdms(evaluate_open_loop(agents, [("val", scenes[:4])]), pdm_scene, telling_scorer(told))

    row = pdms.rows_of("val", "vlm_text")[1]
    assert (row.valid, row.parsed, row.score, row.ego_progress) == (False, False, 0.0, None)
    assert row.problem == "the answer states no trajectory: no pose in it"
    assert pdms.failed == () and row.token not in {e.row.token for e in pdms.evidence["val", "vlm_text"]}
    summary = summarise_pdms(pdms.rows)
    assert summary["vlm_text"]["pdms"] == pytest.approx(2.5 / 4)
    assert summary["vlm_text"]["pdms_valid"] == pytest.approx(2.5 / 3)
    assert summary["vlm_text"]["pdms_ci95_low"] < 2.5 / 4, "the interval is that of the headline"
    assert summary["vlm_text"]["ego_progress"] == 1.0
    assert [summary["vlm_text"][f"pdms_{name}"] for name in ("scenes", "failed", "partial")] == [4, 0, 0]
    assert "pdms_valid" not in summary["human"]


def test_a_scene_that_cannot_be_scored_is_failed_whatever_the_answer(
    make_scene, talking_agent, pdm_scene, telling_scorer
):
    scene = make_scene(0, metadata={"problem": "no route ahead"})

    pdms = evaluate_pdms(
        evaluate_open_loop([talking_agent(mumbled=(scene.token,))], [("val", [scene])]), pdm_scene, telling_scorer()
    )

    assert [(row.problem, row.score) for row in pdms.failed] == [("no route ahead", None)]
