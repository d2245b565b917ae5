"""Tracker: its profiles against explicit least squares, its commands against the rollout they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm import lqr

DT = 0.1
WHEEL_BASE = 3.089

_profiles = jax.jit(lqr.profiles)
_commands = jax.jit(lqr.commands)
_references = jax.jit(lqr.references)


def profiles(poses, dtype="float64"):
    with jax.enable_x64(dtype == "float64"):
        return tuple(np.asarray(values) for values in _profiles(jnp.asarray(poses, dtype)))


def wiggly_poses(seed=0, count=6):
    """Drives with changing speed (some backwards) and curvature, headings along the way."""
    rng = np.random.default_rng(seed)
    speeds = rng.uniform(-5, 15, (count, 1)) + np.cumsum(rng.normal(0, 0.3, (count, 40)), axis=1)
    headings = rng.uniform(-3, 3, (count, 1)) + np.cumsum(rng.normal(0, 0.03, (count, 41)), axis=1)
    x = np.cumsum(speeds * DT * np.cos(headings[:, :-1]), axis=1)
    y = np.cumsum(speeds * DT * np.sin(headings[:, :-1]), axis=1)
    start = np.zeros((count, 1))
    return np.stack([np.hstack([start, x]), np.hstack([start, y]), headings], axis=-1)


def displacements(poses):
    heading = poses[:-1, 2]
    return np.diff(poses[:, 0]) * np.cos(heading) + np.diff(poses[:, 1]) * np.sin(heading)


def explicit_speeds(poses):
    """Minimises over the first speed and the 39 accelerations, with the penalty that upstream's matrix amounts to."""
    to_speeds = np.hstack([np.ones((40, 1)), DT * np.tri(40, 39, -1)])
    penalty = np.zeros((38, 40))
    for j in range(37):
        penalty[j, 1 + j] = 1
    penalty[37, [1 + 38, 1 + 37]] = 1, -1
    system = np.vstack([DT * to_speeds, 1e-2 * penalty])
    solution = np.linalg.lstsq(system, np.hstack([displacements(poses), np.zeros(38)]), rcond=None)[0]
    return to_speeds @ solution


def explicit_curvatures(poses, speeds):
    turns = np.diff(poses[:, 2])
    turns = np.arctan2(np.sin(turns), np.cos(turns))
    first = np.zeros((1, 40))
    first[0, 0] = 1e-5
    system = np.vstack([np.diag(DT * speeds), 0.1 * np.diff(np.eye(40), axis=0) / DT, first])
    return np.linalg.lstsq(system, np.hstack([turns, np.zeros(40)]), rcond=None)[0]


def test_speeds_are_the_least_squares_solution():
    poses = wiggly_poses()
    np.testing.assert_allclose(profiles(poses)[0], [explicit_speeds(one) for one in poses], atol=1e-9)


def test_curvatures_are_the_least_squares_solution_at_these_speeds():
    poses = wiggly_poses(1)
    speeds, curvatures = profiles(poses)
    expected = [explicit_curvatures(one, speed) for one, speed in zip(poses, speeds, strict=True)]
    np.testing.assert_allclose(curvatures, expected, atol=1e-7)


def test_a_steady_acceleration_is_flattened_because_the_penalty_is_on_acceleration():
    poses = np.zeros((41, 3))
    speeds = 5 + 2 * DT * np.arange(40)
    poses[1:, 0] = np.cumsum(speeds * DT)
    found = profiles(poses)[0]
    # A penalty on jerk would leave this profile alone.
    assert found[0] > speeds[0] + 0.05
    np.testing.assert_allclose(found[15:25], speeds[15:25], atol=1e-3)


def test_a_straight_drive_has_its_speed_and_no_curvature():
    poses = np.zeros((41, 3))
    poses[:, 0] = 0.7 * np.arange(41)
    speeds, curvatures = profiles(poses)
    np.testing.assert_allclose(speeds, 7.0, atol=1e-12)
    np.testing.assert_allclose(curvatures, 0.0, atol=1e-12)


def test_reversing_has_negative_speed():
    poses = np.zeros((41, 3))
    poses[:, 1] = -0.3 * np.arange(41)
    poses[:, 2] = np.pi / 2
    np.testing.assert_allclose(profiles(poses)[0], -3.0, atol=1e-12)


@pytest.mark.parametrize("start_rad", [0.0, 2.9])
def test_a_circle_has_its_turn_by_displacement_also_across_half_a_turn(start_rad):
    heading = start_rad + 0.05 * np.arange(41)
    poses = np.stack([20 * np.sin(heading), -20 * np.cos(heading), heading], axis=-1)
    poses[:, 2] = np.arctan2(np.sin(heading), np.cos(heading))
    forward = 20 * np.sin(0.05)  # The chord of a step, seen along the heading at its start.
    speeds, curvatures = profiles(poses)
    np.testing.assert_allclose(speeds, forward / DT, atol=1e-9)
    np.testing.assert_allclose(curvatures, 0.05 / forward, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_standing_car_has_speed_and_curvature_zero(dtype):
    poses = np.broadcast_to([3.0, -7.0, 1.0], (41, 3))
    speeds, curvatures = profiles(poses, dtype)
    assert np.all(speeds == 0) and np.all(curvatures == 0)
    assert speeds.dtype == curvatures.dtype == dtype


def slow_command(state, pose, reference_speed, window):
    """Upstream's decision step by step: roll the linearised errors ten steps, then weigh their end."""
    x, y, heading, speed, steering = state
    wrap = lambda angle: np.arctan2(np.sin(angle), np.cos(angle))  # noqa: E731
    if speed <= 0.2 and reference_speed <= 0.2:
        return -0.5 * (speed - reference_speed), 0.0
    acceleration = -(10 / 11) * (speed - reference_speed)
    lateral = -(x - pose[0]) * np.sin(pose[2]) + (y - pose[1]) * np.cos(pose[2])
    end = np.array([lateral, wrap(heading - pose[2]), steering])
    response = np.zeros(3)
    for j in range(10):
        u = speed + acceleration * DT * j
        step = np.array([[1, DT * u, 0], [0, 1, DT * u / WHEEL_BASE], [0, 0, 1]])
        end = step @ end - np.array([0, DT * u * window[j], 0])
        response = step @ response + np.array([0, 0, DT])
    end[1:] = wrap(end[1:])
    weights = np.array([1.0, 10.0, 0.0])
    return acceleration, -(response * weights) @ end / ((response * weights) @ response + 1)


def reference_at(poses, speeds, curvatures, step):
    return jax.tree.map(lambda values: values[step], _references(poses, speeds, curvatures))


@pytest.mark.parametrize("step", [0, 29, 30, 34, 39])
def test_commands_are_those_of_the_rollout(step):
    rng = np.random.default_rng(step)
    count = 12
    poses, speeds = rng.uniform(-3, 3, (count, 41, 3)), rng.uniform(-8, 20, (count, 40))
    curvatures = rng.uniform(-0.2, 0.2, (count, 40))
    state = rng.uniform(-3, 3, (5, count)) * np.array([1, 1, 1, 5, 0.3])[:, None]
    with jax.enable_x64(True):
        reference = reference_at(jnp.asarray(poses), jnp.asarray(speeds), jnp.asarray(curvatures), step)
        found = np.asarray(_commands(*jnp.asarray(state), reference))
    end = min(step + 10, 39)
    expected = []
    for i in range(count):
        window = list(curvatures[i, step:end]) + [curvatures[i, end]] * (10 - (end - step))
        expected.append(slow_command(state[:, i], poses[i, step], speeds[i, end], window))
    np.testing.assert_allclose(found, np.transpose(expected), atol=1e-9)


def steady_reference(speed):
    """The x axis at a constant speed."""
    poses = jnp.zeros((41, 3)).at[:, 0].set(0.1 * speed * jnp.arange(41))
    return reference_at(poses, jnp.full(40, speed), jnp.zeros(40), 0)


def test_a_car_on_its_reference_gets_no_command():
    acceleration, rate = _commands(*jnp.array([0.0, 0.0, 0.0, 8.0, 0.0]), steady_reference(8.0))
    assert float(acceleration) == 0 and float(rate) == 0


def test_a_car_1_mps_too_slow_is_asked_for_ten_elevenths():
    acceleration, _ = _commands(*jnp.array([0.0, 0.0, 0.0, 7.0, 0.0]), steady_reference(8.0))
    assert float(acceleration) == pytest.approx(10 / 11, rel=1e-6)


def test_a_car_left_of_its_reference_steers_right():
    _, rate = _commands(*jnp.array([0.0, 1.0, 0.0, 8.0, 0.0]), steady_reference(8.0))
    assert float(rate) < -0.1


@pytest.mark.parametrize(
    "speed, reference_speed, stops",
    [(0.1, 0.1, True), (-4.0, 0.1, True), (0.1, -4.0, True), (0.3, 0.1, False), (0.1, 0.3, False)],
)
def test_the_car_stops_when_it_and_its_reference_are_slow_or_backwards(speed, reference_speed, stops):
    acceleration, rate = _commands(*jnp.array([0.0, 1.0, 0.1, speed, 0.0]), steady_reference(reference_speed))
    gain = 0.5 if stops else 10 / 11
    assert float(acceleration) == pytest.approx(-gain * (speed - reference_speed), rel=1e-5)
    assert (float(rate) == 0) == stops


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_speed_of_exactly_the_threshold_counts_as_stopped(dtype):
    with jax.enable_x64(True):
        threshold = jnp.asarray(0.2, dtype)
        reference = jax.tree.map(lambda values: values.astype(dtype), steady_reference(0.0))._replace(speed=threshold)
        state = jnp.array([0.0, 1.0, 0.1, 0.0, 0.0], dtype)
        assert float(_commands(*state[:3], threshold, state[4], reference)[1]) == 0


def test_the_reference_speed_lies_ten_steps_ahead_and_the_pose_does_not():
    steps = jnp.arange(41.0)
    poses = jnp.stack([steps, 2 * steps, 0 * steps], axis=-1)
    reference = _references(poses, steps[:40], jnp.zeros(40))
    np.testing.assert_array_equal(reference.x, np.arange(40))
    np.testing.assert_array_equal(reference.y, 2 * np.arange(40))
    np.testing.assert_array_equal(reference.speed, np.minimum(np.arange(40) + 10, 39))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_references_keep_the_dtype_and_put_the_step_first(dtype):
    with jax.enable_x64(True):
        shapes = [(2, 3, 41, 3), (2, 3, 40), (2, 3, 40)]
        reference = jax.eval_shape(lqr.references, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
        assert {str(values.dtype) for values in reference} == {dtype}
        assert reference.x.shape == (40, 2, 3) and reference.curvature.shape == (40, 5, 2, 3)
