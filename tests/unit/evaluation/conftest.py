"""Hand-made scenes: a straight two-lane road with a crossing, a few road users and a known future; and PDM scores of
them that say what they are told to say."""

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
from recogdrive.evaluation.agents import Answer
from recogdrive.geometry import from_frame
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.scene import PdmScene, PolygonLayer
from recogdrive.pdm.scores import PdmScores
from recogdrive.pdm.state import NUM_OBSERVED, NUM_STATES, STATE_SIZE, EgoState

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


class TalkingAgent(FixedAgent):
    """Says where it drives, 1 m left of the recorded future; says nothing of use for the tokens named as mumbled."""

    def __init__(self, name: str = "vlm_text", mumbled: tuple[str, ...] = (), failing: tuple[str, ...] = ()):
        super().__init__(name, failing=failing)
        self.mumbled = mumbled
        self.answers: dict[str, Answer] = {}

    def plan(self, scenes) -> np.ndarray:
        planned = super().plan(scenes)
        for i, scene in enumerate(scenes):
            if scene.token in self.mumbled:
                planned[i] = np.nan
                self.answers[scene.token] = Answer("I would rather walk.", None, "no pose in it")
            else:
                self.answers[scene.token] = Answer("As the human did.", planned[i].astype(np.float64))
        return planned


@pytest.fixture
def talking_agent() -> type[TalkingAgent]:
    """An agent that answers in words, some of which state no trajectory."""
    return TalkingAgent


PDM_ORIGIN = np.array([100.0, 50.0, np.pi / 2])
"""Global place of the hand-made PDM scenes' local frame; the scene frame is the global one there."""


def to_local(xy: np.ndarray) -> np.ndarray:
    """Points of the scene frame in the local frame of `pdm_scene`, worked by hand for a quarter turn."""
    return np.stack([xy[..., 1] - 50.0, 100.0 - xy[..., 0]], axis=-1)


@pytest.fixture
def pdm_scene() -> Callable[[Scene], PdmScene]:
    """Makes the PDM scene of a hand-made scene: a road 20 m wide, and three tracks that stand still.

    Track 0 is a car at (20, 0), track 1 a pedestrian at (10, -3) who is first seen at step 5, track 2 a cone at (6, 4);
    places in the scene frame. Scenes whose metadata names a `problem` have none.
    """

    def make(scene: Scene) -> PdmScene:
        if "problem" in scene.metadata:
            raise SceneError(scene.metadata["problem"])
        places = to_local(np.array([[20.0, 0.0], [10.0, -3.0], [6.0, 4.0]]))
        poses = np.concatenate([places, np.full((3, 1), -np.pi / 2)], axis=1)
        seen = np.ones((NUM_OBSERVED, 3), dtype=bool)
        seen[:5, 1] = False
        road = np.array([[-60.0, -10.0], [60.0, -10.0], [60.0, 10.0], [-60.0, 10.0]])
        line = np.array([[-20.0, 0.0], [60.0, 0.0]])
        ahead = np.stack([np.linspace(0.0, 25.0, NUM_OBSERVED), np.zeros(NUM_OBSERVED)], axis=-1)
        state = np.zeros(STATE_SIZE)
        state[:3] = [*to_local(np.zeros(2)), -np.pi / 2]
        return PdmScene(
            token=scene.token,
            log_name=scene.log_name,
            map_name=scene.map_name,
            timestamp_us=scene.timestamp_us,
            origin=from_frame(PDM_ORIGIN, scene.origin),
            ego_state=state,
            agent_poses=np.where(seen[..., None], poses, 0.0),
            agent_valid=seen,
            agent_sizes=np.array([[4.0, 2.0], [0.6, 0.6], [0.4, 0.4]]),
            agent_speeds=np.zeros(3),
            agent_types=np.array([0, 1, 3], dtype=np.int8),
            vertices=to_local(road),
            ring_offsets=np.array([0, 4], dtype=np.int32),
            polygon_offsets=np.array([0, 1], dtype=np.int32),
            polygon_layers=np.array([PolygonLayer.ROADBLOCK], dtype=np.int8),
            polygon_on_route=np.zeros(1, dtype=bool),
            centerline=to_local(line),
            normaliser_poses=np.concatenate([to_local(ahead), np.full((NUM_OBSERVED, 1), -np.pi / 2)], axis=1),
            normaliser_name="expert",
            human_poses=straight_future(5.0),
        )

    return make


def perfect_scores(num_scenes: int, num_trajectories: int) -> PdmScores:
    """Nothing lost: every sub-score 1; the ego stays where it is."""
    shape = (num_scenes, num_trajectories)
    states = np.zeros((*shape, NUM_STATES, STATE_SIZE))
    states[..., :3] = [*to_local(np.zeros(2)), -np.pi / 2]
    never = {f: np.full(shape, -1) for f in PdmScores._fields if f.endswith(("_step", "_track", "_corner"))}
    ones = {name: np.ones(shape) for name in PdmScores._fields[1:8]}
    return PdmScores(
        valid=np.ones(shape, dtype=bool),
        **ones,
        **never,
        progress_m=np.full(shape, 20.0),
        normaliser_progress_m=np.full(num_scenes, 20.0),
        normaliser_factor=np.ones(num_scenes),
        ttc_ahead_steps=np.full(shape, -1),
        oncoming_m=np.zeros(shape),
        comfort_ok=np.ones((*shape, 6), dtype=bool),
        comfort_min=np.full((*shape, 6), -0.5),
        comfort_max=np.full((*shape, 6), 0.5),
        states=states,
        area_flags=np.zeros((*shape, NUM_STATES, 3), dtype=bool),
    )


class TellingScorer:
    """Gives every trajectory full marks but for what it is told; not finite trajectories are invalid.

    Args:
      told: (token, number of the trajectory) -> fields of `PdmScores` and their values; a `driven_m` drives straight
        ahead to there instead of standing still.
      refused: Tokens for which it raises.
    """

    def __init__(
        self, told: Mapping[tuple[str, int], Mapping[str, object]] | None = None, refused: tuple[str, ...] = ()
    ):
        self.told = told or {}
        self.refused = refused
        self.calls: list[tuple[tuple[str, ...], tuple[int, ...]]] = []

    def score(self, scenes, trajectories) -> PdmScores:
        self.calls.append((tuple(scene.token for scene in scenes), trajectories.shape))
        for scene in scenes:
            if scene.token in self.refused:
                raise SceneError(f"Scene {scene.token} has no centre line.")
        scores = perfect_scores(*trajectories.shape[:2])
        for s, scene in enumerate(scenes):
            for g in range(trajectories.shape[1]):
                for name, value in self.told.get((scene.token, g), {}).items():
                    if name == "driven_m":
                        way = np.linspace(0.0, value, NUM_STATES)
                        xy = to_local(np.stack([way, np.zeros(NUM_STATES)], axis=-1))
                        scores.states[s, g, :, :2] = xy
                        scores.states[s, g, :, EgoState.VELOCITY_X] = value / 4.0
                    else:
                        getattr(scores, name)[s, g] = value
                if not np.isfinite(trajectories[s, g]).all():
                    scores.valid[s, g] = False
                    for name in PdmScores._fields[1:8]:
                        getattr(scores, name)[s, g] = np.nan
        return scores


@pytest.fixture
def telling_scorer() -> type[TellingScorer]:
    """A scorer whose answers are known beforehand."""
    return TellingScorer
