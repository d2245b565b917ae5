import numpy as np
import pytest
import shapely

from recogdrive.data.synthetic import curves, roads
from recogdrive.data.types import MapLayer

DRIVEN = (MapLayer.LANE, MapLayer.LANE_CONNECTOR)
DRIVABLE = (MapLayer.ROADBLOCK, MapLayer.INTERSECTION)


def by_layer(layout, *layers):
    return [element for element in layout.elements if element.layer in layers]


def union(layout, *layers, grow_m=1e-6):
    return shapely.union_all([shapely.Polygon(e.polygon).buffer(grow_m) for e in by_layer(layout, *layers)])


def test_every_polygon_is_valid_and_has_area(layouts):
    for layout in layouts:
        for element in layout.elements:
            polygon = shapely.Polygon(element.polygon)
            assert polygon.is_valid, (layout.kind, element.layer)
            assert polygon.area > 1.0, (layout.kind, element.layer)


def test_ids_are_decimal_and_unique(layouts):
    for layout in layouts:
        ids = [element.id for element in layout.elements]
        assert len(set(ids)) == len(ids)
        assert all(i.isdecimal() for i in ids)


def test_every_connector_joins_its_lanes_end_to_end(layouts):
    for layout in layouts:
        elements = {element.id: element for element in layout.elements}
        for connector in by_layer(layout, MapLayer.LANE_CONNECTOR):
            (before,), (after,) = connector.predecessors, connector.successors
            gaps = [
                elements[before].centerline[-1, :2] - connector.centerline[0, :2],
                elements[after].centerline[0, :2] - connector.centerline[-1, :2],
            ]
            assert np.abs(gaps).max() < 1e-6


def test_neighbourhood_is_symmetric_and_alternates_between_lanes_and_connectors(layouts):
    pairs = {
        MapLayer.LANE: MapLayer.LANE_CONNECTOR,
        MapLayer.LANE_CONNECTOR: MapLayer.LANE,
        MapLayer.ROADBLOCK: MapLayer.ROADBLOCK_CONNECTOR,
        MapLayer.ROADBLOCK_CONNECTOR: MapLayer.ROADBLOCK,
    }
    for layout in layouts:
        elements = {element.id: element for element in layout.elements}
        for element in by_layer(layout, *pairs):
            for neighbour in element.successors:
                assert elements[neighbour].layer == pairs[element.layer]
                assert element.id in elements[neighbour].predecessors
            for neighbour in element.predecessors:
                assert element.id in elements[neighbour].successors


def test_lanes_belong_to_roadblocks_that_cover_them(layouts):
    for layout in layouts:
        elements = {element.id: element for element in layout.elements}
        for lane in by_layer(layout, MapLayer.LANE):
            block = elements[lane.roadblock_id]
            assert block.layer == MapLayer.ROADBLOCK
            assert shapely.Polygon(block.polygon).buffer(1e-6).covers(shapely.Polygon(lane.polygon))


def test_centerlines_stay_inside_their_polygon_and_are_finely_sampled(layouts):
    for layout in layouts:
        for element in by_layer(layout, *DRIVEN):
            line = element.centerline[:, :2]
            assert shapely.Polygon(element.polygon).buffer(1e-6).covers(shapely.LineString(line))
            assert np.linalg.norm(np.diff(line, axis=0), axis=1).max() <= 2.0 + 1e-9


def test_centerline_headings_point_along_their_segments(layouts):
    for layout in layouts:
        for element in by_layer(layout, *DRIVEN):
            line = element.centerline
            step = np.diff(line[:, :2], axis=0)
            along = step / np.linalg.norm(step, axis=1, keepdims=True)
            heading = np.stack([np.cos(line[:-1, 2]), np.sin(line[:-1, 2])], -1)
            np.testing.assert_allclose(heading, along, atol=1e-9)


def test_boundaries_lie_half_a_lane_to_either_side(layouts):
    for layout in layouts:
        for lane in by_layer(layout, *DRIVEN):
            across = lane.left_boundary[0] - lane.right_boundary[0]
            heading = lane.centerline[0, 2]
            assert 3.3 <= np.linalg.norm(across) <= 3.75 + 1e-9
            # The left border is to the left of the first segment, up to the bend within it.
            assert across @ np.array([-np.sin(heading), np.cos(heading)]) > 0.99 * np.linalg.norm(across)


def test_the_drivable_area_is_one_piece_and_covers_every_lane_and_connector(layouts):
    for layout in layouts:
        ground = union(layout, *DRIVABLE)
        assert ground.geom_type == "Polygon", layout.kind
        for element in by_layer(layout, *DRIVEN):
            assert shapely.Polygon(element.polygon).difference(ground).area < 1e-2, (layout.kind, element.layer)


def test_lanes_and_connectors_tile_every_route_without_gaps(layouts):
    for layout in layouts:
        ground = union(layout, *DRIVEN)
        for route in layout.routes:
            line = shapely.LineString(np.concatenate([layout.lines[e][:, :2] for e in route.elements]))
            # 1.15 m is half the ego's width.
            assert ground.covers(line.buffer(1.15, cap_style="flat")), layout.kind


def test_walkways_and_car_parks_keep_off_the_road(layouts):
    for layout in layouts:
        ground = union(layout, *DRIVABLE, grow_m=0.0)
        beside = union(layout, MapLayer.WALKWAY, MapLayer.CARPARK_AREA, grow_m=0.0)
        assert ground.intersection(beside).area < 0.05, layout.kind


def test_routes_alternate_lanes_and_connectors_and_have_their_focus_on_them(layouts):
    for layout in layouts:
        layer = {element.id: element.layer for element in layout.elements}
        for route in layout.routes:
            kinds = [layer[element] for element in route.elements]
            assert kinds == [DRIVEN[k % 2] for k in range(len(kinds))]
            assert len(kinds) % 2 == 1
            assert route.focus_m > 0


@pytest.mark.parametrize("seed", range(8))
def test_a_curve_turns_left_one_way_and_right_the_other(seed):
    layout = roads.curve(np.random.default_rng(seed))
    for route in layout.routes:
        turned = layout.lines[route.elements[2]]
        assert route.turn == ("left" if turned[-1, 2] > turned[0, 2] else "right")
    assert {route.turn for route in layout.routes} == {"left", "right"}


@pytest.mark.parametrize("seed", range(8))
def test_ramp_and_right_lane_of_a_merge_end_in_the_same_lane(seed):
    layout = roads.merge(np.random.default_rng(seed))
    (ramp,) = [route for route in layout.routes if route.turn == "merge"]
    joined = [route for route in layout.routes if route is not ramp and ramp.elements[2] in route.elements]
    assert len(joined) == 1
    assert ramp.elements[0] not in joined[0].elements


def test_a_straight_road_has_one_to_three_lanes_a_direction():
    counts = set()
    for seed in range(40):
        layout = roads.straight_road(np.random.default_rng(seed))
        block = {element.id: element.roadblock_id for element in layout.elements}
        first_lanes = [block[route.elements[0]] for route in layout.routes]
        counts |= {first_lanes.count(b) for b in first_lanes}
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("seed", range(6))
def test_shoulders_of_a_ramp_adjoin_its_lane_without_a_gap(seed):
    layout = roads.merge(np.random.default_rng(seed))
    (ramp,) = {route.elements[0] for route in layout.routes if route.turn == "merge"}
    whole = union(layout, MapLayer.ROADBLOCK, MapLayer.GENERIC_DRIVABLE_AREA)
    line, width = layout.lines[ramp], np.linspace(-2.8, 2.8, 57)
    # Half a lane is at least 1.65 m wide; beside it 1.8 m on the right and 1.2 m on the left.
    across = np.stack([curves.offset(line, w) for w in width], axis=1)[..., :2]
    assert shapely.covers(whole, shapely.points(across)).all()
