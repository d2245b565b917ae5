"""Checkpoints are not bound to the placement that wrote them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
DRIVER = Path(__file__).with_name("preset_change_driver.py")


@pytest.mark.heavy
def test_a_checkpoint_of_four_devices_that_split_all_weights_continues_under_other_presets(tmp_path):
    presets = {"data_1": 1, "split_2": 2, "data_4": 4, "data_8": 8, "split_8_replicas_2_model_2": 8}
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, DRIVER, tmp_path, "layers", *presets]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    assert {"params", "opt_state", "ema"} <= set(answer["kinds"]) and len(answer["straight"]) == 4
    for preset, devices in presets.items():
        found = answer["presets"][preset]
        assert found["different"] == found["missing"] == [], preset
        assert found["devices"] == devices, preset
        assert found["losses"] == pytest.approx(answer["straight"], rel=1e-5), preset
    held = {preset: answer["presets"][preset]["held"] for preset in presets}
    assert held == {"data_1": 1, "split_2": 1 / 2, "data_4": 1, "data_8": 1, "split_8_replicas_2_model_2": 1 / 4}
