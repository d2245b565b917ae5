"""Tests of pdm/centerline.py."""

import numpy as np
import pytest

from recogdrive.data.types import MapElement, MapLayer
from recogdrive.pdm.centerline import route_centerline
from recogdrive.pdm.errors import SceneError

EGO = np.zeros(3)


def _element(number: str, points, block: str, successors=(), layer=MapLayer.LANE) -> MapElement:
    line = np.array([(*point, 0.0) for point in points], dtype=np.float64)
    return MapElement(
        id=number, layer=layer, polygon=None, centerline=line, roadblock_id=block, successors=tuple(successors)
    )


def _connector(number: str, points, block: str, successors=()) -> MapElement:
    return _element(number, points, block, successors, MapLayer.LANE_CONNECTOR)


def test_the_line_starts_with_the_egos_lane_and_follows_its_successors():
    lane = _element("1", [(-10, 0), (10, 0)], "A", ["2"])
    link = _connector("2", [(10, 0), (20, 0)], "B", ["3"])
    after = _element("3", [(20, 0), (30, 5)], "C")
    line = route_centerline([after, link, lane], ["A", "B", "C"], EGO)
    assert line.tolist() == [[-10, 0], [10, 0], [20, 0], [30, 5]]


def test_lanes_behind_the_egos_are_left_out():
    behind = _element("1", [(-40, 0), (-20, 0)], "A", ["2"])
    link = _connector("2", [(-20, 0), (-10, 0)], "B", ["3"])
    own = _element("3", [(-10, 0), (30, 0)], "C")
    assert route_centerline([behind, link, own], ["A", "B", "C"], EGO).tolist() == [[-10, 0], [30, 0]]


def test_of_two_lanes_the_nearer_is_the_egos():
    left = _element("1", [(-10, 3.5), (10, 3.5)], "A")
    right = _element("2", [(-10, 0.4), (10, 0.4)], "A")
    assert route_centerline([left, right], ["A"], EGO).tolist() == [[-10, 0.4], [10, 0.4]]


def test_of_two_lanes_at_one_place_the_one_along_the_heading_is_the_egos():
    turning = _connector("1", [(0, 0), (5, 5)], "A")
    straight = _connector("2", [(0, 0.5), (10, 0.5)], "A")
    assert route_centerline([turning, straight], ["A"], EGO).tolist() == [[0, 0.5], [10, 0.5]]


def test_ids_are_unique_within_a_layer_only():
    lane = _element("1", [(-10, 0), (10, 0)], "A", ["1"])
    link = _connector("1", [(10, 0), (20, 0)], "B", ["2"])
    after = _element("2", [(20, 0), (30, 0)], "C")
    assert route_centerline([lane, link, after], ["A", "B", "C"], EGO)[-1].tolist() == [30, 0]


def test_a_fork_takes_the_branch_that_leads_further():
    lane = _element("1", [(-10, 0), (10, 0)], "A", ["2", "3"])
    dead_end = _connector("2", [(10, 0), (20, 9)], "B")
    through = _connector("3", [(10, 0), (20, 0)], "B", ["4"])
    after = _element("4", [(20, 0), (30, 0)], "C")
    line = route_centerline([lane, dead_end, through, after], ["A", "B", "C"], EGO)
    assert line.tolist() == [[-10, 0], [10, 0], [20, 0], [30, 0]]


def test_a_fork_of_equal_reach_takes_the_shorter_branch():
    lane = _element("1", [(-10, 0), (10, 0)], "A", ["2", "3"])
    bent = _connector("2", [(10, 0), (15, 5), (20, 0)], "B", ["4"])
    straight = _connector("3", [(10, 0), (20, 0)], "B", ["4"])
    after = _element("4", [(20, 0), (30, 0)], "C")
    assert len(route_centerline([lane, bent, straight, after], ["A", "B", "C"], EGO)) == 4


def test_a_lane_that_leaves_the_route_is_continued_from_its_neighbour():
    own = _element("1", [(-10, 0), (10, 0)], "A", ["9"])
    neighbour = _element("2", [(-10, 3.5), (10, 3.5)], "A", ["3"])
    link = _connector("3", [(10, 3.5), (20, 3.5)], "B")
    line = route_centerline([own, neighbour, link], ["A", "B"], EGO)
    assert line.tolist() == [[-10, 0], [10, 0], [10, 3.5], [20, 3.5]]


def test_a_route_that_runs_in_a_circle_ends():
    lane = _element("1", [(-10, 0), (10, 0)], "A", ["2"])
    link = _connector("2", [(10, 0), (-10, 0)], "B", ["1"])
    assert len(route_centerline([lane, link], ["A", "B", "A"], EGO)) == 3


def test_points_that_repeat_are_left_out():
    lane = _element("1", [(-10, 0), (0, 0), (0, 0), (10, 0)], "A")
    assert route_centerline([lane], ["A"], EGO).tolist() == [[-10, 0], [0, 0], [10, 0]]


def test_an_oncoming_lane_is_not_the_egos():
    oncoming = _element("1", [(10, 1), (-10, 1)], "A")
    with pytest.raises(SceneError, match=r"90 degrees of its heading \(the nearest is 1.0 m away\)"):
        route_centerline([oncoming], ["A"], EGO)


def test_a_lane_far_away_is_not_the_egos():
    far = _element("1", [(-10, 30), (10, 30)], "A")
    with pytest.raises(SceneError, match=r"no lane of the route within 10.0 m.*30.0 m away.*roadblock_ids"):
        route_centerline([far], ["A"], EGO)


def test_a_map_without_lanes_of_the_route_is_refused():
    with pytest.raises(SceneError, match="the map shows none"):
        route_centerline([], ["A"], EGO)


def test_the_ego_may_be_anywhere_in_the_frame():
    lane = _element("1", [(90, 50), (90, 80)], "A")
    line = route_centerline([lane], ["A"], np.array([91.0, 60.0, np.pi / 2]))
    assert line.tolist() == [[90, 50], [90, 80]]
