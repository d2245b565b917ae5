"""Experiments in full, and the figures they must reach. `make acceptance` runs them, with their output shown."""

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


def test_quickstart_beats_constant_velocity_by_40_percent_on_unseen_scenes(tmp_path):
    summary = summary_of("quickstart", tmp_path / "run")
    print({agent: metrics["fde"] for agent, metrics in summary.items()})
    assert summary["planner"]["partial"] == 0
    assert summary["planner"]["fde"] <= 0.6 * summary["constant_velocity"]["fde"]


def test_mini_il_learns_the_log_it_trains_on_and_reports_the_other(tmp_path, navsim_mini):
    summary = summary_of("mini_il", tmp_path / "run", {"OPENSCENE_DATA_ROOT": str(navsim_mini)})
    for split in ("train", "other_log"):
        print(split, {agent: metrics[f"{split}/fde"] for agent, metrics in summary.items()})
    assert summary["planner"]["train/fde"] < 0.5
    assert summary["planner"]["fde"] == summary["planner"]["train/fde"]
    assert summary["planner"]["other_log/scenes"] == summary["human"]["other_log/scenes"] == 18
    assert summary["human"]["other_log/fde"] == 0.0 < summary["constant_velocity"]["other_log/fde"]
