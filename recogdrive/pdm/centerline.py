"""The centre line that progress is measured along: the route's lanes and connectors from the ego's lane on."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from recogdrive.data.types import MapElement, MapLayer
from recogdrive.geometry import Pose, wrap_angle
from recogdrive.pdm.errors import SceneError

LARGEST_OFFSET_M = 10.0
"""A centre line further away is not the ego's."""
LARGEST_HEADING_ERROR_RAD = np.pi / 2
METRES_PER_RADIAN = 3.5
"""How a heading error weighs against an offset when the ego's lane is chosen: one radian as a lane's width."""


def route_centerline(
    elements: Sequence[MapElement], roadblock_ids: Sequence[str], ego_pose: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "C 2"]:
    """Joins the centre lines of the route ahead, from the start of the lane or connector the ego is in.

    The ego's element is the nearest in position and heading. Every element is followed by one of its successors on the
    route; of several, by the one that leads furthest along the route, then the shorter way. An element without a
    successor on the route (its lane turns off or ends) is followed by the successors of the neighbour in its roadblock
    that ends nearest. Points that repeat their predecessor are left out.

    Args:
      elements: Lanes and connectors of the route; those without a centre line are of no use here.
      roadblock_ids: Roadblocks and roadblock connectors in driving order; of a repeated one the first counts.
      ego_pose: Rear axle in the frame of the elements.

    Raises:
      SceneError: No element within 10 m and 90 degrees of the ego.

    Source: what NAVSIM's `AbstractPDMPlanner` does by Dijkstra's algorithm.
    """
    order = {roadblock: index for index, roadblock in reversed(list(enumerate(roadblock_ids)))}
    usable = [e for e in elements if e.centerline is not None and e.roadblock_id in order and _length(e) > 0]
    start = _element_of(usable, ego_pose)
    following = _best_successors(usable, order)
    chain = [start]
    while (successor := following[_key(chain[-1])]) is not None:
        chain.append(successor)
    points = np.concatenate([element.centerline[:, :2] for element in chain])
    repeats = np.concatenate([[False], np.all(points[1:] == points[:-1], axis=-1)])
    return points[~repeats]


def _key(element: MapElement) -> tuple[MapLayer, str]:
    """Ids are unique within a layer only."""
    return element.layer, element.id


def _length(element: MapElement) -> float:
    return float(np.linalg.norm(np.diff(element.centerline[:, :2], axis=0), axis=-1).sum())


def _element_of(elements: Sequence[MapElement], pose: Float[np.ndarray, "3"]) -> MapElement:
    """The element whose centre line is nearest to the pose in position and heading."""
    best, least = None, np.inf
    offsets = []
    for element in elements:
        offset, error = _offset_and_heading_error(element.centerline[:, :2], pose)
        offsets.append(offset)
        cost = offset + METRES_PER_RADIAN * error
        if offset <= LARGEST_OFFSET_M and error < LARGEST_HEADING_ERROR_RAD and cost < least:
            best, least = element, cost
    if best is None:
        nearest = f"the nearest is {min(offsets):.1f} m away" if offsets else "the map shows none"
        raise SceneError(
            f"no lane of the route within {LARGEST_OFFSET_M} m of the ego and "
            f"{np.degrees(LARGEST_HEADING_ERROR_RAD):.0f} degrees of its heading ({nearest}): there is no centre line "
            f"to measure progress along; check the scene's roadblock_ids and map"
        )
    return best


def _offset_and_heading_error(line: Float[np.ndarray, "L 2"], pose: Float[np.ndarray, "3"]) -> tuple[float, float]:
    """Distance from a pose to the nearest segment of a line and how far their headings differ, in [0, pi]."""
    start, step = line[:-1], np.diff(line, axis=0)
    squared = (step**2).sum(axis=-1)
    start, step, squared = start[squared > 0], step[squared > 0], squared[squared > 0]
    along = np.clip(((pose[: Pose.HEADING] - start) * step).sum(axis=-1) / squared, 0.0, 1.0)
    offset = np.linalg.norm(start + along[:, None] * step - pose[: Pose.HEADING], axis=-1)
    nearest = offset.argmin()
    heading = np.arctan2(step[nearest, 1], step[nearest, 0])
    return float(offset[nearest]), float(np.abs(wrap_angle(heading - pose[Pose.HEADING])))


def _best_successors(
    elements: Sequence[MapElement], order: dict[str, int]
) -> dict[tuple[MapLayer, str], MapElement | None]:
    """Which element follows each on the way that leads furthest along the route, then is shortest; None at its end."""
    by_key = {_key(element): element for element in elements}
    blocks: dict[str, list[MapElement]] = {}
    for element in elements:
        blocks.setdefault(element.roadblock_id, []).append(element)

    def successors(element: MapElement) -> list[MapElement]:
        """Own successors further along the route; the order of the route excludes running in circles."""
        other = MapLayer.LANE_CONNECTOR if element.layer == MapLayer.LANE else MapLayer.LANE
        found = [by_key[other, number] for number in element.successors if (other, number) in by_key]
        return [e for e in found if order[e.roadblock_id] > order[element.roadblock_id]]

    def continuations(element: MapElement) -> list[MapElement]:
        if own := successors(element):
            return own
        end = element.centerline[-1, :2]
        neighbours = [e for e in blocks[element.roadblock_id] if successors(e)]
        neighbours.sort(key=lambda e: float(np.linalg.norm(e.centerline[-1, :2] - end)))
        return successors(neighbours[0]) if neighbours else []

    following: dict[tuple[MapLayer, str], MapElement | None] = {}
    value: dict[tuple[MapLayer, str], tuple[int, float]] = {}
    for element in sorted(elements, key=lambda e: order[e.roadblock_id], reverse=True):
        best = max(continuations(element), key=lambda e: value[_key(e)], default=None)
        reach, rest = value[_key(best)] if best is not None else (order[element.roadblock_id], 0.0)
        following[_key(element)], value[_key(element)] = best, (reach, rest - _length(element))
    return following
