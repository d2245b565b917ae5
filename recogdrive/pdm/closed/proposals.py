"""The drives PDM-Closed chooses among: three paths, five speeds, each led by the intelligent driver model.

Source: NAVSIM `PDMGenerator`, `BatchIDMPolicy`; Treiber et al. 2000 (the model).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from jaxtyping import Float, Int

from recogdrive.geometry import Pose, box_corners, wrap_angle
from recogdrive.pdm.closed.forecast import STEPS_PER_MAP, Forecast
from recogdrive.pdm.closed.path import Path
from recogdrive.pdm.state import (
    HALF_LENGTH_M,
    HALF_WIDTH_M,
    NUM_OBSERVED,
    NUM_STEPS,
    REAR_AXLE_TO_CENTER_M,
    STEP_S,
)

LATERAL_OFFSETS_M = (0.0, -1.0, 1.0)
"""To the left of the centre line, in upstream's order: none, right, left."""
SPEED_FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the speed limit of the starting lane."""
FALLBACK_SPEED_LIMIT_MPS = 15.0
NUM_PROPOSALS = len(LATERAL_OFFSETS_M) * len(SPEED_FRACTIONS)

_MIN_GAP_M = 1.0
_HEADWAY_S = 1.5
_MOST_ACCELERATION = 1.5
_MOST_DECELERATION = 3.0
_EXPONENT = 10.0
_LEADER_EVERY = 2
"""Steps after which the leading obstacle is looked up again."""

_POSITION, _SPEED, _REAR = range(3)


@dataclass
class Unrolled:
    """Drives along one path, G of them; entries after the last step made are zero.

    Attributes:
      path: What they follow.
      target_speeds: (G,) m/s.
      corridor: Where obstacles matter.
      poses: (G, 51, 3) rear axle.
      progress_m: (G, 51) way travelled on the path.
      speeds: (G, 51) m/s.
      leaders: (G, 51, 3) progress, speed and rear length of what leads; zeros at the first step.
    """

    path: Path
    target_speeds: Float[np.ndarray, "G"]
    corridor: shapely.Polygon
    poses: Float[np.ndarray, "G 51 3"]
    progress_m: Float[np.ndarray, "G 51"]
    speeds: Float[np.ndarray, "G 51"]
    leaders: Float[np.ndarray, "G 51 3"]

    @classmethod
    def start(cls, path: Path, target_speeds: Float[np.ndarray, "G"], ego: np.ndarray, speed_mps: float) -> "Unrolled":
        """Drives that start at the place of the path nearest to the ego.

        Args:
          path: What they follow.
          target_speeds: m/s each.
          ego: Rear-axle pose in the frame of the path.
          speed_mps: The ego's speed along its heading.
        """
        count = len(target_speeds)
        progress = float(path.project(shapely.Point(ego[: Pose.HEADING])))
        reach = progress + abs(float(np.max(target_speeds))) * (NUM_OBSERVED - 1) * STEP_S
        made = cls(
            path=path,
            target_speeds=target_speeds,
            corridor=shapely.buffer(path.part(progress, reach), HALF_WIDTH_M, cap_style="square"),
            poses=np.zeros((count, NUM_OBSERVED, len(Pose))),
            progress_m=np.zeros((count, NUM_OBSERVED)),
            speeds=np.zeros((count, NUM_OBSERVED)),
            leaders=np.zeros((count, NUM_OBSERVED, 3)),
        )
        made.progress_m[:, 0] = progress
        made.speeds[:, 0] = speed_mps
        made.poses[:, 0] = path.interpolate(np.array([progress]))
        return made

    def unroll(self, around: Forecast, chosen: Int[np.ndarray, "K"], steps: range) -> None:
        """Drives some of them on, in place, over consecutive steps of 0.1 s."""
        for step in steps:
            if step % _LEADER_EVERY == 0:
                self.leaders[chosen, step] = self._leaders(around, chosen, step)
            else:
                # Upstream copies at odd steps; the first one copies zeros, so that every drive brakes at once.
                self.leaders[chosen, step] = self.leaders[chosen, step - 1]
            self._drive(chosen, step)
            self.poses[chosen, step] = self.path.interpolate(self.progress_m[chosen, step])

    def _drive(self, chosen: Int[np.ndarray, "K"], step: int) -> None:
        """One Euler step of the intelligent driver model; the speed may become negative, as upstream's."""
        position, speed = self.progress_m[chosen, step - 1], self.speeds[chosen, step - 1]
        leader = self.leaders[chosen, step]
        approach = speed * (speed - leader[:, _SPEED]) / (2 * np.sqrt(_MOST_ACCELERATION * _MOST_DECELERATION))
        wanted = _MIN_GAP_M + speed * _HEADWAY_S + approach
        gap = np.maximum(leader[:, _POSITION] - position - leader[:, _REAR], _MIN_GAP_M)
        free = 1 - (speed / self.target_speeds[chosen]) ** _EXPONENT - (wanted / gap) ** 2
        acceleration = np.clip(_MOST_ACCELERATION * free, -_MOST_DECELERATION, _MOST_ACCELERATION)
        self.progress_m[chosen, step] = position + STEP_S * speed
        self.speeds[chosen, step] = speed + STEP_S * acceleration

    def _leaders(self, around: Forecast, chosen: Int[np.ndarray, "K"], step: int) -> Float[np.ndarray, "K 3"]:
        """What leads each drive: of the obstacles in the corridor ahead the nearest to the box, else the path's end.

        Upstream fills one vector for all drives of a path in turn and does not clear it in between: a red light leaves
        the speed entry, and every obstacle the rear length, as the drive before it left them. Kept, since the
        normaliser's drive depends on it.
        """
        tree = around.maps[step // STEPS_PER_MAP]
        obstacles = tree.query(self.corridor, predicate="intersects")
        obstacles = obstacles[~around.collided[obstacles]]
        outlines = tree.geometries.take(obstacles)
        positions = self.path.project(shapely.centroid(outlines))
        poses = self.poses[chosen, step - 1]
        gaps = (
            shapely.distance(_footprints(poses)[:, None], outlines[None])
            if len(obstacles)
            else np.zeros((len(chosen), 0))
        )
        leaders = np.zeros((len(chosen), 3))
        entry = np.zeros(3)
        for row, own in enumerate(self.progress_m[chosen, step - 1]):
            ahead = np.flatnonzero(positions > own)
            if len(ahead):
                nearest = ahead[np.argmin(gaps[row, ahead])]
                entry[_POSITION] = own + gaps[row, nearest]
                obstacle = obstacles[nearest]
                if obstacle < around.num_objects:
                    entry[_SPEED] = _speed_along(around, obstacle, poses[row, Pose.HEADING])
            else:
                entry[_POSITION], entry[_REAR] = self.path.length_m, HALF_LENGTH_M
            leaders[row] = entry
        return leaders


def _speed_along(around: Forecast, obstacle: int, heading: float) -> float:
    """Speed of an object along a heading; static objects have none."""
    if around.static[obstacle]:
        return 0.0
    relative = wrap_angle(around.poses[obstacle, Pose.HEADING] - heading)
    return float(around.speeds[obstacle] * np.cos(relative))


def _footprints(poses: Float[np.ndarray, "K 3"]) -> np.ndarray:
    """Boxes of egos at rear-axle poses, as polygons."""
    heading = poses[:, Pose.HEADING]
    along = REAR_AXLE_TO_CENTER_M * np.stack([np.cos(heading), np.sin(heading), np.zeros_like(heading)], axis=-1)
    size = np.full(len(poses), 2.0)
    return shapely.polygons(box_corners(poses + along, size * HALF_LENGTH_M, size * HALF_WIDTH_M))


@dataclass(frozen=True)
class Proposals:
    """The 15 drives, by path and then by speed.

    Attributes:
      paths: Five drives each, along the centre line, right and left of it.
    """

    paths: Sequence[Unrolled] = field(repr=False)

    @property
    def poses(self) -> Float[np.ndarray, "15 41 3"]:
        """Rear-axle poses at 0 ... 4 s."""
        return np.concatenate([unrolled.poses for unrolled in self.paths])[:, : NUM_STEPS + 1]

    def finish(self, around: Forecast, winner: int) -> Float[np.ndarray, "51 3"]:
        """Drives the best one on to 5 s; alone, so that its leader's entries are no other drive's."""
        unrolled = self.paths[winner // len(SPEED_FRACTIONS)]
        own = np.array([winner % len(SPEED_FRACTIONS)])
        unrolled.unroll(around, own, range(NUM_STEPS + 1, NUM_OBSERVED))
        return unrolled.poses[own[0]]


def propose(
    centerline: Float[np.ndarray, "C 3"],
    ego: Float[np.ndarray, "3"],
    speed_mps: float,
    speed_limit_mps: float | None,
    around: Forecast,
) -> Proposals:
    """Unrolls the 15 drives for 4 s.

    Args:
      centerline: Poses along the route, in the frame of everything else.
      ego: Rear-axle pose.
      speed_mps: The ego's speed along its heading.
      speed_limit_mps: Of the starting lane; None where the map has none.
      around: What is expected around the ego.
    """
    limit = FALLBACK_SPEED_LIMIT_MPS if speed_limit_mps is None else speed_limit_mps
    targets = np.array(SPEED_FRACTIONS) * limit
    center = Path(centerline)
    paths = []
    for offset in LATERAL_OFFSETS_M:
        unrolled = Unrolled.start(center.offset(offset) if offset else center, targets, ego, speed_mps)
        unrolled.unroll(around, np.arange(len(targets)), range(1, NUM_STEPS + 1))
        paths.append(unrolled)
    return Proposals(paths)
