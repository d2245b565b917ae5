"""Simulated drives: hand-worked ones, symmetries, and independence within a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm import bicycle, lqr
from recogdrive.pdm.bicycle import Motion
from recogdrive.pdm.simulator import simulate
from recogdrive.pdm.state import EgoState

_simulate = jax.jit(simulate)


def drive(poses, state, dtype="float64"):
    with jax.enable_x64(dtype == "float64"):
        return np.asarray(_simulate(jnp.asarray(poses, dtype), jnp.asarray(state, dtype)))


def state_of(**columns):
    state = np.zeros(11)
    for name, value in columns.items():
        state[EgoState[name.upper()]] = value
    return state


def curving_poses(count=3, seed=0):
    """Drives of 4 ... 12 m/s that bend left and right, from the origin, and matching initial states."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(4, 12, (count, 1)) * np.ones((1, 40))
    heading = np.hstack([np.zeros((count, 1)), np.cumsum(rng.normal(0, 0.02, (count, 40)), axis=1)])
    steps = 0.1 * speed[..., None] * np.stack([np.cos(heading[:, :-1]), np.sin(heading[:, :-1])], axis=-1)
    xy = np.concatenate([np.zeros((count, 1, 2)), np.cumsum(steps, axis=1)], axis=1)
    states = np.stack([state_of(velocity_x=one - 0.5, y=0.1, acceleration_x=0.3) for one in speed[:, 0]])
    return np.concatenate([xy, heading[..., None]], axis=-1), states


def test_the_first_state_is_the_initial_one_with_its_sliding():
    poses, states = curving_poses()
    states[:, [EgoState.VELOCITY_Y, EgoState.ACCELERATION_Y, EgoState.YAW_RATE]] = 0.2, 0.7, 0.1
    simulated = drive(poses, states)
    np.testing.assert_array_equal(simulated[:, 0], states)
    assert np.all(simulated[:, 1:, [EgoState.VELOCITY_Y, EgoState.ACCELERATION_Y]] == 0)


def test_a_car_that_is_where_it_should_be_drives_on_at_its_speed():
    poses = np.zeros((41, 3))
    poses[:, 0] = 0.8 * np.arange(41)
    simulated = drive(poses, state_of(velocity_x=8.0))
    expected = np.zeros((41, 11))
    expected[:, EgoState.X], expected[:, EgoState.VELOCITY_X] = poses[:, 0], 8.0
    np.testing.assert_allclose(simulated, expected, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_car_told_to_stand_stands(dtype):
    pose = [5.0, -3.0, 2.0]
    simulated = drive(np.tile(pose, (41, 1)), np.r_[pose, np.zeros(8)], dtype)
    np.testing.assert_array_equal(simulated, np.tile(np.r_[pose, np.zeros(8)].astype(dtype), (41, 1)))


def test_a_car_one_metre_beside_its_path_returns_to_it():
    poses = np.zeros((41, 3))
    poses[:, 0] = 0.8 * np.arange(41)
    simulated = drive(poses, state_of(velocity_x=8.0, y=1.0))
    assert simulated[10, EgoState.Y] < 0.9
    assert abs(simulated[40, EgoState.Y]) < 0.15


def test_the_simulation_is_the_tracker_and_the_bicycle_in_turn():
    poses, states = curving_poses(2)
    simulated = drive(poses, states)
    with jax.enable_x64(True):
        command, step = jax.jit(lqr.commands), jax.jit(bicycle.step)
        references = lqr.references(jnp.asarray(poses), *jax.jit(lqr.profiles)(jnp.asarray(poses)))
        motion = Motion(*jnp.asarray(states.T))
        for i in range(40):
            reference = lqr.Reference(*(np.asarray(values)[i] for values in references))
            motion = step(
                motion,
                *command(motion.x, motion.y, motion.heading, motion.velocity_x, motion.steering_angle, reference),
            )
            np.testing.assert_allclose(np.transpose(motion), simulated[:, i + 1], atol=1e-9)


def test_a_mirrored_drive_has_mirrored_states():
    poses, states = curving_poses()
    mirrored = drive(poses * [1, -1, -1], states * [1, -1, -1, 1, -1, 1, -1, -1, -1, -1, -1])
    expected = drive(poses, states) * [1, -1, -1, 1, -1, 1, -1, -1, -1, -1, -1]
    np.testing.assert_allclose(mirrored, expected, atol=1e-9)


def test_a_drive_looks_the_same_from_a_turned_and_moved_frame():
    poses, states = curving_poses()
    angle, offset = 2.8, np.array([40.0, -25.0])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    def move(values):
        return np.concatenate([values[..., :2] @ turn + offset, values[..., 2:3] + angle, values[..., 3:]], axis=-1)

    moved, expected = drive(move(poses), move(states)), move(drive(poses, states))
    expected[:, 1:, 2] = (expected[:, 1:, 2] + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(moved, expected, atol=1e-9)


def test_a_broken_trajectory_leaves_the_others_as_they_are():
    poses, states = curving_poses(3)
    broken = poses.copy()
    broken[1, 7, 0] = np.nan
    kept = [0, 2]
    simulated = drive(broken, states)
    np.testing.assert_array_equal(simulated[kept], drive(poses, states)[kept])
    assert np.isnan(simulated[1, 1:]).any()


def test_leading_axes_are_free_and_one_state_serves_all():
    poses, _ = curving_poses(4)
    state = state_of(velocity_x=6.0)
    flat = drive(poses, np.tile(state, (4, 1)))
    np.testing.assert_allclose(drive(poses.reshape(2, 2, 41, 3), state), flat.reshape(2, 2, 41, 11), atol=1e-12)


def test_float32_stays_within_a_millimetre_of_float64():
    poses, states = curving_poses(8, seed=3)
    single = drive(poses, states, "float32")
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, drive(poses, states), atol=1e-3)
