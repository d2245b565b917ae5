"""The data check as a command: its exit code, and what a person reads."""

import json
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.heavy


@pytest.fixture
def check(forked_command):
    """Function: experiment, data root or None, run folder, bindings -> finished process."""

    def run(experiment, root, folder, *bindings):
        flags = [f"--experiment={experiment}", f"--workdir={folder}"]
        variables = {"OPENSCENE_DATA_ROOT": root and str(root), "NUPLAN_MAPS_ROOT": None}
        return forked_command(*flags, cwd=folder.parent, bindings=bindings, environment=variables, timeout=120)

    return run


@pytest.fixture
def broken(navsim_mini, tmp_path):
    """navsim_mini with one log cut short and one image of the other lost."""
    root = tmp_path / "data"
    shutil.copytree(navsim_mini, root, copy_function=shutil.copyfile)
    log = next((root / "navsim_logs" / "mini").glob("*3b3570b4.pkl"))
    log.write_bytes(log.read_bytes()[:-1000])
    folder = next((root / "sensor_blobs" / "mini").glob("*adcf7d18")) / "CAM_L1"
    for image in folder.iterdir():
        image.unlink()
    return root


def test_a_complete_root_ends_with_success(navsim_mini, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "NUPLAN_MAPS_ROOT"}
    result = subprocess.run(
        [sys.executable, "-m", "recogdrive.main", "--experiment=mini_data_check", f"--workdir={tmp_path / 'run'}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment | {"OPENSCENE_DATA_ROOT": str(navsim_mini)},
    )
    assert result.returncode == 0, result.stderr
    table = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "navsim_mini mini 2 of 2 0 35 of 35 280 of 280 0 complete" in table
    assert "logs of mini 2 logs, 1.2 MB" in table
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["attempts"][-1]["status"] == "finished"


def test_a_broken_root_ends_with_failure_after_the_table(check, broken, tmp_path):
    result = check("mini_data_check", broken, tmp_path / "run")
    assert result.returncode == 1
    table = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "navsim_mini mini 2 of 2 1 17 of 35 119 of 136 0 INCOMPLETE" in table
    assert "cam_l1 17 17 0" in table and "cam_f0 17 0 0" in table
    assert any(line.startswith("- damaged 2021.11.20.00.00.00_veh-av2_3b3570b4: ") for line in table)
    assert "- 17 scenes instead of 35" in table
    assert "error: 1 of 1 requested splits are incomplete: navsim_mini." in result.stderr
    record = json.loads((tmp_path / "run" / "data_check.json").read_text())
    assert record["complete"] == {"navsim_mini": False}


def test_the_official_splits_are_asked_for_by_name(check, navsim_mini, tmp_path):
    both = check("data_check", navsim_mini, tmp_path / "both")
    assert both.returncode == 1 and "incomplete: navtrain, navtest." in both.stderr
    assert "0 of 103,288" in both.stdout and "0 of 12,146" in both.stdout
    one = check("data_check", navsim_mini, tmp_path / "one", "SPLITS=('navmini',)")
    assert one.returncode == 1 and "incomplete: navmini." in one.stderr and "0 of 396" in one.stdout


def test_without_a_root_the_variable_is_named(check, tmp_path):
    result = check("mini_data_check", None, tmp_path / "run")
    assert result.returncode == 1
    assert "No data root: set the variable OPENSCENE_DATA_ROOT" in result.stderr
