"""What can be said about a scene from its map, boxes, lights and trajectories, by rule."""

import numpy as np
from jaxtyping import Float

from recogdrive.data.types import FRAME_INTERVAL_S, PACIFICA, AgentClass, Box, MapLayer, Scene

STOP_MPS = 2.0
"""A plan that is never faster than this is a stop."""
SPEED_CHANGE_MPS = 3.0
ASIDE_M = 4.0
"""A plan that ends less far to the side goes straight."""
TURN_DEG = 5.0
CORRIDOR_M = 1.9
"""Half the width of what counts as straight ahead, about half a lane."""
NEAR_M = 40.0
NEAR_DEG = 40.0
LIGHT_M = 60.0
"""Farther lights are not spoken of."""
_FRONT_M = PACIFICA.rear_axle_to_center_m + PACIFICA.length_m / 2


def plan_of(trajectory: Float[np.ndarray, "T 3"]) -> tuple[str, str]:
    """Speed and path of a plan in words: `STOP`, `KEEP`, `ACCELERATE` or `DECELERATE`; `STRAIGHT`, `LEFT_TURN`, ...

    Args:
      trajectory: Poses every half second from 0.5 s on, in metres and radians.

    Source: upstream's QA pipeline, question on the plan of the next seconds.
    """
    xy = np.round(np.asarray(trajectory, dtype=np.float64)[:, :2], 2)
    speeds = np.hypot(*np.diff(xy, axis=0).T) / FRAME_INTERVAL_S
    if speeds.max() < STOP_MPS:
        speed = "STOP"
    elif abs(speeds[-1] - speeds[0]) >= SPEED_CHANGE_MPS:
        speed = "ACCELERATE" if speeds[-1] > speeds[0] else "DECELERATE"
    else:
        speed = "KEEP"
    x, y = xy[-1]
    angle = np.rad2deg(np.arctan2(x, y)) - 90.0
    path = "STRAIGHT"
    if y > ASIDE_M and angle < TURN_DEG:
        path = "LEFT_TURN" if angle <= -TURN_DEG else "LEFT_CHANGE"
    elif y <= -ASIDE_M and angle > -TURN_DEG:
        path = "RIGHT_TURN" if angle >= TURN_DEG else "RIGHT_CHANGE"
    return speed, path


def gap_ahead_m(scene: Scene) -> float | None:
    """Free road between the ego's front and the nearest vehicle straight ahead within `NEAR_M`; None without one."""
    now = scene.current_detections
    boxes = np.asarray(now.boxes, dtype=np.float64)
    ahead = (boxes[:, Box.X] > _FRONT_M) & (np.abs(boxes[:, Box.Y]) < CORRIDOR_M)
    ahead &= np.asarray(now.classes) == AgentClass.VEHICLE
    if not ahead.any():
        return None
    # Of a vehicle that stands across, half its width is what reaches towards the ego.
    cos, sin = np.abs(np.cos(boxes[:, Box.HEADING])), np.abs(np.sin(boxes[:, Box.HEADING]))
    reach = (boxes[:, Box.LENGTH] * cos + boxes[:, Box.WIDTH] * sin) / 2
    gap = max(0.0, float((boxes[:, Box.X] - reach)[ahead].min()) - _FRONT_M)
    return gap if gap <= NEAR_M else None


def light_ahead(scene: Scene) -> str | None:
    """State of the next light on the route within `LIGHT_M`, "red" or "green"; None without one."""
    route = frozenset(scene.roadblock_ids)
    lights = [
        (float(element.centerline[0, 0]), element.id not in scene.red_light_connectors)
        for element in scene.map.layer(MapLayer.LANE_CONNECTOR)
        if element.has_traffic_light and element.centerline is not None and element.roadblock_id in route
    ]
    # Of connectors that start side by side a red one counts first.
    before = sorted((round(x, 1), is_green) for x, is_green in lights if PACIFICA.rear_axle_to_center_m < x < LIGHT_M)
    if not before:
        return None
    return "green" if before[0][1] else "red"


def pedestrians_ahead(scene: Scene) -> int:
    """Pedestrians within `NEAR_M` and `NEAR_DEG` to either side of straight ahead."""
    now = scene.current_detections
    boxes = np.asarray(now.boxes, dtype=np.float64)
    x, y = boxes[:, Box.X], boxes[:, Box.Y]
    seen = (np.hypot(x, y) <= NEAR_M) & (np.abs(np.rad2deg(np.arctan2(y, x))) <= NEAR_DEG)
    return int(np.count_nonzero(seen & (np.asarray(now.classes) == AgentClass.PEDESTRIAN)))


def recent_speed_mps(history: Float[np.ndarray, "4 3"]) -> float:
    """Mean speed over the last half second of the history."""
    return float(np.hypot(*(history[-1, :2] - history[-2, :2]))) / FRAME_INTERVAL_S
