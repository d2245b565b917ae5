"""The launcher with real experiments: four over two device slots, one of which fails by design."""

import json
import subprocess
import sys

from recogdrive.launch.plan import read_plan
from recogdrive.launch.run_record import is_done


def test_four_experiments_over_two_slots_with_one_that_fails(tmp_path):
    path = tmp_path / "baselines.toml"
    path.write_text(
        f"""
workdir = "{tmp_path / "runs"}"
slots = ["cpu", "cpu:2"]
bindings = ["VAL_SCENES = 2", "OpenLoop.pdm_scenes = None"]  # Open loop alone, which compiles nothing.
[[experiments]]
name = "stopped"
experiment = "baseline_stopped"
[[experiments]]
name = "fails"
experiment = "baseline_stopped"
bindings = ["VAL_SCENES = -1"]
[[experiments]]
name = "straight"
experiment = "baseline_constant_velocity"
[[experiments]]
name = "after_fails"
experiment = "baseline_human"
after = ["fails"]
"""
    )
    command = [sys.executable, "-m", "recogdrive.launch", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 runs: 2 finished, 1 FAILED, 1 skipped" in done.stdout
    assert "fails: FAILED" in done.stdout and "num_scenes=-1 must be a whole number of at least 1" in done.stdout
    assert "after_fails: skipped (needs fails, which failed)" in done.stdout
    summary = json.loads((tmp_path / "runs" / "launch.json").read_text())["runs"]
    assert {run["slot"] for run in summary.values()} == {"cpu", "cpu:2", None}
    for name in ("stopped", "straight"):
        record = json.loads((tmp_path / "runs" / name / "run.json").read_text())
        assert record["device"]["count"] == {"cpu": 1, "cpu:2": 2}[summary[name]["slot"]]
        assert "fde" in next(iter(json.loads((tmp_path / "runs" / name / "summary.json").read_text()).values()))
    # What the next start would skip.
    assert [run.name for run in read_plan(path).runs if is_done(run)] == ["stopped", "straight"]
