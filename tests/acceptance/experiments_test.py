"""Experiments in full, and the figures they must reach. `make acceptance` runs them, with their output shown."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance

REPOSITORY = Path(__file__).resolve().parents[2]


def summary_of(experiment, folder, environment=()):
    start = time.monotonic()
    command = [sys.executable, "-m", "recogdrive.main", f"--experiment={experiment}", f"--workdir={folder}"]
    subprocess.run(command, check=True, timeout=1800, env=os.environ | dict(environment))
    print(f"{experiment}: {time.monotonic() - start:.0f} s")
    return json.loads((folder / "summary.json").read_text())


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


def test_a_planner_makes_more_of_its_own_hidden_states_than_of_shuffled_ones(quickstart, tmp_path):
    """400 steps of the same schedule either way, on 256 unseen scenes: at least a quarter off the final error."""
    cache = [f"--gin_bindings=HIDDEN_CACHE='{quickstart / 'quickstart_cache'}'", "--gin_bindings=TRAIN_STEPS=400"]
    command = [sys.executable, "-m", "recogdrive.main", "--experiment=quickstart", f"--workdir={tmp_path}", *cache]
    subprocess.run([*command, "--gin_file=gin/option/shuffled_states.gin"], check=True, timeout=1800)

    def fde(run):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return next(line["eval/fde"] for line in lines if line["step"] == 400 and "eval/fde" in line)

    own, shuffled = fde(quickstart / "quickstart"), fde(tmp_path)
    print(f"fde after 400 steps: own states {own:.3f} m, shuffled states {shuffled:.3f} m")
    assert own < 0.75 * shuffled


@pytest.fixture(scope="module")
def mini_runs(tmp_path_factory, request):
    """Folder with the run of mini_il, and the environment it needs."""
    environment = {"OPENSCENE_DATA_ROOT": str(request.getfixturevalue("navsim_mini"))}
    runs = tmp_path_factory.mktemp("work") / "runs"
    summary_of("mini_il", runs / "mini_il", environment)
    return runs, environment


def test_mini_il_learns_the_log_it_trains_on_and_reports_the_other(mini_runs):
    summary = json.loads((mini_runs[0] / "mini_il" / "summary.json").read_text())
    for split in ("train", "other_log"):
        print(split, {agent: metrics[f"{split}/fde"] for agent, metrics in summary.items()})
    assert summary["planner"]["train/fde"] < 0.5
    assert summary["planner"]["fde"] == summary["planner"]["train/fde"]
    assert summary["planner"]["other_log/scenes"] == summary["human"]["other_log/scenes"] == 18
    assert summary["human"]["other_log/fde"] == 0.0 < summary["constant_velocity"]["other_log/fde"]


def test_mini_eval_scores_planner_human_and_constant_velocity_on_real_scenes(mini_runs):
    """The three commands of the README, each finding the others' runs by their default names."""
    runs, environment = mini_runs
    for experiment in ("mini_cache_metrics", "mini_eval"):
        command = [sys.executable, "-m", "recogdrive.main", f"--experiment={experiment}"]
        result = subprocess.run(
            command, cwd=runs.parent, env=os.environ | environment, capture_output=True, text=True, timeout=900
        )
        assert result.returncode == 0, result.stderr
    counts = json.loads((runs / "mini_cache_metrics" / "cache_metrics.json").read_text())
    assert (counts["in_split"], counts["stored"], counts["failed"]) == (35, 35, 0)
    # A third of the official pickle's 291 kB, shared polygons included.
    assert counts["bytes_per_scene"] < 97_000
    summary = json.loads((runs / "mini_eval" / "summary.json").read_text())
    for split, scenes in (("train", 17), ("other_log", 18)):
        for metric in ("pdms", "epdms", "epdms_unfiltered", "epdms_before_fix"):
            values = {agent: round(metrics[f"{split}/{metric}"], 4) for agent, metrics in summary.items()}
            print(split, metric, values)
            assert all(0 <= value <= 1 for value in values.values())
        assert all(m[f"{split}/pdms_scenes"] == scenes and not m[f"{split}/pdms_failed"] for m in summary.values())
    for agent in ("planner", "human", "constant_velocity"):
        assert any(f"{agent} " in line and "pdms" in line and "epdms" in line for line in result.stderr.splitlines())
    assert summary["planner"]["pdms"] > summary["constant_velocity"]["pdms"]
    assert summary["human"]["other_log/pdms"] > summary["constant_velocity"]["other_log/pdms"]
