"""A scene small enough to work out by hand."""

import dataclasses

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
