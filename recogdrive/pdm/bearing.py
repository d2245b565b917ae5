"""Where a road user is seen from the ego: ahead, behind or to a side."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

_COS_AHEAD = float(np.cos(np.deg2rad(30.0)))
_COS_BEHIND = float(np.cos(np.deg2rad(150.0)))


def ahead_and_behind(
    x: Float[Array, "*n"],
    y: Float[Array, "*n"],
    cos: Float[Array, "*n"],
    sin: Float[Array, "*n"],
    agent_x: Float[Array, "*n"],
    agent_y: Float[Array, "*n"],
) -> tuple[Bool[Array, "*n"], Bool[Array, "*n"]]:
    """Whether agents are within 30 degrees of the ego's heading, and more than 150 degrees from it.

    The reference takes the arccos of a dot product of unit vectors, which is NaN where rounding makes it more than 1 in
    size: such an agent, exactly on the ego's axis, is neither. In float64 the same sum is formed and the quirk kept,
    though the last digit, and so which agents it meets, is the compiler's choice; float32 would round much more often
    that it is left out there.

    Args:
      x: Ego's rear axle, metres.
      y: Likewise.
      cos: Of the ego's heading.
      sin: Likewise.
      agent_x: Agent's centre.
      agent_y: Likewise.

    Source: nuPlan `is_agent_ahead`, `is_agent_behind` in `idm/utils.py`.
    """
    dx, dy = agent_x - x, agent_y - y
    distance = jnp.sqrt(dx * dx + dy * dy)
    dot = sin * (dy / distance) + cos * (dx / distance)
    ahead, behind = dot > _COS_AHEAD, dot < _COS_BEHIND
    if dot.dtype == jnp.float64:
        ahead, behind = ahead & (dot <= 1), behind & (dot >= -1)
    return ahead, behind
