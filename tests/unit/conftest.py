"""Scenes small enough to work out by hand: one to plan in, one to score in."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from recogdrive.data.types import (
    AgentClass,
    Detections,
    EgoStatus,
    MapElement,
    MapLayer,
    MapPatch,
    Scene,
)
from recogdrive.pdm.scene import PdmScene, PolygonLayer


def _detections(x: float, tracks: tuple[str, ...] = ("lead", "walker")) -> Detections:
    """A car ahead that moved to `x`, and a pedestrian standing at (5, -6)."""
    boxes = {
        "lead": [x, 0.0, 0.8, 4.0, 2.0, 1.6, 0.0],
        "walker": [5.0, -6.0, 0.9, 0.6, 0.6, 1.8, np.pi / 2],
    }
    classes = {"lead": AgentClass.VEHICLE, "walker": AgentClass.PEDESTRIAN}
    velocity = {"lead": [6.0, 0.0], "walker": [0.0, 0.0]}
    return Detections(
        boxes=np.array([boxes[t] for t in tracks]).reshape(-1, 7),
        classes=np.array([classes[t] for t in tracks], dtype=np.int8),
        velocity=np.array([velocity[t] for t in tracks]).reshape(-1, 2),
        track_tokens=tracks,
    )


@pytest.fixture
def straight_scene() -> Scene:
    """Ego at 10 m/s on a straight 60 m lane along x, on the route; a lead car 20 m ahead at 6 m/s."""
    x = np.linspace(-20.0, 40.0, 31)
    lane = MapElement(
        id="1",
        layer=MapLayer.LANE,
        polygon=np.array([[-20.0, -1.75], [40.0, -1.75], [40.0, 1.75], [-20.0, 1.75]]),
        centerline=np.stack([x, 0 * x, 0 * x], axis=1),
        speed_limit_mps=12.0,
        roadblock_id="100",
    )
    connector = dataclasses.replace(
        lane,
        id="2",
        layer=MapLayer.LANE_CONNECTOR,
        centerline=np.array([[40.0, 0.0, 0.0], [50.0, 0.0, 0.0]]),
        polygon=None,
        speed_limit_mps=None,
        roadblock_id="200",
        has_traffic_light=True,
    )
    crosswalk = MapElement(
        id="3",
        layer=MapLayer.CROSSWALK,
        polygon=np.array([[41.0, -5.0], [45.0, -5.0], [45.0, 5.0], [41.0, 5.0]]),
    )
    times = np.arange(-3, 1) * 0.5
    poses = np.stack([10.0 * times, 0 * times, 0 * times], axis=1)
    ahead = np.arange(1, 11) * 0.5
    return Scene(
        token="00000000000000aa",
        log_name="log_a",
        map_name="nowhere",
        timestamp_us=1_000_000,
        origin=np.array([3e5, 4.7e6, 0.3]),
        ego=EgoStatus(
            poses=poses,
            velocity=np.tile(np.array([10.0, 0.1], dtype=np.float32), (4, 1)),
            acceleration=np.tile(np.array([-0.5, 0.2], dtype=np.float32), (4, 1)),
            command=np.tile(np.array([0, 1, 0, 0], dtype=np.float32), (4, 1)),
        ),
        future=np.stack([9.0 * ahead, 0.1 * ahead, 0.01 * ahead], axis=1),
        detections=(
            _detections(11.0, ("walker",)),
            _detections(14.0),
            _detections(17.0),
            _detections(20.0),
            *(_detections(20.0 + 6.0 * t) for t in ahead),
        ),
        map=MapPatch(radius_m=100.0, elements=(lane, connector, crosswalk)),
        roadblock_ids=("100",),
        red_light_connectors=frozenset({"2"}),
    )


@pytest.fixture
def road_scene() -> PdmScene:
    """A lane on its roadblock along x, beside it a car park with a hole; a car, and a cone seen from 1 s on."""
    times = np.arange(51) * 0.1
    poses = np.zeros((51, 2, 3), dtype=np.float32)
    poses[:, 0, 0] = 20.0 + 6.0 * times
    poses[10:, 1] = [30.0, -3.0, 0.5]
    valid = np.ones((51, 2), dtype=bool)
    valid[:10, 1] = False
    road = [[-50, -2], [150, -2], [150, 2], [-50, 2]]
    car_park = [[0, 2], [40, 2], [40, 30], [0, 30]]
    hole = [[10, 10], [10, 20], [20, 15]]
    return PdmScene(
        token="road",
        log_name="log",
        map_name="nowhere",
        timestamp_us=1_000_000,
        origin=np.array([3e5, 4.7e6, 0.0]),
        ego_state=np.array([0, 0, 0, 10.0, 0, 0.5, 0, 0, 0, 0, 0]),
        agent_poses=poses,
        agent_valid=valid,
        agent_sizes=np.array([[4.5, 1.9], [0.4, 0.3]], dtype=np.float32),
        agent_speeds=np.array([6.0, 0.0]),
        agent_types=np.array([AgentClass.VEHICLE, AgentClass.TRAFFIC_CONE], dtype=np.int8),
        vertices=np.array([*road, *road, *car_park, *hole], dtype=np.float32),
        ring_offsets=np.array([0, 4, 8, 12, 15], dtype=np.int32),
        polygon_offsets=np.array([0, 1, 2, 4], dtype=np.int32),
        polygon_layers=np.array([PolygonLayer.LANE, PolygonLayer.ROADBLOCK, PolygonLayer.CARPARK_AREA], dtype=np.int8),
        polygon_on_route=np.array([True, False, False]),
        centerline=np.array([[-50, 0], [50, 0], [50, 0], [150, 0]], dtype=np.float32),
        normaliser_poses=np.stack([10 * times, 0 * times, 0 * times], axis=1).astype(np.float32),
        normaliser_name="expert",
        human_poses=np.full((8, 3), np.nan, dtype=np.float32),
    )


@pytest.fixture
def assert_same() -> Callable[[PdmScene, PdmScene], None]:
    """Compares two scenes field by field: values bit for bit, dtypes and shapes."""

    def compare(first: PdmScene, second: PdmScene) -> None:
        for field in dataclasses.fields(first):
            one, other = getattr(first, field.name), getattr(second, field.name)
            assert type(one) is type(other), field.name
            if dataclasses.is_dataclass(one):
                compare(one, other)
            elif isinstance(one, np.ndarray):
                assert (one.dtype, one.shape) == (other.dtype, other.shape), field.name
                assert one.tobytes() == other.tobytes(), field.name
            else:
                assert one == other, field.name

    return compare
