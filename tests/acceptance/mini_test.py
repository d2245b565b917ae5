"""Experiments on real driving in full, and the figures they must reach."""

import json
import os
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.acceptance


def summary_of(experiment, folder, environment=()):
    start = time.monotonic()
    command = [sys.executable, "-m", "recogdrive.main", f"--experiment={experiment}", f"--workdir={folder}"]
    subprocess.run(command, check=True, timeout=1800, env=os.environ | dict(environment))
    print(f"{experiment}: {time.monotonic() - start:.0f} s")
    return json.loads((folder / "summary.json").read_text())


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


def test_mini_rl_raises_the_score_on_the_scenes_it_trains_on_and_reports_the_other_log(mini_runs):
    """After the three commands above, found by their default names."""
    runs, environment = mini_runs
    start = time.monotonic()
    command = [sys.executable, "-m", "recogdrive.main", "--experiment=mini_rl"]
    subprocess.run(command, cwd=runs.parent, env=os.environ | environment, check=True, timeout=900)
    print(f"mini_rl: {time.monotonic() - start:.0f} s")
    summary = json.loads((runs / "mini_rl" / "summary.json").read_text())
    before, after = summary["imitation"], summary["planner"]
    for split in ("train", "other_log"):
        print(split, {name: round(m[f"{split}/pdms"], 4) for name, m in summary.items()})
    assert after["train/pdms"] > before["train/pdms"] + 0.01
    assert (after["train/pdms_scenes"], after["other_log/pdms_scenes"]) == (18, 17)
    assert after["other_log/pdms_failed"] == 0
