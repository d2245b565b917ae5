"""The kinematic bicycle that the tracker's commands move.

Source: NAVSIM `BatchKinematicBicycleModel`.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from recogdrive.pdm.angles import wrap_half_open
from recogdrive.pdm.state import STEP_S, WHEEL_BASE_M

MAX_STEERING_RAD = math.pi / 3
_ACCELERATION_SHARE = STEP_S / (STEP_S + 0.2)
"""Part of a new acceleration command that acts within one step; its lag is 0.2 s."""
_STEERING_SHARE = STEP_S / (STEP_S + 0.05)
"""The same of a steering rate, of which the old one is always taken as 0; its lag is 0.05 s."""


class Motion(NamedTuple):
    """A state by component, each (*n,): the columns of `EgoState` in their order and units."""

    x: Float[Array, "*n"]
    y: Float[Array, "*n"]
    heading: Float[Array, "*n"]
    velocity_x: Float[Array, "*n"]
    velocity_y: Float[Array, "*n"]
    acceleration_x: Float[Array, "*n"]
    acceleration_y: Float[Array, "*n"]
    steering_angle: Float[Array, "*n"]
    steering_rate: Float[Array, "*n"]
    yaw_rate: Float[Array, "*n"]
    yaw_acceleration: Float[Array, "*n"]


def step(motion: Motion, acceleration: Float[Array, "*n"], steering_rate: Float[Array, "*n"]) -> Motion:
    """Moves the car by 0.1 s of explicit Euler under commands in m/s^2 and rad/s.

    Commands act through first-order lags. The car never slides: velocity and acceleration across it become 0. The
    steering rate is not recomputed where the angle meets its limit, and the speed may become negative.
    """
    acceleration = motion.acceleration_x + _ACCELERATION_SHARE * (acceleration - motion.acceleration_x)
    steering_rate = _STEERING_SHARE * steering_rate
    velocity = motion.velocity_x + STEP_S * acceleration
    steering = jnp.clip(motion.steering_angle + STEP_S * steering_rate, -MAX_STEERING_RAD, MAX_STEERING_RAD)
    turn = motion.velocity_x * jnp.tan(motion.steering_angle) / WHEEL_BASE_M
    yaw_rate = velocity * jnp.tan(steering) / WHEEL_BASE_M
    return Motion(
        x=motion.x + STEP_S * motion.velocity_x * jnp.cos(motion.heading),
        y=motion.y + STEP_S * motion.velocity_x * jnp.sin(motion.heading),
        heading=wrap_half_open(motion.heading + STEP_S * turn),
        velocity_x=velocity,
        velocity_y=jnp.zeros_like(velocity),
        acceleration_x=acceleration,
        acceleration_y=jnp.zeros_like(velocity),
        steering_angle=steering,
        steering_rate=steering_rate,
        yaw_rate=yaw_rate,
        yaw_acceleration=(yaw_rate - motion.yaw_rate) / STEP_S,
    )
