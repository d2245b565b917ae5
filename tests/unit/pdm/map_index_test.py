"""The grid over a map's polygons: what its cells list, how large it is, and which polygons share a bit."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recogdrive.pdm.map_index import CELL_M, MAX_CELLS, WORD_BITS, build_map_index
from recogdrive.pdm.scene import DRIVABLE_LAYERS, LANE_LAYERS, PolygonLayer
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M


@pytest.fixture
def with_polygons(road_scene):
    """Builds the road scene with other polygons, each a single ring."""

    def build(rings, layers=None, on_route=None):
        return dataclasses.replace(
            road_scene,
            vertices=np.concatenate([np.asarray(ring, np.float32) for ring in rings]),
            ring_offsets=np.cumsum([0, *map(len, rings)]).astype(np.int32),
            polygon_offsets=np.arange(len(rings) + 1, dtype=np.int32),
            polygon_layers=np.array([PolygonLayer.LANE] * len(rings) if layers is None else layers, np.int8),
            polygon_on_route=np.zeros(len(rings), bool) if on_route is None else np.array(on_route),
        )

    return build


def box(x, y, length=4.0, width=2.0):
    return [[x, y], [x + length, y], [x + length, y + width], [x, y + width]]


def cell_at(index, x, y):
    column, row = np.floor((np.array([x, y]) - index.origin) / index.cell_m).astype(int)
    return int(row * index.shape[0] + column)


def listed(index, cell):
    """Edges and bits of a cell."""
    chosen = slice(index.starts[cell], index.starts[cell + 1])
    return index.edges[chosen], index.bits[chosen]


def holders(mask):
    """Numbers of the bits set in mask words."""
    return [w * WORD_BITS + b for w, word in enumerate(mask) for b in range(WORD_BITS) if int(word) >> b & 1]


def test_a_cell_deep_inside_a_polygon_lists_no_edges_and_knows_it_is_inside(with_polygons):
    index = build_map_index(with_polygons([box(0, 0, 40, 40)]))
    cell = cell_at(index, 21, 21)
    assert len(listed(index, cell)[1]) == 0
    assert holders(index.whole[cell]) == [0]


def test_a_cell_beside_the_polygon_lists_nothing_and_holds_nothing(with_polygons):
    # The second polygon stretches the grid to where the first is not.
    index = build_map_index(with_polygons([box(0, 0, 10, 10), box(30, 30, 2, 2)]))
    cell = cell_at(index, 21, 5)
    assert len(listed(index, cell)[1]) == 0
    assert holders(index.whole[cell]) == []


def test_a_cell_on_the_rim_lists_the_edge_that_runs_through_it(with_polygons):
    index = build_map_index(with_polygons([box(0, 0, 40, 40)]))
    edges, bits = listed(index, cell_at(index, 40, 21))
    assert edges.tolist() == [[40, 0, 40, 40]]
    assert bits.tolist() == [0]


def test_an_upright_edge_far_away_stands_for_a_side_that_ends_right_of_the_cell(with_polygons):
    # Seen from (21, 4.9) the right side of the box is met up to y = 5. The top is listed for its own sake, as a border.
    index = build_map_index(with_polygons([box(0, 0, 40, 5)]))
    cell = cell_at(index, 21, 4.9)
    edges, bits = listed(index, cell)
    assert sorted(edges.tolist()) == [[40, 5, 0, 5], [1e6, 5, 1e6, 1e6]]
    assert bits.tolist() == [0, 0]
    assert holders(index.whole[cell]) == [0]


def test_cells_are_listed_one_after_the_other(road_scene):
    index = build_map_index(road_scene)
    assert len(index.starts) == index.shape.prod() + 1 == len(index.whole) + 1
    assert index.starts[0] == 0 and index.starts[-1] == len(index.edges) == len(index.bits)
    assert (np.diff(index.starts) >= 0).all()


def test_every_vertex_lies_well_inside_the_grid(road_scene):
    index = build_map_index(road_scene)
    cells = (road_scene.vertices - index.origin) / index.cell_m
    assert (cells > 1e-3).all()
    assert (cells < index.shape - 1e-3).all()


def test_cells_of_a_small_map_have_the_smallest_side(road_scene):
    assert build_map_index(road_scene).cell_m == CELL_M


def test_a_large_map_has_larger_cells_instead_of_more(with_polygons):
    index = build_map_index(with_polygons([box(-3000, -3000, 6000, 6000)]))
    assert index.cell_m == pytest.approx(30, rel=1e-3)
    assert index.shape.prod() < 1.02 * MAX_CELLS
    assert index.whole.nbytes + index.starts.nbytes < 5e5


def test_the_side_of_a_cell_can_be_chosen(road_scene):
    index = build_map_index(road_scene, cell_m=7.0)
    assert index.cell_m == 7
    assert index.shape.tolist() == [29, 5]  # 200 m by 32 m


def test_a_map_without_polygons_is_one_empty_cell(with_polygons, road_scene):
    empty = dataclasses.replace(
        road_scene,
        vertices=np.zeros((0, 2), np.float32),
        ring_offsets=np.zeros(1, np.int32),
        polygon_offsets=np.zeros(1, np.int32),
        polygon_layers=np.zeros(0, np.int8),
        polygon_on_route=np.zeros(0, bool),
    )
    index = build_map_index(empty)
    assert index.shape.tolist() == [1, 1]
    assert index.whole.tolist() == [[0]]
    assert index.starts.tolist() == [0, 0]
    assert holders(index.lane_bits | index.drivable_bits | index.route_bits | index.intersection_bits) == []


def test_masks_name_the_bits_of_their_layers(with_polygons):
    layers = list(PolygonLayer)
    scene = with_polygons([box(0, 0)] * 6, layers, [True, False, False, False, False, False])
    index = build_map_index(scene)
    lanes, drivable = holders(index.lane_bits), holders(index.drivable_bits)
    assert len(lanes) == len(LANE_LAYERS)
    assert len(drivable) == len(DRIVABLE_LAYERS)
    assert not set(lanes) & set(drivable)
    assert len(holders(index.route_bits)) == 1 and set(holders(index.route_bits)) < set(lanes)
    assert len(holders(index.intersection_bits)) == 1 and set(holders(index.intersection_bits)) < set(drivable)


def test_the_route_flag_of_a_polygon_that_is_no_lane_is_ignored(with_polygons):
    index = build_map_index(with_polygons([box(0, 0)], [PolygonLayer.ROADBLOCK], [True]))
    assert holders(index.route_bits) == []


def test_more_polygons_on_one_place_than_a_word_has_bits_take_another_word(with_polygons):
    for count, words in ((32, 1), (33, 2), (65, 3)):
        index = build_map_index(with_polygons([box(0, 0)] * count))
        assert index.whole.shape[1] == len(index.lane_bits) == words
        assert len(holders(index.lane_bits)) == count


def test_lanes_far_apart_share_a_bit(with_polygons):
    index = build_map_index(with_polygons([box(20 * i, 0) for i in range(10)]))
    assert holders(index.lane_bits) == [0]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 20)), min_size=2, max_size=40))
def test_no_footprint_meets_two_lanes_of_one_bit(with_polygons, corners):
    rings = [box(x, y) for x, y in corners]
    index = build_map_index(with_polygons(rings, on_route=[i % 3 == 0 for i in range(len(rings))]))
    bit = {tuple(edge): number for edge, number in zip(index.edges.tolist(), index.bits.tolist(), strict=True)}
    low = np.array([ring[0] for ring in rings], np.float32).astype(float)
    bits = [bit[(*np.float32(r[0]).tolist(), *np.float32(r[1]).tolist())] for r in rings]
    diagonal = 2 * np.hypot(HALF_LENGTH_M, HALF_WIDTH_M)
    for i in range(len(rings)):
        for j in range(i):
            gap = np.maximum(np.abs(low[i] - low[j]) - [4, 2], 0)
            if bits[i] == bits[j] and (low[i] != low[j]).any():
                assert np.hypot(*gap) > diagonal
