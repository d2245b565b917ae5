"""Scenes of a data source as scenes to score in, the recorded driver as normaliser."""

import numpy as np
from jaxtyping import Bool, Float, Int

from recogdrive.data.types import FRAME_INTERVAL_S, HISTORY_FRAMES, MapElement, MapLayer, Scene
from recogdrive.geometry import Pose, wrap_angle
from recogdrive.pdm.centerline import route_centerline
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.observation import OBSERVED_FRAMES, STEPS_PER_FRAME, observe
from recogdrive.pdm.scene import PdmScene, PolygonLayer
from recogdrive.pdm.state import CANDIDATE_POSES, NUM_OBSERVED, STATE_SIZE, EgoState

NORMALISER = "expert"

_LAYERS = {
    MapLayer.LANE: PolygonLayer.LANE,
    MapLayer.LANE_CONNECTOR: PolygonLayer.LANE_CONNECTOR,
    MapLayer.INTERSECTION: PolygonLayer.INTERSECTION,
    MapLayer.ROADBLOCK: PolygonLayer.ROADBLOCK,
    MapLayer.CARPARK_AREA: PolygonLayer.CARPARK_AREA,
    MapLayer.GENERIC_DRIVABLE_AREA: PolygonLayer.DRIVABLE_AREA,
}
"""Layers that scoring looks at. Roadblock connectors count through their lane connectors alone, as in NAVSIM."""

_LANE_LAYERS = (MapLayer.LANE, MapLayer.LANE_CONNECTOR)


def pdm_scene(scene: Scene) -> PdmScene:
    """Makes the record of a scene whose future is known for 5 s.

    The local frame is the scene frame, geometry is float32. The normaliser is what was driven, linear between the 2 Hz
    poses. Elements of the map without a polygon contribute none.

    Args:
      scene: Scene with at least 10 future poses, the detections of all frames and a route.

    Raises:
      SceneError: The future or the detections are too short, or no lane of the route is near the ego.
    """
    future = _future(scene)
    try:
        observation = observe(scene.detections[HISTORY_FRAMES - 1 : HISTORY_FRAMES - 1 + OBSERVED_FRAMES])
        route = [e for e in scene.map.layer(*_LANE_LAYERS) if e.roadblock_id in set(scene.roadblock_ids)]
        centerline = route_centerline(route, scene.roadblock_ids, scene.ego.poses[-1])
    except SceneError as error:
        raise SceneError(f"scene {scene.token}: {error}") from error
    vertices, ring_offsets, polygon_offsets, layers, on_route = _polygons(scene)
    ego_state = np.zeros(STATE_SIZE)
    ego_state[[EgoState.X, EgoState.Y, EgoState.HEADING]] = scene.ego.poses[-1]
    ego_state[[EgoState.VELOCITY_X, EgoState.VELOCITY_Y]] = scene.ego.velocity[-1]
    ego_state[[EgoState.ACCELERATION_X, EgoState.ACCELERATION_Y]] = scene.ego.acceleration[-1]
    return PdmScene(
        token=scene.token,
        log_name=scene.log_name,
        map_name=scene.map_name,
        timestamp_us=int(scene.timestamp_us),
        origin=np.asarray(scene.origin, dtype=np.float64),
        ego_state=ego_state,
        agent_poses=observation.agent_poses.astype(np.float32),
        agent_valid=observation.agent_valid,
        agent_sizes=observation.agent_sizes.astype(np.float32),
        agent_speeds=observation.agent_speeds,
        agent_types=observation.agent_types,
        vertices=vertices,
        ring_offsets=ring_offsets,
        polygon_offsets=polygon_offsets,
        polygon_layers=layers,
        polygon_on_route=on_route,
        centerline=centerline.astype(np.float32),
        normaliser_poses=_every_step(np.concatenate([scene.ego.poses[-1:], future])).astype(np.float32),
        normaliser_name=NORMALISER,
        human_poses=future[:CANDIDATE_POSES].astype(np.float32),
    )


def _future(scene: Scene) -> Float[np.ndarray, "10 3"]:
    """Driven poses at 0.5 ... 5.0 s."""
    needed = OBSERVED_FRAMES - 1
    known = 0 if scene.future is None else len(scene.future)
    if known < needed:
        raise SceneError(
            f"scene {scene.token}: its future has {known} poses, but the normaliser needs {needed} at intervals of "
            f"{FRAME_INTERVAL_S} s; give the source more future frames, or read the scene from a metric cache"
        )
    frames = HISTORY_FRAMES + needed
    if len(scene.detections) < frames:
        raise SceneError(
            f"scene {scene.token}: detections of {len(scene.detections)} frames, but scoring looks 5 s ahead and needs "
            f"those of {frames} ({HISTORY_FRAMES} up to now and {needed} after)"
        )
    return np.asarray(scene.future[:needed], dtype=np.float64)


def _every_step(knots: Float[np.ndarray, "11 3"]) -> Float[np.ndarray, "51 3"]:
    """Poses at 0, 0.5 ... 5.0 s -> every 0.1 s, linear, headings the short way round and wrapped."""
    steps, times = np.arange(NUM_OBSERVED), np.arange(len(knots)) * STEPS_PER_FRAME
    headings = np.interp(steps, times, np.unwrap(knots[:, Pose.HEADING]))
    x, y = (np.interp(steps, times, knots[:, axis]) for axis in (Pose.X, Pose.Y))
    return np.stack([x, y, wrap_angle(headings)], axis=-1)


def _polygons(
    scene: Scene,
) -> tuple[
    Float[np.ndarray, "V 2"],
    Int[np.ndarray, "R1"],
    Int[np.ndarray, "P1"],
    Int[np.ndarray, "P"],
    Bool[np.ndarray, "P"],
]:
    """Vertices, ring offsets, polygon offsets, layers and route flags of the map's polygons, in map order."""
    route = frozenset(scene.roadblock_ids)
    elements: list[MapElement] = [e for e in scene.map.elements if e.layer in _LAYERS and e.polygon is not None]
    rings = [ring for element in elements for ring in (element.polygon, *element.holes)]
    return (
        np.concatenate([np.zeros((0, 2)), *rings]).astype(np.float32),
        np.cumsum([0, *map(len, rings)], dtype=np.int32),
        np.cumsum([0, *(1 + len(element.holes) for element in elements)], dtype=np.int32),
        np.array([_LAYERS[element.layer] for element in elements], dtype=np.int8),
        np.array([e.layer in _LANE_LAYERS and e.roadblock_id in route for e in elements], dtype=bool),
    )
