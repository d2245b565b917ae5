"""Why a trajectory lost points of its PDM score, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from recogdrive.data.types import AgentClass
from recogdrive.pdm.footprint import CORNER_NAMES
from recogdrive.pdm.metrics.comfort import LOWER_BOUNDS, UPPER_BOUNDS
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.scores import PdmScores
from recogdrive.pdm.state import STEP_S

FULL_PROGRESS = 0.995
"""From here on progress reads as 100 %, and is not called a loss."""

OBJECT_NAMES = {
    AgentClass.VEHICLE: "vehicle",
    AgentClass.PEDESTRIAN: "pedestrian",
    AgentClass.BICYCLE: "bicycle",
    AgentClass.TRAFFIC_CONE: "traffic cone",
    AgentClass.BARRIER: "barrier",
    AgentClass.CZONE_SIGN: "construction sign",
    AgentClass.GENERIC_OBJECT: "object",
}


class LossKind(StrEnum):
    """What costs points, the gravest first."""

    COLLISION = "collision"
    OFF_ROAD = "off_road"
    TIME_TO_COLLISION = "time_to_collision"
    COMFORT = "comfort"
    PROGRESS = "progress"
    DIRECTION = "direction"


COMFORT_SIGNALS = (
    ("longitudinal acceleration", "m/s^2"),
    ("lateral acceleration", "m/s^2"),
    ("jerk magnitude", "m/s^3"),
    ("longitudinal jerk", "m/s^3"),
    ("yaw acceleration", "rad/s^2"),
    ("yaw rate", "rad/s"),
)
"""Names and units of what comfort bounds, in the order of `PdmScores.comfort_ok`."""


@dataclass(frozen=True)
class Loss:
    """One thing that cost points.

    Attributes:
      kind: What it concerns.
      text: What happened, as part of a sentence.
    """

    kind: LossKind
    text: str


def losses_of(scene: PdmScene, scores: PdmScores, s: int, g: int) -> tuple[Loss, ...]:
    """What cost trajectory `g` of scene `s` points, gravest first; empty where it lost none or could not be scored."""
    if not scores.valid[s, g]:
        return ()
    found = []
    if scores.no_at_fault_collisions[s, g] < 1:
        hit = object_name(scene, int(scores.collision_track[s, g]))
        found.append(Loss(LossKind.COLLISION, f"hits {hit} {_when(int(scores.collision_step[s, g]))}"))
    if scores.drivable_area_compliance[s, g] < 1:
        corner, when = int(scores.off_road_corner[s, g]), _when(int(scores.off_road_step[s, g]))
        found.append(Loss(LossKind.OFF_ROAD, f"{CORNER_NAMES[corner]} corner off the drivable area {when}"))
    if scores.time_to_collision_within_bound[s, g] < 1:
        step, ahead = int(scores.ttc_step[s, g]), int(scores.ttc_ahead_steps[s, g])
        hit = object_name(scene, int(scores.ttc_track[s, g]))
        text = f"at {step * STEP_S:.1f} s " + (
            f"would hit {hit} {ahead * STEP_S:.1f} s later" if ahead else f"touches {hit}"
        )
        found.append(Loss(LossKind.TIME_TO_COLLISION, f"time to collision: {text}"))
    found += [
        Loss(
            LossKind.COMFORT, _comfort_text(number, scores.comfort_min[s, g, number], scores.comfort_max[s, g, number])
        )
        for number, ok in enumerate(scores.comfort_ok[s, g])
        if not ok
    ]
    # Progress of a trajectory that a collision or the road's edge already took everything from says nothing more.
    multiplied = scores.no_at_fault_collisions[s, g] * scores.drivable_area_compliance[s, g]
    if multiplied > 0 and scores.ego_progress[s, g] < FULL_PROGRESS:
        found.append(Loss(LossKind.PROGRESS, f"{100 * scores.ego_progress[s, g]:.0f} % of the progress"))
    if scores.driving_direction_compliance[s, g] < 1:
        way = f"{scores.oncoming_m[s, g]:.1f} m within 1 s off the route's lanes"
        found.append(Loss(LossKind.DIRECTION, way))
    return tuple(found)


def failed_signals(scores: PdmScores, s: int, g: int) -> str:
    """Names of the comfort signals out of bounds, separated by ", "; empty where all keep within."""
    if not scores.valid[s, g]:
        return ""
    ok = np.asarray(scores.comfort_ok[s, g])
    return ", ".join(name for (name, _), fine in zip(COMFORT_SIGNALS, ok, strict=True) if not fine)


def sentence(losses: Sequence[Loss]) -> str:
    """The losses as one line; empty where there are none."""
    return "; ".join(loss.text for loss in losses)


def object_name(scene: PdmScene, track: int) -> str:
    """What a track is, with its article; raises IndexError for a track that the scene does not have."""
    if not 0 <= track < len(scene.agent_types):
        raise IndexError(f"Scene {scene.token} has {len(scene.agent_types)} tracks; track {track} is none of them.")
    name = OBJECT_NAMES[AgentClass(int(scene.agent_types[track]))]
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _when(step: int) -> str:
    return f"after {step * STEP_S:.1f} s" if step else "from the start"


def _comfort_text(number: int, least: float, largest: float) -> str:
    """The value of a signal that is farthest out of bounds, and the bounds."""
    name, unit = COMFORT_SIGNALS[number]
    lower, upper = LOWER_BOUNDS[number], UPPER_BOUNDS[number]
    value = largest if largest - upper >= lower - least else least
    return f"{name} {value:.2f} {unit} outside {lower:g} ... {upper:g}"
