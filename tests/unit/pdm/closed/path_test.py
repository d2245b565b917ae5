"""Tests of pdm/closed/path.py."""

import numpy as np
import pytest
import shapely

from recogdrive.pdm.closed.path import Path


@pytest.fixture
def corner():
    """3 m along x, then 4 m along y; the corner's vertex comes twice, as where lanes join."""
    turn = np.pi / 2
    return Path(np.array([[0, 0, 0], [3, 0, 0], [3, 0, turn], [3, 4, turn]]))


def test_progress_is_the_way_travelled(corner):
    assert corner.progress_m.tolist() == [0, 3, 3, 7]
    assert corner.length_m == 7


def test_poses_between_vertices_are_linear_in_all_three(corner):
    assert corner.interpolate(np.array([1.5, 5.0])).tolist() == [[1.5, 0, 0], [3, 2, np.pi / 2]]


def test_beyond_its_ends_a_path_stays_at_them(corner):
    first, last = corner.interpolate(np.array([-5.0, 90.0]))
    assert first.tolist() == [1e-5, 0, 0]
    assert last.tolist() == [3, 4, np.pi / 2]


def test_where_two_vertices_coincide_the_first_one_s_heading_counts(corner):
    assert corner.interpolate(np.array([3.0]))[0].tolist() == [3, 0, 0]


def test_headings_turn_the_short_way_and_are_wrapped():
    path = Path(np.array([[0, 0, 3.0], [1, 0, -3.0], [2, 0, -2.0]]))
    headings = path.interpolate(np.array([0.5, 1.0, 1.5]))[:, 2]
    np.testing.assert_allclose(headings, [np.pi, -3.0, -2.5], atol=1e-12)


def test_points_are_projected_to_the_nearest_place(corner):
    assert corner.project(np.array([shapely.Point(1, 5), shapely.Point(1, -5), shapely.Point(9, 1)])).tolist() == [
        7,
        1,
        4,
    ]


def test_an_offset_moves_every_vertex_to_its_left(corner):
    moved = corner.offset(1.0)
    np.testing.assert_allclose(shapely.get_coordinates(moved.line), [[0, 1], [3, 1], [2, 0], [2, 4]], atol=1e-12)
    assert moved.interpolate(np.array([2.0]))[0, 2] == 0


def test_a_part_consists_of_whole_segments_where_it_has_two_vertices(corner):
    assert shapely.get_coordinates(corner.part(2.0, 7.0)).tolist() == [[3, 0], [3, 0], [3, 4]]


def test_a_part_within_one_segment_is_cut_exactly(corner):
    np.testing.assert_allclose(shapely.get_coordinates(corner.part(4.0, 6.5)), [[3, 1], [3, 3.5]], atol=1e-12)


def test_the_vertices_given_are_not_changed():
    poses = np.array([[0, 0, 3.0], [1, 0, -3.0]])
    Path(poses)
    assert poses[1, 2] == -3.0
