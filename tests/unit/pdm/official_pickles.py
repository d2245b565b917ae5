"""Writes metric caches as NAVSIM does, with throw-away classes under the official names.

The classes restore in the ways of the real ones (arguments, attributes or slots); while `official_modules` is open they
can be pickled, afterwards nothing of them is importable. Arrays are named as in the golden metric caches.
"""

import contextlib
import enum
import lzma
import math
import pathlib
import pickle
import sys
import types

import numpy as np
import shapely

ACTOR = "nuplan.common.actor_state."
PDM = "navsim.planning.simulation.planner.pdm_planner."
SIMULATION = "nuplan.planning.simulation."
CACHING = "navsim.planning.metric_caching.metric_cache"
REAR_AXLE_TO_CENTER = 1.461
TYPES = ("VEHICLE", "PEDESTRIAN", "BICYCLE", "TRAFFIC_CONE", "BARRIER", "CZONE_SIGN", "GENERIC_OBJECT", "EGO")
LAYERS = {
    "LANE": 0,
    "INTERSECTION": 1,
    "STOP_LINE": 2,
    "LANE_CONNECTOR": 11,
    "CARPARK_AREA": 15,
    "ROADBLOCK": 17,
}

STATE = (
    f"{CACHING}.MetricCache",
    f"{CACHING}.MapParameters",
    f"{ACTOR}ego_state.EgoState",
    f"{ACTOR}car_footprint.CarFootprint",
    f"{ACTOR}dynamic_car_state.DynamicCarState",
    f"{PDM}observation.pdm_observation.PDMObservation",
    f"{ACTOR}agent.Agent",
    f"{ACTOR}static_object.StaticObject",
    f"{ACTOR}oriented_box.OrientedBox",
    f"{ACTOR}scene_object.SceneObjectMetadata",
    f"{ACTOR}tracked_objects.TrackedObjects",
    f"{SIMULATION}observation.observation_type.DetectionsTracks",
    f"{SIMULATION}trajectory.trajectory_sampling.TrajectorySampling",
    "navsim.common.dataclasses.Trajectory",
    "nuplan.common.actor_state.waypoint.Waypoint",
)
SLOTS = {
    f"{ACTOR}state_representation.StateSE2": ("x", "y", "heading"),
    f"{ACTOR}state_representation.StateVector2D": ("_x", "_y", "_array"),
    f"{ACTOR}state_representation.TimePoint": ("time_us",),
}
CALLED = (
    f"{SIMULATION}trajectory.interpolated_trajectory.InterpolatedTrajectory",
    f"{ACTOR}vehicle_parameters.VehicleParameters",
    f"{PDM}observation.pdm_occupancy_map.PDMOccupancyMap",
    f"{PDM}observation.pdm_occupancy_map.PDMDrivableMap",
    f"{PDM}utils.pdm_path.PDMPath",
)
ENUMS = {
    f"{ACTOR}tracked_objects_types.TrackedObjectType": {name: number for number, name in enumerate(TYPES)},
    "nuplan.common.maps.maps_datatypes.SemanticMapLayer": LAYERS,
    "navsim.common.enums.SceneFrameType": {"ORIGINAL": 0, "SYNTHETIC": 1},
}


class _State:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class _Slots:
    __slots__ = ()

    def __init__(self, *values):
        for name, value in zip(self.__slots__, values, strict=True):
            setattr(self, name, value)


class _Called:
    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return type(self), self.args


def _classes():
    made = {}
    for name in STATE:
        made[name] = type(name.rsplit(".", 1)[1], (_State,), {})
    for name, slots in SLOTS.items():
        made[name] = type(name.rsplit(".", 1)[1], (_Slots,), {"__slots__": slots})
    for name in CALLED:
        made[name] = type(name.rsplit(".", 1)[1], (_Called,), {})
    for name, members in ENUMS.items():
        made[name] = enum.Enum(name.rsplit(".", 1)[1], members)
    for name, made_class in made.items():
        made_class.__module__ = name.rsplit(".", 1)[0]
        made_class.__qualname__ = made_class.__name__
    return made


@contextlib.contextmanager
def official_modules():
    """Registers the classes for as long as the context is open; gives them by their short names."""
    made = _classes()
    added = []
    for name, made_class in made.items():
        parts = name.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            module = ".".join(parts[:depth])
            if module not in sys.modules:
                sys.modules[module] = types.ModuleType(module)
                added.append(module)
        setattr(sys.modules[".".join(parts)], made_class.__name__, made_class)
    try:
        yield types.SimpleNamespace(**{made_class.__name__: made_class for made_class in made.values()})
    finally:
        for module in added:
            del sys.modules[module]


def small_arrays():
    """Two lanes along x, the left one on the route, a car park with a hole; a car, and a cone seen from 1.0 s on.

    The ego drives along at 10 m/s. Everything lies near (331000, 4691000), and is turned by nothing.
    """
    east, north = 331_000.0, 4_691_000.0
    times = np.arange(51) * 0.1
    ego = np.array([east, north, 0, 10.0, 0.1, 0.5, -0.2, 0.01, 0.02, 0.03, 0.04])
    pdm = np.zeros((51, 11))
    pdm[:, 0], pdm[:, 1] = east + 9.0 * times, north
    car, cone = (4.5, 1.9), (0.4, 0.3)
    corners, index, offsets = [], [], [0]
    for step, time in enumerate(times):
        corners.append(_corners(east + 20 + 6 * time, north, 0.0, *car))
        index.append(0)
        if step >= 10:
            corners.append(_corners(east + 30, north - 3, 0.5, *cone))
            index.append(1)
        offsets.append(len(index))
    left, right = _rectangle(-50, -2, 150, 2), _rectangle(-50, -6, 150, -2)
    road, park, hole = _rectangle(-50, -6, 150, 2), _rectangle(0, 2, 40, 30), _rectangle(10, 10, 20, 20)[::-1]
    rings = [road, left, right, park, hole]
    return {
        "token": np.array("a1b2c3d4e5f60718"),
        "ego_state": ego,
        "ego_time_us": np.array(1_000_000),
        "pdm_states": pdm,
        "pdm_time_us": 1_000_000 + 100_000 * np.arange(51),
        "centerline": np.array([[east - 50, north, 0], [east + 50, north, 0], [east + 150, north, 0]]),
        "route_lane_ids": np.array(["11"]),
        "object_tokens": np.array(["car", "cone"]),
        "object_types": np.array(["VEHICLE", "TRAFFIC_CONE"]),
        "object_box": np.array([[east + 20, north, 0, *car, 1.6], [east + 30, north - 3, 0.5, *cone, 0.9]]),
        "object_velocity": np.array([[6.0, 0.0], [np.nan, np.nan]]),
        "obs_offsets": np.array(offsets),
        "obs_object_index": np.array(index),
        "obs_corners": np.array(corners),
        "map_tokens": np.array(["7", "11", "12", "3"]),
        "map_types": np.array([17, 0, 0, 15]),
        "map_vertices": np.concatenate(rings) + np.array([east, north]),
        "map_ring_offsets": np.cumsum([0, *map(len, rings)]),
        "map_polygon_ring_offsets": np.array([0, 1, 2, 3, 5]),
    }


def _corners(x, y, heading, length, width):
    """Front left, rear left, rear right, front right."""
    cos, sin = math.cos(heading), math.sin(heading)
    halves = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length / 2, width / 2]
    return halves @ np.array([[cos, sin], [-sin, cos]]) + [x, y]


def _rectangle(left, bottom, right, top):
    return np.array([[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]], dtype=np.float64)


def cache_of(classes, arrays, *, with_rear_axle=True):
    """A MetricCache of arrays. `with_rear_axle` is whether footprints have cached their rear axle."""
    tokens = arrays["object_tokens"].tolist()
    parameters = classes.VehicleParameters(2.297, 4.049, 1.127, 1.67, 3.089, "pacifica", "gen1", 1.777)

    def ego(state, time_us):
        x, y, heading = map(float, state[:3])
        footprint = classes.CarFootprint(
            _center=classes.StateSE2(
                x + REAR_AXLE_TO_CENTER * math.cos(heading), y + REAR_AXLE_TO_CENTER * math.sin(heading), heading
            ),
            _length=5.176,
            _width=2.297,
            _height=1.777,
            _vehicle_parameters=parameters,
        )
        if with_rear_axle:
            footprint.rear_axle = classes.StateSE2(x, y, heading)
        return classes.EgoState(
            _car_footprint=footprint,
            _tire_steering_angle=float(state[7]),
            _is_in_auto_mode=True,
            _time_point=classes.TimePoint(int(time_us)),
            _dynamic_car_state=classes.DynamicCarState(
                _rear_axle_to_center_dist=REAR_AXLE_TO_CENTER,
                _angular_velocity=float(state[9]),
                _angular_acceleration=float(state[10]),
                _rear_axle_velocity_2d=vector(state[3:5]),
                _rear_axle_acceleration_2d=vector(state[5:7]),
                _tire_steering_rate=np.float64(state[8]),
            ),
        )

    def vector(xy):
        return classes.StateVector2D(float(xy[0]), float(xy[1]), np.array(xy, dtype=np.float64))

    def tracked(index):
        x, y, heading, length, width, height = arrays["object_box"][index].tolist()
        box = classes.OrientedBox(
            _center=classes.StateSE2(x, y, heading),
            _length=length,
            _width=width,
            _height=height,
            geometry=shapely.Polygon(_corners(x, y, heading, length, width)),
        )
        known = {
            "_metadata": classes.SceneObjectMetadata(
                timestamp_us=1, token=tokens[index], track_id=None, track_token=tokens[index], category_name="x"
            ),
            "_tracked_object_type": classes.TrackedObjectType[str(arrays["object_types"][index])],
            "_box": box,
        }
        velocity = arrays["object_velocity"][index]
        if np.isnan(velocity).any():
            return classes.StaticObject(**known, predictions=None, past_trajectory=None, velocity=vector((0.0, 0.0)))
        return classes.Agent(**known, _velocity=vector(velocity), _angular_velocity=None, _predictions=None)

    steps = []
    for first, last in zip(arrays["obs_offsets"][:-1], arrays["obs_offsets"][1:], strict=True):
        present = arrays["obs_object_index"][first:last]
        boxes = [shapely.Polygon(corners) for corners in arrays["obs_corners"][first:last]]
        steps.append(classes.PDMOccupancyMap([tokens[i] for i in present], boxes, 10))
    observation = classes.PDMObservation(
        _sample_interval=0.1,
        _observation_samples=50,
        _map_radius=100,
        _observation_sample_res=1,
        _global_to_local_idcs=list(range(51)),
        _collided_track_ids=[],
        _red_light_token="red_light",
        _occupancy_maps=steps,
        _unique_objects={token: tracked(i) for i, token in enumerate(tokens)},
        _initialized=True,
    )
    return classes.MetricCache(
        file_path=pathlib.PurePosixPath("/somewhere/else/metric_cache.pkl"),
        trajectory=classes.InterpolatedTrajectory(
            [ego(state, time) for state, time in zip(arrays["pdm_states"], arrays["pdm_time_us"], strict=True)]
        ),
        ego_state=ego(arrays["ego_state"], arrays["ego_time_us"]),
        observation=observation,
        centerline=classes.PDMPath([classes.StateSE2(*map(float, point)) for point in arrays["centerline"]]),
        route_lane_ids=arrays["route_lane_ids"].tolist(),
        drivable_area_map=classes.PDMDrivableMap(
            arrays["map_tokens"].tolist(),
            [classes.SemanticMapLayer(int(kind)) for kind in arrays["map_types"]],
            _polygons(arrays),
            10,
        ),
    )


def _polygons(arrays):
    rings = arrays["map_ring_offsets"]
    outlines = [arrays["map_vertices"][rings[i] : rings[i + 1]] for i in range(len(rings) - 1)]
    first = arrays["map_polygon_ring_offsets"]
    return [shapely.Polygon(outlines[first[i]], outlines[first[i] + 1 : first[i + 1]]) for i in range(len(first) - 1)]


def write_cache(root, content, token="a1b2c3d4e5f60718", log_name="2021.06.09_veh-12"):
    """Writes a cache object, or the bytes of its file, to its place under `root`; returns the file."""
    path = root / log_name / "unknown" / token / "metric_cache.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else lzma.compress(pickle.dumps(content, 5), preset=0))
    return path


def write_list(root, paths, name="navtest_metadata_node_0.csv"):
    """Writes a list of paths as NAVSIM does."""
    path = root / "metadata" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in ["file_name", *paths]))
    return path
