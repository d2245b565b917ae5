"""Tests of pdm/closed/route.py."""

import itertools
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recogdrive.pdm.closed.route import breadth_first, correct_route, route_blocks
from recogdrive.pdm.errors import SceneError


def corrected(graph, route, ego):
    return [block.id for block in correct_route(graph, route_blocks(graph, route), np.array(ego, float))]


def test_a_route_that_the_ego_is_on_stays_as_it_is(chain):
    assert corrected(chain, ["a", "ab", "b"], (10, 0, 0)) == ["a", "ab", "b"]


def test_repeats_are_left_out(chain, ids):
    assert ids(route_blocks(chain, ["a", "ab", "a", "b", "ab"])) == ["a", "ab", "b"]


def test_what_the_ego_has_passed_stays_on_the_route(chain):
    assert corrected(chain, ["a", "ab", "b", "bc", "c"], (70, 0, 0)) == ["a", "ab", "b", "bc", "c"]


def test_a_route_that_starts_ahead_is_begun_where_the_ego_is(chain):
    assert corrected(chain, ["c", "cd", "d"], (10, 0, 0)) == ["a", "ab", "b", "bc", "c", "cd", "d"]


def test_a_route_that_lies_behind_is_left_alone(chain):
    """Neither a way back to the ego nor one from it to the route exists."""
    assert corrected(chain, ["a"], (110, 0, 0)) == ["a"]


def test_a_route_joined_further_on_loses_what_comes_before(city):
    """From the side road only b can be reached, the second block of the route."""
    city.road("a", (0, 0), (40, 0)).road("b", (50, 0), (90, 0)).road("side", (0, 50), (40, 50))
    city.joint("ab", "a", "b", (40, 0), (50, 0)).joint("sb", "side", "b", (40, 50), (50, 0))
    assert corrected(city.graph(), ["a", "ab", "b"], (10, 50, 0)) == ["side", "sb", "b"]


def test_only_the_first_three_blocks_are_joined(city):
    """The side road leads to c, which is the fifth block of the route."""
    city.road("a", (0, 0), (40, 0)).road("b", (50, 0), (90, 0)).road("c", (100, 0), (140, 0))
    city.road("side", (0, 50), (40, 50))
    city.joint("ab", "a", "b", (40, 0), (50, 0)).joint("bc", "b", "c", (90, 0), (100, 0))
    city.joint("sc", "side", "c", (40, 50), (100, 0))
    assert corrected(city.graph(), ["a", "ab", "b", "bc", "c"], (10, 50, 0)) == ["a", "ab", "b", "bc", "c"]


def test_gaps_are_filled(chain):
    assert corrected(chain, ["a", "b", "d"], (10, 0, 0)) == ["a", "ab", "b", "bc", "c", "cd", "d"]


def test_a_gap_that_no_way_leads_across_stays(chain):
    assert corrected(chain, ["b", "a"], (70, 0, 0)) == ["b", "a"]


def test_a_route_that_crosses_itself_is_cut_before_the_crossing(city):
    city.road("a", (0, 0), (40, 0)).road("b", (50, 0), (90, 0)).road("c", (45, -50), (45, -10))
    city.road("d", (45, 10), (45, 50))
    city.joint("ab", "a", "b", (40, 0), (50, 0)).joint("bc", "b", "c", (90, 0), (45, -50))
    city.joint("cd", "c", "d", (45, -10), (45, 10))
    assert corrected(city.graph(), ["a", "ab", "b", "bc", "c", "cd", "d"], (10, 0, 0)) == ["a", "ab", "b", "bc", "c"]


def test_joints_that_share_no_more_than_a_square_metre_are_no_crossing(city):
    city.road("a", (0, 0), (40, 0)).road("b", (50, 0), (90, 0)).road("c", (100, 0), (140, 0))
    # The second joint begins 0.2 m before the first one ends: 0.2 x 4 m.
    city.joint("ab", "a", "b", (40, 0), (50, 0)).joint("bc", "b", "c", (49.8, 0), (100, 0))
    assert corrected(city.graph(), ["a", "ab", "b", "bc", "c"], (10, 0, 0)) == ["a", "ab", "b", "bc", "c"]


def test_of_the_blocks_around_the_ego_the_one_on_the_route_is_its_own(city):
    """Both roads are within 3 m; the nearer one is off the route and would be reached by no search."""
    city.road("near", (0, 0), (40, 0)).road("far", (0, 2.5), (40, 2.5))
    assert corrected(city.graph(), ["far"], (10, 0.2, 0)) == ["far"]


def test_a_block_driven_against_is_not_the_ego_s(city):
    """The oncoming road is nearer; heading the other way it cannot be where the ego is, so the route is joined."""
    city.road("own", (0, -2), (40, -2)).road("oncoming", (40, 0), (0, 0)).road("next", (50, -2), (90, -2))
    city.joint("on", "own", "next", (40, -2), (50, -2))
    assert corrected(city.graph(), ["on", "next"], (10, -0.5, 0)) == ["own", "on", "next"]


def test_off_every_road_the_nearest_road_and_joint_are_both_where_the_ego_may_be(chain):
    """Road a and joint ab; the search back from the route ends at whichever it meets first."""
    assert corrected(chain, ["b", "bc", "c"], (10, 30, 0)) == ["ab", "b", "bc", "c"]


def test_an_empty_route_is_refused(chain):
    with pytest.raises(SceneError, match="the route is empty"):
        route_blocks(chain, [])


def test_a_block_the_map_does_not_have_is_refused_by_its_id(chain):
    with pytest.raises(SceneError, match="names the roadblock '4711', which toy.gpkg does not have"):
        route_blocks(chain, ["a", "4711"])


def search_as_upstream(start, targets, depth):
    """The search with its queue as it is described: no record of visited blocks, a marker between levels."""
    queue, parents, level = deque([start, None]), {(start.id, 1): None}, 1
    while queue:
        block = queue.popleft()
        if level > depth:
            return []
        if block is None:
            level += 1
            queue.append(None)
            if queue[0] is None:
                return []
            continue
        if block in targets:
            way = [block]
            while (parent := parents[way[-1].id, level]) is not None:
                way.append(parent)
                level -= 1
            return way[::-1]
        for following in block.successors:
            queue.append(following)
            parents[following.id, level + 1] = block
    return []


@settings(max_examples=200, deadline=None)
@given(data=st.data(), count=st.integers(2, 7))
def test_the_way_is_that_of_a_search_without_a_record_of_visited_blocks(data, count):
    class Node:
        def __init__(self, name):
            self.id, self.successors = name, []

    nodes = [Node(k) for k in range(count)]
    for node in nodes:
        chosen = data.draw(st.lists(st.integers(0, count - 1), max_size=3, unique=True))
        node.successors = [nodes[k] for k in chosen]
    targets = [nodes[k] for k in data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=2))]
    depth = data.draw(st.integers(1, 7))
    ours = breadth_first(nodes[0], targets, depth, lambda node: node.successors)
    assert [node.id for node in ours] == [node.id for node in search_as_upstream(nodes[0], targets, depth)]


def test_a_search_that_branches_everywhere_ends_at_once(fake_block):
    """2^30 entries in a queue without a record of visited blocks."""
    levels = [[fake_block(f"{level}{side}") for side in "lr"] for level in range(31)]
    for here, following in itertools.pairwise(levels):
        for block in here:
            block.successors = list(following)
    way = breadth_first(levels[0][0], [levels[29][1]], 30, lambda block: block.successors)
    assert len(way) == 30 and way[-1].id == "29r"
    assert breadth_first(levels[0][0], [levels[30][0]], 30, lambda block: block.successors) == []
