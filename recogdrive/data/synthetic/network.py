"""Road networks: lanes, connectors and everything around them, as nuPlan's map structures them.

Frame: each layout has its own, metres and radians, traffic keeps to the right. Roads are described by a reference line
in driving direction; the lanes of a block lie to its right, lane 0 (leftmost) first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from recogdrive.data.synthetic import curves
from recogdrive.data.types import MapElement, MapLayer

Line = Float[np.ndarray, "L 3"]


@dataclass(frozen=True)
class Route:
    """A way through a layout for a vehicle: lane, connector, lane, ... from where it enters to where it leaves.

    Attributes:
      elements: Ids of lanes and connectors, alternating.
      focus_m: Arc length of what makes the route interesting: a stop line, the start of a bend or of a merge.
      turn: `left`, `straight`, `right` (or `merge`): what happens after the focus.
    """

    elements: tuple[str, ...]
    focus_m: float
    turn: str


@dataclass(frozen=True)
class StopLine:
    """Where vehicles on a connector stop while its light is red or people are on a crosswalk.

    Attributes:
      connector: Id of the connector.
      at_m: Arc length along the connector.
      crosswalk: Index into `Layout.crosswalks`; None for the connector's traffic light.
    """

    connector: str
    at_m: float
    crosswalk: int | None = None


@dataclass(frozen=True)
class Crosswalk:
    """Way of pedestrians across a road.

    Attributes:
      line: From one walkway to the other.
      closed_by: Connectors whose traffic enters the road here; people cross only while all of them are red.
    """

    line: Line
    closed_by: frozenset[str]


@dataclass(frozen=True)
class Strip:
    """Ground beside the lanes that objects use: `parking`, `bicycle`, `walkway` or `shoulder`; line in its middle."""

    kind: str
    line: Line


@dataclass(frozen=True)
class Layout:
    """One piece of town.

    Attributes:
      kind: Kind of road (`straight`, `curve`, `intersection`, `merge`).
      elements: The map in the layout's frame, neighbours of one layer in a row.
      lines: Centre line of every lane and connector, as finely as needed to drive it.
      speed_limit_mps: Of every lane and connector.
      routes: Ways through it.
      stop_lines: Where routes may have to stop.
      crosswalks: Crossings for pedestrians.
      strips: Places of parked cars, bicycles, pedestrians and obstacles.
      phases: Sets of connectors that have green together; empty without lights.
      merge_zone_m: How far ahead of a joining connector traffic of the two roads sorts itself into one queue.
    """

    kind: str
    elements: tuple[MapElement, ...]
    lines: dict[str, Line]
    speed_limit_mps: dict[str, float]
    routes: tuple[Route, ...]
    stop_lines: tuple[StopLine, ...] = ()
    crosswalks: tuple[Crosswalk, ...] = ()
    strips: tuple[Strip, ...] = ()
    phases: tuple[frozenset[str], ...] = ()
    merge_zone_m: float = 0.0


@dataclass(frozen=True)
class Block:
    """A roadblock under construction: its id, the reference line its lanes lie to the right of, and their ids."""

    id: str
    reference: Line
    lanes: tuple[str, ...]


@dataclass
class _Item:
    """An element whose neighbours are not all known yet."""

    layer: MapLayer
    polygon: np.ndarray
    line: Line | None = None
    left: Line | None = None
    right: Line | None = None
    speed_mps: float | None = None
    roadblock: str | None = None
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    light: bool = False
    length_m: float | None = None


class NetworkBuilder:
    """Collects blocks, connectors and areas and turns them into map elements.

    Args:
      lane_width_m: Of every lane.
    """

    def __init__(self, lane_width_m: float):
        self.lane_width_m = lane_width_m
        self.stop_lines: list[StopLine] = []
        self.crosswalks: list[Crosswalk] = []
        self.strips: list[Strip] = []
        self._items: dict[str, _Item] = {}

    def block(self, reference: Line, lanes: int, speed_mps: float) -> Block:
        """Adds a roadblock with `lanes` lanes to the right of `reference`."""
        width = self.lane_width_m
        edges = [curves.offset(reference, -k * width) for k in range(lanes + 1)]
        block_id = self._add(_Item(MapLayer.ROADBLOCK, ring(edges[0], edges[-1])))
        ids = tuple(
            self._add(
                _Item(
                    MapLayer.LANE,
                    ring(edges[k], edges[k + 1]),
                    curves.offset(reference, -(k + 0.5) * width),
                    edges[k],
                    edges[k + 1],
                    speed_mps,
                    block_id,
                )
            )
            for k in range(lanes)
        )
        return Block(block_id, reference, ids)

    def connect(
        self,
        start: Block,
        end: Block,
        pairs: Sequence[tuple[int, int]],
        speed_mps: float,
        reference: Line | None = None,
        light: bool = False,
        straight_ends_m: float = 0.0,
    ) -> tuple[str, ...]:
        """Adds connectors between lanes of two blocks and the roadblock connector that holds them.

        Args:
          start: Block one comes from.
          end: Block one enters.
          pairs: Lane numbers (in `start`, in `end`) from left to right.
          speed_mps: Speed limit.
          reference: Line that continues `start.reference` to `end.reference`; the connectors run parallel to it.
            Without it each is a curve from lane end to lane start.
          light: Whether a traffic light governs them; adds a stop line at their start.
          straight_ends_m: How far a curve continues its lanes straight on before and after it turns.

        Returns the ids of the connectors.
        """
        half = self.lane_width_m / 2
        lines = []
        for lane_from, lane_to in pairs:
            first = self._items[start.lanes[lane_from]].line[-1]
            last = self._items[end.lanes[lane_to]].line[0]
            if reference is None:
                lines.append(_turn(first, last, straight_ends_m))
            else:
                line = curves.offset(reference, -(2 * lane_from + 1) * half)
                line[0, :2], line[-1, :2] = first[:2], last[:2]
                lines.append(line)
        sides = [(curves.offset(line, half), curves.offset(line, -half)) for line in lines]
        group = self._add(_Item(MapLayer.ROADBLOCK_CONNECTOR, ring(sides[0][0], sides[-1][1])))
        self._link(start.id, group, end.id)
        ids = []
        for (lane_from, lane_to), line, (left, right) in zip(pairs, lines, sides, strict=True):
            item = _Item(MapLayer.LANE_CONNECTOR, ring(left, right), line, left, right, speed_mps, group, light=light)
            ids.append(self._add(item))
            self._link(start.lanes[lane_from], ids[-1], end.lanes[lane_to])
            if light:
                self.stop_line(ids[-1], 0.0)
        return tuple(ids)

    def area(self, layer: MapLayer, polygon: Float[np.ndarray, "P 2"]) -> None:
        """Adds an element that is nothing but a polygon."""
        self._add(_Item(layer, polygon))

    def strip(self, kind: str, edge: Line, inner_m: float, width_m: float, layer: MapLayer | None) -> None:
        """Adds ground of the given width, `inner_m` to the right of `edge`, and a polygon of `layer` for it."""
        inner, outer = curves.offset(edge, -inner_m), curves.offset(edge, -inner_m - width_m)
        self.strips.append(Strip(kind, curves.offset(edge, -inner_m - width_m / 2)))
        if layer is not None:
            self.area(layer, ring(inner, outer))

    def crosswalk(self, line: Line, closed_by: frozenset[str], depth_m: float = 3.0, curb_m: float = 1.2) -> int:
        """Adds a crosswalk along `line`, of which `curb_m` at each end are on the walkway; returns its index."""
        walk = curves.straight(line[0], float(np.hypot(*(line[-1, :2] - line[0, :2]))))
        on_road = np.stack([curves.segment(walk[0], curb_m, 0.0), curves.segment(walk[1], -curb_m, 0.0)])
        outline = ring(curves.offset(on_road, depth_m / 2), curves.offset(on_road, -depth_m / 2))
        self.area(MapLayer.CROSSWALK, outline)
        self.crosswalks.append(Crosswalk(walk, closed_by))
        return len(self.crosswalks) - 1

    def stop_line(self, connector: str, at_m: float, crosswalk: int | None = None) -> None:
        """Adds a place to stop, for the connector's own light or for people on a crosswalk."""
        self.stop_lines.append(StopLine(connector, at_m, crosswalk))

    def line_of(self, element: str) -> Line:
        """Centre line of a lane or connector."""
        return self._items[element].line

    def length_of(self, element: str) -> float:
        """Length of a lane or connector in metres."""
        item = self._items[element]
        if item.length_m is None:
            item.length_m = float(curves.arc_length(item.line)[-1])
        return item.length_m

    def ways(self) -> list[tuple[str, ...]]:
        """Every sequence lane, connector, lane, ... from a lane without predecessor to one without successor."""
        complete: list[tuple[str, ...]] = []
        items = self._items
        open_ways = [(i,) for i, item in items.items() if item.layer == MapLayer.LANE and not item.before]
        while open_ways:
            way = open_ways.pop()
            following = items[way[-1]].after
            if following:
                open_ways.extend((*way, element) for element in following)
            else:
                complete.append(way)
        return sorted(complete, key=lambda way: [int(i) for i in way])

    def layout(
        self,
        kind: str,
        routes: Sequence[Route],
        phases: Sequence[frozenset[str]] = (),
        merge_zone_m: float = 0.0,
    ) -> Layout:
        """The finished piece of town."""
        drivable = {i: item for i, item in self._items.items() if item.line is not None}
        order = list(MapLayer)
        items = sorted(self._items.items(), key=lambda entry: order.index(entry[1].layer))
        return Layout(
            kind=kind,
            elements=tuple(_element(i, item) for i, item in items),
            lines={i: item.line for i, item in drivable.items()},
            speed_limit_mps={i: float(item.speed_mps) for i, item in drivable.items()},
            routes=tuple(routes),
            stop_lines=tuple(self.stop_lines),
            crosswalks=tuple(self.crosswalks),
            strips=tuple(self.strips),
            phases=tuple(phases),
            merge_zone_m=merge_zone_m,
        )

    def _add(self, item: _Item) -> str:
        element = str(1000 + len(self._items))
        self._items[element] = item
        return element

    def _link(self, before: str, element: str, after: str) -> None:
        self._items[before].after.append(element)
        self._items[element].before.append(before)
        self._items[element].after.append(after)
        self._items[after].before.append(element)


def ring(left: Line, right: Line) -> Float[np.ndarray, "P 2"]:
    """Outline between two lines of the same direction, the closing point not repeated."""
    return np.concatenate([right[:, :2], left[::-1, :2]])


def _turn(start: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"], straight_ends_m: float) -> Line:
    """Curve between two poses that begins and ends with a straight stretch of the given length."""
    if straight_ends_m == 0.0:
        return curves.join(start, end)
    entry = curves.densify(curves.straight(start, straight_ends_m))
    leave = curves.densify(curves.reverse(curves.straight(end + np.array([0.0, 0.0, np.pi]), straight_ends_m)))
    curve = curves.join(entry[-1], leave[0])
    leave[:, 2] = curve[-1, 2]
    line = curves.chain(entry, curve, leave)
    line[-1, :2] = end[:2]
    return line


def _element(element: str, item: _Item) -> MapElement:
    driven = item.line is not None
    return MapElement(
        id=element,
        layer=item.layer,
        polygon=item.polygon,
        centerline=curves.as_centerline(item.line) if driven else None,
        left_boundary=item.left[:, :2] if driven else None,
        right_boundary=item.right[:, :2] if driven else None,
        speed_limit_mps=item.speed_mps,
        roadblock_id=item.roadblock,
        predecessors=tuple(item.before),
        successors=tuple(item.after),
        has_traffic_light=item.light,
    )
