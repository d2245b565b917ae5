"""Evaluation during and after training, with an agent whose errors are known."""

import dataclasses

import numpy as np
import pytest

from recogdrive.data.context import SceneTokens
from recogdrive.evaluation.agents import Answer, ConstantVelocity, Human, recorded_trajectories
from recogdrive.evaluation.epdms import EpdmsEvaluation, EpdmsRow
from recogdrive.models.ego_status_mlp import EgoStatusMLP
from recogdrive.models.planner.official_checkpoint import save_official
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.from_scene import pdm_scene
from recogdrive.pdm.scores import PdmScores
from recogdrive.pdm.state import EgoState
from recogdrive.stages import open_loop
from recogdrive.stages.open_loop import OpenLoop, headline

PERIODIC = ("ade", "fde", "miss_rate", "heading_error", "tail_reverse_share", "tail_stop_share")
CONTEXT = SceneTokens(num_map_tokens=4, num_agent_tokens=2)


class Source:
    """`size` copies of a scene that differ in token; counts how often each is built."""

    name = "copies"
    report = {}

    def __init__(self, scene, size):
        self.scene, self.size, self.built = scene, size, []
        self.tokens = tuple(f"{i:016x}" for i in range(size))

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index >= self.size:
            raise IndexError(index)
        self.built.append(index)
        return dataclasses.replace(self.scene, token=self.tokens[index])

    def log_of(self, index):
        return "log_a"


class Shifted:
    """Plans the driven trajectory moved sideways by its weights, in metres."""

    name = "planner"

    def __init__(self, driven):
        self.driven, self.params = driven, 0.0

    def plan_batches(self, batches):
        count = sum(rows for _, rows in batches)
        return np.tile(self.driven, (count, 1, 1)) + np.array([0.0, self.params, 0.0], dtype=np.float32)

    def plan(self, scenes):
        return np.tile(self.driven, (len(scenes), 1, 1)) + np.array([0.0, self.params, 0.0], dtype=np.float32)


@pytest.fixture
def agent(straight_scene):
    return Shifted(recorded_trajectories([straight_scene])[0].astype(np.float32))


def test_periodic_metrics_are_those_of_the_weights_handed_over(straight_scene, agent):
    splits = {"val": Source(straight_scene, 3), "other": Source(straight_scene, 2)}
    evaluate = OpenLoop(pictures=0).periodic(agent, CONTEXT, splits)
    assert evaluate(0.0, 1)["fde"] == pytest.approx(0.0, abs=1e-5)
    found = evaluate(3.0, 2)
    assert set(found) == {f"{p}{m}" for p in ("", "other/") for m in PERIODIC}
    assert found["fde"] == pytest.approx(3.0, abs=1e-5) and found["other/ade"] == pytest.approx(3.0, abs=1e-5)
    assert found["miss_rate"] == 1.0 and found["heading_error"] == pytest.approx(0.0, abs=1e-6)


def test_periodic_evaluation_takes_evenly_spaced_scenes_and_reads_each_once(straight_scene, agent):
    source = Source(straight_scene, 100)
    evaluate = OpenLoop(scenes_during_training=5, pictures=0).periodic(agent, CONTEXT, {"val": source})
    evaluate(0.0, 1)
    evaluate(1.0, 2)
    assert source.built == [0, 25, 50, 74, 99]


class TailOf:
    """Plans to drive straight on at 10 m/s, but for the last interval, whose lengths in metres are its weights."""

    name = "planner"

    def plan_batches(self, batches):
        count = sum(rows for _, rows in batches)
        planned = np.zeros((count, 8, 3), dtype=np.float32)
        planned[:, :7, 0] = np.arange(1, 8) * 5.0
        planned[:, 6, 0] = planned[:, 5, 0]
        planned[:, 7, 0] = planned[:, 6, 0] + np.asarray(self.params)
        return planned


def test_periodic_metrics_count_plans_that_end_backwards_or_standing(straight_scene):
    splits = {"val": Source(straight_scene, 4)}
    found = OpenLoop(pictures=0).periodic(TailOf(), CONTEXT, splits)([-1.0, 0.0, 0.1, 2.0], 1)
    assert (found["tail_reverse_share"], found["tail_stop_share"]) == (0.25, 0.5)


class Frames(Source):
    """Scenes in pairs half a second apart, of a log each, except for the last, which is alone."""

    def log_of(self, index):
        return f"log_{index // 2}"

    def time_of(self, index):
        return 1_000_000 + 500_000 * (index % 2)

    def __getitem__(self, index):
        scene = super().__getitem__(index)
        return dataclasses.replace(scene, log_name=self.log_of(index), timestamp_us=self.time_of(index))


def test_periodic_evaluation_takes_consecutive_frames_together(straight_scene, agent):
    source = Frames(straight_scene, 101)
    OpenLoop(scenes_during_training=5, pictures=0).periodic(agent, CONTEXT, {"val": source})
    assert source.built == [0, 1, 50, 51, 100]


class Comparing:
    """Finds a later drive comfortable where its heading at the start is above the earlier one's."""

    def compare(self, current, previous, steps):
        assert steps == 5
        return (current[:, 0, EgoState.HEADING] > previous[:, 0, EgoState.HEADING]).astype(float)


def test_extended_comfort_is_the_mean_over_pairs_of_frames_that_can_be_scored(straight_scene, agent, scorer):
    class Turning(Scorer):
        def score(self, scenes, trajectories):
            scores = super().score(scenes, trajectories)
            scores.states[..., EgoState.HEADING] = np.array([0.0, 1.0, 5.0, 3.0, 7.0])[:, None, None]
            return scores

    # Of 0 1 2 3 4 5 6, where 4 cannot be scored and 6 is alone, 0-1 and 2-3 are compared.
    component = OpenLoop(
        pdm_scenes=PdmScenes(failing=(f"{4:016x}", f"{6:016x}")),
        scorer=Turning(agent.driven),
        extended_scorer=Comparing(),
        pictures=0,
    )
    evaluate = component.periodic(agent, CONTEXT, {"val": Frames(straight_scene, 7)})
    assert evaluate(0.0, 1)["extended_comfort"] == 0.5


def test_extended_comfort_is_left_out_where_no_frames_follow_each_other(straight_scene, agent, scorer):
    component = OpenLoop(pdm_scenes=PdmScenes(), scorer=scorer, pictures=0)
    found = component.periodic(agent, CONTEXT, {"val": Source(straight_scene, 3)})(0.0, 1)
    assert "pdms" in found and "extended_comfort" not in found


def test_periodic_pictures_are_figures_named_after_their_split(straight_scene, agent):
    evaluate = OpenLoop(pictures=2).periodic(agent, CONTEXT, {"val": Source(straight_scene, 3)})
    figure = evaluate(0.0, 1)["val/trajectories"]
    assert len([axis for axis in figure.axes if axis.get_title()]) == 2


def test_the_final_evaluation_writes_tables_and_report_for_agent_and_baselines(straight_scene, agent, tmp_path):
    agent.params = 1.0
    splits = {"val": Source(straight_scene, 3)}
    summary = OpenLoop(baselines=[ConstantVelocity()]).final(tmp_path, [agent], splits)
    assert summary["planner"]["fde"] == pytest.approx(1.0, abs=1e-5)
    assert list(summary) == ["planner", "constant_velocity"]
    for name in ("summary.json", "scenes.csv", "scenes.parquet", "report/index.html"):
        assert (tmp_path / name).is_file()


def test_the_usual_baselines_are_rows_and_one_that_carries_an_agents_name_gives_way(straight_scene, tmp_path):
    stand_in = Human()
    summary = OpenLoop().final(tmp_path, [stand_in], {"val": Source(straight_scene, 1)})
    assert list(summary) == ["human", "constant_velocity", "stopped"]
    # The future is (9 t, 0.1 t): at 4 s it is 36 m ahead and 0.4 m to the left of where a stopped car is.
    assert summary["stopped"]["fde"] == pytest.approx(np.hypot(36.0, 0.4), rel=1e-6)


def test_a_trained_ego_status_mlp_is_one_more_baseline(straight_scene, tmp_path):
    model = EgoStatusMLP()
    params = {row.name: np.zeros(row.shape, np.float32) for row in model.parameter_table()}
    save_official(tmp_path / "mlp.ckpt", params, model)
    component = OpenLoop(ego_status_mlp=str(tmp_path / "mlp.ckpt"))
    summary = component.final(tmp_path, [ConstantVelocity()], {"val": Source(straight_scene, 2)})
    assert list(summary) == ["constant_velocity", "stopped", "human", "ego_status_mlp"]
    assert summary["ego_status_mlp"]["fde"] == summary["stopped"]["fde"]


def test_an_ego_status_mlp_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="No ego-status MLP can be read from .*gone"):
        OpenLoop(ego_status_mlp=tmp_path / "gone")


def test_the_report_is_about_the_first_agent_even_if_it_is_a_baseline(straight_scene, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(open_loop, "write_report", lambda *a, **k: asked.update(k))
    OpenLoop().final(tmp_path, [Human()], {"val": Source(straight_scene, 1)})
    assert asked["subject"] == "human"


def test_the_headline_is_every_agents_plain_metrics():
    metrics = {"ade": 1.0, "fde": 2.0, "miss_rate": 0.5, "heading_error": 0.1, "val/fde": 2.0}
    assert headline({"planner": metrics}) == {
        "planner/ade": 1.0,
        "planner/fde": 2.0,
        "planner/miss_rate": 0.5,
        "planner/heading_error": 0.1,
    }


class Scorer:
    """Scores 1 minus 0.1 for every metre to the left of the driven pose at 4 s; NaN for plans that are not finite."""

    def __init__(self, driven):
        self.end_m, self.shapes = driven[-1, 1], []

    def score(self, scenes, trajectories):
        self.shapes.append((len(scenes), *trajectories.shape))
        scores = 1.0 - 0.1 * (trajectories[:, :, -1, 1] - self.end_m)
        ones, never = np.ones_like(scores), np.full(scores.shape, -1)
        values = dict.fromkeys(PdmScores._fields[1:8], ones) | {"score": scores, "ego_progress": scores}
        values |= dict.fromkeys(
            (f for f in PdmScores._fields if f.endswith(("_step", "_steps", "_track", "_corner"))), never
        )
        return PdmScores(
            valid=np.isfinite(scores),
            progress_m=ones,
            normaliser_progress_m=ones[:, 0],
            normaliser_factor=ones[:, 0],
            oncoming_m=0 * ones,
            comfort_ok=np.ones((*scores.shape, 6), dtype=bool),
            comfort_min=np.zeros((*scores.shape, 6)),
            comfort_max=np.zeros((*scores.shape, 6)),
            states=np.zeros((*scores.shape, 41, 11)),
            area_flags=np.zeros((*scores.shape, 41, 3), dtype=bool),
            **values,
        )


class PdmScenes:
    """Makes PDM scenes but of the tokens named as failing; counts them."""

    def __init__(self, failing=()):
        self.failing, self.made = failing, []

    def __call__(self, scene):
        if scene.token in self.failing:
            raise SceneError(f"scene {scene.token} has no route")
        self.made.append(scene.token)
        return pdm_scene(scene)


@pytest.fixture
def scorer(agent):
    return Scorer(agent.driven)


def test_periodic_pdms_are_those_of_the_weights_and_scenes_are_made_once(straight_scene, agent, scorer):
    scenes = PdmScenes()
    splits = {"val": Source(straight_scene, 3), "other": Source(straight_scene, 2)}
    evaluate = OpenLoop(pdm_scenes=scenes, scorer=scorer, pictures=0).periodic(agent, CONTEXT, splits)
    assert evaluate(0.0, 1)["pdms"] == pytest.approx(1.0, abs=1e-6)
    found = evaluate(3.0, 2)
    assert found["pdms"] == pytest.approx(0.7, abs=1e-6) and found["other/pdms"] == pytest.approx(0.7, abs=1e-6)
    assert found["ego_progress"] == pytest.approx(0.7, abs=1e-6) and found["no_at_fault_collisions"] == 1.0
    assert len(scenes.made) == 5
    assert scorer.shapes == [(3, 3, 1, 8, 3), (2, 2, 1, 8, 3)] * 2


def test_periodic_pdms_leave_out_scenes_that_cannot_be_scored_and_say_so(straight_scene, agent, scorer, caplog):
    scenes = PdmScenes(failing=(f"{1:016x}",))
    with caplog.at_level("ERROR"):
        evaluate = OpenLoop(pdm_scenes=scenes, scorer=scorer, pictures=0).periodic(
            agent, CONTEXT, {"val": Source(straight_scene, 3)}
        )
    assert f"PDMS during training is partial (2 of 3 scenes): scene {1:016x} has no route" in caplog.text
    assert evaluate(1.0, 1)["pdms"] == pytest.approx(0.9, abs=1e-6)


def test_a_split_without_any_scene_to_score_is_refused_before_training(straight_scene, agent, scorer):
    scenes = PdmScenes(failing=(f"{0:016x}", f"{1:016x}"))
    with pytest.raises(ValueError, match="None of the 2 scenes of split 'val' can be scored, e.g. scene .* no route"):
        OpenLoop(pdm_scenes=scenes, scorer=scorer).periodic(agent, CONTEXT, {"val": Source(straight_scene, 2)})


def test_periodic_pdms_of_plans_that_are_not_finite_are_not_either(straight_scene, agent, scorer):
    component = OpenLoop(pdm_scenes=PdmScenes(), scorer=scorer, pictures=0)
    found = component.periodic(agent, CONTEXT, {"val": Source(straight_scene, 2)})(np.nan, 1)
    assert np.isnan(found["pdms"])


def test_the_final_evaluation_scores_every_agent_and_says_what_is_partial(
    straight_scene, agent, scorer, tmp_path, caplog
):
    agent.params = 2.0
    scenes = PdmScenes(failing=(f"{2:016x}",))
    component = OpenLoop([Human()], pdm_scenes=scenes, scorer=scorer)
    with caplog.at_level("INFO"):
        summary = component.final(tmp_path, [agent], {"val": Source(straight_scene, 3)})
    assert summary["planner"]["pdms"] == pytest.approx(0.8, abs=1e-6) and summary["human"]["pdms"] == 1.0
    assert summary["planner"]["pdms_failed"] == 1
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("planner ")]
    assert "pdms 0.800 [0.800, 0.800] partial (2 of 3 scenes)  ade 2.000" in line
    for name in ("pdms.csv", "pdms.parquet", "pdms/failed.csv", "pdms/val/planner.csv", "pdms/val/human.csv"):
        assert (tmp_path / name).is_file()
    assert "partial (2 of 3 scenes)" in (tmp_path / "report" / "index.html").read_text()
    assert headline(summary)["planner/pdms"] == summary["planner"]["pdms"]


def test_extended_scores_stand_beside_pdms_in_the_log_where_scenes_have_them(
    straight_scene, agent, scorer, tmp_path, caplog, monkeypatch
):
    row = EpdmsRow("val", "planner", "t", "log", "", True, score=0.9, score_unfiltered=0.5, score_before_fix=0.5)
    failed = EpdmsRow("val", "planner", "u", "log", "", False, "unknown")
    found = EpdmsEvaluation((row, failed))
    monkeypatch.setattr("recogdrive.stages.open_loop.EpdmsCollector.finish", lambda self: found)
    agent.params = 2.0
    with caplog.at_level("INFO"):
        summary = OpenLoop([], pdm_scenes=PdmScenes(), scorer=scorer).final(
            tmp_path, [agent], {"val": Source(straight_scene, 2)}
        )
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("planner ")]
    assert (
        "epdms 0.900 [0.900, 0.900] partial (1 of 2 scenes)  "
        "epdms_unfiltered 0.500 [0.500, 0.500] partial (1 of 2 scenes)  ade" in line
    )
    assert headline(summary)["planner/epdms"] == 0.9
    assert (tmp_path / "epdms" / "val" / "filtered_before_fix" / "planner.csv").is_file()


def test_without_scenes_to_score_in_there_are_no_pdm_scores(straight_scene, agent, tmp_path):
    summary = OpenLoop([Human()]).final(tmp_path, [agent], {"val": Source(straight_scene, 1)})
    assert "pdms" not in summary["planner"] and not (tmp_path / "pdms.csv").exists()
    assert "PDM score" not in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("arguments", [{"scenes_during_training": 0}, {"pictures": -1}])
def test_counts_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        OpenLoop(**arguments)


def test_the_agent_takes_batch_size_and_seed_from_the_component(monkeypatch):
    made = {}
    monkeypatch.setattr(open_loop, "PlannerAgent", lambda *a, **k: made.update(k))
    OpenLoop(batch_size=7, seed=5).agent("planner", "weights", CONTEXT)
    assert made == {"batch_size": 7, "seed": 5, "name": None}


def test_the_log_line_counts_invalid_answers(caplog, straight_scene, tmp_path):
    class Mumbling:
        name = "vlm_text"

        def __init__(self):
            self.answers = {}

        def plan(self, scenes):
            self.answers |= {scene.token: Answer("Left, I think.", None, "no pose") for scene in scenes}
            return np.full((len(scenes), 8, 3), np.nan, dtype=np.float32)

    with caplog.at_level("INFO"):
        summary = OpenLoop(baselines=[]).final(tmp_path, [Mumbling()], {"val": Source(straight_scene, 3)})

    assert "parse_rate 0.000 (3 of 3 answers invalid)" in caplog.text
    assert headline(summary)["vlm_text/parse_rate"] == 0.0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3
