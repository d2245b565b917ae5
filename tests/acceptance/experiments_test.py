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


def test_quickstart_ends_with_pdm_scores_of_a_planner_that_beats_constant_velocity(tmp_path):
    start = time.monotonic()
    subprocess.run(["make", "quickstart", f"WORKDIR={tmp_path}"], check=True, timeout=1800, cwd=REPOSITORY)
    print(f"make quickstart: {time.monotonic() - start:.0f} s")
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text())
    for metric in ("pdms", "fde"):
        print(metric, {agent: round(metrics[metric], 4) for agent, metrics in summary.items()})
    assert set(summary) == {"planner", "constant_velocity", "stopped", "human", "ego_status_mlp"}
    assert all(metrics["partial"] == metrics["pdms_partial"] == 0 for metrics in summary.values())
    assert summary["planner"]["fde"] <= 0.6 * summary["constant_velocity"]["fde"]
    assert summary["planner"]["pdms_ci95_low"] > summary["constant_velocity"]["pdms_ci95_high"]
    assert summary["human"]["pdms"] > summary["planner"]["pdms"]
    for agent in summary:
        last = (tmp_path / "quickstart" / "pdms" / "val" / f"{agent}.csv").read_text().splitlines()[-1]
        assert last.startswith("average,True,")
        assert float(last.rsplit(",", 1)[1]) == pytest.approx(summary[agent]["pdms"], abs=1e-12)


def test_mini_il_learns_the_log_it_trains_on_and_reports_the_other(tmp_path, navsim_mini):
    summary = summary_of("mini_il", tmp_path / "run", {"OPENSCENE_DATA_ROOT": str(navsim_mini)})
    for split in ("train", "other_log"):
        print(split, {agent: metrics[f"{split}/fde"] for agent, metrics in summary.items()})
    assert summary["planner"]["train/fde"] < 0.5
    assert summary["planner"]["fde"] == summary["planner"]["train/fde"]
    assert summary["planner"]["other_log/scenes"] == summary["human"]["other_log/scenes"] == 18
    assert summary["human"]["other_log/fde"] == 0.0 < summary["constant_velocity"]["other_log/fde"]
