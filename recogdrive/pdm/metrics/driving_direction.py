"""Driving direction compliance: how far the car drives off the route's lanes within a second."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recogdrive.pdm.state import NUM_STATES, STEP_S

COMPLIANT_BELOW_M = 2.0
VIOLATION_FROM_M = 6.0
_WINDOW_STEPS = round(1.0 / STEP_S)


def driving_direction(
    centers: Float[Array, "*n 41 2"], oncoming: Bool[Array, "*n 41"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Score of driving off the route's lanes, and the longest way it was done within a second.

    Args:
      centers: Centres of the car's box, metres.
      oncoming: Whether each lies in no lane of the route.

    Returns:
      1 below 2 m, 0.5 below 6 m, else 0; and that way in metres.

    Source: NAVSIM `PDMScorer._calculate_driving_direction_compliance`.
    """
    steps = jnp.linalg.norm(jnp.diff(centers, axis=-2), axis=-1)
    steps = jnp.pad(steps, [(0, 0)] * (steps.ndim - 1) + [(1, 0)])
    counted = jnp.where(oncoming, steps, 0.0)
    # Steps i - 10 ... i of every i, added up one after the other: no batch size changes the last digit.
    earlier = jnp.pad(counted, [(0, 0)] * (counted.ndim - 1) + [(_WINDOW_STEPS, 0)])
    sums = sum(earlier[..., lag : lag + NUM_STATES] for lag in range(_WINDOW_STEPS + 1))
    worst = sums.max(-1)
    score = jnp.where(worst < COMPLIANT_BELOW_M, 1.0, jnp.where(worst < VIOLATION_FROM_M, 0.5, 0.0))
    return score.astype(centers.dtype), worst
