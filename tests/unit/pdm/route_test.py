"""Projection on a route: hand-worked numbers, and shapely on drawn lines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from recogdrive.pdm import route

PADDED = 9
_project = jax.jit(route.project)


def project(points, line, padding=0.0):
    """Projects 4 points on one line, which is padded to one length so that the program is compiled once."""
    line = np.asarray(line, np.float64)
    padded = np.vstack([line, np.full((PADDED - len(line), 2), padding)])
    given = np.zeros((4, 2))
    given[: len(points)] = points
    with jax.enable_x64(True):
        found = np.asarray(_project(jnp.asarray(given), jnp.asarray(padded), jnp.asarray(len(line))))
    return found[: len(points)]


CORNER = [[0, 0], [10, 0], [10, 5]]


@pytest.mark.parametrize(
    "point, along",
    [
        ([3, 0], 3),  # on the line
        ([3, 2], 3),  # beside it
        ([-4, 1], 0),  # before its start
        ([10, 9], 15),  # beyond its end
        ([12, -1], 10),  # outside of the bend: its corner
        ([9, 2], 12),  # inside of the bend: the nearer leg
        ([9, 1], 9),  # as near to both legs: the first
        ([10, 0], 10),  # on a vertex
    ],
)
def test_the_nearest_place_counts(point, along):
    assert project([point], CORNER)[0] == pytest.approx(along)


def test_repeated_points_change_nothing():
    points = [[3, 2], [12, -1], [9, 2], [10, 9]]
    repeated = [CORNER[0], CORNER[0], CORNER[1], CORNER[1], CORNER[1], CORNER[2], CORNER[2]]
    np.testing.assert_array_equal(project(points, repeated), project(points, CORNER))


def test_what_pads_a_line_plays_no_part():
    points = [[3, 2], [12, -1], [9, 2], [30, 30]]
    for padding in (5.0, 1e6, 30.0):
        np.testing.assert_array_equal(project(points, CORNER, padding), project(points, CORNER))


@pytest.mark.parametrize("line", [[[2, 3]], [[2, 3], [2, 3]], [[2, 3]] * 5])
def test_a_line_without_length_has_only_the_distance_0(line):
    np.testing.assert_array_equal(project([[7, 7], [2, 3]], line), [0, 0])


def test_every_scene_has_its_own_line_and_length():
    lines = jnp.array([[[0.0, 0], [10, 0], [10, 10]], [[0, 0], [0, 5], [99, 99]]])
    points = jnp.array([[[4.0, 1], [11, 7]], [[1, 4], [80, 80]]])
    np.testing.assert_allclose(_project(points, lines, jnp.array([3, 2])), [[4, 17], [4, 5]], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distances_have_the_dtype_of_the_points(dtype):
    with jax.enable_x64(True):
        shapes = jax.ShapeDtypeStruct((2, 4, 2), dtype), jax.ShapeDtypeStruct((2, 7, 2), dtype)
        found = jax.eval_shape(route.project, *shapes, jax.ShapeDtypeStruct((2,), "int32"))
    assert (found.dtype, found.shape) == (dtype, (2, 4))


coarse = st.integers(-6, 6).map(float)  # Many repeated points, right angles and points on vertices or segments.
fine = st.floats(-100, 100, width=32, allow_subnormal=False)


def lines_and_points(coordinate):
    place = st.tuples(coordinate, coordinate)
    return st.tuples(st.lists(place, min_size=2, max_size=PADDED), st.lists(place, min_size=4, max_size=4))


@settings(deadline=None)  # The first example compiles.
@given(lines_and_points(coarse) | lines_and_points(fine))
def test_the_place_is_the_nearest_one_and_the_first_of_several_as_in_shapely(drawn):
    line, points = drawn
    string = shapely.LineString(line)
    found = project(points, line)
    for point, along in zip(points, found, strict=True):
        expected = string.project(shapely.Point(point))
        # Where places are equally near but for rounding, either is right.
        gap = string.interpolate(along).distance(shapely.Point(point))
        assert gap <= string.distance(shapely.Point(point)) + 1e-9
        rivals = abs(along - expected) > 1e-6
        if rivals:
            assert abs(gap - string.interpolate(expected).distance(shapely.Point(point))) < 1e-9


@settings(deadline=None)  # The first example compiles.
@given(lines_and_points(coarse), st.integers(0, PADDED - 1))
def test_a_vertex_lies_at_the_length_before_it_or_where_the_line_first_passes(drawn, index):
    line, _ = drawn
    index = min(index, len(line) - 1)
    before = float(np.hypot(*np.diff(line[: index + 1], axis=0).T).sum())
    found = float(project([line[index]], line)[0])
    assert found <= before + 1e-9
    passed = shapely.LineString(line).interpolate(found)
    assert passed.distance(shapely.Point(line[index])) < 1e-9


def test_distances_agree_with_shapely():
    rng = np.random.default_rng(0)
    line, points = rng.normal(0, 10, (PADDED, 2)), rng.normal(0, 15, (40, 2))
    line[3] = line[2]
    for count in (2, 5, PADDED):
        with jax.enable_x64(True):
            found = route.distance(jnp.asarray(points), jnp.asarray(line), jnp.asarray(count))
        expected = shapely.distance(shapely.points(points), shapely.LineString(line[:count]))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
