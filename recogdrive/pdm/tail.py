"""What a plan does in its last second, where the PDM score hardly looks: does it go back, does it stop.

Source: ReCogDrive issue #23, where planners trained on the PDM score had learnt to.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from recogdrive.geometry import Pose

BACK_M = 0.05
"""A plan that goes back no further is not said to."""
STILL_M = 0.2
"""A plan whose last second is shorter has stopped."""
_INTERVALS = 2
"""Of 0.5 s."""


def reverses(trajectories: Float[Array, "*n 8 3"]) -> Bool[Array, "*n"]:
    """Whether one of the last two intervals goes back, along the car's own heading at its start.

    Args:
      trajectories: x, y, heading at 0.5 ... 4 s in any frame, metres and radians; NumPy or JAX, and so is the result.
    """
    xp = jnp if isinstance(trajectories, jax.Array) else np
    tail = trajectories[..., -_INTERVALS - 1 :, :]
    heading = tail[..., :-1, Pose.HEADING]
    way = tail[..., 1:, :] - tail[..., :-1, :]
    ahead = way[..., Pose.X] * xp.cos(heading) + way[..., Pose.Y] * xp.sin(heading)
    return (ahead < -BACK_M).any(axis=-1)


def stops(trajectories: Float[Array, "*n 8 3"]) -> Bool[Array, "*n"]:
    """Whether the way of the last second, forth and back, is shorter than `STILL_M`.

    Args:
      trajectories: As above.
    """
    xp = jnp if isinstance(trajectories, jax.Array) else np
    tail = trajectories[..., -_INTERVALS - 1 :, :]
    way = tail[..., 1:, :] - tail[..., :-1, :]
    return xp.hypot(way[..., Pose.X], way[..., Pose.Y]).sum(axis=-1) < STILL_M
