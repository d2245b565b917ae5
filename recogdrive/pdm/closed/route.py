"""A log's route made one that can be driven: from where the ego is, without gaps and loops.

Source: NAVSIM `route_utils.py`, `BreadthFirstSearchRoadBlock`.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import shapely
from jaxtyping import Float

from recogdrive.data.types import MapLayer
from recogdrive.geometry import Pose, wrap_angle
from recogdrive.pdm.closed.lane_graph import Block, LaneGraph
from recogdrive.pdm.errors import SceneError

BACKWARD_DEPTH = 15
FORWARD_DEPTH = 30
"""Blocks that a search looks ahead, its start included."""

_NEAR_M = 1.0
_LARGEST_HEADING_ERROR_RAD = np.pi / 4
_LARGEST_DISPLACEMENT_M = 3.0
_TARGETS_AHEAD = 3
"""A route that the ego is not on may be joined at one of its first blocks."""
_LOOP_AREA_M2 = 1.0


def route_blocks(graph: LaneGraph, roadblock_ids: Iterable[str]) -> list[Block]:
    """Blocks of a route in driving order, repeats left out.

    Raises:
      SceneError: The route is empty or names a block that the map does not have.
    """
    blocks = [graph.block(block_id) for block_id in dict.fromkeys(roadblock_ids)]
    if not blocks:
        raise SceneError("the route is empty: there is nothing to plan along; take scenes with has_route=True")
    return blocks


def correct_route(graph: LaneGraph, route: Sequence[Block], ego: Float[np.ndarray, "3"]) -> list[Block]:
    """The route from the ego's block on, gaps filled and loops cut.

    Args:
      graph: The city.
      route: Blocks of the log's route, at least one.
      ego: Global rear-axle pose.
    """
    route = _from_ego(route, *_starting_blocks(graph, route, ego))
    route = _without_gaps(route)
    # A block that occurs twice counts where it comes first.
    return list(dict.fromkeys(_without_loops(route)))


def _starting_blocks(
    graph: LaneGraph, route: Sequence[Block], ego: Float[np.ndarray, "3"]
) -> tuple[Block, list[Block]]:
    """Block that the ego most likely drives on, and all that are as likely in kind."""
    near = graph.blocks_near(ego[: Pose.HEADING], _NEAR_M)
    on_route: list[tuple[float, Block]] = []
    off_route: list[tuple[float, Block]] = []
    nearest: list[float] = []
    for block in near:
        errors = [_displacement_and_heading_error(lane.baseline, ego) for lane in block.lanes]
        nearest.append(min((displacement for displacement, _ in errors), default=np.inf))
        likely = on_route if block in route else off_route
        likely += [
            (displacement, block)
            for displacement, heading_error in errors
            if heading_error < _LARGEST_HEADING_ERROR_RAD and displacement < _LARGEST_DISPLACEMENT_M
        ]
    for likely in (on_route, off_route):
        if likely:
            return min(likely, key=lambda entry: entry[0])[1], [block for _, block in likely]
    return near[int(np.argmin(nearest))], near


def _displacement_and_heading_error(
    baseline: Float[np.ndarray, "L 3"], ego: Float[np.ndarray, "3"]
) -> tuple[float, float]:
    """Distance to the nearest vertex in metres, and how far its heading differs, in radians."""
    distances = np.hypot(baseline[:, Pose.X] - ego[Pose.X], baseline[:, Pose.Y] - ego[Pose.Y])
    vertex = int(np.argmin(distances))
    return float(distances[vertex]), float(np.abs(wrap_angle(baseline[vertex, Pose.HEADING] - ego[Pose.HEADING])))


def _from_ego(route: Sequence[Block], start: Block, candidates: Sequence[Block]) -> list[Block]:
    """Puts before a route that the ego is not on the way there, where there is one."""
    route = list(route)
    if start in route:
        return route
    if back := breadth_first(route[0], candidates, BACKWARD_DEPTH, lambda block: block.predecessors):
        return back[:0:-1] + route
    if ahead := breadth_first(start, route[:_TARGETS_AHEAD], FORWARD_DEPTH, lambda block: block.successors):
        return ahead + route[route.index(ahead[-1]) + 1 :]
    return route


def _without_gaps(route: Sequence[Block]) -> list[Block]:
    """Fills in the blocks between neighbours of a route that are not linked, where a way is found."""
    filled = [route[0]]
    for block, following in itertools.pairwise(route):
        if block not in following.predecessors:
            way = breadth_first(block, [following], FORWARD_DEPTH, lambda b: b.successors)
            filled += way[1:-1]
        filled.append(following)
    return filled


def _without_loops(route: Sequence[Block]) -> list[Block]:
    """Cuts a route before the first roadblock connector that overlaps an earlier one: there it crosses itself."""
    earlier: list[shapely.Polygon] = []
    for position, block in enumerate(route):
        if block.layer != MapLayer.ROADBLOCK_CONNECTOR:
            continue
        shared = [p for p in earlier if shapely.intersects(shapely.box(*p.bounds), shapely.box(*block.polygon.bounds))]
        if any(p.intersection(block.polygon).area > _LOOP_AREA_M2 for p in shared):
            return list(route[:position])
        earlier.append(block.polygon)
    return list(route)


def breadth_first(
    start: Block, targets: Sequence[Block], depth: int, neighbours: Callable[[Block], Sequence[Block]]
) -> list[Block]:
    """Shortest way from `start` to one of the targets, both included; empty where there is none.

    Upstream keeps no record of visited blocks, so a block is in its queue once for every way that leads to it. What
    that decides is kept: of the targets at the smallest depth the one that enters the queue first is reached, and a
    block's parent is the one that enters it *last*. Both follow from the blocks of each level in the order of their
    first and of their last entry, without the exponential queue.

    Args:
      start: Where to start.
      targets: Blocks to reach.
      depth: Longest way, in blocks.
      neighbours: What follows a block, in order.
    """
    first, last = [start], [start]
    parents: list[dict[Block, Block]] = [{}]
    for level in range(depth):
        reached = next((block for block in first if block in targets), None)
        if reached is not None:
            way = [reached]
            for step in range(level, 0, -1):
                way.append(parents[step][way[-1]])
            return way[::-1]
        parents.append({n: block for block in last for n in neighbours(block)})
        entered = [n for block in last for n in neighbours(block)]
        first = list(dict.fromkeys(n for block in first for n in neighbours(block)))
        last = list(dict.fromkeys(reversed(entered)))[::-1]
        if not first:
            break
    return []
