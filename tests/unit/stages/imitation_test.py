"""The imitation stage with the ego-status MLP, the smallest planner: what it leaves, and what reads it."""

import json

import jax
import numpy as np
import pytest

from recogdrive.composition import Composition
from recogdrive.data.context import NoContext
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.evaluation.ego_status_agent import EgoStatusMLPAgent
from recogdrive.experiment import find_experiment
from recogdrive.models.ego_status_mlp import EgoStatusMLP
from recogdrive.models.planner.official_checkpoint import load_official
from recogdrive.run_folder import RunFolder
from recogdrive.stages.evaluate import Evaluate
from recogdrive.stages.imitation import Imitation
from recogdrive.stages.open_loop import OpenLoop
from recogdrive.training.checkpoint import load_params
from recogdrive.training.loop import Trainer
from recogdrive.training.optim import AdamW, Constant

MODEL = EgoStatusMLP(hidden_dim=4)


def town(seed):
    return lambda: SyntheticTown(num_scenes=6, seed=seed, name=f"town_{seed}")


SPLITS = PlanningSplits(train=town(1), evaluate=[("val", town(2))])


def open_folder(path):
    return RunFolder(path, Composition(find_experiment("baseline_ego_status_mlp"), "A = 1\n"), None)


def imitation():
    trainer = Trainer(30, optimizer=AdamW(Constant(0.03), weight_decay=0.0, clip_norm=None), log_every=10)
    return Imitation(MODEL, SPLITS, NoContext(), trainer, OpenLoop(pictures=1), batch_size=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "mlp"
    return path, imitation().run(open_folder(path), None)


def test_the_one_training_loop_trains_it(trained):
    lines = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [10, 20, 30]
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    assert {"mae_x", "mae_y", "mae_heading"} <= set(steps[0])


def test_it_is_a_row_beside_the_other_baselines(trained):
    folder, figures = trained
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == ["ego_status_mlp", "constant_velocity", "stopped", "human"]
    assert figures["ego_status_mlp/fde"] == summary["ego_status_mlp"]["fde"]
    assert (folder / "report" / "index.html").is_file()


def test_the_export_carries_the_planners_name_and_the_final_weights(trained):
    folder, _ = trained
    exported = load_official(folder / "export" / "ego_status_mlp.ckpt", MODEL)
    for name, value in load_params(folder, which="latest").items():
        np.testing.assert_array_equal(exported[name], value)


@pytest.mark.parametrize("place", ["", "export/ego_status_mlp.ckpt"])
def test_run_folder_and_export_evaluate_to_the_figures_of_the_run(trained, tmp_path, place):
    folder, figures = trained
    stage = Evaluate(MODEL, SPLITS, NoContext(), OpenLoop())
    assert stage.run(open_folder(tmp_path), folder / place) == pytest.approx(figures, rel=1e-5)


def test_the_baseline_agent_plans_from_run_folder_and_export_alike(trained):
    folder, _ = trained
    scenes = [town(2)()[i] for i in range(3)]
    plans = [
        EgoStatusMLPAgent(folder / place, model=MODEL).plan(scenes) for place in ("", "export/ego_status_mlp.ckpt")
    ]
    np.testing.assert_array_equal(*plans)
    assert np.abs(plans[0] - untrained_plan(scenes)).max() > 0.1


def untrained_plan(scenes):
    status = np.stack([np.concatenate([s.ego.command[-1], s.ego.velocity[-1], s.ego.acceleration[-1]]) for s in scenes])
    return np.asarray(MODEL.plan(MODEL.init(jax.random.key(0)), {"status_feature": status}, jax.random.key(0)))


def test_the_description_counts_weights_and_memory_without_context():
    description = imitation().describe()
    # 8 -> 4 -> 4 -> 4 -> 24 with biases.
    assert sum(row.count for row in description.parameters) == 36 + 20 + 20 + 120
    assert description.memory_bytes["weights"] == 4 * 196
    # Three rows, each with history 4 x 3, status 8, target 8 x 3 and index; two more batches wait on the device.
    assert description.memory_bytes["batch"] == 3 * 3 * 4 * (12 + 8 + 24 + 1)
