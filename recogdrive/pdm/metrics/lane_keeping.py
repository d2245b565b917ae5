"""Lane keeping: whether the car stays near the centre line of its route."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from recogdrive.pdm.route import distance
from recogdrive.pdm.state import STEP_S

MOST_M = 0.5
"""A centre farther than this from the centre line is off it."""
STEPS_OFF = round(2.0 / STEP_S)
"""That many steps off the line fail."""


def lane_keeping(
    centers: Float[Array, "S G 41 2"],
    in_intersection: Bool[Array, "S G 41"],
    centerline: Float[Array, "S C 2"],
    num_points: Int[Array, "S"],
) -> tuple[Float[Array, "S G"], Int[Array, "S G"]]:
    """Lane keeping: 0 after 20 steps off the centre line without one on it in between, else 1.

    Steps in an intersection do not count, neither way: steps off the line before and after it add up.

    Args:
      centers: Centres of the car's box, metres.
      in_intersection: Whether each lies in an intersection.
      centerline: Padded at its end.
      num_points: How many of its points are real.

    Returns:
      The score; the step that fails, -1 for none.

    Source: NAVSIM v2.2 `PDMScorer._calculate_lane_keeping`.
    """
    scenes, group, steps = in_intersection.shape
    gap = distance(centers.reshape(scenes, group * steps, 2), centerline, num_points)
    off = gap.reshape(scenes, group, steps) > MOST_M
    so_far = jnp.cumsum(off & ~in_intersection, axis=-1, dtype=jnp.int32)
    before_last_return = lax.cummax(jnp.where(off | in_intersection, 0, so_far), axis=2)
    failed = so_far - before_last_return >= STEPS_OFF
    ever = failed.any(axis=-1)
    step = jnp.where(ever, jnp.argmax(failed, axis=-1), -1)
    return jnp.where(ever, 0, 1).astype(centers.dtype), step.astype(jnp.int32)
