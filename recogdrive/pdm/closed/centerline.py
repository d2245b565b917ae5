"""Where on the route the ego is, and the line through the lanes from there.

Source: NAVSIM `AbstractPDMPlanner`, `Dijkstra`.
"""

from collections.abc import Sequence

import numpy as np
import shapely
from jaxtyping import Float

from recogdrive.geometry import Pose, wrap_angle
from recogdrive.pdm.closed.lane_graph import Block, Lane
from recogdrive.pdm.errors import SceneError

WINDOW_BLOCKS = 30
"""Blocks of the route, from the ego's on, that a centre line spans at most."""
_START_COST = 1.0


def route_lanes(route: Sequence[Block]) -> list[Lane]:
    """Lanes and connectors of a route, block by block.

    Raises:
      SceneError: None of the blocks has any.
    """
    lanes = [lane for block in route for lane in block.lanes]
    if not lanes:
        raise SceneError(f"the blocks of the route ({', '.join(block.id for block in route)}) have no lanes")
    return lanes


def starting_lane(
    lanes: Sequence[Lane],
    under_ego: Sequence[Lane],
    ego: Float[np.ndarray, "3"],
    center: Float[np.ndarray, "2"],
    footprint: shapely.Polygon,
) -> Lane:
    """The lane of the route that the ego is on, else the nearest one.

    Args:
      lanes: All lanes of the route.
      under_ego: Lanes that hold the rear axle, border included, in the order that decides between equals.
      ego: Global rear-axle pose.
      center: Centre of the ego's box.
      footprint: The ego's box.
    """
    candidates = [lane for lane in under_ego if lane in lanes]
    if candidates:
        return candidates[int(np.argmin([_heading_error(lane.baseline, ego) for lane in candidates]))]
    point = shapely.Point(center)
    polygons = [lane.polygon for lane in lanes]
    inside = shapely.contains(polygons, point)
    if inside.any():
        return lanes[int(np.argmax(inside))]
    return lanes[int(np.argmin(shapely.distance(polygons, footprint)))]


def _heading_error(baseline: Float[np.ndarray, "L 3"], ego: Float[np.ndarray, "3"]) -> float:
    distances = np.hypot(baseline[:, Pose.X] - ego[Pose.X], baseline[:, Pose.Y] - ego[Pose.Y])
    return float(np.abs(wrap_angle(baseline[int(np.argmin(distances)), Pose.HEADING] - ego[Pose.HEADING])))


def centerline(route: Sequence[Block], start: Lane) -> Float[np.ndarray, "C 3"]:
    """Baselines of the lanes along the route from the very start of `start`, joined; points where they join repeat.

    Args:
      route: Corrected route.
      start: The ego's lane.
    """
    blocks = [block for block in route if start in block.lanes]
    first = route.index(blocks[0]) if blocks else 0
    target = route[first : first + WINDOW_BLOCKS][-1]
    way = _cheapest_way(start, frozenset(route_lanes(route)), target)
    return np.concatenate([lane.baseline for lane in way])


def _cheapest_way(start: Lane, allowed: frozenset[Lane], target: Block) -> list[Lane]:
    """Way of least length from a lane into a block; where none leads there, to the cheapest of the deepest lanes.

    A lane costs its own length when it is entered.
    """
    goals = frozenset(target.lanes)
    parents: dict[Lane, Lane | None] = {start: None}
    frontier: list[tuple[float, int, Lane]] = [(_START_COST, 1, start)]
    expanded: list[tuple[float, int, Lane]] = []
    while frontier:
        # The first of several that cost the same: min compares costs alone.
        cheapest = min(range(len(frontier)), key=lambda i: frontier[i][0])
        cost, depth, lane = frontier.pop(cheapest)
        if lane in goals:
            return _way_to(lane, parents)
        expanded.append((cost, depth, lane))
        for following in lane.successors:
            if following not in allowed:
                continue
            entry = (cost + following.length_m, depth + 1, following)
            waiting = next((i for i, (_, _, known) in enumerate(frontier) if known is following), None)
            if waiting is not None:
                if entry[0] < frontier[waiting][0]:
                    frontier[waiting], parents[following] = entry, lane
            elif following not in parents:
                frontier.append(entry)
                parents[following] = lane
    deepest = max(depth for _, depth, _ in expanded)
    ends = [(cost, lane) for cost, depth, lane in expanded if depth == deepest]
    return _way_to(min(ends, key=lambda end: end[0])[1], parents)


def _way_to(lane: Lane, parents: dict[Lane, Lane | None]) -> list[Lane]:
    way: list[Lane] = []
    step: Lane | None = lane
    while step is not None:
        way.append(step)
        step = parents[step]
    return way[::-1]
