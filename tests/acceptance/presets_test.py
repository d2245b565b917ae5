"""Placements on eight virtual devices: every preset trains, and goes on from what another one saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.scale

REPOSITORY = Path(__file__).resolve().parents[2]
PRESET_CHANGE = REPOSITORY / "tests" / "unit" / "training" / "preset_change_driver.py"
PRESET_FILES = Path(__file__).with_name("preset_files_driver.py")
MESHES = {
    "cpu": {"data": 8},
    "gpu": {"data": 8},
    "fully_sharded": {"fsdp": 8},
    "tensor_parallel": {"fsdp": 4, "model": 2},
    "tpu_v6e_4": {"fsdp": 4},
    "tpu_v6e_8": {"fsdp": 8},
    "tpu_v5p_8": {"fsdp": 4},
}
"""File of `gin/runtime/` -> the mesh it makes of eight devices; tpu_v6e_256 wants more."""

TINY = {
    "debug_il": ("DiffusionPlanner.layers=1", "DiffusionPlanner.heads=1", "DiffusionPlanner.output_dim=16"),
    "debug_sft": ("BATCH_SIZE=8",),
}
"""Experiment -> what makes it small, or its batch divide."""


def answer_of(*command):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    run = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def require_the_same_run(answer):
    assert answer["kinds"] == ["ema", "key", "opt_state", "params", "step"] and len(answer["straight"]) == 4
    for preset, found in answer["presets"].items():
        assert found["different"] == found["missing"] == [], preset
        assert found["devices"] == int(preset.split("_")[1]), preset
        assert found["losses"] == pytest.approx(answer["straight"], rel=1e-5), preset
    assert answer["presets"]["split_8"]["held"] == 1 / 8


def test_a_planner_saved_by_four_devices_that_split_its_weights_goes_on_under_every_placement(tmp_path):
    answer = answer_of(PRESET_CHANGE, tmp_path, "planner")
    assert len(answer["presets"]) == 15
    require_the_same_run(answer)


def test_a_vlm_saved_by_four_devices_that_split_its_weights_goes_on_under_placements_of_each_kind(tmp_path):
    presets = ["data_1", "data_8", "split_2", "split_8", "split_4_model_2", "split_8_replicas_2_model_2"]
    answer = answer_of(PRESET_CHANGE, tmp_path, "vlm", *presets)
    assert list(answer["presets"]) == presets
    require_the_same_run(answer)


@pytest.mark.parametrize("experiment", TINY)
def test_an_experiment_trains_under_every_preset_of_up_to_eight_devices(tmp_path, experiment):
    found = answer_of(PRESET_FILES, tmp_path, experiment, ",".join(MESHES), *TINY[experiment], "TRAIN_STEPS=1")
    assert {name: entry["mesh"] for name, entry in found.items()} == MESHES
    (expected,) = found["cpu"]["losses"]
    assert [entry["losses"] for entry in found.values()] == [pytest.approx([expected], rel=1e-5)] * len(MESHES)
