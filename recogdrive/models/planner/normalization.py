"""Maps trajectories between physical units and the planner's range of about [-1, 1]."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

OFFSET = np.array([1.57, 19.68, 1.67], dtype=np.float32)
"""Metres, metres, radians. Source: upstream `norm_odo`."""
SPAN = np.array([66.74, 42.0, 3.53], dtype=np.float32)


def normalize(trajectory: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Poses (metres, metres, radians) to normalised ones; values beyond the range are not clipped."""
    return 2 * (jnp.asarray(trajectory) + OFFSET) / SPAN - 1


def denormalize(normalized: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Inverse of `normalize`."""
    return (jnp.asarray(normalized) + 1) / 2 * SPAN - OFFSET
