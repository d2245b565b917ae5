import numpy as np
import pytest
import shapely

from recogdrive.data.synthetic import curves
from recogdrive.data.synthetic.network import NetworkBuilder, Route, ring
from recogdrive.data.types import MapLayer


@pytest.fixture
def two_blocks():
    """Two blocks of two lanes, 3 m wide, with a gap of 5 m between x = 20 and x = 25."""
    builder = NetworkBuilder(lane_width_m=3.0)
    first = builder.block(curves.straight(np.zeros(3), 20.0), 2, 10.0)
    gap = curves.straight(np.array([20.0, 0.0, 0.0]), 5.0)
    second = builder.block(curves.straight(np.array([25.0, 0.0, 0.0]), 30.0), 2, 10.0)
    return builder, first, second, gap


def elements(layout):
    return {element.id: element for element in layout.elements}


def test_lanes_lie_to_the_right_of_the_reference_with_the_leftmost_first(two_blocks):
    builder, first, *_ = two_blocks
    assert [builder.line_of(lane)[0, 1] for lane in first.lanes] == [-1.5, -4.5]


def test_a_roadblock_covers_its_lanes(two_blocks):
    builder, first, *_ = two_blocks
    block = elements(builder.layout("straight", ()))[first.id]
    assert shapely.Polygon(block.polygon).equals(shapely.box(0, -6, 20, 0))


def test_a_connector_knows_the_lanes_it_joins_and_they_know_it(two_blocks):
    builder, first, second, gap = two_blocks
    ids = builder.connect(first, second, [(0, 0), (1, 1)], 10.0, gap)
    by_id = elements(builder.layout("straight", ()))
    assert by_id[ids[1]].predecessors == (first.lanes[1],)
    assert by_id[ids[1]].successors == (second.lanes[1],)
    assert by_id[first.lanes[1]].successors == (ids[1],)
    assert by_id[second.lanes[1]].predecessors == (ids[1],)


def test_a_roadblock_connector_holds_its_connectors_and_links_the_roadblocks(two_blocks):
    builder, first, second, gap = two_blocks
    ids = builder.connect(first, second, [(0, 0), (1, 1)], 10.0, gap)
    by_id = elements(builder.layout("straight", ()))
    group = by_id[by_id[ids[0]].roadblock_id]
    assert group.layer == MapLayer.ROADBLOCK_CONNECTOR
    assert (group.predecessors, group.successors) == ((first.id,), (second.id,))
    assert shapely.Polygon(group.polygon).area == pytest.approx(5.0 * 6.0)


def test_ways_list_every_sequence_from_entry_to_exit(two_blocks):
    builder, first, second, gap = two_blocks
    ids = builder.connect(first, second, [(0, 0), (1, 1)], 10.0, gap)
    assert builder.ways() == [(first.lanes[k], ids[k], second.lanes[k]) for k in range(2)]


def test_a_governed_connector_has_a_stop_line_at_its_start(two_blocks):
    builder, first, second, gap = two_blocks
    (connector,) = builder.connect(first, second, [(0, 0)], 10.0, gap, light=True)
    layout = builder.layout("straight", ())
    assert [(line.connector, line.at_m, line.crosswalk) for line in layout.stop_lines] == [(connector, 0.0, None)]
    assert elements(layout)[connector].has_traffic_light


def test_straight_ends_keep_a_turn_on_its_lanes_at_first_and_at_last():
    builder = NetworkBuilder(lane_width_m=3.0)
    first = builder.block(curves.straight(np.zeros(3), 20.0), 1, 10.0)
    second = builder.block(curves.straight(np.array([40.0, -20.0, -np.pi / 2]), 20.0), 1, 10.0)
    (connector,) = builder.connect(first, second, [(0, 0)], 10.0, straight_ends_m=4.0)
    line = builder.line_of(connector)
    np.testing.assert_allclose(line[line[:, 0] <= 24.0 + 1e-9, 1], -1.5, atol=1e-9)
    np.testing.assert_allclose(line[line[:, 1] <= -16.0 + 1e-9, 0], 38.5, atol=1e-9)


def test_a_crosswalk_reaches_the_walkways_but_is_drawn_on_the_road_only(two_blocks):
    builder, *_ = two_blocks
    index = builder.crosswalk(curves.straight(np.array([22.0, -7.0, np.pi / 2]), 8.0), frozenset(), 3.0, 1.0)
    layout = builder.layout("straight", ())
    assert curves.arc_length(layout.crosswalks[index].line)[-1] == pytest.approx(8.0)
    (outline,) = [e.polygon for e in layout.elements if e.layer == MapLayer.CROSSWALK]
    assert shapely.Polygon(outline).symmetric_difference(shapely.box(20.5, -6, 23.5, 0)).area < 1e-9


def test_a_layout_lists_the_elements_of_a_layer_in_a_row(two_blocks):
    builder, *_ = two_blocks
    builder.area(MapLayer.WALKWAY, np.array([[0.0, 0], [1, 0], [1, 1]]))
    layers = [element.layer for element in builder.layout("straight", (Route((), 0.0, "straight"),)).elements]
    assert layers == sorted(layers, key=list(MapLayer).index)


def test_a_ring_goes_round_counter_clockwise():
    left, right = np.array([[0.0, 1, 0], [2, 1, 0]]), np.array([[0.0, 0, 0], [2, 0, 0]])
    assert shapely.LinearRing(ring(left, right)).is_ccw
