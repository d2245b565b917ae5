"""Progress along the centre line and its normalisation on hand-worked numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.metrics.progress import ego_progress, extended_ego_progress, raw_progress

_raw_progress = jax.jit(raw_progress)
_ego_progress = jax.jit(ego_progress)


def normalised(raw, factor, normaliser_raw, normaliser_factor):
    return float(_ego_progress(*map(jnp.float32, (raw, factor, normaliser_raw, normaliser_factor))))


def test_progress_is_measured_along_the_line_round_its_corner():
    lines = jnp.array([[[0.0, 0], [10, 0], [10, 50]]])
    first, last = jnp.array([[[2.0, 1], [4, 0]]]), jnp.array([[[9, 20.0], [6, 3]]])
    np.testing.assert_allclose(_raw_progress(first, last, lines, jnp.array([3])), [[28, 2]], atol=1e-5)


def test_going_back_is_no_progress():
    lines = jnp.array([[[0.0, 0], [10, 0]]])
    assert float(_raw_progress(jnp.array([[[6.0, 0]]]), jnp.array([[[1.0, 0]]]), lines, jnp.array([2]))[0, 0]) == 0


def test_driving_on_beyond_the_end_of_the_line_does_not_count():
    lines = jnp.array([[[0.0, 0], [10, 0]]])
    progress = _raw_progress(jnp.array([[[6.0, 0]]]), jnp.array([[[40.0, 0]]]), lines, jnp.array([2]))
    assert float(progress[0, 0]) == pytest.approx(4)


@pytest.mark.parametrize(
    "raw, factor, normaliser_raw, normaliser_factor, expected",
    [
        (20.0, 1.0, 40.0, 1.0, 0.5),  # half of what the normaliser does
        (50.0, 1.0, 40.0, 1.0, 1.0),  # more than it
        (20.0, 0.5, 40.0, 1.0, 0.25),  # a static object hit halves the progress
        (20.0, 0.0, 40.0, 1.0, 0.0),  # a collision leaves none
        (20.0, 1.0, 40.0, 0.0, 1.0),  # a normaliser that collides is no measure
        (20.0, 1.0, 40.0, 0.5, 1.0),  # one that hits a static object counts half
        (4.0, 1.0, 5.0, 1.0, 1.0),  # nobody gets beyond 5 m: any progress is full
        (0.0, 0.5, 3.0, 1.0, 1.0),
        (4.0, 0.0, 3.0, 1.0, 0.0),  # unless the trajectory fails
        (0.0, 0.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 5.01, 1.0, 0.0),
    ],
)
def test_progress_is_relative_to_the_better_of_the_two(raw, factor, normaliser_raw, normaliser_factor, expected):
    assert normalised(raw, factor, normaliser_raw, normaliser_factor) == pytest.approx(expected)


def test_a_top_of_exactly_5_metres_is_not_enough_to_compare_with():
    assert normalised(1.0, 1.0, 5.0, 1.0) == 1.0
    assert normalised(1.0, 1.0, float(np.nextafter(np.float32(5), np.float32(6))), 1.0) == pytest.approx(0.2)


def test_other_trajectories_of_the_scene_play_no_part():
    group = _ego_progress(jnp.array([20.0, 80.0]), jnp.ones(2), jnp.array([40.0]), jnp.array([1.0]))
    np.testing.assert_allclose(group, [0.5, 1.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_progress_has_the_dtype_of_the_metres(dtype):
    with jax.enable_x64(True):
        values = jax.ShapeDtypeStruct((2, 3), dtype)
        assert jax.eval_shape(ego_progress, values, values, values, values).dtype == dtype


@pytest.mark.parametrize(
    "raw, factor, normaliser_raw, normaliser_factor, expected",
    [
        (20.0, 1.0, 40.0, 1.0, 0.5),
        (50.0, 1.0, 40.0, 1.0, 1.0),
        (20.0, 0.5, 40.0, 1.0, 0.5),  # what costs a factor keeps its progress, unlike in the PDM score
        (20.0, 0.0, 40.0, 1.0, 0.5),
        (50.0, 0.5, 40.0, 1.0, 1.0),  # never more than full
        (20.0, 0.5, 40.0, 0.0, 1.0),  # relative to its own 10 m
        (20.0, 0.0, 40.0, 0.0, 1.0),  # nobody to measure it by
        (1.0, 1.0, 5.0, 1.0, 1.0),  # too little way to tell
        (1.0, 1.0, 5.1, 1.0, 1 / 5.1),
    ],
)
def test_extended_progress(raw, factor, normaliser_raw, normaliser_factor, expected):
    found = extended_ego_progress(*map(jnp.float32, (raw, factor, normaliser_raw, normaliser_factor)))
    assert float(found) == pytest.approx(expected)
