"""`make quickstart` in full, and the figures it must reach."""

import json
import os
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from recogdrive.data.batching import BatchStream
from recogdrive.data.hidden_cache.reader import HiddenStateCache
from recogdrive.data.hidden_cache.shuffled import ShuffledHiddenStates
from recogdrive.data.samples import stack_samples
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.training.loop import Trainer
from recogdrive.training.optim import AdamW, WarmupCosine

pytestmark = pytest.mark.acceptance

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Folder with the runs of `make quickstart`."""
    runs = tmp_path_factory.mktemp("quickstart")
    start = time.monotonic()
    # It compiles everything anew, as in a clean clone, so that its time is what a user waits.
    shared = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: value for name, value in os.environ.items() if name not in shared}
    subprocess.run(["make", "quickstart", f"WORKDIR={runs}"], check=True, timeout=1800, cwd=REPOSITORY, env=environment)
    print(f"make quickstart: {time.monotonic() - start:.0f} s")
    return runs


def test_quickstart_ends_with_pdm_scores_of_a_planner_that_beats_constant_velocity(quickstart):
    summary = json.loads((quickstart / "quickstart" / "summary.json").read_text())
    for metric in ("pdms", "fde"):
        print(metric, {agent: round(metrics[metric], 4) for agent, metrics in summary.items()})
    assert set(summary) == {"planner", "constant_velocity", "stopped", "human", "ego_status_mlp"}
    assert all(metrics["partial"] == metrics["pdms_partial"] == 0 for metrics in summary.values())
    assert summary["planner"]["fde"] <= 0.6 * summary["constant_velocity"]["fde"]
    assert summary["planner"]["pdms_ci95_low"] > summary["constant_velocity"]["pdms_ci95_high"]
    assert summary["human"]["pdms"] > summary["planner"]["pdms"]
    for agent in summary:
        last = (quickstart / "quickstart" / "pdms" / "val" / f"{agent}.csv").read_text().splitlines()[-1]
        assert last.startswith("average,True,")
        assert float(last.rsplit(",", 1)[1]) == pytest.approx(summary[agent]["pdms"], abs=1e-12)


def test_quickstart_ends_with_reinforcement_learning_and_shows_the_score_before_and_after(quickstart):
    summary = json.loads((quickstart / "quickstart_rl" / "summary.json").read_text())
    print("pdms", {agent: round(metrics["pdms"], 4) for agent, metrics in summary.items()})
    assert list(summary)[:2] == ["planner", "imitation"]
    imitation = json.loads((quickstart / "quickstart" / "summary.json").read_text())["planner"]
    # The best checkpoint of imitation, not its last weights, is where reinforcement learning starts.
    assert summary["imitation"]["pdms"] == pytest.approx(imitation["pdms"], abs=0.03)
    # A hundred steps move this planner by less than 400 scenes can tell; town_learning_test.py shows that it learns.
    assert summary["planner"]["pdms"] > summary["imitation"]["pdms"] - 0.03
    page = (quickstart / "quickstart_rl" / "report" / "index.html").read_text()
    assert "imitation" in page and "PDM" in page


def test_the_quickstarts_vlm_writes_trajectories_that_can_be_read(quickstart):
    summary = json.loads((quickstart / "quickstart_vlm_eval" / "summary.json").read_text())
    answers = (quickstart / "quickstart_vlm_eval" / "answers.jsonl").read_text().splitlines()
    for agent in ("vlm_text", "constant_velocity"):
        print(agent, {name: round(summary[agent][name], 4) for name in ("ade", "fde", "pdms")})
    print("parse rate", summary["vlm_text"]["parse_rate"])
    assert summary["vlm_text"]["scenes"] == len(answers) == 100
    assert summary["vlm_text"]["parse_rate"] >= 0.95
    # Standing still is what a model that has learnt nothing but the form would come to.
    assert summary["vlm_text"]["ade"] < 0.5 * summary["stopped"]["ade"]


class _WithoutEgoStatus:
    """Samples whose history and status are hidden: what is left to plan from are the hidden states."""

    def __init__(self, samples):
        self._samples = samples

    def __len__(self):
        return len(self._samples)

    def __getitem__(self, index):
        sample = self._samples[index]
        return sample | {name: np.zeros_like(sample[name]) for name in ("history_trajectory", "status_feature")}


def _fde_after_training(cache, planner, workdir):
    """Final displacement error in metres on unseen scenes, after 300 steps on a cache's states alone."""
    train, unseen = SyntheticTown(2000, seed=0), SyntheticTown(400, seed=1_000_003)
    stream = BatchStream(_WithoutEgoStatus(cache.samples(train)), batch_size=64, seed=0)
    optimizer = AdamW(WarmupCosine(learning_rate=2e-3, warmup_epochs=1, epochs=10))
    state = Trainer(300, optimizer=optimizer, save_every=300).fit(planner, stream, workdir)
    stream.close()
    samples = _WithoutEgoStatus(cache.samples(unseen))
    batch = stack_samples([samples[i] for i in range(len(samples))])
    keys = jax.random.split(jax.random.key(1), len(samples))
    planned = np.asarray(jax.jit(planner.plan)(state.weights, batch, keys))
    return float(np.linalg.norm(planned[:, -1, :2] - batch["trajectory"][:, -1, :2], axis=1).mean())


def test_a_planner_makes_more_of_its_own_hidden_states_than_of_shuffled_ones(quickstart, tmp_path):
    """With the ego status hidden, which alone tells most of a drive in the town: a quarter off the final error."""
    path = quickstart / "quickstart_cache"
    own = HiddenStateCache(path)
    sizes = {"heads": 2, "head_dim": 16, "layers": 4, "output_dim": 32, "hidden_dim": 64}
    planner = DiffusionPlanner(own.width, use_context_mask=True, **sizes)
    found = {
        name: _fde_after_training(cache, planner, tmp_path / name)
        for name, cache in (("own", own), ("shuffled", ShuffledHiddenStates(path)))
    }
    print("fde from hidden states alone", {name: round(value, 3) for name, value in found.items()})
    assert found["own"] < 0.75 * found["shuffled"]
