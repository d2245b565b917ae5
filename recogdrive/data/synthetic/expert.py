"""The ego and its expert driver: where it is at every moment, what it is told to do, and whether it drove well."""

from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float

from recogdrive.data.synthetic.lights import Lights
from recogdrive.data.synthetic.paths import PathTables
from recogdrive.data.synthetic.population import Objects
from recogdrive.data.synthetic.tracking import NUM_STEERED, steered
from recogdrive.data.synthetic.traffic import STEP_S, Motion
from recogdrive.data.types import PACIFICA, Command
from recogdrive.geometry import box_corners, points_to_frame

LOOKAHEAD_M = 20.0
SHIFT_M = 2.0
"""Lateral shift of the centre line from which a command is left or right. Source: OpenScene's driving command."""
OFFSET_DECAY_M = 18.0
"""An ego beside its lane's centre comes back by a factor e over this distance."""
CLEARANCE_M = 0.15
"""Nothing may come closer to the ego than this."""
TRAFFIC_CLEARANCE_M = 0.02
HARDEST_BRAKING_MPS2 = 3.8
"""A drive with harder braking is not an expert's."""
STEERING_CLEARANCE_M = 0.05
"""What the steered car's footprint is grown by, so that a few centimetres more or less do not change what is found."""
PROJECTED_STEPS = (0, 3, 6, 9)
"""How far ahead time to collision looks, in steps. Source: NAVSIM `PDMScorer._calculate_ttc`."""
_COS_BEHIND = float(np.cos(np.deg2rad(150.0)))


@dataclass(frozen=True)
class EgoDrive:
    """The ego at T times, `STEP_S` apart.

    Attributes:
      poses: (T, 3) of the rear axle in the layout's frame, headings not wrapped.
      velocity: (T, 2) m/s in the ego frame of each time; the rear axle does not slip, so the second entry is 0.
      acceleration: (T, 2) m/s^2, likewise; the second entry is the centripetal one.
      s_m: (T,) arc length of the rear axle's projection on its route.
    """

    poses: Float[np.ndarray, "T 3"]
    velocity: Float[np.ndarray, "T 2"]
    acceleration: Float[np.ndarray, "T 2"]
    s_m: Float[np.ndarray, "T"]


def ego_drive(tables: PathTables, path: int, motion: Motion, vehicle: int, offset_m: float) -> EgoDrive:
    """Places a simulated vehicle's rear axle on the plane, at first `offset_m` to the left of its route."""
    s = motion.s_m[:, vehicle]
    center = tables.pose(np.array(path), s)
    curvature = tables.at(tables.curvature, np.array(path), s)
    beside = offset_m * np.exp(-(s - s[0]) / OFFSET_DECAY_M)
    slope = -beside / OFFSET_DECAY_M
    stretch = np.hypot(1 - curvature * beside, slope)
    poses = center + np.stack([-np.sin(center[:, 2]), np.cos(center[:, 2]), np.zeros(len(s))], -1) * beside[:, None]
    poses[:, 2] += np.arctan2(slope, 1 - curvature * beside)
    speed = motion.speed_mps[:, vehicle] * stretch
    yaw_rate = np.gradient(poses[:, 2], STEP_S)
    along = np.gradient(speed, STEP_S)
    still = np.zeros(len(s))
    return EgoDrive(poses, np.stack([speed, still], -1), np.stack([along, speed * yaw_rate], -1), s)


def driving_command(centerline: Float[np.ndarray, "L 3"], position: Float[np.ndarray, "2"]) -> Command:
    """OpenScene's command: where the centre line has gone `LOOKAHEAD_M` ahead of the ego's projection on it.

    Args:
      centerline: Vertices of the route's centre line with headings; a line that ends sooner counts up to its end.
      position: Rear axle, in the same frame.

    Returns LEFT if the line is there at least `SHIFT_M` to the left, in the frame of the line at the projection, RIGHT
    if as far to the right, else STRAIGHT. Source: OpenScene DriveEngine, `driving_command`.
    """
    start, step = centerline[:-1, :2], np.diff(centerline[:, :2], axis=0)
    length = np.hypot(step[:, 0], step[:, 1])
    share = ((position - start) * step).sum(-1) / np.maximum(length, 1e-9) ** 2
    share = np.clip(share, 0.0, 1.0)
    nearest = start + share[:, None] * step
    k = int(np.argmin(((position - nearest) ** 2).sum(-1)))
    along = np.concatenate([[0.0], np.cumsum(length)])
    target_s = along[k] + share[k] * length[k] + LOOKAHEAD_M
    target = np.array([np.interp(target_s, along, centerline[:, axis]) for axis in range(2)])
    shift = points_to_frame(target, np.append(nearest[k], np.arctan2(step[k, 1], step[k, 0])))[1]
    if shift >= SHIFT_M:
        return Command.LEFT
    return Command.RIGHT if shift <= -SHIFT_M else Command.STRAIGHT


def ego_corners(poses: Float[np.ndarray, "T 3"], margin_m: float = 0.0) -> Float[np.ndarray, "T 4 2"]:
    """Corners of the ego's footprint, grown by a margin on all sides, from poses of its rear axle."""
    ahead = PACIFICA.rear_axle_to_center_m * np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], -1)
    center = np.concatenate([poses[:, :2] + ahead, poses[:, 2:]], axis=-1)
    size = np.array([PACIFICA.length_m, PACIFICA.width_m]) + 2 * margin_m
    return box_corners(center, np.full(len(poses), size[0]), np.full(len(poses), size[1]))


def boxes_overlap(first: Float[np.ndarray, "*n 4 2"], second: Float[np.ndarray, "*n 4 2"]) -> np.ndarray:
    """Whether rectangles given by their corners in order overlap, pair by pair (separating axes)."""
    apart = np.zeros(first.shape[:-2], dtype=bool)
    for box in (first, second):
        for k in range(2):
            axis = box[..., k + 1, :] - box[..., k, :]
            a, b = ((corners * axis[..., None, :]).sum(-1) for corners in (first, second))
            apart |= (a.max(-1) < b.min(-1)) | (b.max(-1) < a.min(-1))
    return ~apart


def flaw(
    drive: EgoDrive,
    objects: Objects,
    vehicles: int,
    lights: Lights,
    stop_lines: list[tuple[str, float]],
    drivable: np.ndarray,
    end_m: float,
) -> str | None:
    """Why a drive cannot stand as an expert's, or None.

    Args:
      drive: The ego, over the recorded times.
      objects: Everything else, over the same times; moving vehicles first.
      vehicles: How many of them are moving vehicles: these may touch nothing either.
      lights: Over the same times.
      stop_lines: Connector and arc length of the lights on the ego's route.
      drivable: Prepared shapely polygons one may drive on.
      end_m: Arc length where the route ends.
    """
    if drive.s_m[-1] > end_m - 30.0:
        return "the route ends too early"
    if drive.acceleration[:, 0].min() < -HARDEST_BRAKING_MPS2:
        return "braking too hard"
    front = PACIFICA.length_m / 2 + PACIFICA.rear_axle_to_center_m + drive.s_m
    for connector, at_m in stop_lines:
        crossed = (front[:-1] < at_m) & (front[1:] >= at_m)
        if (crossed & lights.is_red(connector)[:-1]).any():
            return "crossing a red light"
    if _touches(drive, objects):
        return "collision"
    if _traffic_collides(objects, vehicles):
        return "collision of other vehicles"
    corners = ego_corners(drive.poses[::2]).reshape(-1, 2)
    if not shapely.contains_xy(drivable[:, None], corners[None, :, 0], corners[None, :, 1]).any(axis=0).all():
        return "off the drivable area"
    return None


def steered_flaw(drive: EgoDrive, objects: Objects, drivable: np.ndarray, now: int) -> str | None:
    """Why a drive would not score fully, or None: the PDM score judges a car steered along it, not the drive itself.

    As NAVSIM's splits leave out scenes that their human driver fails in.

    Args:
      drive: The ego, from some time until at least 4 s after now.
      objects: Everything else, over the same times and up to 4.9 s after now.
      drivable: Prepared shapely polygons of the score's drivable area.
      now: Index of the current time.
    """
    span = slice(now, now + NUM_STEERED)
    poses, speed = steered(drive.poses[span], drive.velocity[now, 0], drive.acceleration[now, 0])
    corners = ego_corners(poses, STEERING_CLEARANCE_M).reshape(-1, 2)
    if not shapely.contains_xy(drivable[:, None], corners[None, :, 0], corners[None, :, 1]).any(axis=0).all():
        return "off the drivable area when steered"
    ahead = np.array(PROJECTED_STEPS)
    when = now + np.arange(NUM_STEERED)[:, None] + ahead
    direction = np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], -1)
    projected = np.repeat(poses[:, None], len(ahead), axis=1)
    projected[..., :2] += (STEP_S * ahead * speed[:, None])[..., None] * direction[:, None]
    away = objects.poses[when][..., :2] - poses[:, None, None, :2]
    distance = np.linalg.norm(away, axis=-1)
    behind = (away * direction[:, None, None]).sum(-1) < _COS_BEHIND * distance
    center = projected[..., :2] + PACIFICA.rear_axle_to_center_m * direction[:, None]
    near = np.linalg.norm(objects.poses[when][..., :2] - center[:, :, None], axis=-1) < _reach(objects)
    t, p, a = np.nonzero(near & ~behind & objects.present[when])
    other = box_corners(objects.poses[when[t, p], a], objects.size_m[a, 0], objects.size_m[a, 1])
    if boxes_overlap(ego_corners(projected[t, p], STEERING_CLEARANCE_M), other).any():
        return "a collision within a second when steered"
    return None


def _reach(objects: Objects) -> Float[np.ndarray, "A"]:
    """Distance of centres beyond which the ego, grown by `CLEARANCE_M`, cannot touch an object."""
    return (np.hypot(*objects.size_m[:, :2].T) + np.hypot(PACIFICA.length_m, PACIFICA.width_m)) / 2 + 2 * CLEARANCE_M


def _touches(drive: EgoDrive, objects: Objects) -> bool:
    """Whether the ego comes closer to anything than `CLEARANCE_M`."""
    ahead = PACIFICA.rear_axle_to_center_m * np.stack([np.cos(drive.poses[:, 2]), np.sin(drive.poses[:, 2])], -1)
    distance = np.linalg.norm(objects.poses[..., :2] - (drive.poses[:, :2] + ahead)[:, None], axis=-1)
    t, a = np.nonzero((distance < _reach(objects)) & objects.present)
    other = box_corners(objects.poses[t, a], objects.size_m[a, 0], objects.size_m[a, 1])
    return bool(boxes_overlap(ego_corners(drive.poses, CLEARANCE_M)[t], other).any())


def _traffic_collides(objects: Objects, vehicles: int) -> bool:
    """Whether any moving vehicle overlaps another object, looked at every half second."""
    poses, present = objects.poses[::5], objects.present[::5]
    xy = poses[..., :2]
    distance = np.linalg.norm(xy[:, :vehicles, None] - xy[:, None], axis=-1)
    radius = np.hypot(*objects.size_m[:, :2].T) / 2
    near = (distance < radius[:vehicles, None] + radius) & present[:, :vehicles, None] & present[:, None]
    near &= np.arange(vehicles)[:, None] < np.arange(len(radius))
    t, a, b = np.nonzero(near)
    size = objects.size_m + 2 * TRAFFIC_CLEARANCE_M
    first, second = (box_corners(poses[t, k], size[k, 0], size[k, 1]) for k in (a, b))
    return bool(boxes_overlap(first, second).any())
