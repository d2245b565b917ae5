"""Where weights lie on a mesh, by their names."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from recogdrive.models import partition
from recogdrive.models.partition import weight_spec
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.models.vlm.config import internvl3_2b, internvl3_8b
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.lora import Lora

REPOSITORY = Path(__file__).resolve().parents[3]
LAYER = "model.language_model.layers.*."


def check_vlm_over_mesh(**sizes):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={math.prod(sizes.values())}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    script = REPOSITORY / "tests" / "unit" / "models" / "vlm" / "partition_driver.py"
    command = [sys.executable, script, *map(str, sizes.values())]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    assert answer["split"] > 20 and answer["largest_of_a_device"] <= 0.5
    assert answer["found"] == pytest.approx(answer["expected"], rel=1e-5)
    assert answer["gradient_error"] < 2e-4  # Of the largest gradient; sums of float32 in another order.


@pytest.mark.parametrize("sizes", [internvl3_2b, internvl3_8b])
def test_every_weight_of_the_vlm_and_its_adapters_has_a_line_with_its_number_of_dimensions(sizes):
    vlm = InternVL(sizes(), img_context_id=5, lora=Lora(rank=8, part="both"))
    for row in vlm.parameter_table():
        words = partition.dimensions(row.name)
        assert words is not None and len(words) == len(row.shape), row.name
        assert partition.dimensions(f"vlm.{row.name}") == words  # As it stands beside a planner's.


def test_all_lines_are_of_use():
    vlm = InternVL(internvl3_2b(), img_context_id=5, lora=Lora(rank=8, part="both"))
    left = dict(partition.DIMENSIONS)
    for row in vlm.parameter_table():
        first = next(p for p, _ in partition.DIMENSIONS if partition.fnmatchcase(row.name, f"*{p}"))
        left.pop(first, None)
    assert not left


def test_large_weights_are_split_and_little_is_copied():
    axes = {partition.WEIGHT_AXIS: 8}
    rows = InternVL(internvl3_2b(), img_context_id=5).parameter_table()
    copied = [row for row in rows if not any(weight_spec(row.name, row.shape, axes))]
    assert sum(row.count for row in copied) < 2e-3 * sum(row.count for row in rows)


def test_the_planner_has_no_lines_and_is_split_by_its_longest_even_dimension():
    axes = {partition.WEIGHT_AXIS: 4}
    for row in DiffusionPlanner(context_width=1536).parameter_table():
        assert partition.dimensions(row.name) is None, row.name
    assert weight_spec("feature_encoder.weight", (384, 1536), axes) == PartitionSpec(None, partition.WEIGHT_AXIS)
    assert weight_spec("feature_encoder.bias", (384,), axes) == PartitionSpec()


def test_heads_and_hidden_units_lie_on_the_model_axis_and_the_width_on_that_of_weights():
    axes = {partition.WEIGHT_AXIS: 4, partition.MODEL_AXIS: 2}
    both = ("fsdp", "model")
    assert weight_spec(f"{LAYER}self_attn.q_proj.weight", (28, 1536, 1536), axes) == PartitionSpec(None, *both[::-1])
    assert weight_spec(f"{LAYER}mlp.down_proj.weight", (28, 1536, 8960), axes) == PartitionSpec(None, *both)
    alone = {partition.WEIGHT_AXIS: 4}
    assert weight_spec(f"{LAYER}mlp.down_proj.weight", (28, 1536, 8960), alone) == PartitionSpec(None, None, "fsdp")
    assert weight_spec(f"{LAYER}self_attn.k_proj.bias", (28, 256), axes) == PartitionSpec(None, "model")
    assert weight_spec(f"{LAYER}input_layernorm.weight", (28, 1536), axes) == PartitionSpec()


def test_the_vocabulary_that_does_not_divide_leaves_the_width_to_be_split():
    assert weight_spec("lm_head.weight", (151_682, 1536), {"fsdp": 4}) == PartitionSpec(None, "fsdp")
    assert weight_spec("lm_head.weight", (151_680, 1536), {"fsdp": 4}) == PartitionSpec("fsdp")


def test_a_weight_with_other_dimensions_than_its_line_is_refused():
    with pytest.raises(ValueError, match="its dimensions are width x width"):
        weight_spec("lm_head.weight", (4, 4, 4), {"fsdp": 2})


def test_without_a_mesh_nothing_is_done():
    def function(x):
        return x

    assert partition.own_rows(function, 4, (None,)) is function
    assert partition.first_row(4) == 0 and partition.mesh_axes() == {}
    value = jnp.ones(3)
    assert partition.constrain_rows(value) is value
    assert partition.gather_weight(value, PartitionSpec()) is value


@pytest.mark.heavy
def test_loss_and_gradients_of_the_vlm_are_those_of_one_device_over_shards_and_heads():
    check_vlm_over_mesh(replicas=1, shards=2, heads=2)  # Replicas too in tests/acceptance.
