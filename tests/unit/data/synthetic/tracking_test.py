import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.data.synthetic.drives import FRAMES, RECORDED
from recogdrive.data.synthetic.tracking import NUM_STEERED, steered
from recogdrive.data.types import HISTORY_FRAMES
from recogdrive.geometry import to_frame
from recogdrive.pdm.simulator import simulate
from recogdrive.pdm.state import NUM_STATES, STATE_SIZE, EgoState
from recogdrive.pdm.trajectory import interpolate_candidate

TIMES_S = np.arange(NUM_STEERED) * 0.1
NOW = RECORDED.start + 15


def straight(speed):
    return np.stack([speed * TIMES_S, 0 * TIMES_S, 0 * TIMES_S], axis=-1)


def circle(speed, radius):
    angle = speed * TIMES_S / radius
    return np.stack([radius * np.sin(angle), radius * (1 - np.cos(angle)), angle], axis=-1)


@pytest.fixture(scope="module")
def driven(drives):
    """Now's ego frame: drives, their initial states, and the states of the score's own simulator."""
    poses, states = [], []
    for drive in drives:
        now = drive.ego.poses[NOW]
        moved = to_frame(drive.ego.poses[NOW : NOW + NUM_STEERED], now)
        moved[:, 2] = np.unwrap(moved[:, 2])
        state = np.zeros(STATE_SIZE)
        state[[EgoState.VELOCITY_X, EgoState.VELOCITY_Y]] = drive.ego.velocity[NOW]
        state[[EgoState.ACCELERATION_X, EgoState.ACCELERATION_Y]] = drive.ego.acceleration[NOW]
        poses.append(moved)
        states.append(state)
    poses, states = np.array(poses), np.array(states)
    with jax.enable_x64(True):
        path = interpolate_candidate(jnp.asarray(poses[:, 5::5]), jnp.zeros((len(poses), 3)))
        simulated = np.asarray(simulate(path, jnp.asarray(states)))
    return poses, states, simulated


def steer_all(poses, states):
    found = [steered(p, s[EgoState.VELOCITY_X], s[EgoState.ACCELERATION_X]) for p, s in zip(poses, states, strict=True)]
    return np.stack([p for p, _ in found]), np.stack([v for _, v in found])


def test_its_steps_are_those_of_the_score():
    assert NUM_STEERED == NUM_STATES
    assert FRAMES.start + (HISTORY_FRAMES - 1) * FRAMES.step == NOW


def test_the_car_drives_where_the_scores_simulator_drives_it(driven):
    poses, states, simulated = driven
    found, speed = steer_all(poses, states)
    away = np.linalg.norm(found[..., :2] - simulated[..., :2], axis=-1)
    # The score decides with the speeds its car would reach, and smooths those it follows.
    assert away.max() < 0.12
    heading = np.unwrap(simulated[..., EgoState.HEADING])
    sideways = (found[..., 1] - simulated[..., 1]) * np.cos(heading)
    sideways -= (found[..., 0] - simulated[..., 0]) * np.sin(heading)
    assert np.abs(sideways).max() < 0.05
    np.testing.assert_allclose(speed, simulated[..., EgoState.VELOCITY_X], atol=0.15)


def test_in_bends_the_simulator_strays_much_further_from_the_recorded_drive_than_that(driven):
    poses, _, simulated = driven
    away = (simulated[..., 1] - poses[..., 1]) * np.cos(poses[..., 2])
    away -= (simulated[..., 0] - poses[..., 0]) * np.sin(poses[..., 2])
    assert np.abs(away).max() > 0.4


def test_on_a_straight_line_at_constant_speed_the_car_keeps_the_poses():
    poses, speed = steered(straight(9.0), 9.0, 0.0)
    np.testing.assert_allclose(poses, straight(9.0), atol=1e-9)
    np.testing.assert_allclose(speed, 9.0)


def test_the_first_step_of_a_bend_goes_straight_and_leaves_it_to_the_outside():
    poses, _ = steered(circle(10.0, 40.0), 10.0, 0.0)
    # Wheels turn after the first step, and a heading turns after the wheels.
    np.testing.assert_allclose(poses[1], [1.0, 0.0, 0.0], atol=1e-12)
    assert poses[2, 2] > 0
    outside = np.hypot(poses[:, 0], poses[:, 1] - 40.0) - 40.0
    assert 0.4 < outside.max() < 1.2


def test_a_right_bend_mirrors_a_left_one():
    left, _ = steered(circle(8.0, 25.0), 8.0, 0.5)
    right, _ = steered(circle(8.0, 25.0) * [1, -1, -1], 8.0, 0.5)
    np.testing.assert_allclose(right, left * [1, -1, -1], atol=1e-9)


def test_a_faster_reference_is_reached_through_the_lag_of_the_engine():
    _, speed = steered(straight(10.0), 9.0, 0.0)
    # 10/11 of the missing 1 m/s a second, of which a third acts within the first 0.1 s.
    assert speed[1] == pytest.approx(9.0 + 0.1 * (10 / 11) / 3)
    assert speed[-1] == pytest.approx(10.0, abs=0.05)


def test_a_standing_car_stays():
    poses, speed = steered(np.zeros((NUM_STEERED, 3)), 0.0, 0.0)
    np.testing.assert_array_equal(poses, 0.0)
    np.testing.assert_array_equal(speed, 0.0)


def test_only_the_recorded_2_hz_poses_count():
    poses = circle(8.0, 40.0)
    bent = poses.copy()
    bent[np.arange(NUM_STEERED) % 5 != 0] += 0.3
    np.testing.assert_array_equal(steered(bent, 8.0, 0.0)[0], steered(poses, 8.0, 0.0)[0])
