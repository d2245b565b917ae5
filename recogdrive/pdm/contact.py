"""When the ego first touches each road user: exact overlap tests of oriented boxes over time.

The first contact with a track is all that the metrics need: either it decides, or the track is ignored from then on
(sections 10 and 14 of the algorithm's description).

Boxes overlap if no side separates them. The usual test with half extents decides all pairs but those within rounding
of touching; these are decided by the signs of orientations of their corners, without rounding. Touching counts, as in
shapely's `intersects`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recogdrive.pdm.predicates import exact_orientation, settle
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M, NUM_STATES, STEP_S

PROJECTED_STEPS = (0, 3, 6, 9)
"""Steps that time to collision looks ahead: 0, 0.3, 0.6 and 0.9 s."""
STANDING_MPS = 0.05
"""An ego or a track at most this fast is stopped. Source: nuPlan `is_agent_stopped`, NAVSIM `get_collision_type`."""
NEVER = 2**30
"""First contact of pairs that never touch."""

_PROJECTIONS = len(PROJECTED_STEPS)
# Rounding of a gap in units of eps times the coordinates it is made of: a dozen operations, with room.
_GAP_ROUNDINGS = 64.0


class Boxes(NamedTuple):
    """Oriented boxes by their parts, so that sines and cosines are taken once.

    Attributes:
      x: Centre, metres, local frame.
      y: Likewise.
      cos: Of the heading.
      sin: Likewise.
    """

    x: Float[Array, "*n"]
    y: Float[Array, "*n"]
    cos: Float[Array, "*n"]
    sin: Float[Array, "*n"]


class Agents(NamedTuple):
    """Observed road users of S scenes, A tracks at 51 steps.

    Attributes:
      boxes: (51, S, A) each; absent ones lie farther away than anything can drive.
      half_length: (S, A) metres.
      half_width: (S, A).
      stopped: (S, A) bool, static or at most 0.05 m/s when first seen.
      static: (S, A) bool, not an agent: hitting it counts half.
    """

    boxes: Boxes
    half_length: Float[Array, "S A"]
    half_width: Float[Array, "S A"]
    stopped: Bool[Array, "S A"]
    static: Bool[Array, "S A"]


Corners = tuple[tuple[Float[Array, "*n"], Float[Array, "*n"]], ...]
"""Corners of polygons, each as (x, y)."""


class FirstContacts(NamedTuple):
    """First contact of each trajectory with each track; `NEVER` where there is none.

    Attributes:
      collision: (S, G, A) int32 step of the first contact.
      projected: (S, G, A) int32 index 4 i + f of the first contact of a projected footprint: step i,
        `PROJECTED_STEPS[f]` ahead. Steps at which the ego stands are left out.
    """

    collision: Int[Array, "S G A"]
    projected: Int[Array, "S G A"]


def overlap_gap(
    first: Boxes,
    first_half: tuple[Array | float, Array | float],
    second: Boxes,
    second_half: tuple[Array, Array],
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Largest gap between two boxes along their sides' directions: negative if they overlap, 0 if they touch.

    Args:
      first: Boxes.
      first_half: Half length and half width.
      second: Boxes, broadcast against the first.
      second_half: Likewise.

    Returns:
      The gap in metres, and a bound on its rounding error and on that of the boxes' corners.
    """
    (length, width), (other_length, other_width) = first_half, second_half
    dx, dy = second.x - first.x, second.y - first.y
    cos = jnp.abs(first.cos * second.cos + first.sin * second.sin)
    sin = jnp.abs(first.cos * second.sin - first.sin * second.cos)
    ahead, aside = jnp.abs(dx * first.cos + dy * first.sin), jnp.abs(dy * first.cos - dx * first.sin)
    other_ahead, other_aside = jnp.abs(dx * second.cos + dy * second.sin), jnp.abs(dy * second.cos - dx * second.sin)
    gap = jnp.maximum(
        jnp.maximum(
            ahead - (length + other_length * cos + other_width * sin),
            aside - (width + other_length * sin + other_width * cos),
        ),
        jnp.maximum(
            other_ahead - (other_length + length * cos + width * sin),
            other_aside - (other_width + length * sin + width * cos),
        ),
    )
    scale = jnp.abs(first.x) + jnp.abs(first.y) + ahead + aside + (length + width)
    return gap, _GAP_ROUNDINGS * jnp.finfo(gap.dtype).eps * scale


def corners(boxes: Boxes, half_length: Array | float, half_width: Array | float) -> Corners:
    """Front left, rear left, rear right, front right of boxes: counter-clockwise."""
    along, across = (boxes.cos * half_length, boxes.sin * half_length), (boxes.cos * half_width, boxes.sin * half_width)
    return tuple(
        (boxes.x + a * along[0] - b * across[1], boxes.y + a * along[1] + b * across[0])
        for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    )


def polygons_meet(first: Corners, second: Corners) -> Bool[Array, "*n"]:
    """Whether two convex polygons share a point, decided without rounding; touching counts.

    Args:
      first: Corners counter-clockwise. Two corners make a segment.
      second: Likewise. A polygon without extent in some direction counts as the segment or point it is.
    """
    sides = [
        (a, b, corner)
        for one, other in ((first, second), (second, first))
        for a, b in zip(one, (*one[1:], one[0]), strict=True)
        for corner in other
    ]

    def stacked(which: int, axis: int) -> Array:
        return jnp.stack(jnp.broadcast_arrays(*(side[which][axis] for side in sides)))

    # One call for all pairs of a side and a corner: the program stays small.
    a, b, corner = ((stacked(which, 0), stacked(which, 1)) for which in range(3))
    outside = exact_orientation(a, b, corner) < 0
    of_first, of_second = jnp.split(outside, [len(first) * len(second)])
    separates_first = of_first.reshape(len(first), len(second), *outside.shape[1:]).all(axis=1).any(axis=0)
    separates_second = of_second.reshape(len(second), len(first), *outside.shape[1:]).all(axis=1).any(axis=0)
    # Sides separate all but polygons without extent on one line; these have ranges of x or y that do not overlap.
    return ~(separates_first | separates_second | _ranges_apart(first, second, 0) | _ranges_apart(first, second, 1))


def _ranges_apart(first: Corners, second: Corners, axis: int) -> Bool[Array, "*n"]:
    """Whether two polygons have no x (axis 0) or no y (axis 1) in common."""
    one, other = (jnp.stack(jnp.broadcast_arrays(*(corner[axis] for corner in p))) for p in (first, second))
    return (one.max(axis=0) < other.min(axis=0)) | (other.max(axis=0) < one.min(axis=0))


def first_contacts(
    ego: Boxes, speed: Float[Array, "S G 41"], stands: Bool[Array, "S G 41"], agents: Agents
) -> FirstContacts:
    """First contact of every trajectory with every track, now and projected.

    Args:
      ego: (S, G, 41) centres of the footprints.
      speed: Of the ego, m/s; a projection moves the footprint along its heading by speed x time.
      stands: Steps that time to collision leaves out.
      agents: A tracks of each scene.
    """

    def update(step: Int[Array, ""], firsts: tuple[Array, ...]) -> tuple[Array, ...]:
        sure, maybe, projected_sure, projected_maybe = firsts
        at = _at_step(ego, speed, stands, step)
        for f, ahead in enumerate(PROJECTED_STEPS):
            gap, error = _gap_at(at, agents, step, ahead)
            touches, might = gap < -error, gap <= error
            if f == 0:
                sure = jnp.minimum(sure, jnp.where(touches, step, NEVER))
                maybe = jnp.minimum(maybe, jnp.where(might, step, NEVER))
            index = step * _PROJECTIONS + f
            moves = ~at.stands[..., None]
            projected_sure = jnp.minimum(projected_sure, jnp.where(touches & moves, index, NEVER))
            projected_maybe = jnp.minimum(projected_maybe, jnp.where(might & moves, index, NEVER))
        return sure, maybe, projected_sure, projected_maybe

    shape = (*speed.shape[:2], agents.static.shape[-1])
    none = jnp.full(shape, NEVER, jnp.int32)
    sure, maybe, projected_sure, projected_maybe = jax.lax.fori_loop(0, NUM_STATES, update, (none,) * 4)
    unsure = (sure != maybe) | (projected_sure != projected_maybe)
    return _settled(ego, speed, stands, agents, FirstContacts(sure, projected_sure), unsure)


class _EgoAt(NamedTuple):
    box: Boxes
    speed: Array
    stands: Array


def _at_step(ego: Boxes, speed: Array, stands: Array, step: Array) -> _EgoAt:
    """The egos at one step, (S, G)."""

    def pick(values: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(values, step, axis=2, keepdims=False)

    return _EgoAt(Boxes(*map(pick, ego)), pick(speed), pick(stands))


def _moved(box: Boxes, speed: Array, ahead: int | Array) -> Boxes:
    """Footprints after driving on straight for some steps."""
    way = speed * (ahead * STEP_S)
    return box._replace(x=box.x + way * box.cos, y=box.y + way * box.sin)


def _gap_at(ego: _EgoAt, agents: Agents, step: Array, ahead: int) -> tuple[Array, Array]:
    """Gap between the egos of one step, moved ahead, and the tracks at that later step; (S, G, A)."""
    moved = Boxes(*(v[..., None] for v in _moved(ego.box, ego.speed, ahead)))
    others = Boxes(
        *(jax.lax.dynamic_index_in_dim(v, step + ahead, axis=0, keepdims=False)[:, None] for v in agents.boxes)
    )
    half = (agents.half_length[:, None], agents.half_width[:, None])
    return overlap_gap(moved, (HALF_LENGTH_M, HALF_WIDTH_M), others, half)


def _settled(
    ego: Boxes,
    speed: Array,
    stands: Array,
    agents: Agents,
    contacts: FirstContacts,
    unsure: Bool[Array, "S G A"],
) -> FirstContacts:
    """Decides the pairs whose first contact is within rounding of touching, a few at a time."""

    def decide(chosen: Array) -> FirstContacts:
        scene, trajectory, track = jnp.unravel_index(chosen, unsure.shape)
        pairs = _Pairs(
            Boxes(*(v[scene, trajectory] for v in ego)),
            speed[scene, trajectory],
            stands[scene, trajectory],
            Boxes(*(v[:, scene, track].T for v in agents.boxes)),
            agents.half_length[scene, track],
            agents.half_width[scene, track],
        )
        return _exact_first(pairs)

    return settle(unsure, contacts, decide)


class _Pairs(NamedTuple):
    """B pairs of a trajectory (41 steps) and a track (51 steps)."""

    ego: Boxes
    speed: Array
    stands: Array
    agent: Boxes
    half_length: Array
    half_width: Array


def _exact_first(pairs: _Pairs) -> FirstContacts:
    """First contacts of each pair, both (B,): goes from one possible contact to the next until one is certain."""
    index = jnp.arange(NUM_STATES * _PROJECTIONS)
    step, ahead = index // _PROJECTIONS, jnp.asarray(PROJECTED_STEPS)[index % _PROJECTIONS]
    ego = _moved(Boxes(*(v[:, step] for v in pairs.ego)), pairs.speed[:, step], ahead)
    agent = Boxes(*(v[:, step + ahead] for v in pairs.agent))
    half = (pairs.half_length[:, None], pairs.half_width[:, None])
    gap, error = overlap_gap(ego, (HALF_LENGTH_M, HALF_WIDTH_M), agent, half)
    # Row 0 is the search for a collision, row 1 that for a projected contact.
    counts = jnp.stack([jnp.broadcast_to(ahead == 0, gap.shape), ~pairs.stands[:, step]])
    sure, maybe = counts & (gap < -error), counts & (gap <= error)

    def at(values: Array, where: Array) -> Array:
        return jnp.take_along_axis(jnp.broadcast_to(values, counts.shape), where[..., None], axis=-1)[..., 0]

    def advance(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        first, done = carry
        possible = maybe & (index > first[..., None])
        candidate = jnp.where(possible.any(axis=-1), jnp.argmax(possible, axis=-1), NEVER)
        where = jnp.minimum(candidate, index.size - 1)
        meets = polygons_meet(
            corners(Boxes(*(at(v, where) for v in ego)), HALF_LENGTH_M, HALF_WIDTH_M),
            corners(Boxes(*(at(v, where) for v in agent)), pairs.half_length, pairs.half_width),
        )
        return jnp.where(done, first, candidate), done | (candidate == NEVER) | at(sure, where) | meets

    start = (jnp.full(counts.shape[:2], -1), jnp.zeros(counts.shape[:2], bool))
    (collision, projected), _ = jax.lax.while_loop(lambda carry: ~jnp.all(carry[1]), advance, start)
    collision = jnp.where(collision == NEVER, NEVER, collision // _PROJECTIONS)
    return FirstContacts(collision.astype(jnp.int32), projected.astype(jnp.int32))
