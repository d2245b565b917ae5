"""Wrapping and unwrapping against NumPy and hand-worked numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recogdrive.pdm import angles

PI = np.pi
_unwrap = jax.jit(angles.unwrap)
_wrap_half_open = jax.jit(angles.wrap_half_open)
_wrap_nearest = jax.jit(angles.wrap_nearest)


@pytest.mark.parametrize(
    "given_rad, wrapped",
    [(0.0, 0.0), (3.5, 3.5 - 2 * PI), (-4.0, 2 * PI - 4.0), (7.0, 7.0 - 2 * PI), (20.0, 20 - 6 * PI)],
)
def test_both_forms_wrap_into_one_turn(given_rad, wrapped):
    with jax.enable_x64(True):
        assert float(_wrap_nearest(jnp.asarray(given_rad))) == pytest.approx(wrapped, abs=1e-12)
        assert float(_wrap_half_open(jnp.asarray(given_rad))) == pytest.approx(wrapped, abs=1e-12)


def test_half_a_turn_becomes_negative_in_the_half_open_interval_alone():
    with jax.enable_x64(True):
        assert float(_wrap_half_open(jnp.asarray(PI))) == -PI
        assert float(_wrap_half_open(jnp.asarray(-PI))) == -PI
        assert float(_wrap_nearest(jnp.asarray(PI))) == PI


@settings(deadline=None)  # The first example compiles.
@given(st.floats(-3.125, 3.125, width=32, allow_subnormal=False))
def test_an_angle_within_the_turn_keeps_its_bits(angle):
    assert float(_wrap_half_open(np.float32(angle))) == np.float32(angle)
    assert float(_wrap_nearest(np.float32(angle))) == np.float32(angle)


@settings(deadline=None)  # The first example compiles.
@given(st.lists(st.floats(-PI, PI), min_size=9, max_size=9))
def test_a_series_unwraps_as_in_numpy(series):
    with jax.enable_x64(True):
        unwrapped = np.asarray(_unwrap(jnp.asarray(series)))
    expected = np.unwrap(series)
    ambiguous = np.abs(np.abs(np.diff(series)) - PI).min() < 1e-9
    if not ambiguous:
        np.testing.assert_allclose(unwrapped, expected, atol=1e-9)


def test_a_step_of_exactly_half_a_turn_keeps_its_direction():
    with jax.enable_x64(True):
        np.testing.assert_array_equal(_unwrap(jnp.array([0.0, PI, 0.0, -PI])), [0.0, PI, 0.0, -PI])


def test_each_series_of_a_batch_unwraps_by_itself():
    batch = jnp.array([[[3.0, -3.0, -2.5]], [[-3.0, 3.0, -3.0]]])
    unwrapped = _unwrap(batch)
    assert unwrapped.shape == (2, 1, 3)
    np.testing.assert_allclose(unwrapped[0, 0], [3.0, 2 * PI - 3, 2 * PI - 2.5], atol=1e-6)
    np.testing.assert_allclose(unwrapped[1, 0], [-3.0, 3 - 2 * PI, -3.0], atol=1e-6)
