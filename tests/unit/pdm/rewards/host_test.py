"""Rewards on host cores: what functions may do, when they run, and that a run survives what they should not do."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.rewards.host import HostPdms, HostReward
from recogdrive.pdm.rewards.reward import KNOWN

REPOSITORY = Path(__file__).resolve().parents[4]


def last_x(record, trajectories):
    """How far rollouts come, plus what the record says."""
    return trajectories[:, -1, 0] + record, {"sideways": trajectories[:, -1, 1]}


def records_from_100(index):
    return 100.0 + index


@pytest.fixture
def batch():
    return {"index": np.array([4, 2, 7], np.int32), KNOWN: np.array([True, True, False])}


@pytest.fixture
def trajectories():
    return np.random.default_rng(0).normal(size=(3, 2, 8, 3)).astype(np.float32)


@pytest.fixture
def reward_of():
    """Function and records -> reward, closed at the end."""
    made = []

    def make(function, records=records_from_100, names=("sideways",)):
        made.append(HostReward(function, names))
        made[-1].attach(records)
        return made[-1]

    yield make
    for reward in made:
        reward.close()


def scores_of(reward, batch, trajectories):
    step = jax.jit(lambda batch, plans: reward.collect(reward.submit(batch, plans), plans))
    return jax.block_until_ready(step(batch, trajectories))


def test_scenes_are_scored_in_their_records_and_unknown_ones_are_not(reward_of, batch, trajectories):
    found = scores_of(reward_of(last_x), batch, trajectories)
    np.testing.assert_allclose(found.total[:2], trajectories[:2, :, -1, 0] + [[104], [102]], rtol=1e-6)
    np.testing.assert_allclose(found.parts["sideways"][:2], trajectories[:2, :, -1, 1], rtol=1e-6)
    assert np.isnan(found.total[2]).all() and np.isnan(found.parts["sideways"][2]).all()


def test_the_device_works_on_while_the_function_runs(reward_of, batch, trajectories):
    """The function waits for something that the program does only after it has handed the rollouts over."""
    handed_over = threading.Event()

    def slow(record, trajectories):
        assert handed_over.wait(20)
        return last_x(record, trajectories)

    reward = reward_of(slow)

    def step(batch, trajectories):
        pending = reward.submit(batch, trajectories)
        after = jax.pure_callback(lambda x: handed_over.set() or x, jax.ShapeDtypeStruct((), jnp.int32), pending[0, 0])
        return reward.collect(pending, after)

    found = jax.jit(step)(batch, trajectories)
    np.testing.assert_allclose(found.total[0], trajectories[0, :, -1, 0] + 104, rtol=1e-6)


def _fails(record, trajectories):
    if record == 104:
        raise RuntimeError("no idea")
    return last_x(record, trajectories)


def _returns_other_shapes(record, trajectories):
    total, parts = last_x(record, trajectories)
    return (total[:1] if record == 104 else total), parts


def _returns_other_parts(record, trajectories):
    total, parts = last_x(record, trajectories)
    return total, {} if record == 104 else parts


def _returns_nothing(record, trajectories):
    return None if record == 104 else last_x(record, trajectories)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_fails, "RuntimeError: no idea"),
        (_returns_other_shapes, r"the reward of shape (1,), not (2,)"),
        (_returns_other_parts, "the parts [], not ['sideways']"),
        (_returns_nothing, "TypeError"),
    ],
)
def test_a_function_that_fails_costs_its_scene_alone(reward_of, batch, trajectories, caplog, function, message):
    with caplog.at_level(logging.ERROR, "absl"):
        found = scores_of(reward_of(function), batch, trajectories)
    assert "no reward for sample 4: " in caplog.text and message in caplog.text
    assert np.isnan(found.total[0]).all() and np.isfinite(found.total[1]).all()


def test_a_record_that_is_not_there_costs_its_scene_alone(reward_of, batch, trajectories, caplog):
    def records(index):
        if index == 4:
            raise SceneError("scene four is lost")
        return 0.0

    with caplog.at_level(logging.ERROR, "absl"):
        found = scores_of(reward_of(last_x, records), batch, trajectories)
    assert "scene four is lost" in caplog.text
    assert np.isnan(found.total[0]).all() and np.isfinite(found.total[1]).all()


@pytest.mark.heavy
def test_processes_serve_several_devices_and_a_killed_one_costs_its_scenes_alone():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(REPOSITORY),
    }
    script = Path(__file__).with_name("host_driver.py")
    run = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    assert answer["devices"] == 2
    assert "HOST_WORKERS=1" in answer["refusal_of_a_thread"]
    # Rows on both devices; the reward is the last x plus the record's number.
    assert answer["totals"] == [[11.0, 12.0], [12.0, 13.0], [13.0, 14.0], [14.0, 15.0]]
    assert all(total is None for row in answer["totals_when_killed"] for total in row)
    assert answer["totals_afterwards"] == answer["totals"]
    assert answer["processes"] == 1


def test_gin_builds_it_and_processes_can_have_what_it_builds():
    gin.parse_config("HostReward.function = @HostPdms()\nHostReward.workers = 2")
    reward = gin.get_configurable("HostReward")()
    reward.attach(records_from_100)
    assert isinstance(reward.function, HostPdms) and reward.part_names == HostPdms.part_names


def test_a_function_that_no_process_can_have_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="cannot be sent to worker processes .* registered class"):
        HostReward(lambda record, plans: None, (), workers=1).attach(records_from_100)


def test_without_records_or_index_it_cannot_begin(reward_of, trajectories):
    with pytest.raises(ValueError, match=r"call attach\(records\)"):
        HostReward(last_x, ["sideways"]).submit({}, trajectories)
    with pytest.raises(ValueError, match="lacks index"):
        reward_of(last_x).submit({}, trajectories)


@pytest.mark.parametrize(("arguments", "message"), [((None, 0), "must list the parts"), ((("a",), -1), "workers=-1")])
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HostReward(last_x, *arguments)
