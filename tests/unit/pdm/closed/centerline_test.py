"""Tests of pdm/closed/centerline.py."""

import numpy as np
import pytest
import shapely

from recogdrive.pdm.closed.centerline import WINDOW_BLOCKS, centerline, route_lanes, starting_lane
from recogdrive.pdm.closed.route import route_blocks
from recogdrive.pdm.errors import SceneError


def chosen(lanes, under_ego, ego, center=None):
    center = np.array(ego[:2] if center is None else center, float)
    footprint = shapely.box(center[0] - 2.5, center[1] - 1, center[0] + 2.5, center[1] + 1)
    return starting_lane(lanes, under_ego, np.array(ego, float), center, footprint).element.id


@pytest.fixture
def bend(city):
    """Two joints that leave road a: one straight on, one that turns by 45 degrees."""
    city.road("a", (0, 0), (40, 0)).road("b", (60, 0), (100, 0)).road("c", (60, 20), (100, 60))
    city.joint("ab", "a", "b", (40, 0), (60, 0)).joint("ac", "a", "c", (40, 0), (60, 20))
    return city.graph()


def test_of_the_lanes_under_the_ego_the_best_aligned_one_is_its_own(bend):
    lanes = route_lanes(route_blocks(bend, ["ab", "ac"]))
    assert chosen(lanes, lanes, (42, 0.5, 0.1)) == "ab.0"
    assert chosen(lanes, lanes, (42, 0.5, 0.7)) == "ac.0"


def test_equally_aligned_lanes_are_told_apart_by_their_order(bend):
    lanes = route_lanes(route_blocks(bend, ["a", "b"]))
    assert chosen(lanes, lanes[::-1], (42, 0, 0)) == "b.0"
    assert chosen(lanes, lanes, (42, 0, 0)) == "a.0"


def test_a_lane_off_the_route_is_not_the_ego_s(bend):
    on, off = route_lanes(route_blocks(bend, ["a"])), route_lanes(route_blocks(bend, ["ab"]))
    assert chosen(on, off, (50, 0, 0)) == "a.0"


def test_without_a_lane_under_the_rear_axle_the_one_under_the_centre_counts(bend):
    lanes = route_lanes(route_blocks(bend, ["b", "a"]))
    assert chosen(lanes, [], (-1, 0, 0), center=(1, 0)) == "a.0"


def test_else_the_nearest_lane_counts(bend):
    lanes = route_lanes(route_blocks(bend, ["b", "a"]))
    assert chosen(lanes, [], (20, 30, 0)) == "a.0"
    assert chosen(lanes, [], (90, 30, 0)) == "b.0"


def test_the_line_joins_baselines_from_the_start_of_the_ego_s_lane(chain):
    route = route_blocks(chain, ["a", "ab", "b"])
    line = centerline(route, route[1].lanes[0])
    assert line[:, 0].tolist() == [40, 45, 50, 50, 55, 60, 65, 70, 75, 80, 85, 90]
    assert not line[:, 1:].any()


def test_the_line_takes_the_shorter_way(city):
    city.road("a", (0, 0), (40, 0)).road("b", (60, 0), (100, 0)).road("detour", (45, 30), (55, 30))
    city.joint("ad", "a", "detour", (40, 0), (45, 30)).joint("db", "detour", "b", (55, 30), (60, 0))
    city.joint("ab", "a", "b", (40, 0), (60, 0))
    graph = city.graph()
    route = route_blocks(graph, ["a", "ad", "detour", "db", "ab", "b"])
    line = centerline(route, route[0].lanes[0])
    assert line[:, 1].max() == 0 and line[-1, 0] == 100


def test_a_way_over_a_lane_off_the_route_is_not_taken(chain):
    route = route_blocks(chain, ["a", "b"])
    assert centerline(route, route[0].lanes[0])[-1, 0] == 40


def test_where_no_way_leads_to_the_end_the_line_goes_as_deep_as_it_can(city):
    """Both joints are as deep; the straight one is cheaper."""
    city.road("a", (0, 0), (40, 0)).road("end", (200, 0), (240, 0)).road("b", (60, 0), (61, 0))
    city.road("c", (60, 20), (100, 60))
    city.joint("ac", "a", "c", (40, 0), (60, 20)).joint("ab", "a", "b", (40, 0), (60, 0))
    graph = city.graph()
    route = route_blocks(graph, ["a", "ac", "ab", "end"])
    assert centerline(route, route[0].lanes[0])[-1].tolist() == [60, 0, 0]


def test_the_line_spans_thirty_blocks(city):
    for k in range(WINDOW_BLOCKS):
        city.road(f"r{k}", (20 * k, 0), (20 * k + 10, 0))
    for k in range(WINDOW_BLOCKS - 1):
        city.joint(f"j{k}", f"r{k}", f"r{k + 1}", (20 * k + 10, 0), (20 * k + 20, 0))
    graph = city.graph()
    names = [name for k in range(WINDOW_BLOCKS - 1) for name in (f"r{k}", f"j{k}")]
    route = route_blocks(graph, names)
    # Blocks r0, j0, ... r14, j14: the thirtieth is j14, which ends at 300 m.
    assert centerline(route, route[0].lanes[0])[-1, 0] == 300
    assert centerline(route, route[2].lanes[0])[-1, 0] == 320


def test_blocks_without_lanes_are_refused(city):
    city.road("a", (0, 0), (40, 0))
    graph = city.graph()
    block = graph.block("a")
    block.lanes.clear()
    with pytest.raises(SceneError, match="blocks of the route \\(a\\) have no lanes"):
        route_lanes([block])
