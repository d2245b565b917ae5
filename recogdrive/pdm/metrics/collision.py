"""No at-fault collision: whether the ego causes a contact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recogdrive.pdm.bearing import ahead_and_behind
from recogdrive.pdm.contact import NEVER, STANDING_MPS, Agents, Boxes, corners, overlap_gap, polygons_meet
from recogdrive.pdm.footprint import centers
from recogdrive.pdm.metrics.drivable_area import Areas
from recogdrive.pdm.predicates import settle
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M, EgoState


class EgoMotion(NamedTuple):
    """Simulated egos, (S, G, 41) each; local frame, metres, m/s.

    Attributes:
      rear_x: Rear axle.
      rear_y: Likewise.
      footprint: Centre of the box.
      speed: Length of the velocity, never negative.
    """

    rear_x: Float[Array, "S G 41"]
    rear_y: Float[Array, "S G 41"]
    footprint: Boxes
    speed: Float[Array, "S G 41"]


def ego_motion(states: Float[Array, "S G 41 11"]) -> EgoMotion:
    """What metrics of contacts need of simulated states, see `EgoState`."""
    center, heading = centers(states), states[..., EgoState.HEADING]
    return EgoMotion(
        rear_x=states[..., EgoState.X],
        rear_y=states[..., EgoState.Y],
        footprint=Boxes(center[..., 0], center[..., 1], jnp.cos(heading), jnp.sin(heading)),
        speed=jnp.hypot(states[..., EgoState.VELOCITY_X], states[..., EgoState.VELOCITY_Y]),
    )


def collisions(
    ego: EgoMotion, agents: Agents, areas: Areas, contact: Int[Array, "S G A"]
) -> tuple[Float[Array, "S G"], Int[Array, "S G"], Int[Array, "S G"]]:
    """No at-fault collision: 1, 0.5 after hitting a static object, 0 after hitting a vehicle, pedestrian or bicycle.

    The first contact with a track decides. First match wins: a stopped ego is not at fault; hitting a stopped track
    is; being hit from behind is not; a contact of the front side is; any other is where the ego is between lanes or
    off the road.

    Args:
      ego: The egos.
      agents: The tracks.
      areas: Where the egos are.
      contact: Step of the first contact, `NEVER` for none.

    Returns:
      The score; the step of the first at-fault collision, -1 for none; the track, the first of several.

    Source: NAVSIM `PDMScorer._calculate_no_at_fault_collision`, `get_collision_type`.
    """
    touched = contact != NEVER
    step = jnp.where(touched, contact, 0)

    def at(values: Array) -> Array:
        return jnp.take_along_axis(values, step, axis=2)

    agent = agents_at(agents, step)
    cos, sin = at(ego.footprint.cos), at(ego.footprint.sin)
    _, behind = ahead_and_behind(at(ego.rear_x), at(ego.rear_y), cos, sin, agent.x, agent.y)
    footprint = Boxes(at(ego.footprint.x), at(ego.footprint.y), cos, sin)
    front = _front_meets(footprint, agent, agents, touched)
    astray = at(areas.several_lanes | areas.off_road)
    # Whole numbers behind a barrier are arrays of their own. Were `speed` read here, where tracks are last, and in the
    # loop of `first_contacts`, where steps are first, then the TPU's compiler would never settle on one layout of it.
    moving = at(jax.lax.optimization_barrier((ego.speed > STANDING_MPS).astype(jnp.int32))) == 1
    at_fault = touched & moving & (agents.stopped[:, None] | (~behind & (front | astray)))

    costs = jnp.where(agents.static, 0.5, 0.0).astype(ego.speed.dtype)[:, None]
    score = jnp.min(jnp.where(at_fault, costs, 1), axis=-1, initial=1)
    return score, *first_of(jnp.where(at_fault, contact, NEVER))


def agents_at(agents: Agents, step: Int[Array, "S G A"]) -> Boxes:
    """Every track at a step of its own for each trajectory, (S, G, A)."""
    scene = jnp.arange(step.shape[0])[:, None, None]
    track = jnp.arange(step.shape[2])[None, None]
    return Boxes(*(values[step, scene, track] for values in agents.boxes))


def first_of(when: Int[Array, "S G A"]) -> tuple[Int[Array, "S G"], Int[Array, "S G"]]:
    """Smallest number over the tracks and the first track that has it; -1 for both where all are `NEVER`."""
    if when.shape[-1] == 0:
        none = jnp.full(when.shape[:-1], -1, jnp.int32)
        return none, none
    track = jnp.argmin(when, axis=-1)
    least = jnp.min(when, axis=-1)
    return (
        jnp.where(least == NEVER, -1, least).astype(jnp.int32),
        jnp.where(least == NEVER, -1, track).astype(jnp.int32),
    )


def _front_meets(footprint: Boxes, agent: Boxes, agents: Agents, touched: Bool[Array, "S G A"]) -> Array:
    """Whether the segment between the front corners meets the track's box; touching counts."""
    front = footprint._replace(
        x=footprint.x + HALF_LENGTH_M * footprint.cos, y=footprint.y + HALF_LENGTH_M * footprint.sin
    )
    half = [jnp.broadcast_to(h[:, None], touched.shape) for h in (agents.half_length, agents.half_width)]
    gap, error = overlap_gap(front, (0.0, HALF_WIDTH_M), agent, half)

    def decide(chosen: Array) -> Array:
        ego, other = (Boxes(*(v.reshape(-1)[chosen] for v in boxes)) for boxes in (footprint, agent))
        front_left, _, _, front_right = corners(ego, HALF_LENGTH_M, HALF_WIDTH_M)
        length, width = (h.reshape(-1)[chosen] for h in half)
        return polygons_meet((front_left, front_right), corners(other, length, width))

    return settle(touched & (jnp.abs(gap) <= error), gap < 0, decide)
