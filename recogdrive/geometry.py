"""SE(2) frames, angle wrapping and oriented boxes, in NumPy float64.

A pose is the last axis `(x, y, heading)`: metres, metres, radians counter-clockwise from the x axis.
In an ego frame x points forward and y to the left; the origin is the rear axle.
"""

from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float


class Pose(IntEnum):
    """Entries of a pose along its last axis."""

    X = 0
    Y = 1
    HEADING = 2


def wrap_angle(angle_rad: np.ndarray | float) -> np.ndarray:
    """Maps angles to [-pi, pi] as `atan2(sin, cos)`, NAVSIM's own form."""
    return np.arctan2(np.sin(angle_rad), np.cos(angle_rad))


def rotate(xy: Float[np.ndarray, "*n 2"], angle_rad: Float[np.ndarray, "*#n"] | float) -> Float[np.ndarray, "*n 2"]:
    """Rotates vectors counter-clockwise by `angle_rad`."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    x, y = xy[..., 0], xy[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def to_frame(poses: Float[np.ndarray, "*n 3"], origin: Float[np.ndarray, "3"]) -> Float[np.ndarray, "*n 3"]:
    """Expresses poses in the frame of `origin`, both given in one parent frame; headings are wrapped.

    Source: NAVSIM `convert_absolute_to_relative_se2_array`.
    """
    poses = np.asarray(poses, dtype=np.float64)
    origin = np.asarray(origin, dtype=np.float64)
    xy = rotate(poses[..., :2] - origin[:2], -origin[Pose.HEADING])
    return np.concatenate([xy, wrap_angle(poses[..., 2:] - origin[Pose.HEADING])], axis=-1)


def from_frame(poses: Float[np.ndarray, "*n 3"], origin: Float[np.ndarray, "3"]) -> Float[np.ndarray, "*n 3"]:
    """Inverse of `to_frame`: poses in the frame of `origin` to its parent frame; headings are wrapped."""
    poses = np.asarray(poses, dtype=np.float64)
    origin = np.asarray(origin, dtype=np.float64)
    xy = rotate(poses[..., :2], origin[Pose.HEADING]) + origin[:2]
    return np.concatenate([xy, wrap_angle(poses[..., 2:] + origin[Pose.HEADING])], axis=-1)


def points_to_frame(xy: Float[np.ndarray, "*n 2"], origin: Float[np.ndarray, "3"]) -> Float[np.ndarray, "*n 2"]:
    """Expresses points in the frame of the pose `origin`; subtracts in float64, as UTM metres need."""
    origin = np.asarray(origin, dtype=np.float64)
    return rotate(np.asarray(xy, dtype=np.float64) - origin[:2], -origin[Pose.HEADING])


def box_corners(
    center: Float[np.ndarray, "*n 3"], length_m: Float[np.ndarray, "*n"], width_m: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n 4 2"]:
    """Corners of boxes given by the pose of their centre: front-left, rear-left, rear-right, front-right."""
    center = np.asarray(center, dtype=np.float64)
    half = np.stack([np.asarray(length_m), np.asarray(width_m)], axis=-1)[..., None, :] / 2
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=np.float64)
    return center[..., None, :2] + rotate(half * signs, center[..., None, Pose.HEADING])


def yaw_of_quaternion(wxyz: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n"]:
    """Yaw in radians of quaternions (w, x, y, z), in the form pyquaternion and hence NAVSIM uses.

    The minus sign differs from the usual ZYX formula; on a sloped road the two differ by about 1e-3 rad,
    so parity needs this one.
    """
    w, x, y, z = np.moveaxis(np.asarray(wxyz, dtype=np.float64) / np.linalg.norm(wxyz, axis=-1, keepdims=True), -1, 0)
    return np.arctan2(2 * (w * z - x * y), 1 - 2 * (y**2 + z**2))


def boxes_contain(
    point_xy: Float[np.ndarray, "2"],
    center: Float[np.ndarray, "*n 3"],
    length_m: Float[np.ndarray, "*n"],
    width_m: Float[np.ndarray, "*n"],
) -> Bool[np.ndarray, "*n"]:
    """Whether each oriented box contains the point, its border included."""
    local = rotate(np.asarray(point_xy) - center[..., :2], -center[..., Pose.HEADING])
    return (np.abs(local[..., 0]) <= np.asarray(length_m) / 2) & (np.abs(local[..., 1]) <= np.asarray(width_m) / 2)
