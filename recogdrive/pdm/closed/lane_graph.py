"""A city's lanes and blocks as a graph: which follows which, which lies where.

A *block* is a roadblock (lanes side by side) or a roadblock connector (the ways through a junction between two of
them); a *lane* here is a lane or a lane connector. Everything is global: UTM metres, float64.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from jaxtyping import Float

from recogdrive.data.maps import NuPlanMap
from recogdrive.data.types import MapElement, MapLayer
from recogdrive.pdm.errors import SceneError

BLOCK_LAYERS = (MapLayer.ROADBLOCK, MapLayer.ROADBLOCK_CONNECTOR)
LANE_LAYERS = (MapLayer.LANE, MapLayer.LANE_CONNECTOR)
_OTHER = {
    MapLayer.LANE: MapLayer.LANE_CONNECTOR,
    MapLayer.LANE_CONNECTOR: MapLayer.LANE,
    MapLayer.ROADBLOCK: MapLayer.ROADBLOCK_CONNECTOR,
    MapLayer.ROADBLOCK_CONNECTOR: MapLayer.ROADBLOCK,
}
"""Lanes lead to connectors only and the other way round, and so do blocks."""


@dataclass(frozen=True, eq=False)
class Lane:
    """A lane or lane connector.

    Attributes:
      element: Its record, in global coordinates.
      polygon: Its outline.
      length_m: Of its baseline.
      successors: In table order.
    """

    element: MapElement
    polygon: shapely.Polygon
    length_m: float
    successors: list["Lane"] = field(default_factory=list, repr=False)

    @property
    def baseline(self) -> Float[np.ndarray, "L 3"]:
        """Vertices with the heading of the segment that starts at each."""
        return self.element.centerline


@dataclass(frozen=True, eq=False)
class Block:
    """A roadblock or roadblock connector.

    Attributes:
      id: Unique within its layer.
      layer: Which of the two it is.
      polygon: Its outline.
      lanes: Interior lanes (or connectors) in table order.
      successors: In table order.
      predecessors: In table order.
    """

    id: str
    layer: MapLayer
    polygon: shapely.Polygon
    lanes: list[Lane] = field(default_factory=list, repr=False)
    successors: list["Block"] = field(default_factory=list, repr=False)
    predecessors: list["Block"] = field(default_factory=list, repr=False)


class LaneGraph:
    """Graph of one city's map.

    Args:
      city_map: The map.

    Attributes:
      city: Its name.
      map: The map.
    """

    def __init__(self, city_map: NuPlanMap) -> None:
        self.city = city_map.city
        self.map = city_map
        self._lanes = {layer: self._read_lanes(layer) for layer in LANE_LAYERS}
        self._blocks = {layer: self._read_blocks(layer) for layer in BLOCK_LAYERS}
        for layer in LANE_LAYERS:
            others = self._lanes[_OTHER[layer]]
            for lane in self._lanes[layer].values():
                lane.successors.extend(others[i] for i in lane.element.successors if i in others)
        for layer in BLOCK_LAYERS:
            others = self._blocks[_OTHER[layer]]
            for element in city_map.elements[layer]:
                block = self._blocks[layer][element.id]
                block.successors.extend(others[i] for i in element.successors if i in others)
                block.predecessors.extend(others[i] for i in element.predecessors if i in others)
        for lane_layer, block_layer in zip(LANE_LAYERS, BLOCK_LAYERS, strict=True):
            for lane in self._lanes[lane_layer].values():
                if (block := self._blocks[block_layer].get(lane.element.roadblock_id or "")) is not None:
                    block.lanes.append(lane)

    def _read_lanes(self, layer: MapLayer) -> dict[str, Lane]:
        elements = self.map.elements[layer]
        polygons = outlines(elements)
        return {
            element.id: Lane(element, polygon, _length(element.centerline))
            for element, polygon in zip(elements, polygons, strict=True)
        }

    def _read_blocks(self, layer: MapLayer) -> dict[str, Block]:
        elements = self.map.elements[layer]
        return {e.id: Block(e.id, layer, p) for e, p in zip(elements, outlines(elements), strict=True)}

    def lane(self, element: MapElement) -> Lane:
        """The lane of a map element."""
        return self._lanes[element.layer][element.id]

    def block_of(self, element: MapElement) -> Block:
        """The block of a map element."""
        return self._blocks[element.layer][element.id]

    def connector(self, connector_id: str) -> Lane | None:
        """The lane connector with this id, None where the map has none."""
        return self._lanes[MapLayer.LANE_CONNECTOR].get(connector_id)

    def block(self, block_id: str) -> Block:
        """The roadblock with this id, else the roadblock connector.

        Raises:
          SceneError: The map has neither.
        """
        for layer in BLOCK_LAYERS:
            if block_id in self._blocks[layer]:
                return self._blocks[layer][block_id]
        raise SceneError(
            f"the route names the roadblock {block_id!r}, which {self.map.path} does not have; the log and the map are "
            "of different cities or versions"
        )

    def blocks_near(self, xy: Float[np.ndarray, "2"], radius_m: float) -> list[Block]:
        """Blocks that meet the square of half side `radius_m`; where none does, the nearest of either layer."""
        found = [
            self._blocks[layer][element.id] for layer in BLOCK_LAYERS for element in self.map.near(xy, radius_m, layer)
        ]
        if found:
            return found
        point = shapely.Point(xy)
        for layer in BLOCK_LAYERS:
            blocks = list(self._blocks[layer].values())
            if blocks:
                found.append(blocks[int(np.argmin(shapely.distance([block.polygon for block in blocks], point)))])
        if not found:
            raise SceneError(f"the map {self.map.path} has no roadblocks, so there is no route to follow")
        return found


def outlines(elements: Sequence[MapElement]) -> list[shapely.Polygon]:
    """Polygons of map elements, in their coordinates."""
    return [shapely.Polygon(element.polygon, element.holes) for element in elements]


def _length(path: Float[np.ndarray, "L 3"]) -> float:
    steps = np.diff(path[:, :2], axis=0)
    return float(np.hypot(steps[:, 0], steps[:, 1]).sum())


@functools.lru_cache(maxsize=4)
def graph_of(city_map: NuPlanMap) -> LaneGraph:
    """The graph of a map, built once."""
    return LaneGraph(city_map)
