"""One official metric cache as a scene to score in.

Source: specification of the metric cache, sections 2 and 7; NAVSIM `MetricCacheProcessor`, `PDMObservation`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int

from recogdrive.data.safe_pickle import Record
from recogdrive.data.types import AgentClass
from recogdrive.geometry import Pose
from recogdrive.pdm import official_records as official
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.official_records import UnfitRecordError, args_of, field, fields_of, integer, items, number, strings
from recogdrive.pdm.scene import LANE_LAYERS, PDM_CLOSED, PdmScene, PolygonLayer
from recogdrive.pdm.state import CANDIDATE_POSES, NUM_OBSERVED, REAR_AXLE_TO_CENTER_M, STATE_SIZE, STEP_S, EgoState
from recogdrive.pdm.validation import validate

_LAYERS = {
    0: PolygonLayer.LANE,
    1: PolygonLayer.INTERSECTION,
    11: PolygonLayer.LANE_CONNECTOR,
    15: PolygonLayer.CARPARK_AREA,
    17: PolygonLayer.ROADBLOCK,
}
"""nuPlan `SemanticMapLayer` -> layer, for those that NAVSIM caches."""
_RED_LIGHT = "red_light"
_BOX_COORDINATES = 5
_BOX_TOLERANCE_M = 1e-3
_CLOCK_TOLERANCE_US = 1_000
_POLYGON_HEADERS = frozenset(
    order + (kind.to_bytes(4, "little" if order == b"\x01" else "big"))
    for order in (b"\x00", b"\x01")
    for kind in (3, 1003, 0x80000003)
)
"""Byte order and type of a polygon in two or three dimensions; nested collections could exhaust the parser's stack."""

_CITIES = {
    "sg-one-north": (365_000.0, 144_000.0),
    "us-ma-boston": (331_000.0, 4_691_000.0),
    "us-nv-las-vegas-strip": (665_000.0, 3_998_000.0),
    "us-pa-pittsburgh-hazelwood": (590_000.0, 4_474_000.0),
}
"""Where nuPlan's cities lie, each in the UTM coordinates of its own zone."""
_CITY_RADIUS_M = 50_000.0
"""The cities are at least 200 km apart in these coordinates, and each map is a few kilometres wide."""


class _Ego(NamedTuple):
    """A car's global rear-axle pose, the rest of its state, and its clock."""

    pose: Float[np.ndarray, "3"]
    motion: Float[np.ndarray, "8"]
    time_us: int


class _Agents(NamedTuple):
    """Tracks in global coordinates relative to an origin; attributes as in `PdmScene`."""

    poses: Float[np.ndarray, "T A 3"]
    valid: Bool[np.ndarray, "T A"]
    sizes: Float[np.ndarray, "A 2"]
    speeds: Float[np.ndarray, "A"]
    types: Int[np.ndarray, "A"]


class _Map(NamedTuple):
    """Polygons in global coordinates; attributes as in `PdmScene`."""

    vertices: Float[np.ndarray, "V 2"]
    ring_offsets: Int[np.ndarray, "R1"]
    polygon_offsets: Int[np.ndarray, "P1"]
    layers: Int[np.ndarray, "P"]
    on_route: Bool[np.ndarray, "P"]


def official_scene(
    cache: Any, path: Path, token: str, log_name: str, dtype: np.dtype
) -> tuple[PdmScene, Float[np.ndarray, "V 2"]]:
    """Converts what a `metric_cache.pkl` holds.

    The origin of the local frame is the ego's rear axle, not turned. What was driven is not in these files, so
    `human_poses` are NaN; nor are traffic lights or history, so `extended` is None. Red lights that NAVSIM v2 caches
    among the objects are left out: they are no agents.

    Args:
      cache: From `open_cache`.
      path: Where it was read, for messages.
      token: Of the scene.
      log_name: Of the scene.
      dtype: Of the geometry, float32 or float64.

    Returns:
      The scene, validated, and the global coordinates of its map's vertices.

    Raises:
      SceneError: The cache does not hold what NAVSIM writes, or not 51 steps of observation; names file and place.
    """
    try:
        # What no float32 holds becomes infinite, which is refused.
        with np.errstate(over="ignore", invalid="ignore"):
            scene, vertices = _convert(cache, token, log_name, dtype)
        validate(scene)
    except (UnfitRecordError, SceneError) as error:
        raise SceneError(f"{path} cannot be scored in: {error}") from error
    return scene, vertices


def _convert(cache: Any, token: str, log_name: str, dtype: np.dtype) -> tuple[PdmScene, Float[np.ndarray, "V 2"]]:
    fields = fields_of(cache, official.METRIC_CACHE, "the file")
    ego = _ego(field(fields, "ego_state", "the cache"), "ego_state")
    origin = np.array([ego.pose[Pose.X], ego.pose[Pose.Y], 0.0])
    state = np.zeros(STATE_SIZE)
    state[EgoState.HEADING] = ego.pose[Pose.HEADING]
    state[EgoState.VELOCITY_X :] = ego.motion
    agents = _agents(field(fields, "observation", "the cache"), origin)
    route = frozenset(strings(field(fields, "route_lane_ids", "the cache"), "route_lane_ids"))
    surroundings = _map(field(fields, "drivable_area_map", "the cache"), route)
    line = args_of(field(fields, "centerline", "the cache"), official.PATH, "centerline")[0]
    centerline = [_pose(point, f"centerline[{i}]") for i, point in enumerate(items(line, "centerline"))]
    scene = PdmScene(
        token=token,
        log_name=log_name,
        map_name=_map_name(fields, origin),
        timestamp_us=ego.time_us,
        origin=origin,
        ego_state=state,
        agent_poses=agents.poses.astype(dtype),
        agent_valid=agents.valid,
        agent_sizes=agents.sizes.astype(dtype),
        agent_speeds=agents.speeds,
        agent_types=agents.types,
        vertices=(surroundings.vertices - origin[: Pose.HEADING]).astype(dtype),
        ring_offsets=surroundings.ring_offsets,
        polygon_offsets=surroundings.polygon_offsets,
        polygon_layers=surroundings.layers,
        polygon_on_route=surroundings.on_route,
        centerline=(np.array(centerline).reshape(-1, len(Pose)) - origin)[:, : Pose.HEADING].astype(dtype),
        normaliser_poses=(_normaliser(field(fields, "trajectory", "the cache"), ego) - origin).astype(dtype),
        normaliser_name=PDM_CLOSED,
        human_poses=np.full((CANDIDATE_POSES, len(Pose)), np.nan, dtype=dtype),
    )
    return scene, surroundings.vertices


def _map_name(fields: Mapping[str, Any], origin: Float[np.ndarray, "3"]) -> str:
    """The city: NAVSIM v2 names it, and coordinates tell it; empty where they are those of none."""
    if (parameters := fields.get("map_parameters")) is not None:
        name = field(fields_of(parameters, official.MAP_PARAMETERS, "map_parameters"), "map_name", "map_parameters")
        if not isinstance(name, str):
            raise UnfitRecordError(f"map_parameters.map_name is a {official.title(name)} instead of a string")
        return name
    for city, place in _CITIES.items():
        if math.dist(place, origin[: Pose.HEADING]) < _CITY_RADIUS_M:
            return city
    return ""


def _pose(value: Any, where: str) -> tuple[float, float, float]:
    fields = fields_of(value, official.POSE, where)
    return tuple(number(field(fields, name, where), f"{where}.{name}") for name in ("x", "y", "heading"))


def _vector(value: Any, where: str) -> tuple[float, float]:
    fields = fields_of(value, official.VECTOR, where)
    return tuple(number(field(fields, name, where), f"{where}.{name}") for name in ("_x", "_y"))


def _rear_axle(ego: Mapping[str, Any], where: str) -> Float[np.ndarray, "3"]:
    """Global pose of an EgoState's rear axle; computed from the box where it is not stored beside it."""
    footprint = fields_of(field(ego, "_car_footprint", where), official.CAR_FOOTPRINT, f"{where}._car_footprint")
    if "rear_axle" in footprint:
        return np.array(_pose(footprint["rear_axle"], f"{where}.rear_axle"))
    x, y, heading = _pose(field(footprint, "_center", where), f"{where}._center")
    shift = REAR_AXLE_TO_CENTER_M
    return np.array([x - shift * math.cos(heading), y - shift * math.sin(heading), heading])


def _time_us(ego: Mapping[str, Any], where: str) -> int:
    clock = fields_of(field(ego, "_time_point", where), official.TIME_POINT, f"{where}._time_point")
    return integer(field(clock, "time_us", where), f"{where}.time_us")


def _ego(value: Any, where: str) -> _Ego:
    ego = fields_of(value, official.EGO_STATE, where)
    dynamic = fields_of(field(ego, "_dynamic_car_state", where), official.DYNAMIC_STATE, f"{where}._dynamic_car_state")
    motion = (
        *_vector(field(dynamic, "_rear_axle_velocity_2d", where), f"{where}.velocity"),
        *_vector(field(dynamic, "_rear_axle_acceleration_2d", where), f"{where}.acceleration"),
        number(field(ego, "_tire_steering_angle", where), f"{where}._tire_steering_angle"),
        number(field(dynamic, "_tire_steering_rate", where), f"{where}._tire_steering_rate"),
        number(field(dynamic, "_angular_velocity", where), f"{where}._angular_velocity"),
        number(field(dynamic, "_angular_acceleration", where), f"{where}._angular_acceleration"),
    )
    return _Ego(_rear_axle(ego, where), np.array(motion), _time_us(ego, where))


def _normaliser(trajectory: Any, ego: _Ego) -> Float[np.ndarray, "51 3"]:
    """Global rear-axle poses of PDM-Closed, every 0.1 s from the ego's clock on."""
    states = items(args_of(trajectory, official.TRAJECTORY, "trajectory")[0], "trajectory")
    if len(states) != NUM_OBSERVED:
        raise UnfitRecordError(f"trajectory has {len(states)} states instead of {NUM_OBSERVED}")
    poses = np.empty((NUM_OBSERVED, len(Pose)))
    for step, state in enumerate(states):
        where = f"trajectory[{step}]"
        fields = fields_of(state, official.EGO_STATE, where)
        poses[step] = _rear_axle(fields, where)
        late = _time_us(fields, where) - ego.time_us - round(step * STEP_S * 1e6)
        if abs(late) > _CLOCK_TOLERANCE_US:
            raise UnfitRecordError(f"{where} is {late} us off the clock of one state every {STEP_S} s")
    return poses


def _observed(observation: Any) -> tuple[Mapping[str, Any], list[tuple[Sequence[str], Sequence[Any]]]]:
    """Objects by token, and for every step the tokens and box polygons of the objects that are there."""
    fields = fields_of(observation, official.OBSERVATION, "observation")
    objects = field(fields, "_unique_objects", "observation")
    if not isinstance(objects, dict):
        raise UnfitRecordError(f"observation._unique_objects is a {official.title(objects)} instead of a dict")
    maps = items(field(fields, "_occupancy_maps", "observation"), "observation._occupancy_maps")
    interval = number(field(fields, "_sample_interval", "observation"), "observation._sample_interval")
    if len(maps) != NUM_OBSERVED or abs(interval - STEP_S) > 1e-9:
        raise UnfitRecordError(
            f"observation has {len(maps)} steps of {interval} s; scoring needs {NUM_OBSERVED} of {STEP_S} s, from now "
            "to 5.0 s ahead (NAVSIM v2 caches the first 4 s only: use a cache of v1, or make one with cache_metrics)"
        )
    steps = []
    for step, occupied in enumerate(maps):
        where = f"observation[{step}]"
        tokens, polygons, *_ = args_of(occupied, official.OCCUPANCY_MAP, where, least=2)
        steps.append((strings(tokens, f"{where}.tokens"), items(polygons, f"{where}.geometries")))
        if len(tokens) != len(polygons) or len(set(tokens)) != len(tokens):
            raise UnfitRecordError(
                f"{where} has {len(tokens)} tokens, {len(set(tokens))} of them different, for {len(polygons)} polygons"
            )
    return objects, steps


def _agents(observation: Any, origin: Float[np.ndarray, "3"]) -> _Agents:
    objects, observed = _observed(observation)
    columns: dict[str, int] = {}
    steps, tracks, polygons = [], [], []
    for step, (tokens, boxes) in enumerate(observed):
        for token, box in zip(tokens, boxes, strict=True):
            if _RED_LIGHT not in token:
                steps.append(step)
                tracks.append(columns.setdefault(token, len(columns)))
                polygons.append(box)
    missing = [token for token in columns if token not in objects]
    if missing:
        raise UnfitRecordError(f"observation._unique_objects lacks {missing[0]!r}, which is there at some step")
    tracked = [_object(objects[token], f"object {token!r}") for token in columns]
    sizes = np.array([size for size, _, _ in tracked]).reshape(-1, 2)
    poses = np.zeros((NUM_OBSERVED, len(columns), len(Pose)))
    valid = np.zeros((NUM_OBSERVED, len(columns)), dtype=bool)
    poses[steps, tracks] = _box_poses(_parsed(polygons, "observation"), sizes[tracks], origin)
    valid[steps, tracks] = True
    return _Agents(
        poses=poses,
        valid=valid,
        sizes=sizes,
        speeds=np.array([speed for _, speed, _ in tracked], dtype=np.float64),
        types=np.array([kind for _, _, kind in tracked], dtype=np.int8),
    )


def _object(value: Any, where: str) -> tuple[tuple[float, float], float, int]:
    """Length and width, speed and class of an object at its first appearance."""
    static = isinstance(value, Record) and value.class_name == official.STATIC_OBJECT
    fields = fields_of(value, official.STATIC_OBJECT if static else official.AGENT, where)
    box = fields_of(field(fields, "_box", where), official.ORIENTED_BOX, f"{where}._box")
    size = tuple(number(field(box, name, where), f"{where}.{name}") for name in ("_length", "_width"))
    kind = args_of(field(fields, "_tracked_object_type", where), official.OBJECT_TYPE, f"{where}._tracked_object_type")
    code = integer(kind[0], f"{where}._tracked_object_type")
    if not 0 <= code < len(AgentClass):
        raise UnfitRecordError(
            f"{where} has class {code}; known are {', '.join(f'{k.value} {k.name}' for k in AgentClass)}"
        )
    speed = 0.0 if static else math.hypot(*_vector(field(fields, "_velocity", where), f"{where}._velocity"))
    return size, speed, code


def _parsed(polygons: Sequence[Any], where: str) -> np.ndarray:
    """Polygons of their well-known binary form."""
    contents = np.empty(len(polygons), dtype=object)
    for i, polygon in enumerate(polygons):
        old = isinstance(polygon, Record) and polygon.class_name == official.OLD_POLYGON
        content = args_of(polygon, official.OLD_POLYGON if old else official.POLYGON, f"{where}: polygon {i}")[0]
        if type(content) is not bytes or content[:5] not in _POLYGON_HEADERS:
            raise UnfitRecordError(f"{where}: geometry {i} is no polygon in well-known binary form")
        contents[i] = content
    try:
        return shapely.from_wkb(contents)
    except shapely.errors.ShapelyError as error:
        raise UnfitRecordError(f"{where}: a polygon cannot be parsed ({error})") from error


def _box_poses(
    polygons: np.ndarray, sizes: Float[np.ndarray, "K 2"], origin: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "K 3"]:
    """Centre and heading of boxes given by their corners: front left, rear left, rear right, front right.

    Args:
      polygons: K closed rings in global coordinates.
      sizes: Their lengths and widths.
      origin: Of the local frame.
    """
    simple = (shapely.get_num_coordinates(polygons) == _BOX_COORDINATES) & (
        shapely.get_num_interior_rings(polygons) == 0
    )
    if not simple.all():
        raise UnfitRecordError(f"observation: polygon {int(simple.argmin())} is no box of four corners")
    corners = shapely.get_coordinates(polygons).reshape(-1, _BOX_COORDINATES, 2)[:, :-1] - origin[: Pose.HEADING]
    front_left, rear_left, rear_right, front_right = np.moveaxis(corners, 1, 0)
    forward = front_left - rear_left + front_right - rear_right
    measured = np.stack([_norm(front_left - rear_left), _norm(front_left - front_right)], axis=-1)
    fits = (np.abs(measured - sizes) < _BOX_TOLERANCE_M).all(axis=-1)
    if not fits.all():
        first = int(fits.argmin())
        raise UnfitRecordError(
            f"observation: box {first} measures {measured[first].tolist()} m, its object {sizes[first].tolist()} m"
        )
    return np.concatenate([corners.mean(axis=1), np.arctan2(forward[:, 1], forward[:, 0])[:, None]], axis=-1)


def _norm(vectors: Float[np.ndarray, "K 2"]) -> Float[np.ndarray, "K"]:
    return np.hypot(vectors[:, 0], vectors[:, 1])


def _map(drivable: Any, route: frozenset[str]) -> _Map:
    tokens, kinds, polygons, *_ = args_of(drivable, official.DRIVABLE_MAP, "drivable_area_map", least=3)
    tokens = strings(tokens, "drivable_area_map.tokens")
    kinds = items(kinds, "drivable_area_map.map_types")
    polygons = items(polygons, "drivable_area_map.geometries")
    if not len(tokens) == len(kinds) == len(polygons):
        raise UnfitRecordError(
            f"drivable_area_map has {len(tokens)} tokens, {len(kinds)} types and {len(polygons)} polygons"
        )
    codes = [
        integer(args_of(kind, official.MAP_LAYER, f"drivable_area_map.map_types[{i}]")[0], "a map layer")
        for i, kind in enumerate(kinds)
    ]
    unknown = sorted(set(codes) - set(_LAYERS))
    if unknown:
        raise UnfitRecordError(f"drivable_area_map holds layers {unknown}; known are {sorted(_LAYERS)}")
    layers = np.array([_LAYERS[code] for code in codes], dtype=np.int8)
    parsed = _parsed(polygons, "drivable_area_map")
    if (empty := shapely.is_empty(parsed)).any():
        raise UnfitRecordError(f"drivable_area_map: polygon {int(empty.argmax())} is empty")
    coordinates, rings, first_rings = np.zeros((0, 2)), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    if len(parsed):
        _, coordinates, (rings, first_rings) = shapely.to_ragged_array(parsed, include_z=False)
    # Every ring ends with its first vertex once more.
    kept = np.ones(len(coordinates), dtype=bool)
    kept[rings[1:] - 1] = False
    return _Map(
        vertices=coordinates[kept],
        ring_offsets=(rings - np.arange(len(rings))).astype(np.int32),
        polygon_offsets=first_rings.astype(np.int32),
        layers=layers,
        on_route=np.isin(layers, LANE_LAYERS) & np.array([token in route for token in tokens], dtype=bool),
    )
