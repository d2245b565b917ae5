"""Which polygons of the map hold a point: exact lookups in the grid of `map_index.py`, for many points at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from recogdrive.pdm.map_index import WORD_BITS
from recogdrive.pdm.predicates import exact_orientation, orientation, settle

_ROUNDS_FOR_ALL = 8
"""Listed edges that most cells do not exceed."""
_SHARE_AT_ONCE = 16
_FEW = 64


class MapArrays(NamedTuple):
    """Indices of S scenes as arrays, padded to M cells, N listed edges and W mask words; see `MapIndex`.

    Attributes:
      origin: (S, 2) metres.
      cells_per_m: (S,).
      shape: (S, 2) int32.
      starts: (S, M + 1) int32; unused cells list nothing.
      whole: (S, M, W) uint32.
      edges: (S, N, 4) metres.
      bits: (S, N) int32.
      lane_bits: (S, W) uint32.
      route_bits: (S, W).
      drivable_bits: (S, W).
      intersection_bits: (S, W).
    """

    origin: Float[Array, "S 2"]
    cells_per_m: Float[Array, "S"]
    shape: Int[Array, "S 2"]
    starts: Int[Array, "S M1"]
    whole: UInt32[Array, "S M W"]
    edges: Float[Array, "S N 4"]
    bits: Int[Array, "S N"]
    lane_bits: UInt32[Array, "S W"]
    route_bits: UInt32[Array, "S W"]
    drivable_bits: UInt32[Array, "S W"]
    intersection_bits: UInt32[Array, "S W"]


class _Flat(NamedTuple):
    """What lookups gather from, without the scene axis: one flat position names a cell or an edge of a scene."""

    starts: Int[Array, "SM1"]
    whole: UInt32[Array, "SM W"]
    ends: Float[Array, "SN4"]
    bits: Int[Array, "SN"]


def polygons_at(maps: MapArrays, x: Float[Array, "S K"], y: Float[Array, "S K"]) -> tuple[UInt32[Array, "S K"], ...]:
    """Mask words of the polygons that hold each point, by the rule of shapely's `contains`: borders are outside.

    The answer is exact for the given numbers: where rounding could turn a sign, it is computed without rounding.

    Args:
      maps: Indices of S scenes.
      x: K points of each scene, local frame, metres.
      y: Likewise.

    Returns:
      W arrays of mask words, to be compared with the masks of `maps`.
    """
    num_cells, num_edges = maps.whole.shape[1], maps.edges.shape[1]
    scene = jnp.broadcast_to(jnp.arange(x.shape[0], dtype=jnp.int32)[:, None], x.shape)
    column = jnp.floor((x - maps.origin[:, :1]) * maps.cells_per_m[:, None]).astype(jnp.int32)
    row = jnp.floor((y - maps.origin[:, 1:]) * maps.cells_per_m[:, None]).astype(jnp.int32)
    columns, rows = maps.shape[:, :1], maps.shape[:, 1:]
    on_grid = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    cell = jnp.where(on_grid, row * columns + column, 0)
    flat = _Flat(
        maps.starts.reshape(-1),
        maps.whole.reshape(-1, maps.whole.shape[-1]),
        maps.edges.reshape(-1),
        maps.bits.reshape(-1),
    )
    first = flat.starts[scene * (num_cells + 1) + cell]
    count = jnp.where(on_grid, flat.starts[scene * (num_cells + 1) + cell + 1] - first, 0)
    whole = flat.whole[scene * num_cells + cell]
    inside = tuple(jnp.where(on_grid, whole[..., w], 0) for w in range(whole.shape[-1]))
    first = first + scene * num_edges
    points = _Points(first, count, x, y)
    start = _Found(inside, tuple(jnp.zeros_like(word) for word in inside), jnp.zeros(x.shape, bool))
    # Few cells list many edges: the first rounds serve all points, the rest only those that need more.
    begun = _walk(flat, points, start, 0, jnp.minimum(_ROUNDS_FOR_ALL, jnp.max(count, initial=0)))
    found = settle(
        count > _ROUNDS_FOR_ALL,
        begun,
        lambda chosen: _walk_on(flat, points.at(chosen), begun.at(chosen), _ROUNDS_FOR_ALL),
        at_once=max(_FEW, x.size // _SHARE_AT_ONCE),
    )
    # Where rounding may have turned a sign, everything again without rounding.
    exact = settle(
        found.unsure,
        found,
        lambda chosen: _walk_on(flat, points.at(chosen), start.at(chosen), 0, exact=True),
        at_once=_FEW,
    )
    return tuple(inside & ~border for inside, border in zip(exact.inside, exact.border, strict=True))


class _Points(NamedTuple):
    """Points and the listed edges of their cells: `count` from `first` on."""

    first: Int[Array, "*n"]
    count: Int[Array, "*n"]
    x: Float[Array, "*n"]
    y: Float[Array, "*n"]

    def at(self, chosen: Int[Array, "B"]) -> "_Points":
        """The points at flat positions."""
        return _Points(*(v.reshape(-1)[chosen] for v in self))


class _Found(NamedTuple):
    """What is known of points so far: words of polygons crossed oddly often, touched, and whether a sign is unsure."""

    inside: tuple[UInt32[Array, "*n"], ...]
    border: tuple[UInt32[Array, "*n"], ...]
    unsure: Bool[Array, "*n"]

    def at(self, chosen: Int[Array, "B"]) -> "_Found":
        """What is known of the points at flat positions."""
        return jax.tree.map(lambda v: v.reshape(-1)[chosen], self)


def _walk_on(flat: _Flat, points: _Points, found: _Found, start: int, *, exact: bool = False) -> _Found:
    """The rest of the listed edges, from round `start`."""
    return _walk(flat, points, found, start, jnp.max(points.count, initial=0), exact=exact)


def _walk(
    flat: _Flat, points: _Points, found: _Found, start: int, stop: Int[Array, ""], *, exact: bool = False
) -> _Found:
    """Goes through the edges of every point's cell at once, the k-th of each in round k, for k from start to stop."""
    x, y = points.x, points.y

    def visit(k: Array, found: _Found) -> _Found:
        listed = k < points.count
        edge = jnp.where(listed, points.first + k, 0)
        x0, y0, x1, y1 = (flat.ends[4 * edge + i] for i in range(4))  # Neighbours in memory.
        bit = flat.bits[edge]
        if exact:
            side, certain = exact_orientation((x0, y0), (x1, y1), (x, y)), jnp.ones_like(listed)
        else:
            side, certain = orientation((x0, y0), (x1, y1), (x, y))
        crosses = listed & ((y0 <= y) != (y1 <= y))
        # Left of an edge that goes up, or right of one that goes down: the ray to the right meets it.
        met = crosses & ((side > 0) == (y1 > y0)) & (side != 0)
        alongside = (jnp.minimum(x0, x1) <= x) & (x <= jnp.maximum(x0, x1))
        alongside &= listed & (jnp.minimum(y0, y1) <= y) & (y <= jnp.maximum(y0, y1))
        touches = alongside & (side == 0)
        one = jnp.left_shift(jnp.uint32(1), (bit % WORD_BITS).astype(jnp.uint32))
        words = [jnp.where(bit // WORD_BITS == w, one, 0) for w in range(len(found.inside))]
        return _Found(
            tuple(i ^ jnp.where(met, word, 0) for i, word in zip(found.inside, words, strict=True)),
            tuple(b | jnp.where(touches, word, 0) for b, word in zip(found.border, words, strict=True)),
            found.unsure | ((crosses | alongside) & ~certain),
        )

    return jax.lax.fori_loop(start, stop, visit, found)


def any_of(words: tuple[UInt32[Array, "S *n"], ...], mask: UInt32[Array, "S W"]) -> Bool[Array, "S *n"]:
    """Whether some polygon of the mask is among those of the words."""
    found = jnp.zeros(words[0].shape, bool)
    for w, word in enumerate(words):
        found |= (word & mask[:, w].reshape(-1, *[1] * (word.ndim - 1))) != 0
    return found
