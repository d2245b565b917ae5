"""Tests of pdm/closed/lane_graph.py."""

import pytest

from recogdrive.data.types import MapLayer
from recogdrive.pdm.errors import SceneError


def test_blocks_and_lanes_are_linked_through_joints(chain, ids):
    road, joint = chain.block("b"), chain.block("ab")
    assert (road.layer, joint.layer) == (MapLayer.ROADBLOCK, MapLayer.ROADBLOCK_CONNECTOR)
    assert ids(road.predecessors) == ["ab"] and ids(road.successors) == ["bc"]
    assert ids(joint.predecessors) == ["a"] and ids(joint.successors) == ["b"]
    assert ids(road.lanes) == ["b.0"] and ids(joint.lanes) == ["ab.0"]
    assert ids(road.lanes[0].successors) == ["bc.0"] and ids(joint.lanes[0].successors) == ["b.0"]


def test_an_id_that_two_layers_share_names_the_roadblock_first(city):
    """Ids are unique within a layer only."""
    city.road("7", (0, 0), (40, 0)).road("8", (50, 0), (90, 0)).joint("7", "7", "8", (40, 0), (50, 0))
    graph = city.graph()
    assert graph.block("7").layer == MapLayer.ROADBLOCK
    lane, connector = graph.block("7").lanes[0], graph.connector("7.0")
    assert lane is not connector and lane.successors == [connector]


def test_lanes_lie_side_by_side_in_table_order(city, ids):
    city.road("a", (0, 0), (40, 0), lanes=3)
    assert ids(city.graph().block("a").lanes) == ["a.0", "a.1", "a.2"]


def test_the_length_is_that_of_the_baseline(chain):
    assert chain.block("a").lanes[0].length_m == 40


def test_blocks_near_a_place_are_roads_then_joints(chain, ids):
    assert ids(chain.blocks_near((40.5, 0), 1.0)) == ["a", "ab"]
    assert ids(chain.blocks_near((20, 0), 1.0)) == ["a"]


def test_far_from_everything_the_nearest_of_either_kind_are_near(chain, ids):
    assert ids(chain.blocks_near((170, 90), 1.0)) == ["d", "cd"]


def test_a_map_without_blocks_is_refused(city):
    with pytest.raises(SceneError, match="has no roadblocks"):
        city.graph().blocks_near((0, 0), 1.0)


def test_links_to_what_the_map_lacks_are_left_out(city, ids):
    """Maps are cut at the border of a city."""
    city.road("a", (0, 0), (40, 0)).joint("ab", "a", "missing", (40, 0), (50, 0))
    graph = city.graph()
    assert ids(graph.block("a").successors) == ["ab"] and graph.block("ab").successors == []
    assert graph.connector("ab.0").successors == []
    assert graph.connector("nothing") is None
