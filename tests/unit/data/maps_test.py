"""Map patches against a hand-checkable road, hand-written files and the reference's own polygons."""

import json
import math
import struct
import threading

import numpy as np
import pytest
import shapely

from recogdrive.data import maps
from recogdrive.data.maps import NuPlanMap, map_path, open_map
from recogdrive.data.types import MapLayer
from recogdrive.geometry import from_frame, points_to_frame

ROAD = np.array([365_000.0, 143_000.0])
"""UTM start of the straight road in sg-one-north: lanes 0-40 m and 50-90 m, a connector between, 3.5 m wide."""
CITY = "sg-one-north"
FLAT = shapely.from_wkb(b"\x01\x03\0\0\0\x01\0\0\0\x03\0\0\0" + struct.pack("<6d", 1, 1, 2, 2, 1, 1))
"""A ring of a point, another one and the first again."""


@pytest.fixture(scope="session")
def road(navsim_mini):
    return NuPlanMap(navsim_mini / "maps", CITY)


def on_road(x_m, y_m, heading_rad=0.0):
    return np.array([ROAD[0] + x_m, ROAD[1] + y_m, heading_rad])


def straight(y_m, start_m=0.0, end_m=40.0):
    return shapely.LineString([(start_m, y_m), ((start_m + end_m) / 2, y_m), (end_m, y_m)])


def test_lane_of_the_straight_road_in_the_frame_of_an_ego_on_it(road):
    # Ego 10 m along the left lane's centreline, facing along the road.
    patch = road.patch(on_road(10.0, 1.75, 0.0), 15.0)
    left, right = patch.layer(MapLayer.LANE)
    np.testing.assert_allclose(left.centerline[0], [-10, 0, 0], atol=2e-3)
    np.testing.assert_allclose(left.centerline[-1], [30, 0, 0], atol=2e-3)
    np.testing.assert_allclose(left.left_boundary[[0, -1]], [[-10, 1.75], [30, 1.75]], atol=2e-3)
    np.testing.assert_allclose(left.right_boundary[[0, -1]], [[-10, -1.75], [30, -1.75]], atol=2e-3)
    np.testing.assert_allclose(left.polygon.min(0), [-10, -1.75], atol=2e-3)
    np.testing.assert_allclose(left.polygon.max(0), [30, 1.75], atol=2e-3)
    np.testing.assert_allclose(right.centerline[0], [-10, -3.5, 0], atol=2e-3)
    assert (left.speed_limit_mps, left.roadblock_id) == (10.0, "40002")


def test_an_ego_facing_left_across_the_road_sees_it_turned(road):
    patch = road.patch(on_road(10.0, 1.75, math.pi / 2), 15.0)
    left = patch.layer(MapLayer.LANE)[0]
    np.testing.assert_allclose(left.centerline[-1], [0, -30, -math.pi / 2], atol=2e-3)


def test_the_graph_of_the_straight_road_goes_lane_connector_lane(road):
    assert road.element(MapLayer.LANE, "17002").successors == ("27002",)
    assert road.element(MapLayer.LANE, "17002").predecessors == ()
    connector = road.element(MapLayer.LANE_CONNECTOR, "27002")
    assert (connector.predecessors, connector.successors) == (("17002",), ("17004",))
    assert road.element(MapLayer.LANE, "17004").predecessors == ("27002",)
    assert road.element(MapLayer.ROADBLOCK, "40002").successors == ("50002",)
    assert road.element(MapLayer.ROADBLOCK, "40003").predecessors == ("50002",)
    block = road.element(MapLayer.ROADBLOCK_CONNECTOR, "50002")
    assert (block.predecessors, block.successors) == (("40002",), ("40003",))


def test_a_boundary_drawn_against_traffic_is_turned_round(road):
    # Boundary 80006 of the file runs from x = 90 m back to x = 50 m.
    boundary = road.element(MapLayer.LANE, "17004").right_boundary
    np.testing.assert_allclose(boundary[[0, -1]] - ROAD, [[50, 0], [90, 0]], atol=2e-3)


def test_the_square_is_aligned_with_the_global_axes_and_touching_counts(road):
    # A 10 m square around (30, 0) ends at x = 40: it touches the connector but not the second lanes.
    pose = on_road(30.0, 0.0, math.pi / 4)
    assert [e.id for e in road.patch(pose, 10.01).layer(MapLayer.LANE_CONNECTOR)] == ["27002", "27003"]
    assert [e.id for e in road.patch(pose, 9.9).layer(MapLayer.LANE_CONNECTOR)] == []
    # The corner of the square reaches the car park at 10-20 m, 3.5-8.5 m, which is more than 12 m away.
    corner = on_road(29.0, -5.5, math.pi / 4)
    assert [e.id for e in road.patch(corner, 9.2).layer(MapLayer.CARPARK_AREA)] == ["99021"]


def test_far_from_everything_a_patch_is_empty(road):
    patch = road.patch(on_road(1000.0, 0.0, 0.0), 100.0)
    assert patch.elements == () and patch.radius_m == 100.0


def test_every_layer_but_road_segments_is_in_a_patch_that_covers_the_road(road):
    patch = road.patch(np.array([*ROAD, 0.0]), 200.0)
    left_out = {MapLayer.STOP_POLYGON, MapLayer.ROAD_SEGMENT}
    assert {e.layer for e in patch.elements} == set(MapLayer) - left_out
    assert len(patch.elements) == sum(len(e) for layer, e in road.elements.items() if layer not in left_out)
    assert road.elements[MapLayer.STOP_POLYGON] == () and len(road.elements[MapLayer.ROAD_SEGMENT]) == 2


def test_a_speed_limit_of_null_is_none(write_road):
    city = NuPlanMap(write_road(), CITY)
    assert city.element(MapLayer.LANE, "1").speed_limit_mps is None
    assert city.element(MapLayer.LANE, "2").speed_limit_mps == 8.5
    assert city.element(MapLayer.LANE_CONNECTOR, "1").speed_limit_mps == 4.5


def test_a_boundary_the_map_does_not_know_is_none(write_road):
    lane = NuPlanMap(write_road(), CITY).element(MapLayer.LANE, "2")
    assert lane.left_boundary is None and lane.right_boundary is None


def test_equal_ids_of_lane_and_connector_are_kept_apart(write_road):
    city = NuPlanMap(write_road(), CITY)
    np.testing.assert_allclose(city.element(MapLayer.LANE, "1").centerline[0, :2] - ROAD, [0, 0], atol=1e-6)
    np.testing.assert_allclose(city.element(MapLayer.LANE_CONNECTOR, "1").centerline[0, :2] - ROAD, [40, 0], atol=1e-6)
    assert city.element(MapLayer.LANE_CONNECTOR, "1").roadblock_id == "5"


def test_connectors_with_stop_lines_have_a_traffic_light(write_road):
    for stop_lines, expected in (("12,13", True), ("", False), (None, False)):
        row = (1, straight(0, 40, 50), 1, 2, 5, 4.5, stop_lines)
        city = NuPlanMap(write_road(lane_connectors=[row]), CITY)
        assert city.element(MapLayer.LANE_CONNECTOR, "1").has_traffic_light is expected


@pytest.mark.parametrize(
    ("stored", "stop_lines"), [("12, 13,", ("12", "13")), (12, ("12",)), ("", ()), (",", ()), (None, ())]
)
def test_a_connector_names_the_stop_lines_of_its_light(write_road, stored, stop_lines):
    city = NuPlanMap(write_road(lane_connectors=[(1, straight(0, 40, 50), 1, 2, 5, 4.5, stored)]), CITY)
    assert city.element(MapLayer.LANE_CONNECTOR, "1").stop_lines == stop_lines
    assert city.element(MapLayer.LANE, "1").stop_lines == ()


def test_stop_lines_of_real_connectors_are_stop_polygons(navsim_mini):
    city = open_map(navsim_mini / "maps", "us-pa-pittsburgh-hazelwood")
    governed = [e for e in city.elements[MapLayer.LANE_CONNECTOR] if e.has_traffic_light]
    known = {e.id for e in city.elements[MapLayer.STOP_POLYGON]}
    assert governed and {line for e in governed for line in e.stop_lines} <= known


def test_a_lane_that_forks_lists_its_connectors_in_table_order(write_road):
    rows = [(fid, straight(0, 40, 50), 1, 2, 5, None, "") for fid in (9, 3)]
    outlines = [(fid + 30, shapely.box(40, -2, 50, 2), fid, None, None) for fid in (9, 3)]
    paths = [(90, straight(0), 1, None), (91, straight(0, 50, 90), 2, None)]
    paths += [(fid + 100, straight(0, 40, 50), None, fid) for fid in (9, 3)]
    root = write_road(lane_connectors=rows, gen_lane_connectors_scaled_width_polygons=outlines, baseline_paths=paths)
    assert NuPlanMap(root, CITY).element(MapLayer.LANE, "1").successors == ("3", "9")


def test_outlines_do_not_repeat_the_first_point_and_keep_their_holes(write_road):
    patch = NuPlanMap(write_road(), CITY).patch(np.array([*ROAD, 0.0]), 50.0)
    (carpark,) = patch.layer(MapLayer.CARPARK_AREA)
    assert carpark.polygon.shape == (4, 2) and len(carpark.holes) == 1
    assert shapely.Polygon(carpark.polygon, carpark.holes).area == pytest.approx(900 - 100, abs=1e-3)
    np.testing.assert_allclose(sorted(carpark.holes[0].tolist()), [[10, 20], [10, 30], [20, 20], [20, 30]], atol=1e-6)


def test_headings_are_of_the_segment_that_starts_at_the_vertex(write_road):
    bent = shapely.LineString([(0, 0), (20, 0), (20, 20)])
    paths = [(90, bent, 1, None), (91, straight(0, 50, 90), 2, None), (92, straight(0, 40, 50), None, 1)]
    city = NuPlanMap(write_road(baseline_paths=paths), CITY)
    headings = city.element(MapLayer.LANE, "1").centerline[:, 2]
    np.testing.assert_allclose(headings, [0, math.pi / 2, math.pi / 2], atol=1e-6)


def test_a_patch_moves_every_point_as_one_by_one(navsim_mini):
    city = open_map(navsim_mini / "maps", "us-ma-boston")
    lane = city.elements[MapLayer.LANE][20]
    origin = lane.centerline[3] + [2.0, -1.0, 0.7]
    for moved in city.patch(origin, 40.0).elements:
        still = city.element(moved.layer, moved.id)
        np.testing.assert_allclose(moved.polygon, points_to_frame(still.polygon, origin), atol=1e-9)
        for ours, theirs in ((moved.left_boundary, still.left_boundary), (moved.right_boundary, still.right_boundary)):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                np.testing.assert_allclose(ours, points_to_frame(theirs, origin), atol=1e-9)
        if still.centerline is not None:
            back = from_frame(moved.centerline, origin)
            np.testing.assert_allclose(back[:, :2], still.centerline[:, :2], atol=1e-8)
            np.testing.assert_allclose(np.cos(back[:, 2] - still.centerline[:, 2]), 1, atol=1e-12)
        assert (moved.successors, moved.roadblock_id) == (still.successors, still.roadblock_id)


def test_selection_equals_a_test_of_every_polygon(navsim_mini):
    city = open_map(navsim_mini / "maps", "us-pa-pittsburgh-hazelwood")
    x, y = city.elements[MapLayer.LANE][50].centerline[0, :2]
    square = shapely.box(x - 60, y - 60, x + 60, y + 60)
    expected = [
        (layer, element.id)
        for layer in MapLayer
        if layer is not MapLayer.ROAD_SEGMENT
        for element in city.elements[layer]
        if shapely.Polygon(element.polygon, element.holes).intersects(square)
    ]
    assert [(e.layer, e.id) for e in city.patch(np.array([x, y, 1.0]), 60.0).elements] == expected
    assert 50 < len(expected) < sum(map(len, city.elements.values()))


def test_a_point_in_or_on_the_border_of_a_polygon_is_in_it_and_one_in_a_hole_is_not(write_road):
    city = NuPlanMap(write_road(), CITY)
    # Lane 1 is 0-40 m by -2-2 m; the car park is 0-30 m by 10-40 m with a hole at 10-20 m by 20-30 m.
    assert [e.id for e in city.containing(on_road(20.0, 1.0), MapLayer.LANE)] == ["1"]
    assert city.containing(on_road(20.0, 1.0), MapLayer.LANE_CONNECTOR) == ()
    assert city.containing(on_road(15.0, 25.0), MapLayer.CARPARK_AREA) == ()
    corner = city.element(MapLayer.LANE, "1").polygon[0]
    assert [e.id for e in city.containing(corner, MapLayer.LANE)] == ["1"]
    assert city.containing(corner + 1e-3, MapLayer.LANE) == ()


def test_the_nearest_element_is_the_one_of_least_distance_and_the_first_of_equals(write_road):
    city = NuPlanMap(write_road(), CITY)
    # Lane 1 ends at x = 40 m, lane 2 begins at x = 50 m.
    assert city.nearest(on_road(44.9, 0.0), MapLayer.LANE).id == "1"
    assert city.nearest(on_road(45.1, 0.0), MapLayer.LANE).id == "2"
    assert city.nearest(on_road(15.0, 25.0), MapLayer.CARPARK_AREA).id == "4"
    assert city.nearest(ROAD, MapLayer.CROSSWALK) is None
    rows = [(fid, shapely.box(0, 0, 10, 10)) for fid in (8, 3, 5)]
    assert NuPlanMap(write_road(intersections=rows), CITY).nearest(on_road(5.0, 5.0), MapLayer.INTERSECTION).id == "3"


@pytest.mark.parametrize("query", ["containing", "nearest", "near", "drivable_area", "patch"])
def test_a_point_that_is_not_finite_is_refused(road, query):
    pose = np.array([np.nan, ROAD[1], 0.0])
    arguments = {
        "containing": (pose[:2], MapLayer.LANE),
        "nearest": (pose[:2], MapLayer.LANE),
        "near": (pose[:2], 5.0, MapLayer.LANE),
        "drivable_area": (pose[:2], 5.0),
        "patch": (pose, 5.0),
    }
    with pytest.raises(ValueError, match=r"\(nan, 143000\.0\) is no place on the map"):
        getattr(road, query)(*arguments[query])


def test_point_queries_equal_a_test_of_every_polygon(navsim_mini):
    city = open_map(navsim_mini / "maps", "us-ma-boston")
    generator = np.random.default_rng(0)
    for layer in (MapLayer.LANE, MapLayer.ROADBLOCK, MapLayer.INTERSECTION):
        polygons = [shapely.Polygon(e.polygon, e.holes) for e in city.elements[layer]]
        for lane in city.elements[MapLayer.LANE][::10]:
            xy = lane.centerline[0, :2] + generator.normal(scale=5.0, size=2)
            distances = np.array([shapely.distance(polygon, shapely.Point(xy)) for polygon in polygons])
            assert city.nearest(xy, layer) is city.elements[layer][int(np.argmin(distances))]
            expected = [city.elements[layer][row].id for row in np.flatnonzero(distances == 0)]
            assert [e.id for e in city.containing(xy, layer)] == expected


def test_the_drivable_area_is_four_layers_one_after_another(write_road):
    square = shapely.box(0, -2, 90, 2)
    root = write_road(
        road_segments=[(7, square), (8, shapely.box(500, 0, 510, 10))],
        intersections=[(9, square)],
        generic_drivable_areas=[(6, square)],
    )
    city = NuPlanMap(root, CITY)
    found = [(e.layer, e.id) for e in city.drivable_area(on_road(20.0, 0.0), 15.0)]
    assert found == [
        (MapLayer.ROAD_SEGMENT, "7"),
        (MapLayer.INTERSECTION, "9"),
        (MapLayer.GENERIC_DRIVABLE_AREA, "6"),
        (MapLayer.CARPARK_AREA, "4"),
    ]
    assert MapLayer.ROAD_SEGMENT not in {e.layer for e in city.patch(on_road(20.0, 0.0, 0.0), 15.0).elements}


def test_selection_and_outlines_equal_those_of_the_reference(navsim_mini, golden_metric_cache):
    official = {
        17: MapLayer.ROADBLOCK,
        1: MapLayer.INTERSECTION,
        15: MapLayer.CARPARK_AREA,
        0: MapLayer.LANE,
        11: MapLayer.LANE_CONNECTOR,
    }
    files = sorted(golden_metric_cache.glob("*.npz"))
    assert files
    for file in files:
        with np.load(file) as golden:
            city = open_map(navsim_mini / "maps", str(golden["map_location"]))
            rings, polygons, vertices = (
                golden[k] for k in ("map_ring_offsets", "map_polygon_ring_offsets", "map_vertices")
            )
            tokens, types, center = golden["map_tokens"], golden["map_types"], golden["ego_center"]
        for row, (token, kind) in enumerate(zip(tokens, types, strict=True)):
            element = city.element(official[int(kind)], str(token))
            ours = [element.polygon, *element.holes]
            theirs = [vertices[rings[r] : rings[r + 1] - 1] for r in range(polygons[row], polygons[row + 1])]
            for mine, reference in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-9)
        for kind in (17, 1, 15):
            found = [element.id for element in city.near(center[:2], 100.0, official[kind])]
            assert found == tokens[types == kind].tolist()


def test_a_city_is_read_once_for_all_threads_of_a_process(write_road, monkeypatch):
    root = write_road()
    read, opened = [], []

    class Counting(NuPlanMap):
        def __init__(self, *arguments):
            read.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(maps, "NuPlanMap", Counting)
    threads = [threading.Thread(target=lambda: opened.append(open_map(root, CITY))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 1 and len({id(city) for city in opened}) == 1


def test_only_the_asked_city_is_touched(write_road):
    root = write_road()
    index = json.loads((root / "nuplan-maps-v1.0.json").read_text())
    index["us-ma-boston"] = {"version": "9.12.1817"}
    (root / "nuplan-maps-v1.0.json").write_text(json.dumps(index))
    assert NuPlanMap(root, CITY).city == CITY
    with pytest.raises(FileNotFoundError, match=r"No map of us-ma-boston at .*9\.12\.1817.*NUPLAN_MAPS_ROOT"):
        NuPlanMap(root, "us-ma-boston")


def test_a_map_folder_that_does_not_exist_names_the_variable(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*NUPLAN_MAPS_ROOT"):
        map_path(tmp_path / "nowhere", CITY)


def test_a_map_folder_without_an_index_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no nuplan-maps-v1\.0\.json; set NUPLAN_MAPS_ROOT"):
        map_path(tmp_path, CITY)


def test_an_unknown_city_is_answered_with_the_nearest(write_city):
    with pytest.raises(ValueError, match=r"no city 'sg-one-nort' .*Did you mean 'sg-one-north'\?"):
        map_path(write_city({}), "sg-one-nort")


def test_las_vegas_is_another_name_of_the_strip(navsim_mini):
    assert map_path(navsim_mini / "maps", "las_vegas") == map_path(navsim_mini / "maps", "us-nv-las-vegas-strip")


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"sg-one-north": {}}', '{"sg-one-north": 1}'])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "nuplan-maps-v1.0.json").write_text(content)
    with pytest.raises(ValueError, match="is no map index"):
        map_path(tmp_path, CITY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"walkways": None}, "no layer 'walkways'"),
        ({"baseline_paths": [(92, straight(0, 40, 50), None, 1)]}, "lane 1 has no baseline path"),
        ({"gen_lane_connectors_scaled_width_polygons": []}, "connector 1 has no outline"),
        ({"crosswalks": [(3, straight(0))]}, "crosswalk 3 is a LineString"),
        ({"crosswalks": [(3, shapely.Polygon())]}, "crosswalk 3 is an empty geometry"),
        (
            {"crosswalks": [(2, shapely.box(0, 0, 1, 1)), (3, FLAT)]},
            "crosswalk 3 has a ring of fewer than three corners",
        ),
        ({"boundaries": [(80, shapely.box(0, 0, 1, 1))]}, "boundaries 80 is a Polygon instead of one linestring"),
        ({"boundaries": [(80, shapely.LineString())]}, "boundaries 80 is an empty geometry"),
        ({"lanes_polygons": [(1, shapely.box(0, 0, 1, 1), 1, None, None, "fast")]}, "speed limit 'fast'"),
        ({"lanes_polygons": [(1, shapely.box(0, 0, 1, 1), "x", None, None, 1)]}, "'lane_group_fid': 'x' is no id"),
        ({"lane_connectors": [(1, straight(0), 1, 2, 5, 4.5, "12;13")]}, "stop_line_fids: '12;13' is no id"),
        (
            {"crosswalks": [(3, shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(5, 0, 6, 1)]))]},
            "crosswalk 3 is a MultiPolygon",
        ),
    ],
)
def test_a_map_that_lacks_something_says_what_and_where(write_road, changes, message):
    root = write_road(**changes)
    with pytest.raises(ValueError, match=message) as error:
        NuPlanMap(root, CITY)
    assert "map.gpkg" in str(error.value) and "NUPLAN_MAPS_ROOT" in str(error.value)


def test_an_element_that_does_not_exist_is_named(road):
    with pytest.raises(KeyError, match="no lane with id '1'"):
        road.element(MapLayer.LANE, "1")
