"""Signs of orientations against rational arithmetic, and how unsure answers are replaced."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recogdrive.pdm.predicates import exact_orientation, orientation, settle

DTYPES = ("float32", "float64")
TRIANGLES = 16
FRACTIONS = st.integers(-200, 200).map(lambda percent: percent / 100)
MODERATE = settings(max_examples=30, deadline=None)

_exact = jax.jit(exact_orientation)
_quick = jax.jit(orientation)


def coordinates(dtype, least=1e-6):
    """Finite numbers of many sizes, zero, and many that are equal."""
    width = 32 if dtype == "float32" else 64
    sizes = st.floats(np.float32(least).item(), 1000.0, width=width)
    return st.one_of(st.integers(-4, 4).map(float), sizes, sizes.map(lambda x: -x))


def triangles(dtype, **limits):
    """(6, TRIANGLES) ax, ay, bx, by, px, py."""
    return hnp.arrays(dtype, (6, TRIANGLES), elements=coordinates(dtype, **limits), fill=st.nothing())


def true_sign(values):
    """Sign of the determinant of exactly these numbers."""
    ax, ay, bx, by, px, py = (Fraction(float(v)) for v in values)
    area = (bx - ax) * (py - ay) - (px - ax) * (by - ay)
    return (area > 0) - (area < 0)


def true_signs(values):
    return np.array([true_sign(column) for column in values.T])


def exact(values):
    with jax.enable_x64(values.dtype == np.float64):
        a, b, p = ((values[i], values[i + 1]) for i in (0, 2, 4))
        return np.asarray(_exact(a, b, p))


def quick(values):
    with jax.enable_x64(values.dtype == np.float64):
        a, b, p = ((values[i], values[i + 1]) for i in (0, 2, 4))
        area, certain = (np.asarray(v) for v in _quick(a, b, p))
    assert area.dtype == values.dtype
    return area, certain


def near_the_line(values, fraction, ulps):
    """Moves p next to the line through a and b, some units in the last place away."""
    ax, ay, bx, by, *_ = values
    px, py = ax + fraction * (bx - ax), ay + fraction * (by - ay)
    return np.stack([ax, ay, bx, by, px * (1 + ulps * np.finfo(px.dtype).eps), py]).astype(values.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exact_sign_is_that_of_rational_arithmetic(dtype):
    @MODERATE
    @given(triangles(dtype))
    def check(values):
        np.testing.assert_array_equal(exact(values), true_signs(values))

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exact_sign_is_right_within_a_few_units_in_the_last_place_of_the_line(dtype):
    @MODERATE
    @given(triangles(dtype), FRACTIONS, st.integers(-2, 2))
    def check(values, fraction, ulps):
        values = near_the_line(values, fraction, ulps)
        np.testing.assert_array_equal(exact(values), true_signs(values))

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_points_on_a_line_through_lattice_points_are_on_it(dtype):
    @MODERATE
    @given(
        hnp.arrays(np.int64, (4, TRIANGLES), elements=st.integers(-2000, 2000), fill=st.nothing()), st.integers(-9, 9)
    )
    def check(values, steps):
        ax, ay, dx, dy = values
        # 64ths of such integers are exact in both formats.
        points = np.stack([ax, ay, ax + 4 * dx, ay + 4 * dy, ax + steps * dx, ay + steps * dy]) / 64
        np.testing.assert_array_equal(exact(points.astype(dtype)), 0)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [(0, 1), (0, 2), (1, 2)])
def test_two_equal_points_have_no_side(dtype, shared):
    rng = np.random.default_rng(0)
    points = rng.normal(scale=100, size=(3, 2, TRIANGLES)).astype(dtype)
    points[shared[1]] = points[shared[0]]
    np.testing.assert_array_equal(exact(points.reshape(6, -1)), 0)
    area, certain = quick(points.reshape(6, -1))
    # Where the equal points are the first two or the first and third, every product has a factor 0.
    assert (area[certain] == 0).all()
    assert certain.all() == (shared[0] == 0)


@pytest.mark.parametrize("dtype, least, largest", [("float32", 1e-12, 1e15), ("float64", 1e-70, 1e70)])
def test_the_exact_sign_holds_for_coordinates_of_all_sizes_in_the_documented_range(dtype, least, largest):
    rng = np.random.default_rng(1)
    exponents = rng.uniform(np.log10(least), np.log10(largest), size=(6, 4000))
    values = (10.0**exponents * rng.choice([-1, 1], size=exponents.shape)).astype(dtype)
    # All small: the products of the last bits are the smallest numbers that occur.
    small = rng.uniform(least, 3 * least, size=(6, 2000)).astype(dtype)
    doubled = near_the_line(small, 0.4, 0)
    values = np.concatenate([values, small, doubled], axis=1)
    np.testing.assert_array_equal(exact(values), true_signs(values))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sign_that_is_called_certain_is_right(dtype):
    @MODERATE
    @given(triangles(dtype), FRACTIONS, st.integers(-3, 3), st.booleans())
    def check(values, fraction, ulps, near):
        values = near_the_line(values, fraction, ulps) if near else values
        area, certain = quick(values)
        np.testing.assert_array_equal(np.sign(area[certain]), true_signs(values)[certain])

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_points_next_to_the_line_are_uncertain(dtype):
    values = np.random.default_rng(2).uniform(-100, 100, size=(6, 10_000)).astype(dtype)
    area, certain = quick(values)
    # The distance from the line of an uncertain point is its area divided by the length of a to b.
    distance = np.abs(area) / np.hypot(values[2] - values[0], values[3] - values[1])
    assert (distance[~certain] < 1e4 * np.finfo(dtype).eps).all()
    assert certain.mean() > 0.999


def test_the_area_is_twice_that_of_the_triangle():
    area, certain = quick(np.array([[1.0], [1], [4], [1], [0], [3]], np.float32))
    assert (area[0], certain[0]) == (6, True)
    assert exact(np.array([[1.0], [1], [4], [1], [0], [-3]], np.float32))[0] == -1


@jax.jit
def _settle(unsure, found, right):
    flat = right.reshape(-1)
    return settle(unsure, (found, -found), lambda chosen: (flat[chosen], -flat[chosen]))


def settled(unsure, found, right):
    return tuple(np.asarray(v) for v in _settle(unsure, found, right))


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 300, 600])
def test_the_unsure_answers_are_replaced_and_no_others(count):
    rng = np.random.default_rng(count)
    unsure = np.zeros(600, bool)
    unsure[rng.choice(600, count, replace=False)] = True
    unsure = unsure.reshape(20, 30)
    found, right = rng.integers(0, 1000, size=(2, 20, 30)).astype(np.int32)
    positive, negative = settled(unsure, found, right + 5000)
    expected = np.where(unsure, right + 5000, found)
    np.testing.assert_array_equal(positive, expected)
    np.testing.assert_array_equal(negative, -expected)


def test_the_last_answer_is_not_overwritten_by_the_filling_of_a_round():
    unsure = np.zeros((3, 3), bool)
    unsure[0, 1] = True
    positive, _ = settled(unsure, np.zeros((3, 3), np.int32), np.arange(9, dtype=np.int32).reshape(3, 3))
    np.testing.assert_array_equal(positive, [[0, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_nothing_is_decided_where_all_answers_are_sure():
    calls = []

    def decide(chosen):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.zeros(chosen.shape, jnp.int32)

    jax.block_until_ready(jax.jit(lambda unsure, found: settle(unsure, found, decide))(np.zeros(5, bool), np.arange(5)))
    jax.effects_barrier()
    assert calls == []
