"""Hand-made scenes: a straight two-lane road with a crossing, a few road users and a known future."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from recogdrive.data.types import (
    FUTURE_FRAMES,
    HISTORY_FRAMES,
    AgentClass,
    Command,
    Detections,
    EgoStatus,
    MapElement,
    MapLayer,
    MapPatch,
    Scene,
)

TIMES_S = 0.5 * np.arange(1, FUTURE_FRAMES + 1)


def straight_future(speed_mps: float, offset_m: float = 0.0) -> np.ndarray:
    """Poses of driving straight ahead at a constant speed, `offset_m` to the left."""
    return np.stack([speed_mps * TIMES_S, np.full(FUTURE_FRAMES, offset_m), np.zeros(FUTURE_FRAMES)], axis=-1)


def _lane(lane_id: str, y: float) -> MapElement:
    x = np.linspace(-60.0, 60.0, 13)
    outline = np.array([[-60.0, y - 1.75], [60.0, y - 1.75], [60.0, y + 1.75], [-60.0, y + 1.75]])
    return MapElement(
        lane_id, MapLayer.LANE, outline, centerline=np.stack([x, np.full_like(x, y), np.zeros_like(x)], axis=-1)
    )


def _map() -> MapPatch:
    square = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
    return MapPatch(
        64.0,
        (
            _lane("1", 0.0),
            _lane("2", 3.5),
            MapElement("3", MapLayer.CROSSWALK, square * 0.4 + [12.0, -2.0]),
            MapElement("4", MapLayer.CARPARK_AREA, np.add(square, [5.0, -20.0]), holes=(square * 0.4 + [8.0, -17.0],)),
            MapElement("5", MapLayer.ROADBLOCK, square * 3),
        ),
    )


def _detections() -> Detections:
    boxes = np.array(
        [
            [15.0, 3.5, 0.0, 4.0, 2.0, 1.5, 0.0],
            [8.0, -6.0, 0.0, 0.6, 0.6, 1.8, np.pi / 2],
            [-5.0, 5.0, 0.0, 0.4, 0.4, 0.8, 0.0],
        ]
    )
    classes = np.array([AgentClass.VEHICLE, AgentClass.PEDESTRIAN, AgentClass.TRAFFIC_CONE], dtype=np.int8)
    return Detections(boxes, classes, np.zeros((3, 2)), ("a", "b", "c"))


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    """Builds a scene that drives straight at `speed_mps`, unless `future` says otherwise."""

    def make(
        number: int = 0,
        *,
        speed_mps: float = 5.0,
        future: np.ndarray | str | None = "straight",
        velocity: tuple[float, float] | None = None,
        log_name: str = "log_a",
        token: str | None = None,
        command: Command = Command.STRAIGHT,
        metadata: Mapping[str, str] | None = None,
    ) -> Scene:
        past = np.arange(-HISTORY_FRAMES + 1, 1) * 0.5 * speed_mps
        ego = EgoStatus(
            poses=np.stack([past, np.zeros(4), np.zeros(4)], axis=-1),
            velocity=np.tile(np.array(velocity or (speed_mps, 0.0), dtype=np.float32), (4, 1)),
            acceleration=np.zeros((4, 2), dtype=np.float32),
            command=np.tile(np.eye(4, dtype=np.float32)[command], (4, 1)),
        )
        return Scene(
            token=token or f"{number:016x}",
            log_name=log_name,
            map_name="test_town",
            timestamp_us=number * 500_000,
            origin=np.zeros(3),
            ego=ego,
            future=straight_future(speed_mps) if isinstance(future, str) else future,
            detections=(_detections(),) * (HISTORY_FRAMES + FUTURE_FRAMES),
            map=_map(),
            metadata=metadata or {},
        )

    return make


class FixedAgent:
    """Plans the recorded future plus a constant offset to the left; NaN for the tokens named as failing."""

    def __init__(self, name: str = "planner", offset_m: float = 1.0, failing: tuple[str, ...] = ()):
        self.name = name
        self.offset_m = offset_m
        self.failing = failing

    def plan(self, scenes) -> np.ndarray:
        planned = np.stack([scene.future[:8] for scene in scenes]).astype(np.float32)
        planned[..., 1] += self.offset_m
        for i, scene in enumerate(scenes):
            if scene.token in self.failing:
                planned[i, 3:] = np.nan
        return planned


@pytest.fixture
def fixed_agent() -> type[FixedAgent]:
    """An agent whose errors are known beforehand."""
    return FixedAgent
