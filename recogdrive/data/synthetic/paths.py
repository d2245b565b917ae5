"""Routes as tables over arc length: traffic is simulated in one dimension and placed on the plane afterwards."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from recogdrive.data.synthetic import curves
from recogdrive.data.synthetic.network import Layout, Route

GRID_M = 0.5
"""Spacing of the tables."""
LATERAL_ACCELERATION_MPS2 = 2.5
"""What drivers accept in bends."""
ANTICIPATION_MPS2 = 1.3
"""Deceleration with which they slow down for a bend ahead."""
DIVERGE_M = 7.0
"""How long a vehicle that turns off still blocks those going on."""


class PathTables:
    """Poses and comfortable speeds along several routes.

    Args:
      layout: Where the routes lead through.
      routes: The routes; row p of every table is route p.

    Attributes:
      length_m: (P,) arc length of each route.
      poses: (P, M, 3) at multiples of `GRID_M`, headings not wrapped; constant after the end.
      curvature: (P, M) in 1/m.
      speed_mps: (P, M) highest speed within the limits of the signs and of lateral acceleration, with bends ahead
        anticipated.
      starts: Arc length at which each element of a route starts, and the end.
    """

    def __init__(self, layout: Layout, routes: Sequence[Route]):
        self.routes = tuple(routes)
        lines = [[layout.lines[element] for element in route.elements] for route in routes]
        vertices = [_joined(parts) for parts in lines]
        along = [curves.arc_length(line) for line in vertices]
        ends = [np.cumsum([len(part) - 1 for part in parts]) for parts in lines]
        self.starts = tuple(np.concatenate([[0.0], s[end]]) for s, end in zip(along, ends, strict=True))
        self.length_m = np.array([s[-1] for s in along])
        grid = np.arange(0.0, self.length_m.max() + GRID_M, GRID_M)
        self.poses = np.empty((len(routes), len(grid), 3))
        limit = np.empty((len(routes), len(grid)))
        for p, route in enumerate(routes):
            segment = np.clip(np.searchsorted(along[p], grid, side="right") - 1, 0, len(along[p]) - 2)
            step = along[p][segment + 1] - along[p][segment]
            share = np.minimum((grid - along[p][segment]) / step, 1.0)
            self.poses[p] = _hermite(vertices[p][segment], vertices[p][segment + 1], step, share)
            element = np.clip(np.searchsorted(self.starts[p], grid, side="right") - 1, 0, len(route.elements) - 1)
            limit[p] = np.array([layout.speed_limit_mps[e] for e in route.elements])[element]
        heading = self.poses[..., 2]
        self.curvature = np.zeros_like(limit)
        self.curvature[:, 1:-1] = (heading[:, 2:] - heading[:, :-2]) / (2 * GRID_M)
        bend = np.sqrt(LATERAL_ACCELERATION_MPS2 / np.maximum(np.abs(self.curvature), 1e-6))
        # v^2 + 2 b s may not exceed what it is anywhere further on.
        budget = np.minimum(limit, bend) ** 2 + 2 * ANTICIPATION_MPS2 * grid
        ahead = np.minimum.accumulate(budget[:, ::-1], axis=1)[:, ::-1]
        self.speed_mps = np.sqrt(np.maximum(ahead - 2 * ANTICIPATION_MPS2 * grid, 0.1))

    def at(
        self, table: Float[np.ndarray, "P M ..."], path: Int[np.ndarray, "*#n"], s_m: Float[np.ndarray, "*n"]
    ) -> Float[np.ndarray, "..."]:
        """Linear interpolation of one of the tables at arc lengths `s_m` of the routes numbered `path`."""
        place = np.clip(s_m / GRID_M, 0.0, table.shape[1] - 1.001)
        index = place.astype(np.intp)
        share = (place - index)[(..., *(None,) * (table.ndim - 2))]
        return table[path, index] * (1 - share) + table[path, index + 1] * share

    def pose(self, path: Int[np.ndarray, "*#n"], s_m: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 3"]:
        """Poses at arc lengths `s_m` of the routes numbered `path`; the direction of motion agrees with the heading."""
        place = np.clip(s_m / GRID_M, 0.0, self.poses.shape[1] - 1.001)
        index = place.astype(np.intp)
        first, second = self.poses[path, index], self.poses[path, index + 1]
        return _hermite(
            first, second, np.minimum(GRID_M, np.linalg.norm((second - first)[..., :2], axis=-1)), place - index
        )

    def shared(self, follower: int, leader: int, merge_zone_m: float) -> tuple[float, float, float]:
        """Where a vehicle on route `leader` is ahead of one on route `follower`.

        Returns (offset, low, high): between arc lengths low and high of its own route the leader counts, and its
        position on the follower's route is its own plus offset. Where the routes join, it counts from `merge_zone_m`
        before the joining connector: both roads queue up by distance to the merge. High is -inf if the routes share
        nothing.
        """
        if follower == leader:
            return 0.0, -np.inf, np.inf
        ours, theirs = self.routes[follower].elements, self.routes[leader].elements
        common = [k for k, element in enumerate(theirs) if element in ours]
        if not common:
            return 0.0, np.inf, -np.inf
        first, last = common[0], common[-1]
        offset = self.starts[follower][ours.index(theirs[first])] - self.starts[leader][first]
        low = self.starts[leader][first - 1] - merge_zone_m if first > 0 else -np.inf
        high = self.starts[leader][last + 1] + DIVERGE_M if last < len(theirs) - 1 else np.inf
        return float(offset), float(low), float(high)


def _joined(parts: Sequence[Float[np.ndarray, "_ 3"]]) -> Float[np.ndarray, "L 3"]:
    """Chains lines, adding whole turns to headings so that they continue each other."""
    line = curves.chain(*parts)
    jumps = np.zeros(len(line))
    jumps[1:] = np.round((line[1:, 2] - line[:-1, 2]) / (2 * np.pi))
    line[:, 2] -= 2 * np.pi * np.cumsum(jumps)
    return line


def _hermite(
    first: Float[np.ndarray, "*n 3"],
    second: Float[np.ndarray, "*n 3"],
    step_m: Float[np.ndarray, "*n"],
    share: Float[np.ndarray, "*n"],
) -> Float[np.ndarray, "*n 3"]:
    """Poses between pairs of poses `step_m` apart: cubic in the plane along both headings, linear in heading.

    Between the chords of a polyline and its headings the direction of motion would jump back and forth.
    """
    u = share[..., None]
    tangents = [np.stack([np.cos(p[..., 2]), np.sin(p[..., 2])], axis=-1) * step_m[..., None] for p in (first, second)]
    xy = (1 + 2 * u) * (1 - u) ** 2 * first[..., :2] + u**2 * (3 - 2 * u) * second[..., :2]
    xy += u * (1 - u) ** 2 * tangents[0] - u**2 * (1 - u) * tangents[1]
    return np.concatenate([xy, first[..., 2:] + u * (second - first)[..., 2:]], axis=-1)
