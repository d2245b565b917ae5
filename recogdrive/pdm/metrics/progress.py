"""Ego progress: metres along the centre line, relative to what the normaliser or the trajectory itself achieves."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recogdrive.pdm.route import project

MINIMUM_TOP_M = 5.0
"""Where neither makes more progress than this, any progress is full."""


def raw_progress(
    first: Float[Array, "*s G 2"],
    last: Float[Array, "*s G 2"],
    centerline: Float[Array, "*s C 2"],
    num_points: Int[Array, "*s"],
) -> Float[Array, "*s G"]:
    """Metres along the centre line between the first and the last centre of the car's box; backwards counts as 0.

    Args:
      first: Centres at 0 s.
      last: Centres at 4 s.
      centerline: Padded at its end.
      num_points: How many of its points are real.

    Source: NAVSIM `PDMScorer._calculate_progress`.
    """
    group = first.shape[-2]
    along = project(jnp.concatenate([first, last], axis=-2), centerline, num_points)
    return jnp.maximum(along[..., group:] - along[..., :group], 0.0)


def ego_progress(
    raw: Float[Array, "*n"],
    factor: Float[Array, "*n"],
    normaliser_raw: Float[Array, "*#n"],
    normaliser_factor: Float[Array, "*#n"],
) -> Float[Array, "*n"]:
    """Progress in [0, 1], relative to the better of this trajectory and the normaliser, no other one.

    Args:
      raw: Metres, see `raw_progress`.
      factor: Product of the scores of collisions and drivable area; it scales the progress.
      normaliser_raw: The same of the scene's normaliser.
      normaliser_factor: The same of the scene's normaliser.

    Source: NAVSIM `PDMScorer._aggregate_scores`.
    """
    achieved = raw * factor
    top = jnp.maximum(normaliser_raw * normaliser_factor, achieved)
    enough = top > MINIMUM_TOP_M
    alone = jnp.where(factor == 0, 0.0, 1.0).astype(raw.dtype)
    return jnp.where(enough, achieved / jnp.where(enough, top, 1.0), alone)


def extended_ego_progress(
    raw: Float[Array, "*n"],
    factor: Float[Array, "*n"],
    normaliser_raw: Float[Array, "*#n"],
    normaliser_factor: Float[Array, "*#n"],
) -> Float[Array, "*n"]:
    """Progress in [0, 1] as the extended score has it: factors scale what it is relative to, but not itself.

    Args:
      raw: Metres, see `raw_progress`.
      factor: Product of the multiplied scores.
      normaliser_raw: The same of the scene's normaliser.
      normaliser_factor: The same of the scene's normaliser.

    Source: NAVSIM v2.2 `PDMScorer._aggregate_scores`.
    """
    top = jnp.maximum(normaliser_raw * normaliser_factor, raw * factor)
    enough = top > MINIMUM_TOP_M
    return jnp.where(enough, jnp.clip(raw / jnp.where(enough, top, 1.0), 0.0, 1.0), 1.0)
