"""Drives the car along poses: tracker and bicycle in turn for 4 s."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from recogdrive.pdm import bicycle, lqr
from recogdrive.pdm.bicycle import Motion
from recogdrive.pdm.state import STATE_SIZE


def simulate(poses: Float[Array, "*n 41 3"], initial_state: Float[Array, "*#n 11"]) -> Float[Array, "*n 41 11"]:
    """States every 0.1 s of a car that starts in `initial_state` and is controlled along `poses`.

    Args:
      poses: Rear-axle poses at 0 ... 4 s to follow, in the frame of the state.
      initial_state: Columns of `EgoState`; returned as the first state, unchanged.

    Source: NAVSIM `PDMSimulator.simulate_proposals`.
    """
    speeds, curvatures = lqr.profiles(poses)
    initial_state = jnp.broadcast_to(initial_state, (*poses.shape[:-2], STATE_SIZE))
    start = Motion(*jnp.moveaxis(initial_state, -1, 0))

    def move(motion: Motion, reference: lqr.Reference) -> tuple[Motion, Motion]:
        acceleration, steering_rate = lqr.commands(
            motion.x, motion.y, motion.heading, motion.velocity_x, motion.steering_angle, reference
        )
        motion = bicycle.step(motion, acceleration, steering_rate)
        return motion, motion

    _, moved = lax.scan(move, start, lqr.references(poses, speeds, curvatures))
    states = jnp.moveaxis(jnp.stack(moved), (0, 1), (-1, -2))
    return jnp.concatenate([initial_state[..., None, :], states], axis=-2)
