import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.target import targeting
from recogdrive.training.sharding import DataParallel, DevicePrefetch, FullySharded

REPOSITORY = Path(__file__).resolve().parents[3]


class EightDevices(DataParallel):
    """Arithmetic of a larger mesh, without its devices."""

    num_devices = 8


class TwoProcesses(DataParallel):
    """Where four devices of two processes have the rows of a batch of 8."""

    num_devices = 4

    def __init__(self, rows):
        super().__init__()
        self._rows = rows

    @property
    def batch_sharding(self):
        return self

    def devices_indices_map(self, shape):
        processes = (0, 0, 1, 1)[: len(self._rows)]
        devices = [type("Device", (), {"process_index": process})() for process in processes]
        return {device: (slice(*rows),) for device, rows in zip(devices, self._rows, strict=True)}


def test_processes_whose_devices_have_the_rows_they_read_may_train(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    TwoProcesses([(0, 2), (2, 4), (4, 6), (6, 8)]).check_batch(8)
    TwoProcesses([(0, 4), (0, 4), (4, 8), (4, 8)]).check_batch(8)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 4), (4, 8)], "leaves 1 of 2 processes without a device"),
        ([(0, 4), (4, 8), (0, 4), (4, 8)], "devices that share a row must be of one process"),
    ],
)
def test_rows_on_devices_of_a_process_that_reads_others_are_refused(monkeypatch, rows, message):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        TwoProcesses(rows).check_batch(8)


@pytest.mark.parametrize(
    ("batch_size", "accumulation_steps", "message"),
    [
        (30, 1, r"batch_size=30 does not divide over 8 devices; use a multiple of 8 \(e.g. 24 or 32\)"),
        (5, 1, r"use a multiple of 8 \(e.g. 8\)"),
        (40, 2, r"over 8 devices x 2 accumulation steps; use a multiple of 16 \(e.g. 32 or 48\)"),
        (0, 1, "batch_size=0 must be at least 1"),
        (16, 0, "accumulation_steps=0 must be at least 1"),
    ],
)
def test_a_batch_that_does_not_split_evenly_is_refused_with_the_nearest_that_do(
    batch_size, accumulation_steps, message
):
    with pytest.raises(ValueError, match=message):
        EightDevices().check_batch(batch_size, accumulation_steps)


def test_a_batch_that_splits_evenly_passes():
    EightDevices().check_batch(32, 2)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="num_devices=999"):
        DataParallel(999)


def test_placed_state_survives_the_donation_of_its_copy():
    mine = {"w": jnp.ones(4)}
    placed = DataParallel(1).put_state(mine)
    placed["w"].delete()
    assert float(mine["w"].sum()) == 4.0


def test_a_batch_with_a_wrong_number_of_rows_is_refused_by_name():
    with pytest.raises(ValueError, match=r"must have 4 rows .*'short': \(3, 2\)"):
        DataParallel(1).put_batch({"good": np.zeros((4, 2)), "short": np.zeros((3, 2))}, 4)


def test_prefetch_keeps_order_and_knows_the_position_after_each_batch(stream):
    source = stream()
    prefetch = DevicePrefetch(source, DataParallel(1), depth=3)
    first = prefetch.take()
    prefetch.fill()
    assert source.next_batch == 4  # Batch 0 taken, 1 to 3 waiting.
    assert first.stream_state_after == {"next_batch": 1}
    second = prefetch.take()
    assert second.stream_state_after == {"next_batch": 2}
    expected = stream()
    next(expected)
    np.testing.assert_array_equal(second.arrays["x"], next(expected)["x"])
    assert isinstance(second.arrays["x"], jax.Array)


def test_a_stream_that_ends_is_an_error(stream):
    class Short(stream):
        def __next__(self):
            raise StopIteration

    with pytest.raises(ValueError, match="must repeat its data"):
        DevicePrefetch(Short(), DataParallel(1)).take()


@pytest.mark.heavy
def test_a_checkpoint_moves_between_one_two_and_four_devices_with_the_same_next_loss(tmp_path):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(REPOSITORY),
    }
    script = Path(__file__).with_name("resharding_driver.py")
    run = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    assert answer["devices_of_restored_state"] == {"1": 1, "2": 2, "4": 4}
    assert set(answer["next_loss"]) == {"1->2", "1->4", "2->1", "4->1"}
    for path, loss in answer["next_loss"].items():
        assert loss == pytest.approx(answer["straight"][2], rel=1e-6), path
    np.testing.assert_allclose(answer["round_trip"], answer["straight"], rtol=1e-6)
    assert answer["shared_buffers"] == 0, "what is donated of one state is gone from the other"


def mesh_of(count, **arguments):
    """A `FullySharded` for devices that are not here."""
    with targeting(jax.devices() * count):
        return FullySharded(**arguments)


def test_a_mesh_that_the_devices_do_not_fill_is_refused_with_the_nearest_that_they_do():
    with pytest.raises(ValueError, match=r"replicas=3 x model_devices=1 does not divide 8 .* 3 may be 2 or 4"):
        mesh_of(8, replicas=3)
    with pytest.raises(ValueError, match="model_devices=0 must be a positive whole number"):
        mesh_of(8, model_devices=0)


def test_one_device_alone_splits_nothing():
    sharding = FullySharded(1)
    assert sharding.num_devices == 1
    assert sharding.state_sharding({"w": jnp.zeros((512, 512))})["w"].spec == jax.sharding.PartitionSpec()


def test_a_function_of_rows_is_left_alone_on_one_device():
    def function(x):
        return x

    assert DataParallel(1).over_rows(function) is function


def test_the_log_says_how_the_rows_of_an_update_are_spread():
    text = DataParallel(1).describe_batch(32, 4)
    assert "effective batch 32 rows = 8 rows a device x 1 devices x 4 accumulation steps" in text
