"""Traffic-light compliance: whether the car is on a lane connector whose light is red."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from recogdrive.pdm.contact import Boxes, corners, polygons_meet
from recogdrive.pdm.predicates import settle
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M

STEPS_PER_FRAME = 5
"""Steps that a light seen in a 2 Hz frame holds."""

# Rounding of a gap in units of eps times the coordinates it is made of: a dozen operations, with room.
_GAP_ROUNDINGS = 64.0


class Lights(NamedTuple):
    """Red lights of S scenes, padded to L lights of V vertices.

    Attributes:
      vertices: (S, L, V, 2) outlines of their lane connectors, metres, filled with copies of the first vertex; those of
        padding lights are out of reach.
      frames: (S, L) int32; bit k is set where the light is red in steps 5 k ... 5 k + 4.
    """

    vertices: Float[Array, "S L V 2"]
    frames: Int[Array, "S L"]


def traffic_light(footprint: Boxes, lights: Lights) -> tuple[Float[Array, "S G"], Int[Array, "S G"], Int[Array, "S G"]]:
    """Traffic-light compliance: 0 where the car's box ever meets an outline whose light is red, else 1.

    Touching counts, and it is no excuse to have been there before.

    Args:
      footprint: (S, G, 41) centres of the car's box.
      lights: Red lights.

    Returns:
      The score; the first step on a red connector, -1 for none; which light, the first of several.

    Source: NAVSIM v2.2 `PDMScorer._calculate_traffic_light_compliance`.
    """
    frame = jnp.arange(footprint.x.shape[-1]) // STEPS_PER_FRAME
    red = (lights.frames[..., None] >> frame & 1).astype(bool)  # (S, L, 41)
    red = jnp.moveaxis(red, -1, 1)[:, None]  # (S, 1, 41, L)
    on_red = red & (_meets_outline(footprint, lights.vertices, red) | _inside(footprint, lights.vertices))
    on_red = lax.optimization_barrier(on_red)  # As in `_meets_outline`.
    ever = on_red.any(axis=(-2, -1))
    step = jnp.argmax(on_red.any(axis=-1), axis=-1)
    at_step = jnp.take_along_axis(on_red, step[..., None, None], axis=2)[..., 0, :]
    light = jnp.argmax(at_step, axis=-1)
    return (
        jnp.where(ever, 0, 1).astype(footprint.x.dtype),
        jnp.where(ever, step, -1).astype(jnp.int32),
        jnp.where(ever, light, -1).astype(jnp.int32),
    )


def _meets_outline(
    footprint: Boxes, vertices: Float[Array, "S L V 2"], asked: Bool[Array, "S #G 41 L"]
) -> Bool[Array, "S G 41 L"]:
    """Whether boxes meet some side of each outline; exact where it is asked for."""
    ends = vertices, jnp.roll(vertices, -1, axis=2)
    gap = _gap_to_sides(footprint, *ends)
    reach = jnp.abs(vertices).sum(axis=-1).max(axis=-1)[:, None, None]
    scale = (jnp.abs(footprint.x) + jnp.abs(footprint.y))[..., None] + reach
    # All sides are done with before anything looks at the result, or they would be gone through once for each look.
    gap = lax.optimization_barrier(gap)
    unsure = (jnp.abs(gap) <= _GAP_ROUNDINGS * jnp.finfo(gap.dtype).eps * scale) & asked

    def decide(chosen: Array) -> Array:
        scene, trajectory, step, light = jnp.unravel_index(chosen, unsure.shape)
        box = Boxes(*(v[scene, trajectory, step][..., None] for v in footprint))
        sides = tuple((end[scene, light, :, 0], end[scene, light, :, 1]) for end in ends)
        return polygons_meet(corners(box, HALF_LENGTH_M, HALF_WIDTH_M), sides).any(axis=-1)

    return settle(unsure, gap < 0, decide)


def _gap_to_sides(
    footprint: Boxes, start: Float[Array, "S L V 2"], end: Float[Array, "S L V 2"]
) -> Float[Array, "S G 41 L"]:
    """Largest gap along the directions that can separate a box from a side, the least of all sides; metres."""
    way, middle = end - start, (start + end) / 2
    length = jnp.hypot(way[..., 0], way[..., 1])
    is_point = length == 0  # Where outlines are filled up.
    divisor = jnp.where(is_point, 1.0, length)
    cos, sin = jnp.where(is_point, 1.0, way[..., 0] / divisor), way[..., 1] / divisor
    cos, sin, half, x, y = (v[:, None, None] for v in (cos, sin, length / 2, middle[..., 0], middle[..., 1]))
    box = Boxes(*(v[..., None, None] for v in footprint))
    dx, dy = x - box.x, y - box.y  # (S, G, 41, L, V)
    along, across = jnp.abs(box.cos * cos + box.sin * sin), jnp.abs(box.cos * sin - box.sin * cos)
    gap = jnp.maximum(
        jnp.abs(dx * box.cos + dy * box.sin) - (HALF_LENGTH_M + half * along),
        jnp.abs(dy * box.cos - dx * box.sin) - (HALF_WIDTH_M + half * across),
    )
    gap = jnp.maximum(gap, jnp.abs(dy * cos - dx * sin) - (HALF_LENGTH_M * across + HALF_WIDTH_M * along))
    return gap.min(axis=-1)


def _inside(footprint: Boxes, vertices: Float[Array, "S L V 2"]) -> Bool[Array, "S G 41 L"]:
    """Whether each centre is inside of each outline, by the even-odd rule; exact for boxes that meet no side."""
    x0, y0 = (v[:, None, None] for v in jnp.moveaxis(vertices, -1, 0))  # (S, 1, 1, L, V)
    x1, y1 = (jnp.roll(v, -1, axis=-1) for v in (x0, y0))
    x, y = footprint.x[..., None, None], footprint.y[..., None, None]
    crosses = (y0 <= y) != (y1 <= y)
    left = (x1 - x0) * (y - y0) > (x - x0) * (y1 - y0)
    return (jnp.sum(crosses & (left == (y1 > y0)), axis=-1) % 2).astype(bool)
