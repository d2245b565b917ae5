"""The files of `gin/runtime/`: each builds on the devices it is for, and says so where they are not."""

import jax
import pytest

from recogdrive.composition import compose
from recogdrive.experiment import ConfigurationError, config_root, find_experiment
from recogdrive.stages import base
from recogdrive.target import targeting

TINY = ["DiffusionPlanner.layers=1", "DiffusionPlanner.heads=1", "DiffusionPlanner.output_dim=16"]
MESHES = {
    "cpu": (8, {"data": 8}),
    "gpu": (8, {"data": 8}),
    "fully_sharded": (8, {"fsdp": 8}),
    "tensor_parallel": (8, {"fsdp": 4, "model": 2}),
    "tpu_v6e_4": (4, {"fsdp": 4}),
    "tpu_v6e_8": (8, {"fsdp": 8}),
    "tpu_v5p_8": (4, {"fsdp": 4}),
    "tpu_v6e_256": (256, {"data": 8, "fsdp": 32}),
}
"""File -> devices there, mesh."""


def trainer_with(preset, devices, bindings=()):
    with targeting(jax.devices()[:1] * devices):
        compose(find_experiment("debug_il"), [f"gin/runtime/{preset}.gin"], [*TINY, *bindings])
        return base.build()[0].step_shapes().trainer


def test_every_file_is_looked_at():
    assert sorted(MESHES) == sorted(path.stem for path in (config_root() / "gin" / "runtime").glob("*.gin"))


@pytest.mark.parametrize("preset", MESHES)
def test_a_preset_makes_the_mesh_it_names(preset):
    devices, mesh = MESHES[preset]
    assert dict(trainer_with(preset, devices).sharding.mesh.shape) == mesh


@pytest.mark.parametrize("preset", ["tpu_v6e_4", "tpu_v6e_8", "tpu_v5p_8", "tpu_v6e_256"])
def test_a_preset_for_more_devices_than_there_are_says_so_and_what_to_do(preset):
    wanted = MESHES[preset][0]
    message = f"num_devices={wanted}, but the devices here are 2; choose a file of gin/runtime that says no number"
    with pytest.raises(ConfigurationError, match=message):
        trainer_with(preset, 2)


def test_heads_shared_by_more_devices_than_there_are_are_refused_with_what_divides():
    with pytest.raises(ConfigurationError, match="model_devices=2 does not divide 1 devices; .* may be 1"):
        trainer_with("tensor_parallel", 1)


def test_a_preset_for_fewer_devices_than_there_are_names_those_left_idle(caplog):
    trainer_with("tpu_v6e_4", 8)
    assert "4 of the 8 devices are used" in caplog.text
