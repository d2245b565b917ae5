"""The real sizes against the TPU compiler, none of whose chips are here, and a mesh of three axes.

Fine-tuning 2B on four chips is in the unit tests.
"""

import importlib.util
from pathlib import Path

import pytest

from recogdrive.ahead_of_time import kernel_schedule, table
from recogdrive.ahead_of_time.chips import GIB
from recogdrive.ahead_of_time.estimate import KERNEL_EFFICIENCY, estimate
from recogdrive.composition import compose
from recogdrive.experiment import find_experiment

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize(
    ("name", "most_gib"), [("8b_sft_v6e_8", 20), ("2b_sft_v6e_256", 31.24), ("8b_sft_v6e_256", 31.24)]
)
def test_fine_tuning_fits(tpu_compiler, name, most_gib):
    (line,) = [line for line in table.lines() if line.name == name]
    found = table.compiled(line)
    assert found.fits and found.total_bytes <= most_gib * GIB
    assert found.windowed_einsums == 0


def test_imitation_compiles_for_four_chips(tpu_compiler):
    bindings = ["BATCH_SIZE=8", "DiffusionPlanner.layers=2"]
    found = estimate(compose(find_experiment("debug_il"), ["gin/runtime/tpu_v6e_4.gin"], bindings), "v6e:2x2")
    assert found.chips == 4 and found.mesh == {"fsdp": 4} and found.fits
    assert 0 < found.hbm_bytes["temporaries"] < GIB
    assert found.flops > 1e6 and sum(found.sent_bytes.values()) > 0


def test_reinforcement_learning_with_the_simulator_in_its_step_fits_four_chips(tpu_compiler):
    (line,) = [line for line in table.lines() if line.name == "2b_rl_v6e_4"]
    found = table.compiled(line)
    assert found.rows == 64 and found.fits
    assert sum(found.sent_bytes.values()) < 1e9  # Weights and their gradients, some 0.1 GB a time, and no activations.
    assert found.hbm_bytes["kept weights"] == pytest.approx(found.hbm_bytes["weights"], rel=0.01)


@pytest.mark.parametrize("kernel", KERNEL_EFFICIENCY)
def test_kernels_reach_the_part_of_the_peak_that_the_table_reckons_with(tpu_compiler, kernel):
    assert kernel_schedule.measure(kernel)["of_peak"] == pytest.approx(KERNEL_EFFICIENCY[kernel], abs=0.02)


def test_the_vlm_over_replicas_shards_and_heads_is_that_of_one_device():
    path = Path(__file__).parents[1] / "unit" / "models" / "partition_test.py"
    spec = importlib.util.spec_from_file_location("partition_checks", path)
    checks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checks)
    checks.check_vlm_over_mesh(replicas=2, shards=2, heads=2)
