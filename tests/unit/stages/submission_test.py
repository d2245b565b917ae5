"""Writing a submission: which scenes are planned, what of them is seen, what is refused before planning."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest

from recogdrive.composition import Composition, compose
from recogdrive.data.context import SceneTokens
from recogdrive.data.navsim import NavsimScenes
from recogdrive.data.scene_filter import SceneFilter
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.evaluation.agents import ConstantVelocity, Human
from recogdrive.evaluation.planner_agent import PlannerAgent
from recogdrive.evaluation.submission import Team, read_submission
from recogdrive.experiment import find_experiment
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.run_folder import RunFolder
from recogdrive.stages import base
from recogdrive.stages import submission as stage_module
from recogdrive.stages.submission import WriteAgentSubmission, WriteSubmission, without_future

TEAM = Team("T", "A", "e", "I", "C")
CONTEXT = SceneTokens(num_map_tokens=8, num_agent_tokens=4)
SIZES = {"heads": 1, "head_dim": 8, "layers": 2, "output_dim": 8, "hidden_dim": 16, "denoising_steps": 2}


def town(name, seed=5):
    return SyntheticTown(num_scenes=3, seed=seed, name=name)


TWO_SPLITS = PlanningSplits(evaluate=[("a", lambda: town("town_a")), ("b", lambda: town("town_b", seed=6))])


def folder(path):
    return RunFolder(path, Composition(find_experiment("mini_submission"), "A = 1\n"), None)


class Recorder:
    """Stands still, and keeps what it was shown."""

    name = "recorder"

    def __init__(self):
        self.seen = []

    def plan(self, scenes):
        self.seen += scenes
        return np.zeros((len(scenes), 8, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def planner():
    return DiffusionPlanner(CONTEXT.width, **SIZES)


@pytest.fixture
def weights(planner, monkeypatch):
    """Weights that any parent gives."""
    params = planner.init(jax.random.key(0))
    monkeypatch.setattr(stage_module, "load_planner_weights", lambda planner, parent: params)
    return params


@pytest.mark.heavy
def test_the_scenes_of_all_evaluated_splits_are_planned_by_the_parents_weights(planner, weights, tmp_path):
    stage = WriteSubmission(planner, TWO_SPLITS, CONTEXT, TEAM, seeds=3, seed=7, batch_size=2)
    figures = stage.run(folder(tmp_path), tmp_path)
    assert figures == {"tokens": 6, "seeds": 3, "bytes": (tmp_path / "submission.pkl").stat().st_size}
    submission = read_submission(tmp_path / "submission.pkl")
    scenes = [source[i] for source in TWO_SPLITS.open_evaluate().values() for i in range(3)]
    agent = PlannerAgent(planner, weights, CONTEXT, batch_size=6)
    for number, plans in enumerate(submission.predictions):
        assert list(plans) == [scene.token for scene in scenes]
        planned = agent.with_seed(7 + number).plan(scenes)
        np.testing.assert_allclose(np.stack(list(plans.values())), planned, atol=1e-5)
    seeds = [np.stack(list(plans.values())) for plans in submission.predictions]
    assert all(np.abs(seeds[i] - seeds[i - 1]).max() > 1e-3 for i in range(3))


def test_the_summary_says_what_was_written(tmp_path):
    stage = WriteAgentSubmission(ConstantVelocity(), TWO_SPLITS, TEAM)
    stage.run(folder(tmp_path), None)
    summary = json.loads((tmp_path / "submission.json").read_text())
    assert summary["splits"] == {"a": "town_a", "b": "town_b"} and summary["team"]["country"] == "C"
    assert (summary["tokens"], summary["seeds"]) == (6, 1) and len(summary["sha256"]) == 64
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["submission"] == {key: summary[key] for key in ("tokens", "seeds", "bytes", "sha256")}
    assert record["data"]["evaluate a"].startswith("3 scenes of town_a")


def test_an_agent_sees_no_future(tmp_path):
    agent = Recorder()
    WriteAgentSubmission(agent, TWO_SPLITS, TEAM, batch_size=2).run(folder(tmp_path), None)
    assert len(agent.seen) == 6
    assert all(scene.future is None and len(scene.detections) == 4 for scene in agent.seen)
    assert [scene.token for scene in agent.seen[:3]] == list(town("town_a").tokens)


def test_a_scene_without_its_future_is_otherwise_the_same():
    scene = town("a")[0]
    blind = without_future(scene)
    kept = [f.name for f in dataclasses.fields(scene) if f.name not in ("future", "detections")]
    assert all(getattr(blind, name) is getattr(scene, name) for name in kept)
    assert blind.current_detections is scene.current_detections


def test_an_agent_that_drives_the_recorded_future_is_refused():
    with pytest.raises(ValueError, match="'human' drives the recorded future"):
        WriteAgentSubmission(Human(), TWO_SPLITS, TEAM)


def test_a_team_that_is_not_filled_in_is_refused_before_anything_is_opened(planner, tmp_path):
    def never():
        raise AssertionError("opened")

    splits = PlanningSplits(evaluate=[("a", never)])
    with pytest.raises(ValueError, match="has no email: set TEAM_NAME, AUTHORS, EMAIL"):
        WriteSubmission(planner, splits, CONTEXT, dataclasses.replace(TEAM, email=None)).run(
            folder(tmp_path / "run"), tmp_path
        )


def test_a_scene_of_two_splits_is_refused(tmp_path):
    splits = PlanningSplits(evaluate=[("a", lambda: town("a")), ("again", lambda: town("b"))])
    with pytest.raises(ValueError, match="3 scenes are in the splits a, again more than once"):
        WriteAgentSubmission(ConstantVelocity(), splits, TEAM).run(folder(tmp_path), None)


def test_an_incomplete_split_is_refused_before_planning(tmp_path):
    source = town("part_of_it")
    source.report = {"expected_scenes": 12_146}
    agent = Recorder()
    stage = WriteAgentSubmission(agent, PlanningSplits(evaluate=[("navtest", lambda: source)]), TEAM)
    with pytest.raises(ValueError, match=r"'navtest' \(part_of_it\) has 3 scenes instead of 12146"):
        stage.run(folder(tmp_path), None)
    assert agent.seen == [] and not (tmp_path / "submission.pkl").exists()


@pytest.mark.parametrize("seeds", [0, 2])
def test_a_number_of_seeds_that_the_leaderboard_does_not_take_is_refused(planner, seeds):
    with pytest.raises(ValueError, match=f"of {seeds} seeds is none"):
        WriteSubmission(planner, TWO_SPLITS, CONTEXT, TEAM, seeds=seeds)


def test_weights_are_needed_by_a_planner_and_refused_by_an_agent(planner, tmp_path):
    with pytest.raises(ValueError, match="set PARENT"):
        WriteSubmission(planner, TWO_SPLITS, CONTEXT, TEAM).run(folder(tmp_path / "a"), None)
    with pytest.raises(ValueError, match="constant_velocity starts from no run"):
        WriteAgentSubmission(ConstantVelocity(), TWO_SPLITS, TEAM).run(folder(tmp_path / "b"), tmp_path)


def test_the_description_names_seeds_splits_weights_and_what_is_not_filled_in(planner):
    description = WriteSubmission(planner, TWO_SPLITS, CONTEXT, Team(name="T"), seeds=3, seed=4).describe()
    assert description.data["evaluate a"].startswith("3 scenes of town_a") and description.parameters
    assert description.notes == ["seeds: 4, 5, 6", "not filled in yet: authors, email, institution, country"]
    assert WriteAgentSubmission(ConstantVelocity(), TWO_SPLITS, TEAM).describe().notes == ["agent: constant_velocity"]


@pytest.fixture
def private_test(navsim_mini, tmp_path):
    """navsim_mini as the leaderboard's own logs are: no annotations, no route; windows of four frames."""
    logs = tmp_path / "data" / "navsim_logs" / "private_test_e2e"
    logs.mkdir(parents=True)
    (tmp_path / "data" / "maps").symlink_to(navsim_mini / "maps")
    for path in (navsim_mini / "navsim_logs" / "mini").glob("*.pkl"):
        frames = pickle.loads(path.read_bytes())
        for frame in frames:
            del frame["anns"]
            frame["roadblock_ids"] = []
        (logs / path.name).write_bytes(pickle.dumps(frames))
    return tmp_path / "data"


@pytest.mark.heavy
def test_logs_without_annotations_route_and_future_are_planned(planner, weights, private_test, tmp_path):
    hidden = SceneFilter(num_future_frames=0, has_route=False)
    source = NavsimScenes(str(private_test), "private_test_e2e", hidden)
    # 31 and 32 frames in windows of four that do not overlap.
    assert len(source) == 15 and source[0].future is None and len(source[0].detections) == 4
    assert all(len(detections.boxes) == 0 for detections in source[0].detections)
    splits = PlanningSplits(evaluate=[("private_test_e2e", lambda: source)])
    WriteSubmission(planner, splits, CONTEXT, TEAM, batch_size=8).run(folder(tmp_path / "run"), tmp_path)
    (plans,) = read_submission(tmp_path / "run" / "submission.pkl").predictions
    assert tuple(plans) == source.tokens
    assert len({plan.tobytes() for plan in plans.values()}) == 15


def test_the_leaderboards_own_scenes_are_a_fragment_away(private_test, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(private_test))
    (private_test / "private_test_e2e.yaml").write_text("num_future_frames: 0\nhas_route: false\n")
    compose(find_experiment("mini_submission"), ["gin/data/private_test_e2e.gin"], ["SEEDS=3"])
    description = base.build()[0].describe()
    assert description.data["evaluate private_test_e2e"].startswith("15 scenes of private_test_e2e")
    assert "2,000 expected scenes" in description.data["evaluate private_test_e2e"]
    assert description.notes[0] == "seeds: 0, 1, 2"
