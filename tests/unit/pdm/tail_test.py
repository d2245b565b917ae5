"""Tests of pdm/tail.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.tail import backward_m, reverses, stops


def along(*metres, heading=0.0):
    """A plan that is so far along a straight line, at each of its poses."""
    s = np.array(metres, float)
    return np.stack([s * np.cos(heading), s * np.sin(heading), np.full(8, heading)], axis=-1)


AHEAD = along(1, 2, 3, 4, 5, 6, 7, 8)
BACK_AT_THE_END = along(1, 2, 3, 4, 5, 6, 7, 6.94, heading=2.0)
BACK_A_LITTLE = along(1, 2, 3, 4, 5, 6, 7, 6.96)
BACK_BEFORE = along(1, 2, 3, 4, 5, 4, 5, 6)
STANDING = along(1, 2, 3, 4, 5, 5, 5.05, 5.1)
ROCKING = along(1, 2, 3, 4, 5, 5, 5.15, 5)
ALL = np.stack([AHEAD, BACK_AT_THE_END, BACK_A_LITTLE, BACK_BEFORE, STANDING, ROCKING])


def test_a_plan_reverses_if_it_goes_back_in_the_last_second():
    assert reverses(ALL).tolist() == [False, True, False, False, False, True]


def test_a_plan_stops_if_it_moves_hardly_in_the_last_second():
    assert stops(ALL).tolist() == [False, False, False, False, True, False]


def test_the_heading_at_the_begin_of_an_interval_says_what_is_back():
    turned = AHEAD.copy()
    turned[6, 2] = np.pi
    assert backward_m(turned, 2).tolist() == pytest.approx([0.0, 1.0])


def test_the_first_interval_begins_at_the_origin():
    assert backward_m(along(-1, 0, 1, 2, 3, 4, 5, 6), 8).tolist() == pytest.approx([1.0] + [0.0] * 7)


def test_plans_that_are_not_finite_neither_reverse_nor_stop():
    broken = np.full((8, 3), np.nan)
    assert not reverses(broken) and not stops(broken)


def test_jax_gives_what_numpy_gives():
    plans = jnp.asarray(ALL, jnp.float32)
    assert jax.jit(reverses)(plans).tolist() == reverses(ALL).tolist()
    assert jax.jit(stops)(plans).tolist() == stops(ALL).tolist()


@pytest.mark.parametrize("intervals", [0, 9])
def test_intervals_that_plans_do_not_have_are_refused(intervals):
    with pytest.raises(ValueError, match=f"{intervals} intervals, but plans have 8"):
        backward_m(AHEAD, intervals)
