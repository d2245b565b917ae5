"""Driving direction compliance on hand-worked drives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.metrics.driving_direction import driving_direction

_driving_direction = jax.jit(driving_direction)


def straight(speed_mps):
    """Centres of a drive along x."""
    return np.stack([0.1 * speed_mps * np.arange(41), np.zeros(41)], axis=-1)


def score(centers, oncoming, dtype="float64"):
    with jax.enable_x64(dtype == "float64"):
        return tuple(map(np.asarray, _driving_direction(jnp.asarray(centers, dtype), jnp.asarray(oncoming))))


def test_any_speed_on_the_route_is_compliant():
    assert score(straight(30.0), np.zeros(41, bool)) == (1.0, 0.0)


@pytest.mark.parametrize("speed, points", [(1.8, 1.0), (1.85, 0.5), (5.4, 0.5), (5.5, 0.0)])
def test_eleven_steps_off_the_route_are_added_up(speed, points):
    got, way = score(straight(speed), np.ones(41, bool))
    assert got == points and way == pytest.approx(1.1 * speed)


@pytest.mark.parametrize("way, points", [(2.0, 0.5), (6.0, 0.0)])
def test_a_way_on_the_threshold_takes_the_worse_score(way, points):
    centers = np.zeros((41, 2))
    centers[20:, 1] = way
    assert score(centers, np.ones(41, bool)) == (points, way)


def test_a_step_counts_by_the_place_where_it_ends():
    centers = np.zeros((41, 2))
    centers[20:, 0] = 4.0
    oncoming = np.zeros(41, bool)
    oncoming[19] = True
    assert score(centers, oncoming) == (1.0, 0.0)
    oncoming[19:21] = False, True
    assert score(centers, oncoming) == (0.5, 4.0)


def test_steps_more_than_a_second_apart_are_not_added():
    centers = np.zeros((41, 2))
    centers[5:, 0] += 4.0
    centers[16:, 0] += 4.0
    assert score(centers, np.ones(41, bool)) == (0.5, 4.0)
    centers = np.roll(centers, 1, axis=0) * 0
    centers[6:, 0] += 4.0
    centers[16:, 0] += 4.0
    assert score(centers, np.ones(41, bool)) == (0.0, 8.0)


def test_drives_agree_with_a_loop_over_windows():
    rng = np.random.default_rng(0)
    centers, oncoming = rng.normal(0, 0.4, (3, 4, 41, 2)).cumsum(-2), rng.random((3, 4, 41)) < 0.5
    points, ways = score(centers, oncoming)
    for index in np.ndindex(3, 4):
        steps = [0.0] + [np.hypot(*(centers[index][i] - centers[index][i - 1])) for i in range(1, 41)]
        sums = [sum(steps[j] for j in range(max(i - 10, 0), i + 1) if oncoming[index][j]) for i in range(41)]
        assert ways[index] == pytest.approx(max(sums))
        assert points[index] == (1.0 if max(sums) < 2 else 0.5 if max(sums) < 6 else 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_have_the_dtype_of_the_centres(dtype):
    with jax.enable_x64(True):
        shapes = jax.ShapeDtypeStruct((2, 41, 2), dtype), jax.ShapeDtypeStruct((2, 41), bool)
        points, way = jax.eval_shape(driving_direction, *shapes)
    assert points.dtype == way.dtype == dtype and points.shape == way.shape == (2,)
