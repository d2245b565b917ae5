import numpy as np
import pytest

from recogdrive.data.synthetic import curves

QUARTER = np.pi / 2


def curvature(line):
    return np.diff(line[:, 2]) / np.diff(curves.arc_length(line))


def test_a_straight_line_goes_where_its_heading_points():
    line = curves.straight(np.array([1.0, 2.0, QUARTER]), 5.0)
    np.testing.assert_allclose(line, [[1, 2, QUARTER], [1, 7, QUARTER]], atol=1e-12)


@pytest.mark.parametrize("angle", [0.7, -1.9])
def test_a_bend_turns_by_exactly_its_angle(angle):
    line = curves.bend(np.array([3.0, -1.0, 0.4]), 40.0, angle)
    assert line[0].tolist() == [3.0, -1.0, 0.4]
    assert line[-1, 2] == pytest.approx(0.4 + angle, abs=1e-12)


def test_a_bend_reaches_but_never_exceeds_the_curvature_of_its_radius():
    line = curves.bend(np.zeros(3), 30.0, 1.2)
    assert np.abs(curvature(line)).max() == pytest.approx(1 / 30.0, rel=2e-3)


def test_curvature_of_a_bend_starts_and_ends_at_zero():
    line = curves.bend(np.zeros(3), 60.0, -1.0)
    per_vertex = curves.VERTEX_SPACING_M / curves.EASING_M / 60.0
    assert abs(curvature(line)[0]) < per_vertex
    assert abs(curvature(line)[-1]) < per_vertex


def test_a_bend_agrees_with_fine_numerical_integration():
    line = curves.bend(np.zeros(3), 25.0, 1.5)
    swept, easing = 25.0 * 1.5, 12.0
    s = np.linspace(0, swept + easing, 200001)
    k = np.minimum(np.minimum(s, s[-1] - s) / easing, 1.0) / 25.0
    heading = np.concatenate([[0], np.cumsum((k[1:] + k[:-1]) / 2 * np.diff(s))])
    mid = (heading[1:] + heading[:-1]) / 2
    end = [np.sum(np.cos(mid) * np.diff(s)), np.sum(np.sin(mid) * np.diff(s))]
    np.testing.assert_allclose(line[-1, :2], end, atol=1e-5)


def test_a_join_meets_both_poses_exactly_and_tangentially():
    start, end = np.array([1.0, 2.0, 0.3]), np.array([14.0, 15.0, 0.3 + QUARTER])
    line = curves.join(start, end)
    assert line[0, :2].tolist() == [1.0, 2.0]
    assert line[-1, :2].tolist() == [14.0, 15.0]
    np.testing.assert_allclose([line[0, 2], line[-1, 2]], [0.3, 0.3 + QUARTER], atol=1e-9)


def test_a_quarter_turn_has_a_smallest_radius_near_that_of_the_circle():
    line = curves.join(np.zeros(3), np.array([20.0, 20.0, QUARTER]))
    assert 1 / np.abs(curvature(line)).max() == pytest.approx(0.92 * 20.0, rel=0.03)


def test_a_join_keeps_counting_headings_beyond_half_a_turn():
    start, end = np.array([0.0, 0.0, np.pi - 0.1]), np.array([-20.0, -10.0, -np.pi + 0.5])
    line = curves.join(start, end)
    assert np.abs(np.diff(line[:, 2])).max() < 0.5
    assert line[0, 2] == pytest.approx(np.pi - 0.1)


def test_offset_moves_to_the_left_of_the_driving_direction():
    line = curves.offset(curves.straight(np.array([0.0, 0.0, QUARTER]), 4.0), 1.5)
    np.testing.assert_allclose(line[:, :2], [[-1.5, 0], [-1.5, 4]], atol=1e-12)


def test_reversing_twice_changes_nothing_but_a_whole_turn():
    line = curves.bend(np.zeros(3), 30.0, 0.8)
    again = curves.reverse(curves.reverse(line))
    np.testing.assert_allclose(again[:, :2], line[:, :2], atol=0)
    np.testing.assert_allclose(again[:, 2], line[:, 2] + 2 * np.pi)


def test_place_end_moves_a_line_as_a_rigid_body():
    line = curves.bend(np.zeros(3), 30.0, 0.8)
    moved = curves.place_end(line, np.array([7.0, -3.0, 2.0]))
    np.testing.assert_allclose(moved[-1], [7.0, -3.0, 2.0])
    np.testing.assert_allclose(curves.arc_length(moved), curves.arc_length(line), atol=1e-9)


def test_chain_keeps_a_shared_vertex_once():
    first = curves.straight(np.zeros(3), 4.0)
    second = curves.straight(first[-1], 6.0)
    assert curves.chain(first, second)[:, 0].tolist() == [0.0, 4.0, 10.0]


def test_a_straight_line_of_7_metres_gets_vertices_1_75_metres_apart():
    dense = curves.densify(curves.straight(np.zeros(3), 7.0))
    np.testing.assert_allclose(dense[:, 0], [0.0, 1.75, 3.5, 5.25, 7.0])


def test_a_centerline_has_the_heading_of_the_segment_that_starts_at_each_vertex():
    line = np.array([[0.0, 0.0, 0.9], [1.0, 0.0, 0.9], [1.0, 2.0, 0.9]])
    np.testing.assert_allclose(curves.as_centerline(line)[:, 2], [0.0, QUARTER, QUARTER])
    assert line[0, 2] == 0.9
