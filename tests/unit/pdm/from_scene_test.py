"""Tests of pdm/from_scene.py."""

import dataclasses

import numpy as np
import pytest
import shapely

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.types import MapElement, MapLayer, MapPatch
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.from_scene import pdm_scene
from recogdrive.pdm.scene import LANE_LAYERS, PolygonLayer
from recogdrive.pdm.state import EgoState
from recogdrive.pdm.validation import validate

TRIANGLE = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])


def _with_elements(scene, *elements):
    return dataclasses.replace(scene, map=MapPatch(100.0, (*scene.map.elements, *elements)))


def test_identity_and_place_are_kept(straight_scene):
    scene = pdm_scene(straight_scene)
    assert (scene.token, scene.log_name, scene.map_name) == ("00000000000000aa", "log_a", "nowhere")
    assert scene.timestamp_us == 1_000_000
    np.testing.assert_array_equal(scene.origin, straight_scene.origin)


def test_the_initial_state_is_the_egos_with_zero_steering(straight_scene):
    state = pdm_scene(straight_scene).ego_state
    assert state.dtype == np.float64
    assert state[[EgoState.X, EgoState.Y, EgoState.HEADING]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(state[[EgoState.VELOCITY_X, EgoState.VELOCITY_Y]], [10.0, 0.1], rtol=1e-7)
    np.testing.assert_allclose(state[[EgoState.ACCELERATION_X, EgoState.ACCELERATION_Y]], [-0.5, 0.2], rtol=1e-7)
    assert not state[EgoState.STEERING_ANGLE :].any()


def test_the_normaliser_is_the_driven_future_every_tenth_of_a_second(straight_scene):
    scene = pdm_scene(straight_scene)
    steps = np.arange(51) * 0.1
    expected = np.stack([9.0 * steps, 0.1 * steps, 0.01 * steps], axis=1)
    assert scene.normaliser_name == "expert"
    np.testing.assert_allclose(scene.normaliser_poses, expected, atol=4e-6)


def test_the_normaliser_turns_the_short_way_round(straight_scene):
    future = np.zeros((10, 3))
    future[:, 2] = [1.5, 3.0, -3.0, *[-3.0] * 7]
    headings = pdm_scene(dataclasses.replace(straight_scene, future=future)).normaliser_poses[:, 2]
    turn = 2 * np.pi - 6.0
    np.testing.assert_allclose(headings[11], 3.0 + turn / 5, atol=1e-6)
    np.testing.assert_allclose(headings[14], -3.0 - turn / 5, atol=1e-6)


def test_human_poses_are_the_first_8_of_the_future(straight_scene):
    human = pdm_scene(straight_scene).human_poses
    np.testing.assert_array_equal(human, straight_scene.future[:8].astype(np.float32))


def test_agents_are_observed_from_the_current_frame_on(straight_scene):
    scene = pdm_scene(straight_scene)
    assert scene.agent_types.tolist() == [0, 1]
    np.testing.assert_allclose(scene.agent_poses[:, 0, 0], 20.0 + 0.6 * np.arange(51), atol=4e-6)
    assert scene.agent_speeds.tolist() == [6.0, 0.0]
    assert scene.agent_valid.all()


def test_geometry_is_float32(straight_scene):
    scene = pdm_scene(straight_scene)
    for name in ("agent_poses", "agent_sizes", "vertices", "centerline", "normaliser_poses", "human_poses"):
        assert getattr(scene, name).dtype == np.float32, name


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (MapLayer.INTERSECTION, PolygonLayer.INTERSECTION),
        (MapLayer.ROADBLOCK, PolygonLayer.ROADBLOCK),
        (MapLayer.CARPARK_AREA, PolygonLayer.CARPARK_AREA),
        (MapLayer.GENERIC_DRIVABLE_AREA, PolygonLayer.DRIVABLE_AREA),
        (MapLayer.LANE_CONNECTOR, PolygonLayer.LANE_CONNECTOR),
    ],
)
def test_layers_of_the_map_become_layers_of_polygons(straight_scene, layer, expected):
    scene = pdm_scene(_with_elements(straight_scene, MapElement(id="9", layer=layer, polygon=TRIANGLE)))
    assert scene.polygon_layers.tolist() == [PolygonLayer.LANE, expected]
    np.testing.assert_array_equal(scene.vertices[4:], TRIANGLE.astype(np.float32))


@pytest.mark.parametrize("layer", [MapLayer.ROADBLOCK_CONNECTOR, MapLayer.CROSSWALK, MapLayer.WALKWAY])
def test_other_layers_contribute_nothing(straight_scene, layer):
    scene = pdm_scene(_with_elements(straight_scene, MapElement(id="9", layer=layer, polygon=TRIANGLE)))
    assert scene.polygon_layers.tolist() == [PolygonLayer.LANE]


def test_holes_are_rings_after_the_outline(straight_scene):
    outline = np.array([[0.0, 0.0], [9.0, 0.0], [9.0, 9.0], [0.0, 9.0]])
    area = MapElement(id="9", layer=MapLayer.CARPARK_AREA, polygon=outline, holes=(TRIANGLE + 1, TRIANGLE + 4))
    scene = pdm_scene(_with_elements(straight_scene, area))
    assert scene.ring_offsets.tolist() == [0, 4, 8, 11, 14]
    assert scene.polygon_offsets.tolist() == [0, 1, 4]
    np.testing.assert_array_equal(scene.vertices[11:], TRIANGLE + 4)


def test_lanes_of_the_routes_roadblocks_are_on_route(straight_scene):
    on = MapElement(id="8", layer=MapLayer.LANE_CONNECTOR, polygon=TRIANGLE, roadblock_id="100")
    off = MapElement(id="9", layer=MapLayer.LANE, polygon=TRIANGLE, roadblock_id="300")
    block = MapElement(id="100", layer=MapLayer.ROADBLOCK, polygon=TRIANGLE)
    scene = pdm_scene(_with_elements(straight_scene, on, off, block))
    assert scene.polygon_on_route.tolist() == [True, True, False, False]


def test_a_scene_without_polygons_has_empty_arrays(straight_scene):
    lane = dataclasses.replace(straight_scene.map.elements[0], polygon=None)
    scene = pdm_scene(dataclasses.replace(straight_scene, map=MapPatch(100.0, (lane,))))
    assert scene.vertices.shape == (0, 2)
    assert scene.ring_offsets.tolist() == scene.polygon_offsets.tolist() == [0]
    assert scene.polygon_layers.shape == scene.polygon_on_route.shape == (0,)


def test_an_unknown_future_is_refused(straight_scene):
    with pytest.raises(SceneError, match="scene 00000000000000aa: its future has 0 poses.*needs 10"):
        pdm_scene(dataclasses.replace(straight_scene, future=None))


def test_a_future_of_four_seconds_is_refused(straight_scene):
    with pytest.raises(SceneError, match="its future has 8 poses"):
        pdm_scene(dataclasses.replace(straight_scene, future=straight_scene.future[:8]))


def test_detections_that_end_early_are_refused(straight_scene):
    with pytest.raises(SceneError, match="detections of 12 frames.*14"):
        pdm_scene(dataclasses.replace(straight_scene, detections=straight_scene.detections[:12]))


def test_a_scene_without_route_is_refused_by_name(straight_scene):
    with pytest.raises(SceneError, match="scene 00000000000000aa: no lane of the route"):
        pdm_scene(dataclasses.replace(straight_scene, roadblock_ids=()))


def test_scenes_of_the_town_are_valid_and_their_driver_follows_the_centre_line():
    for source in SyntheticTown(num_scenes=24, seed=11):
        scene = pdm_scene(source)
        assert validate(scene) == ()
        line = shapely.LineString(scene.centerline)
        offsets = shapely.distance(line, shapely.points(scene.normaliser_poses[:, :2].astype(np.float64)))
        assert offsets.max() < 1.0, source.metadata
        progress = shapely.line_locate_point(line, shapely.points(scene.normaliser_poses[:, :2].astype(np.float64)))
        assert (np.diff(progress) > -0.02).all(), source.metadata
        assert progress[-1] < line.length, source.metadata


def test_the_driver_of_the_town_stays_on_lanes_of_the_route():
    for source in SyntheticTown(num_scenes=8, seed=12):
        scene = pdm_scene(source)
        rings = np.split(scene.vertices, scene.ring_offsets[1:-1])
        on_route = [shapely.Polygon(rings[k]) for k in np.flatnonzero(scene.polygon_on_route)]
        assert np.isin(scene.polygon_layers[scene.polygon_on_route], LANE_LAYERS).all()
        poses = shapely.points(scene.normaliser_poses[:, :2].astype(np.float64))
        assert shapely.covers(shapely.union_all(on_route).buffer(0.05), poses).all(), source.metadata
