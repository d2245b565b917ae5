"""A grid over the polygons of a scene that makes exact point-in-polygon tests cheap.

Every cell knows which polygons hold the whole of it and lists the few edges that decide for the others. The rule is
even-odd along a ray to the right. A cell need not list what lies right of it: between two heights a chain of edges is
crossed an odd number of times however it runs, so only the heights of its ends matter. Where such a chain ends inside
the row of the cell, an upright edge far to the right stands for it.

Polygons are numbered by bits of a mask, so that one lookup answers for all of them. Two polygons share a bit only if
no cell, and for lanes no footprint, can meet both.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from recogdrive.pdm.scene import DRIVABLE_LAYERS, LANE_LAYERS, PdmScene, PolygonLayer
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M

CELL_M = 2.0
"""Smallest side of a cell: about the length of a map edge, so that a cell lists two or three edges on average."""
MAX_CELLS = 40_000
"""Larger maps have larger cells, so that the grid of a scene stays below half a megabyte."""
WORD_BITS = 32
# A point is looked up in the cell of its rounded coordinates; cells answer for points this much outside of them.
_MARGIN = 1e-3
_FAR_M = 1e6
_FOOTPRINT_REACH_M = 2 * float(np.hypot(HALF_LENGTH_M, HALF_WIDTH_M)) + 0.1


@dataclass(frozen=True)
class MapIndex:
    """Point-in-polygon index of one scene; (nx, ny) cells, N edges listed in cells, W mask words.

    Attributes:
      origin: (2,) corner of the grid with the least x and y, in metres, local frame.
      cell_m: Side of a cell.
      shape: (2,) cells along x and y; no polygon reaches beyond the grid.
      starts: (nx * ny + 1,) int32; cell iy * nx + ix lists the edges `starts[cell]:starts[cell + 1]`.
      whole: (nx * ny, W) uint32 polygons that hold a point of the cell if it crosses none of the listed edges.
      edges: (N, 4) float64 x, y of both ends.
      bits: (N,) int32 bit of the polygon that the edge bounds.
      lane_bits: (W,) uint32 bits of lanes and lane connectors.
      route_bits: (W,) of those on the route.
      drivable_bits: (W,) of polygons one may drive on.
      intersection_bits: (W,) of intersections, which are among them.
    """

    origin: Float[np.ndarray, "2"]
    cell_m: float
    shape: Int[np.ndarray, "2"]
    starts: Int[np.ndarray, "M1"]
    whole: UInt32[np.ndarray, "M W"]
    edges: Float[np.ndarray, "N 4"]
    bits: Int[np.ndarray, "N"]
    lane_bits: UInt32[np.ndarray, "W"]
    route_bits: UInt32[np.ndarray, "W"]
    drivable_bits: UInt32[np.ndarray, "W"]
    intersection_bits: UInt32[np.ndarray, "W"]


def build_map_index(scene: PdmScene, cell_m: float | None = None) -> MapIndex:
    """Index of a scene's polygons.

    Args:
      scene: A valid scene.
      cell_m: Side of a cell; by default `CELL_M`, more for a map of more than `MAX_CELLS` cells.
    """
    vertices = np.asarray(scene.vertices, dtype=np.float64)
    if not len(vertices):
        vertices, low, high = np.zeros((0, 2)), np.zeros(2), np.zeros(2)
    else:
        low, high = vertices.min(axis=0), vertices.max(axis=0)
    if cell_m is None:
        cell_m = max(CELL_M, float(np.sqrt(np.prod(high - low + CELL_M) / MAX_CELLS)))
    origin = low - 2 * _MARGIN * cell_m
    shape = np.maximum(np.ceil((high - origin) / cell_m + 2 * _MARGIN).astype(np.int64), 1)

    start, end, polygon = _edges(scene, vertices)
    bit, masks = _bits(scene, start, polygon, cell_m)
    words = len(masks[0])
    grid = _Grid(origin, cell_m, shape)
    strips = grid.strips(start, end)
    cell, edge = grid.touched(strips)
    toggles, far_cell, far_height, far_polygon = grid.beyond(strips, start, end, polygon)

    whole = np.zeros((*shape[::-1], words), dtype=np.uint32)
    row, column, of_polygon = toggles
    np.bitwise_xor.at(whole, (row, column, bit[of_polygon] // WORD_BITS), _one_bit(bit[of_polygon]))
    whole = np.bitwise_xor.accumulate(whole, axis=1)

    upright = np.stack([np.full_like(far_height, _FAR_M), far_height, *np.full((2, len(far_height)), _FAR_M)], axis=-1)
    all_cells = np.concatenate([cell, far_cell])
    order = np.argsort(all_cells, kind="stable")
    counts = np.bincount(all_cells, minlength=int(shape.prod()))
    return MapIndex(
        origin=origin,
        cell_m=cell_m,
        shape=shape,
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        whole=whole.reshape(-1, words),
        edges=np.concatenate([np.concatenate([start[edge], end[edge]], axis=-1), upright])[order],
        bits=np.concatenate([bit[polygon[edge]], bit[far_polygon]])[order].astype(np.int32),
        lane_bits=masks[0],
        route_bits=masks[1],
        drivable_bits=masks[2],
        intersection_bits=masks[3],
    )


def _edges(scene: PdmScene, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ends of every edge, rings closed, and its polygon."""
    ring_offsets = np.asarray(scene.ring_offsets, dtype=np.int64)
    following = np.arange(1, len(vertices) + 1)
    following[ring_offsets[1:] - 1] = ring_offsets[:-1]
    ring_of_vertex = np.repeat(np.arange(len(ring_offsets) - 1), np.diff(ring_offsets))
    polygon_of_ring = np.repeat(np.arange(len(scene.polygon_layers)), np.diff(scene.polygon_offsets))
    return vertices, vertices[following], polygon_of_ring[ring_of_vertex]


def _bits(
    scene: PdmScene, start: np.ndarray, polygon: np.ndarray, cell_m: float
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Bit of every polygon, and the masks of lanes, route lanes, drivable polygons and intersections."""
    count = len(scene.polygon_layers)
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    np.minimum.at(low, polygon, start)
    np.maximum.at(high, polygon, start)
    is_lane = np.isin(scene.polygon_layers, LANE_LAYERS)
    is_drivable = np.isin(scene.polygon_layers, DRIVABLE_LAYERS)
    is_intersection = scene.polygon_layers == PolygonLayer.INTERSECTION
    on_route = np.asarray(scene.polygon_on_route, dtype=bool)
    same_cell = 2 * cell_m
    groups = (
        (is_lane & on_route, max(_FOOTPRINT_REACH_M, same_cell)),
        (is_lane & ~on_route, max(_FOOTPRINT_REACH_M, same_cell)),
        (is_intersection, same_cell),
        (is_drivable & ~is_intersection, same_cell),
    )
    # Lanes of both groups meet under one footprint; groups never share bits.
    bit, first, ranges = np.zeros(count, dtype=np.int64), 0, []
    for members, reach_m in groups:
        colors = _colors(low[members], high[members], reach_m)
        bit[members] = first + colors
        ranges.append((first, first + int(colors.max(initial=-1)) + 1))
        first = ranges[-1][1]
    words = max(1, -(-first // WORD_BITS))

    def mask(*chosen: tuple[int, int]) -> np.ndarray:
        numbers = np.concatenate([np.arange(*r) for r in chosen])
        result = np.zeros(words, dtype=np.uint32)
        np.bitwise_or.at(result, numbers // WORD_BITS, _one_bit(numbers))
        return result

    route, other, intersections, drivable = ranges
    return bit, (mask(route, other), mask(route), mask(intersections, drivable), mask(intersections))


def _one_bit(number: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint32(1), (number % WORD_BITS).astype(np.uint32))


def _colors(low: np.ndarray, high: np.ndarray, reach_m: float) -> np.ndarray:
    """Small numbers for boxes, different for any two boxes closer than `reach_m`."""
    near: Bool[np.ndarray, "M M"] = (
        (low[:, None] <= high[None] + reach_m) & (high[:, None] >= low[None] - reach_m)
    ).all(axis=-1)
    colors = np.full(len(low), -1, dtype=np.int64)
    for i in range(len(low)):
        taken = np.zeros(len(low) + 1, dtype=bool)
        taken[colors[:i][near[i, :i]]] = True
        colors[i] = int(np.argmin(taken))
    return colors


@dataclass(frozen=True)
class _Strips:
    """Edges cut into the rows they meet: edge, row, and the columns first ... last that the piece touches."""

    edge: np.ndarray
    row: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass(frozen=True)
class _Grid:
    """Cells of the index; `shape` counts them along x and y."""

    origin: np.ndarray
    cell_m: float
    shape: np.ndarray

    def strips(self, start: np.ndarray, end: np.ndarray) -> _Strips:
        """Cuts edges into rows, each widened by the margin."""
        margin = _MARGIN * self.cell_m
        low_y, high_y = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        first_row, last_row = self._cell(low_y - margin, 1), self._cell(high_y + margin, 1)
        edge, row = _ranges(first_row, last_row)
        bottom = self.origin[1] + row * self.cell_m - margin
        a, b = start[edge], end[edge]
        rise = b[:, 1] - a[:, 1]
        flat = rise == 0
        divisor = np.where(flat, 1.0, rise)
        at_bottom = np.where(flat, 0.0, np.clip((bottom - a[:, 1]) / divisor, 0, 1))
        at_top = np.where(flat, 1.0, np.clip((bottom + self.cell_m + 2 * margin - a[:, 1]) / divisor, 0, 1))
        run = b[:, 0] - a[:, 0]
        x0, x1 = a[:, 0] + at_bottom * run, a[:, 0] + at_top * run
        first = self._cell(np.minimum(x0, x1) - margin, 0)
        last = self._cell(np.maximum(x0, x1) + margin, 0)
        return _Strips(edge, row, first, last)

    def touched(self, strips: _Strips) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a cell and an edge that touches it."""
        piece, column = _ranges(strips.first, strips.last)
        return strips.row[piece] * self.shape[0] + column, strips.edge[piece]

    def beyond(
        self, strips: _Strips, start: np.ndarray, end: np.ndarray, polygon: np.ndarray
    ) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """What the edges right of a cell come to.

        A ray at height y crosses an edge from y_low to y_high if y_low <= y < y_high: whether it does changes at either
        height. Changes at one height cancel in pairs (neighbouring edges share a vertex), which leaves, for every
        polygon, row and height, intervals of columns in which the change counts. Changes below the row count for all
        its points.

        Returns:
          Row, column and polygon where being inside flips, to be accumulated along rows from the left; then cell,
          height and polygon of changes within the row of a cell.
        """
        margin = _MARGIN * self.cell_m
        heights = np.stack([start[strips.edge, 1], end[strips.edge, 1]]).ravel()
        row, column = np.tile(strips.row, 2), np.tile(strips.first, 2)
        owner = np.tile(polygon[strips.edge], 2)
        # The sums that `strips` takes rows from: only so do both edges of a vertex agree on whether it is in a row.
        counts = self._cell(heights - margin, 1) <= row
        row, column, owner, heights = (v[counts] for v in (row, column, owner, heights))
        heights = np.where(self._cell(heights + margin, 1) < row, -np.inf, heights)
        order = np.lexsort((column, heights, owner, row))
        row, column, owner, heights = (v[order] for v in (row, column, owner, heights))
        # Of each polygon, row and height there is an even number of changes; consecutive ones bound an interval.
        low, high = column[0::2], column[1::2]
        row, owner, heights = row[0::2], owner[0::2], heights[0::2]
        below = np.isneginf(heights) & (low < high)
        within = ~np.isneginf(heights) & (low < high)
        edge_of_grid = high[below] < self.shape[0]
        toggles = (
            np.concatenate([row[below], row[below][edge_of_grid]]),
            np.concatenate([low[below], high[below][edge_of_grid]]),
            np.concatenate([owner[below], owner[below][edge_of_grid]]),
        )
        piece, columns = _ranges(low[within], high[within] - 1)
        return toggles, row[within][piece] * self.shape[0] + columns, heights[within][piece], owner[within][piece]

    def _cell(self, coordinate: np.ndarray, axis: int) -> np.ndarray:
        number = np.floor((coordinate - self.origin[axis]) / self.cell_m).astype(np.int64)
        return np.clip(number, 0, self.shape[axis] - 1)


def _ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every i all numbers from first[i] to last[i]: the i and the numbers."""
    lengths = last - first + 1
    owner = np.repeat(np.arange(len(first)), lengths)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[owner]
