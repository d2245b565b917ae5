"""Extended scores of what agents planned: rows, pairs, filter, tables and report, with a scorer that is told."""

import csv
import dataclasses

import numpy as np
import pytest

from recogdrive.evaluation.epdms import ALL_SUB_SCORES, EpdmsCollector, evaluate_epdms, summarise_epdms
from recogdrive.evaluation.open_loop import evaluate_open_loop
from recogdrive.evaluation.pdms import evaluate_pdms
from recogdrive.evaluation.report import write_report
from recogdrive.evaluation.tables import read_epdms_rows, write_tables
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.extended_scores import SUB_SCORES, ExtendedScores, weighted_score
from recogdrive.pdm.scene import ExtendedFacts

NAVSIM_V2_HEADER = (
    "token,valid,no_at_fault_collisions,drivable_area_compliance,driving_direction_compliance,"
    "traffic_light_compliance,ego_progress,time_to_collision_within_bound,lane_keeping,history_comfort,"
    "two_frame_extended_comfort,score"
)


class ToldScorer:
    """Full marks but for what is told: (token, agent number) -> sub-scores, token -> what its human breaks.

    Drives of a scene are alike those of the scene before where `alike` says so, for each pair in the order of scenes.
    """

    def __init__(self, told=None, human_breaks=None, alike=1.0, refused=()):
        self.told, self.human_breaks = told or {}, human_breaks or {}
        self.alike, self.refused, self.compared = alike, refused, []

    def score(self, scenes, trajectories):
        if any(scene.token in self.refused for scene in scenes):
            raise SceneError(f"Scene {scenes[0].token} has no centre line.")
        shape = trajectories.shape[:2]
        values = {name: np.ones(shape) for name in ExtendedScores._fields}
        values |= {name: np.full(shape, -1) for name in values if name.endswith(("_step", "_track", "red_light"))}
        values |= {"valid": np.isfinite(trajectories).all(axis=(2, 3)), "comfort_ok": np.ones((*shape, 6), bool)}
        values |= {"states": np.zeros((*shape, 41, 11)), "human_breaks": np.zeros((len(scenes), 8), bool)}
        for s, scene in enumerate(scenes):
            broken = self.human_breaks.get(scene.token, ())
            values["human_breaks"][s] = [name in broken for name in SUB_SCORES]
            values["states"][s, :, :, 2] = scene.timestamp_us / 1e6
            for g in range(shape[1]):
                for name, value in self.told.get((scene.token, g), {}).items():
                    values[name][s, g] = value
        return ExtendedScores(**values)

    def compare(self, current, previous, steps):
        self.compared.append((current[:, 0, 2].tolist(), previous[:, 0, 2].tolist(), steps))
        return np.full(len(current), self.alike)


@pytest.fixture
def extended_scene(pdm_scene):
    """The record of a scene with extended facts, unless its metadata says `unknown`."""

    def make(scene):
        record = pdm_scene(scene)
        if "unknown" in scene.metadata:
            return record
        tracks = len(record.agent_types)
        facts = ExtendedFacts(
            agent_sightings=np.tile(np.array([0, 8], np.int8), (tracks, 1)),
            history_states=np.zeros((4, 11)),
            history_times_us=np.arange(4) * 500_000,
            light_vertices=np.zeros((0, 2)),
            light_offsets=np.zeros(1, np.int32),
            light_frames=np.zeros(0, np.int16),
            normaliser_poses_v2=record.normaliser_poses,
        )
        return dataclasses.replace(record, extended=facts)

    return make


@pytest.fixture
def evaluation(make_scene, fixed_agent):
    """Two agents on three scenes of one log, half a second apart, and on one of another log."""
    scenes = [make_scene(n) for n in range(3)] + [make_scene(3, log_name="log_b")]
    return evaluate_open_loop([fixed_agent("planner"), fixed_agent("other", 0.0)], [("val", scenes)])


def token(number):
    return f"{number:016x}"


def test_scores_follow_from_sub_scores_and_pairs(evaluation, extended_scene):
    scorer = ToldScorer({(token(1), 0): {"ego_progress": 0.5}}, alike=0.0)
    rows = evaluate_epdms(evaluation, extended_scene, scorer, chunk_size=2).rows_of("val", "planner")
    assert [row.two_frame_extended_comfort for row in rows] == [None, 0.0, 0.0, None]
    assert [row.previous_token for row in rows] == ["", token(0), token(1), ""]
    assert [row.score for row in rows] == pytest.approx([1.0, 11.5 / 16, 14 / 16, 1.0])
    assert scorer.compared[0] == ([0.5, 1.0], [0.0, 0.5], 5)


def test_the_filter_and_both_sides_of_its_fix(evaluation, extended_scene):
    lost = {"traffic_light_compliance": 0.0, "lane_keeping": 0.0, "no_at_fault_collisions": 0.5}
    breaks = ("traffic_light_compliance", "lane_keeping")
    scorer = ToldScorer({(token(3), 0): lost}, {token(3): breaks})
    row = evaluate_epdms(evaluation, extended_scene, scorer).rows_of("val", "planner")[3]
    assert row.forgiven == "traffic_light_compliance, lane_keeping"
    assert (row.traffic_light_compliance, row.filtered("traffic_light_compliance")) == (0.0, 1.0)
    assert (row.no_at_fault_collisions, row.filtered("no_at_fault_collisions")) == (0.5, 0.5)
    assert (row.score, row.score_unfiltered, row.score_before_fix) == (0.5, 0.0, 0.0)


def test_rows_without_a_score_say_why_and_take_no_part_in_pairs(make_scene, fixed_agent, extended_scene):
    scenes = [
        make_scene(0),
        make_scene(1, metadata={"unknown": ""}),
        make_scene(2),
        make_scene(3),
        make_scene(4, metadata={"problem": "no route"}),
        make_scene(5),
    ]
    agent = fixed_agent("planner", failing=(token(3),))
    evaluation = evaluate_open_loop([agent], [("val", scenes)])
    found = evaluate_epdms(evaluation, extended_scene, ToldScorer(refused=(token(5),)))
    problems = [row.problem for row in found.rows]
    assert "extended facts" in problems[1] and "no route" in problems[4] and "no centre line" in problems[5]
    assert problems[3] == "5 of 8 poses are not finite" and problems[0] == problems[2] == ""
    assert [row.valid for row in found.rows] == [True, False, True, False, False, False]
    assert [row.two_frame_extended_comfort for row in found.rows] == [None] * 6
    assert len(found.failed) == 4
    summary = summarise_epdms(found.rows)["planner"]
    assert (summary["epdms"], summary["epdms_scenes"], summary["epdms_failed"], summary["epdms_partial"]) == (
        1,
        6,
        4,
        1,
    )
    assert summary["epdms_pairs"] == 0 and np.isnan(summary["epdms_two_frame_extended_comfort"])


def test_where_no_scene_has_the_facts_there_are_no_extended_scores(evaluation, pdm_scene):
    assert evaluate_epdms(evaluation, pdm_scene, ToldScorer()) is None


def test_means_with_and_without_the_filter(evaluation, extended_scene):
    scorer = ToldScorer(
        {(token(n), 0): {"drivable_area_compliance": 0.0} for n in (0, 3)}, {token(3): ("drivable_area_compliance",)}
    )
    summary = summarise_epdms(evaluate_epdms(evaluation, extended_scene, scorer).rows)["planner"]
    assert summary["epdms"] == summary["val/epdms"] == 0.75
    assert summary["epdms_unfiltered"] == summary["epdms_before_fix"] == 0.5
    assert summary["epdms_drivable_area_compliance"] == 0.75
    assert summary["epdms_unfiltered_drivable_area_compliance"] == 0.5
    assert summary["epdms_two_frame_extended_comfort"] == 1.0 and summary["epdms_pairs"] == 2
    assert 0 <= summary["epdms_ci95_low"] <= 0.75 <= summary["epdms_ci95_high"] <= 1


@pytest.fixture
def run(tmp_path, evaluation, extended_scene, telling_scorer):
    """A run folder with tables and report, in whose last scene the human passes a red light as the planner does."""
    extended = EpdmsCollector(
        ToldScorer({(token(3), 0): {"traffic_light_compliance": 0.0}}, {token(3): ("traffic_light_compliance",)})
    )
    pdms = evaluate_pdms(evaluation, extended_scene, telling_scorer(), observers=[extended])
    epdms = extended.finish()
    summary = write_tables(tmp_path, evaluation, pdms, epdms)
    page = write_report(tmp_path, evaluation, pdms=pdms, epdms=epdms, worst_scenes=0, median_scenes=0)
    return tmp_path, epdms, summary, page.read_text(encoding="utf-8")


def test_rows_are_read_back(run):
    folder, epdms, _, _ = run
    assert read_epdms_rows(folder) == epdms.rows


def test_tables_in_navsims_layout_tell_the_filters_apart(run):
    folder = run[0]
    found = {}
    for variant in ("filtered", "filtered_before_fix", "unfiltered"):
        text = (folder / "epdms" / "val" / variant / "planner.csv").read_text()
        assert text.splitlines()[0] == NAVSIM_V2_HEADER
        found[variant] = list(csv.DictReader(text.splitlines()))
    last = {variant: (rows[3]["traffic_light_compliance"], rows[3]["score"]) for variant, rows in found.items()}
    assert last == {"filtered": ("1.0", "1.0"), "filtered_before_fix": ("1.0", "0.0"), "unfiltered": ("0.0", "0.0")}
    average = {variant: rows[-1] for variant, rows in found.items()}
    assert {row["token"] for row in average.values()} == {"average_all_frames"}
    assert [average[v]["score"] for v in ("filtered", "filtered_before_fix", "unfiltered")] == ["1.0", "0.75", "0.75"]
    assert average["unfiltered"]["valid"] == "True"
    assert [row["two_frame_extended_comfort"] for row in found["filtered"]] == ["", "1.0", "1.0", "", "1.0"]


def test_summary_and_report_show_both_scores(run):
    _, _, summary, page = run
    names = list(summary["planner"])
    assert names.index("pdms") < names.index("epdms") < names.index("ade")
    assert "Extended PDM score" in page and "EPDMS without human filter" in page and "(75.0%)" in page
    assert "epdms/val/filtered/planner.csv" in page and "epdms.csv" in page
    assert "epdms-failed" not in page


def test_a_report_without_extended_scores_does_not_mention_them(tmp_path, evaluation, pdm_scene, telling_scorer):
    pdms = evaluate_pdms(evaluation, pdm_scene, telling_scorer())
    summary = write_tables(tmp_path, evaluation, pdms)
    page = write_report(tmp_path, evaluation, pdms=pdms, worst_scenes=0, median_scenes=0).read_text(encoding="utf-8")
    assert "EPDMS" not in page and not any("epdms" in name for name in summary["planner"])
    assert not (tmp_path / "epdms").exists()


def test_extended_scores_stand_beside_pdm_scores(tmp_path, evaluation, extended_scene):
    epdms = evaluate_epdms(evaluation, extended_scene, ToldScorer())
    with pytest.raises(ValueError, match="pass pdms too"):
        write_report(tmp_path, evaluation, epdms=epdms)


def test_every_row_scores_what_its_sub_scores_say(evaluation, extended_scene):
    rng = np.random.default_rng(0)
    told = {(token(n), g): {name: rng.integers(0, 3) / 2 for name in SUB_SCORES} for n in range(4) for g in range(2)}
    for row in evaluate_epdms(evaluation, extended_scene, ToldScorer(told)).rows:
        own = {name: getattr(row, name) for name in SUB_SCORES}
        assert row.score == row.score_unfiltered == weighted_score(own, row.two_frame_extended_comfort)
        assert [row.filtered(name) for name in ALL_SUB_SCORES] == [getattr(row, name) for name in ALL_SUB_SCORES]


def test_an_answer_without_a_trajectory_scores_0_and_has_no_part_in_pairs(make_scene, talking_agent, extended_scene):
    agent = talking_agent(mumbled=(token(1),))
    evaluation = evaluate_open_loop([agent], [("val", [make_scene(i) for i in range(4)])])

    found = evaluate_epdms(evaluation, extended_scene, ToldScorer())

    row = found.rows[1]
    assert (row.valid, row.parsed, row.score, row.score_unfiltered, row.lane_keeping) == (False, False, 0.0, 0.0, None)
    assert found.failed == () and [r.previous_token for r in found.rows] == ["", "", "", token(2)]
    summary = summarise_epdms(found.rows)["vlm_text"]
    assert (summary["epdms"], summary["epdms_unfiltered"], summary["epdms_valid"]) == (0.75, 0.75, 1.0)
    assert (summary["epdms_failed"], summary["epdms_partial"], summary["epdms_lane_keeping"]) == (0, 0, 1.0)
