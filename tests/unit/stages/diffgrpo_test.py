"""The reinforcement-learning stage at tiny size: what it leaves, what it refuses, what it counts, how it goes on."""

import json

import jax
import numpy as np
import pytest

from recogdrive.composition import Composition
from recogdrive.data.context import NoContext, SceneTokens
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.experiment import ConfigurationError, find_experiment
from recogdrive.models.ego_status_mlp import EgoStatusMLP
from recogdrive.models.planner.official_checkpoint import load_official, read_official, save_official
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.rewards.extended_comfort import ExtendedComfort
from recogdrive.pdm.rewards.mix import RewardSum
from recogdrive.pdm.rewards.reward import KNOWN, DeviceReward, RewardScores, where_known
from recogdrive.pdm.rewards.scene_layout import PdmLayout
from recogdrive.pdm.sources import TownPdmScenes
from recogdrive.run_folder import RunFolder
from recogdrive.stages.diffgrpo import BEFORE, DiffGrpo
from recogdrive.stages.open_loop import OpenLoop
from recogdrive.training.checkpoint import load_params
from recogdrive.training.grpo import GrpoSettings
from recogdrive.training.loop import Trainer
from recogdrive.training.optim import AdamW, Constant

CONTEXT = SceneTokens(num_map_tokens=6, num_agent_tokens=2)
PLANNER = DiffusionPlanner(
    CONTEXT.width, heads=1, head_dim=8, layers=2, output_dim=8, hidden_dim=8, denoising_steps=2, use_context_mask=True
)
SCENES, BROKEN = 6, 3


def town(seed, **kwargs):
    return lambda: SyntheticTown(num_scenes=SCENES, seed=seed, name=f"town_{seed}", **kwargs)


TRAIN = town(1, frames_per_drive=2)
SPLITS = PlanningSplits(train=TRAIN, evaluate=[("val", town(2))], validate=[("held_out", town(3))])


class Ahead(DeviceReward):
    """Plans that end far ahead are worth more; costs no simulation, but asks for the records."""

    layouts = (PdmLayout(),)
    part_names = ("ahead",)

    def __call__(self, batch, trajectories):
        total = where_known(batch[KNOWN], trajectories[..., -1, 0] / 60)
        return RewardScores(total, {"ahead": total})


class WithHole(TownPdmScenes):
    """Scenes to score in, one of which is not there."""

    def __init__(self):
        self.hole = TRAIN().tokens[BROKEN]

    def __call__(self, scene):
        if scene.token == self.hole:
            raise SceneError(f"scene {scene.token} is not in the container")
        return super().__call__(scene)


class OpenLoopWithoutScores(OpenLoop):
    """Evaluates open loop only, and yet knows scenes to score in: PDM scores have tests of their own."""

    def __init__(self, source=None):
        super().__init__(baselines=[], pictures=0)
        self._source = source

    @property
    def pdm_scenes(self):
        return self._source


def stage(steps=2, reward=None, source=None, planner=PLANNER, **trainer):
    loop = Trainer(
        steps, optimizer=AdamW(Constant(1e-3)), log_every=1, eval_every=2, save_every=2, best_metric="ade", **trainer
    )
    reward = Ahead() if reward is None else reward
    source = TownPdmScenes() if source is None else source
    evaluation = OpenLoopWithoutScores(source)
    return DiffGrpo(planner, SPLITS, CONTEXT, reward, loop, evaluation, GrpoSettings(group_size=2), batch_size=3)


def open_folder(path):
    return RunFolder(path, Composition(find_experiment("debug_rl"), "A = 1\n"), None)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """An official checkpoint of an untrained planner, and its weights."""
    path = tmp_path_factory.mktemp("parent") / "planner.ckpt"
    weights = PLANNER.init(jax.random.key(5))
    save_official(path, weights, PLANNER)
    return path, weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory, start):
    path = tmp_path_factory.mktemp("runs") / "rl"
    return path, stage(source=WithHole()).run(open_folder(path), start[0])


def test_both_planners_are_evaluated(trained):
    folder, figures = trained
    assert {f"planner/{name}" for name in ("ade", "fde")} <= set(figures)
    assert list(json.loads((folder / "summary.json").read_text())) == ["planner", BEFORE]
    assert figures["planner/fde"] != figures[f"{BEFORE}/fde"]


def test_a_scene_that_cannot_be_scored_is_counted_and_named_and_the_run_goes_on(trained):
    folder, _ = trained
    record = json.loads((folder / "run.json").read_text())
    token = TRAIN().tokens[BROKEN]
    assert record["scenes_without_reward"] == {token: f"scene {token} is not in the container"}
    assert record["scored_scenes"] == SCENES - 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # Two batches of three are the whole split.
    assert sum(line.get("unscored/scene_share", 0) for line in lines) == pytest.approx(1 / 3)


def test_metrics_say_how_the_policy_does(trained):
    lines = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "policy_loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    wanted = {"reward", "bc_loss", "reward_part/ahead", "group/flat_share", "group/reward_variance", "drift/kl"}
    assert wanted <= set(steps[0])
    assert steps[0]["drift/kl"] == pytest.approx(0, abs=1e-8)
    assert steps[1]["drift/kl"] > 0
    (evaluation,) = [line for line in lines if "eval/ade" in line]
    assert {"eval/tail_reverse_share", "eval/tail_stop_share"} <= set(evaluation)


def test_the_reference_policy_is_in_the_checkpoint_and_in_the_export(trained, start):
    folder, weights = trained[0], start[1]
    exported = folder / "export" / "planner.ckpt"
    state, passed_over = read_official(exported)
    assert passed_over["agent.action_head.old_policy."] == len(state)
    best = load_params(folder)
    for name, value in load_official(exported, PLANNER).items():
        np.testing.assert_array_equal(value, best[name])
    assert any(np.any(np.asarray(weights[name]) != np.asarray(value)) for name, value in best.items())


def test_a_run_goes_on_without_its_parent_and_ends_as_one_that_was_not_interrupted(tmp_path, start, trained):
    path, _ = start
    whole = tmp_path / "whole"
    stage(4, source=WithHole()).run(open_folder(whole), path)
    interrupted = tmp_path / "interrupted"
    stage(2, source=WithHole()).run(open_folder(interrupted), path)
    stage(4, source=WithHole()).run(open_folder(interrupted), None)
    expected, found = (load_params(folder, which="latest") for folder in (whole, interrupted))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_it_refuses_to_start_from_nothing(tmp_path):
    with pytest.raises(ConfigurationError, match="set PARENT"):
        stage().run(open_folder(tmp_path), None)


def test_it_refuses_to_run_without_scenes_to_score_in(tmp_path, start):
    found = stage()
    found.evaluation = OpenLoopWithoutScores(None)
    with pytest.raises(ConfigurationError, match=r"pdm_cache\.gin"):
        found.run(open_folder(tmp_path), start[0])


def test_a_planner_without_chain_is_refused():
    with pytest.raises(ValueError, match="EgoStatusMLP has no denoising chain"):
        DiffGrpo(EgoStatusMLP(), SPLITS, NoContext(), Ahead(), Trainer(1), OpenLoop())


def test_quantiles_of_a_batch_computed_in_parts_are_refused():
    settings = GrpoSettings(lower_quantile=0.1)
    with pytest.raises(ValueError, match="accumulation_steps=2"):
        DiffGrpo(PLANNER, SPLITS, CONTEXT, Ahead(), Trainer(1, accumulation_steps=2), OpenLoop(), settings)


def test_plans_of_the_frame_before_are_made_once_for_rewards_that_compare(tmp_path, start):
    reward = RewardSum([Ahead(), ExtendedComfort()], [1.0, 0.1])
    stage(2, reward=reward).run(open_folder(tmp_path), start[0])
    with np.load(tmp_path / "previous_plans.npz") as plans:
        assert plans["previous/known"].tolist() == [False, True] * (SCENES // 2)
        first = plans["previous/plan"]
        assert np.abs(first[1]).max() > 0 == np.abs(first[0]).max()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("reward_part/extended_comfort" in line for line in lines)
    # Going on reads them back: they were made by the policy the run started from.
    stage(3, reward=reward).run(open_folder(tmp_path), None)


def test_the_description_names_reward_and_memory():
    description = stage().describe()
    assert description.memory_bytes["kept weights"] == description.memory_bytes["weights"]
    assert description.notes[0] == "reward: Ahead of ahead"
