"""A city small enough to work out by hand: straight roads and the joints between them."""

from collections.abc import Mapping

import numpy as np
import pytest
import shapely

from recogdrive.data.types import MapElement, MapLayer
from recogdrive.pdm.closed.lane_graph import LaneGraph

LANE_WIDTH_M = 4.0


class City:
    """Stands for `NuPlanMap`: roads are roadblocks, joints roadblock connectors, each with lanes side by side."""

    city, path = "toy", "toy.gpkg"

    def __init__(self):
        self.elements: Mapping[MapLayer, list[MapElement]] = {layer: [] for layer in MapLayer}
        self._links: list[tuple[str, str, str]] = []

    def road(self, block, start, end, lanes=1, limit=10.0):
        self._add(MapLayer.ROADBLOCK, MapLayer.LANE, block, start, end, lanes, limit)
        return self

    def joint(self, block, origin, target, start, end, lanes=1, limit=None):
        self._links.append((block, origin, target))
        self._add(MapLayer.ROADBLOCK_CONNECTOR, MapLayer.LANE_CONNECTOR, block, start, end, lanes, limit)
        return self

    def area(self, layer, element_id, polygon):
        self.elements[layer].append(MapElement(id=element_id, layer=layer, polygon=np.array(polygon, float)))
        return self

    def _add(self, block_layer, lane_layer, block, start, end, lanes, limit):
        start, end = np.array(start, float), np.array(end, float)
        along = (end - start) / np.linalg.norm(end - start)
        left = np.array([-along[1], along[0]])
        count = max(2, round(np.linalg.norm(end - start) / 5) + 1)
        heading = np.full(count, np.arctan2(along[1], along[0]))

        def box(right_m, left_m):
            return np.array([start + right_m * left, end + right_m * left, end + left_m * left, start + left_m * left])

        half = LANE_WIDTH_M / 2
        self.elements[block_layer].append(
            MapElement(id=block, layer=block_layer, polygon=box(-half, LANE_WIDTH_M * lanes - half))
        )
        for lane in range(lanes):
            offset = lane * LANE_WIDTH_M
            points = np.linspace(start, end, count) + offset * left
            self.elements[lane_layer].append(
                MapElement(
                    id=f"{block}.{lane}",
                    layer=lane_layer,
                    polygon=box(offset - half, offset + half),
                    centerline=np.concatenate([points, heading[:, None]], axis=1),
                    speed_limit_mps=limit,
                    roadblock_id=block,
                )
            )

    def graph(self):
        """The graph, with every joint linked to its roads lane by lane."""
        into, out_of = {}, {}
        for joint, origin, target in self._links:
            out_of.setdefault(origin, []).append(joint)
            into.setdefault(target, []).append(joint)
        ends = {joint: (origin, target) for joint, origin, target in self._links}
        for layer, found in self.elements.items():
            self.elements[layer] = [self._linked(element, into, out_of, ends) for element in found]
        return LaneGraph(self)

    def _linked(self, element, into, out_of, ends):
        block, dot, lane = element.id.partition(".")
        tail = dot + lane
        if element.layer in (MapLayer.ROADBLOCK, MapLayer.LANE):
            before, after = into.get(block, []), out_of.get(block, [])
        elif element.layer in (MapLayer.ROADBLOCK_CONNECTOR, MapLayer.LANE_CONNECTOR):
            before, after = [ends[block][0]], [ends[block][1]]
        else:
            return element
        links = {"predecessors": tuple(b + tail for b in before), "successors": tuple(a + tail for a in after)}
        return MapElement(**{**element.__dict__, **links})

    def near(self, xy, radius_m, layer):
        square = shapely.box(xy[0] - radius_m, xy[1] - radius_m, xy[0] + radius_m, xy[1] + radius_m)
        return tuple(e for e in self.elements[layer] if shapely.intersects(shapely.Polygon(e.polygon), square))


@pytest.fixture
def city():
    """An empty city to build roads in."""
    return City()


@pytest.fixture
def chain():
    """Graph of roads a, b, c, d along x, 40 m each, with joints ab, bc, cd of 10 m between them."""
    made = City()
    for k, name in enumerate("abcd"):
        made.road(name, (50 * k, 0), (50 * k + 40, 0))
    for k, (origin, target) in enumerate(zip("abc", "bcd", strict=True)):
        made.joint(origin + target, origin, target, (50 * k + 40, 0), (50 * k + 50, 0))
    return made.graph()


@pytest.fixture
def ids():
    """Ids of blocks, or of the elements of lanes."""
    return lambda found: [item.id if hasattr(item, "id") else item.element.id for item in found]


@pytest.fixture
def detections():
    """Function: rows (token, class, x, y, heading, length, width, vx, vy) -> Detections."""
    from recogdrive.data.types import AgentClass, Detections

    def make(*rows):
        boxes = np.array([[x, y, 0.0, length, width, 1.5, h] for _, _, x, y, h, length, width, _, _ in rows])
        return Detections(
            boxes=boxes.reshape(-1, 7),
            classes=np.array([AgentClass[row[1].upper()] for row in rows], dtype=np.int8),
            velocity=np.array([[row[7], row[8]] for row in rows], dtype=float).reshape(-1, 2),
            track_tokens=tuple(row[0] for row in rows),
        )

    return make


@pytest.fixture
def fake_block():
    """Function: name -> a block for searches that look at links alone."""

    class Node:
        def __init__(self, name):
            self.id, self.successors, self.predecessors = name, [], []

    return Node
