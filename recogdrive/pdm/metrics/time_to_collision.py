"""Time to collision: whether driving straight on would hit someone within 0.9 s."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recogdrive.pdm.bearing import ahead_and_behind
from recogdrive.pdm.contact import NEVER, PROJECTED_STEPS, Agents
from recogdrive.pdm.metrics.collision import EgoMotion, agents_at, first_of
from recogdrive.pdm.metrics.drivable_area import Areas

STANDING_MPS = 0.005
"""An ego slower than this is not projected. Source: NAVSIM `PDMScorerConfig.stopped_speed_threshold`."""


def time_to_collision(
    ego: EgoMotion, agents: Agents, areas: Areas, contact: Int[Array, "S G A"]
) -> tuple[Float[Array, "S G"], Int[Array, "S G"], Int[Array, "S G"], Int[Array, "S G"]]:
    """Time to collision within bound: 0 after a violation, else 1.

    The first projected contact with a track decides: it is a violation if the track is ahead, or if it is not behind
    and the ego is between lanes, off the road or in an intersection.

    Args:
      ego: The egos.
      agents: The tracks.
      areas: Where the egos are.
      contact: First projected contact as `FirstContacts.projected`.

    Returns:
      The score; the step of the first violation, -1 for none; how many steps ahead it lies; the track, the first of
      several.

    Source: NAVSIM `PDMScorer._calculate_ttc`.
    """
    touched = contact != NEVER
    index = jnp.where(touched, contact, 0)
    step = index // len(PROJECTED_STEPS)
    ahead_steps = jnp.asarray(PROJECTED_STEPS, jnp.int32)[index % len(PROJECTED_STEPS)]

    def at(values: Array) -> Array:
        return jnp.take_along_axis(values, step, axis=2)

    agent = agents_at(agents, step + ahead_steps)
    ahead, behind = ahead_and_behind(
        at(ego.rear_x), at(ego.rear_y), at(ego.footprint.cos), at(ego.footprint.sin), agent.x, agent.y
    )
    astray = at(areas.several_lanes | areas.off_road | areas.intersection)
    violates = touched & (ahead | (astray & ~behind))
    first, track = first_of(jnp.where(violates, contact, NEVER))
    any_violation = first >= 0
    return (
        jnp.where(any_violation, 0, 1).astype(ego.speed.dtype),
        jnp.where(any_violation, first // len(PROJECTED_STEPS), -1),
        jnp.where(any_violation, jnp.asarray(PROJECTED_STEPS, jnp.int32)[first % len(PROJECTED_STEPS)], -1),
        track,
    )
