"""Where the car's box lies: its centre and its corners."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recogdrive.geometry import Pose
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M, REAR_AXLE_TO_CENTER_M

CORNER_NAMES = ("front left", "rear left", "rear right", "front right")


def centers(poses: Float[Array, "*n P"]) -> Float[Array, "*n 2"]:
    """Centre of the car's box, in metres, for states or poses of the rear axle (x, y, heading come first)."""
    heading = poses[..., Pose.HEADING]
    forward = jnp.stack([jnp.cos(heading), jnp.sin(heading)], axis=-1)
    return poses[..., : Pose.HEADING] + REAR_AXLE_TO_CENTER_M * forward


def corners(poses: Float[Array, "*n P"]) -> Float[Array, "*n 4 2"]:
    """Corners of the car's box in the order of `CORNER_NAMES`, for states or poses of the rear axle.

    Source: NAVSIM `coords_array_to_polygon_array` and `state_array_to_coords_array`.
    """
    heading = poses[..., Pose.HEADING, None]
    cos, sin = jnp.cos(heading), jnp.sin(heading)
    along = jnp.asarray(REAR_AXLE_TO_CENTER_M + HALF_LENGTH_M * np.array([1, -1, -1, 1]), poses.dtype)
    across = jnp.asarray(HALF_WIDTH_M * np.array([1, 1, -1, -1]), poses.dtype)
    return jnp.stack(
        [poses[..., Pose.X, None] + along * cos - across * sin, poses[..., Pose.Y, None] + along * sin + across * cos],
        axis=-1,
    )
