"""Angles in radians under jit: wrapped into one turn, and a series of them unwrapped."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_TURN = 2 * math.pi


def wrap_half_open(angle_rad: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Maps angles into [-pi, pi); one that lies there already keeps its bits.

    Source: nuPlan `principal_value`; its `(angle + pi) % (2 pi) - pi` loses the last bits of small angles.
    """
    return angle_rad - _TURN * jnp.floor((angle_rad + math.pi) / _TURN)


def wrap_nearest(angle_rad: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Maps angles into [-pi, pi], away from the ends equal to `atan2(sin, cos)` and much cheaper.

    Source: nuPlan `normalize_angle`.
    """
    return angle_rad - _TURN * jnp.round(angle_rad / _TURN)


def unwrap(angle_rad: Float[Array, "*n T"]) -> Float[Array, "*n T"]:
    """Adds whole turns to a series so that no step exceeds half a turn, as `numpy.unwrap` does.

    The turns are counted as integers: their running sum is exact, also in float32.
    """
    difference = jnp.diff(angle_rad)
    # Half a turn is ambiguous; NumPy keeps the sign of the step.
    turns = jnp.where(jnp.abs(difference) <= math.pi, 0.0, -jnp.round(difference / _TURN))
    steps = angle_rad.shape[-1]
    earlier = jnp.asarray(np.tri(steps, steps - 1, -1), angle_rad.dtype)  # Row i adds up the steps before angle i.
    return angle_rad + _TURN * jnp.einsum("...j,ij->...i", turns, earlier, precision=lax.Precision.HIGHEST)
