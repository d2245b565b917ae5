"""What PDM-Closed expects around the ego: objects moving on at constant velocity, red lights on its route.

Source: NAVSIM `PDMObservation.update`, `PDMObjectManager`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int

from recogdrive.data.types import AgentClass, Box, Detections
from recogdrive.geometry import Pose, box_corners, wrap_angle
from recogdrive.pdm.batch import STATIC_CLASSES
from recogdrive.pdm.closed.lane_graph import Lane
from recogdrive.pdm.state import NUM_OBSERVED, STEP_S

RADIUS_M = 100.0
"""Objects further away are not looked at."""
STEPS_PER_MAP = 2
NUM_MAPS = NUM_OBSERVED // STEPS_PER_MAP + 1
RED_LIGHT = "red_light_"

_MOST_AGENTS = {AgentClass.VEHICLE: 50, AgentClass.PEDESTRIAN: 25, AgentClass.BICYCLE: 10}
_MOST_STATIC = 50
# Upstream's occupancy maps have nodes of this size; it decides in which order a query answers.
_NODE_CAPACITY = 10


@dataclass(frozen=True)
class Forecast:
    """Objects near the ego, those that touch it at the start included; N objects, then R red lights.

    Attributes:
      tokens: Of the N + R obstacles: track tokens, then `red_light_<connector>`.
      poses: (N, 3) box centres now.
      sizes: (N, 2) length and width.
      velocities: (N, 2) m/s at which they move on; zero for static ones.
      speeds: (N,) m/s as observed.
      classes: (N,) `AgentClass`.
      static: (N,) whether it cannot move.
      maps: 26 search trees over the outlines of all obstacles at 0, 0.2 ... 5.0 s.
      collided: (N + R,) whether the ego touches it at the start (a red light: lies within it), which is ignored.
    """

    tokens: tuple[str, ...]
    poses: Float[np.ndarray, "N 3"]
    sizes: Float[np.ndarray, "N 2"]
    velocities: Float[np.ndarray, "N 2"]
    speeds: Float[np.ndarray, "N"]
    classes: Int[np.ndarray, "N"]
    static: Bool[np.ndarray, "N"]
    maps: tuple[shapely.STRtree, ...]
    collided: Bool[np.ndarray, "NR"]

    @property
    def num_objects(self) -> int:
        """N."""
        return len(self.poses)

    @property
    def collided_tokens(self) -> frozenset[str]:
        """Of the obstacles that are ignored."""
        return frozenset(token for token, hit in zip(self.tokens, self.collided, strict=True) if hit)

    def agent_poses(self) -> Float[np.ndarray, "51 M 3"]:
        """Poses of the objects that are not ignored at all steps; two steps share a map."""
        kept = ~self.collided[: self.num_objects]
        time_s = STEP_S * (np.arange(NUM_OBSERVED) // STEPS_PER_MAP * STEPS_PER_MAP)
        poses = np.tile(self.poses[kept], (NUM_OBSERVED, 1, 1))
        poses[..., : Pose.HEADING] += time_s[:, None, None] * self.velocities[kept]
        return poses


def forecast(
    detections: Detections,
    center: Float[np.ndarray, "2"],
    footprint: shapely.Polygon,
    red_lights: Sequence[Lane],
    origin: Float[np.ndarray, "2"],
    ignored: frozenset[str] = frozenset(),
) -> Forecast:
    """Predicts what is observed now.

    Args:
      detections: Objects, in the frame of `center`, ordered as the log's classes are.
      center: Centre of the ego's box.
      footprint: The ego's box.
      red_lights: Connectors of the route whose light is red; their outlines are obstacles.
      origin: What to subtract from the red lights' global outlines.
      ignored: Tracks to leave out from the start, and red lights to ignore.
    """
    chosen = _nearest(detections, center, ignored)
    boxes = detections.boxes[chosen].astype(np.float64)
    classes = detections.classes[chosen].astype(np.int8)
    poses = boxes[:, [Box.X, Box.Y, Box.HEADING]]
    speeds = np.hypot(*detections.velocity[chosen].astype(np.float64).T)
    static = np.isin(classes, STATIC_CLASSES)
    velocities = _velocities(poses[:, Pose.HEADING], detections.velocity[chosen], np.where(static, 0.0, speeds))
    corners = box_corners(poses, boxes[:, Box.LENGTH], boxes[:, Box.WIDTH])
    lights = shapely.transform([lane.polygon for lane in red_lights], lambda xy: xy - origin) if red_lights else []
    time_s = STEP_S * STEPS_PER_MAP * np.arange(NUM_MAPS)
    moved = shapely.polygons(corners + time_s[:, None, None, None] * velocities[:, None])
    trees = tuple(shapely.STRtree([*polygons, *lights], node_capacity=_NODE_CAPACITY) for polygons in moved)
    names = [f"{RED_LIGHT}{lane.element.id}" for lane in red_lights]
    passed = [name in ignored or shapely.within(footprint, light) for name, light in zip(names, lights, strict=True)]
    collided = np.concatenate([shapely.intersects(footprint, moved[0]), np.array(passed, dtype=bool)]).astype(bool)
    tokens = [*(detections.track_tokens[i] for i in chosen), *names]
    return Forecast(
        tokens=tuple(tokens),
        poses=poses,
        sizes=boxes[:, [Box.LENGTH, Box.WIDTH]],
        velocities=velocities,
        speeds=speeds,
        classes=classes,
        static=static,
        maps=trees,
        collided=collided,
    )


def _nearest(detections: Detections, center: np.ndarray, ignored: frozenset[str]) -> Int[np.ndarray, "N"]:
    """Rows of the nearest objects: static ones, vehicles, pedestrians, bicycles, each by distance."""
    offset = detections.boxes[:, [Box.X, Box.Y]] - center
    distance = np.hypot(offset[:, 0], offset[:, 1])
    usable = (distance <= RADIUS_M) & ~np.isin(np.array(detections.track_tokens, dtype=object), list(ignored))
    groups = [(np.isin(detections.classes, STATIC_CLASSES), _MOST_STATIC)]
    groups += [(detections.classes == kind, most) for kind, most in _MOST_AGENTS.items()]
    rows = [np.flatnonzero(usable & members) for members, _ in groups]
    return np.concatenate(
        [own[np.argsort(distance[own])][:most] for own, (_, most) in zip(rows, groups, strict=True)]
    ).astype(np.int64)


def _velocities(
    headings: Float[np.ndarray, "N"], observed: Float[np.ndarray, "N 2"], speeds: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "N 2"]:
    """Objects move along their heading at their speed, backwards where the observed velocity points that way."""
    against = np.abs(wrap_angle(headings - np.arctan2(observed[:, 1], observed[:, 0]))) >= np.pi / 2
    direction = np.where(against, wrap_angle(headings + np.pi), headings)
    return speeds[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=-1)
