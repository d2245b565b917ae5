"""Pieces of town: straight road, curve, intersection and merge, each drawn from a random generator.

Every piece is a `Layout` in its own frame. Lanes never touch lanes: a connector lies between any two, and an
intersection area (a small pass-through one along a road, as in nuPlan) lies under every connector.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.random import Generator

from recogdrive.data.synthetic import curves
from recogdrive.data.synthetic.network import Block, Layout, Line, NetworkBuilder, Route, ring
from recogdrive.data.types import MapLayer

GAP_M = 6.0
"""Length of a pass-through connector between two blocks of one road."""
CROSSING_GAP_M = 10.0
"""The same where people cross."""
WALKWAY_M = 2.5
STOP_POLYGON_M = 1.5
CURB_M = 1.2
"""How far from the road's edge people wait."""
RAMP_LEFT_SHOULDER_M = 1.2
_SIDE_WIDTH_M = {"none": 0.0, "parking": 2.7, "bicycle": 2.0, "shoulder": 1.8}
_SIDE_LAYER = {
    "parking": MapLayer.CARPARK_AREA,
    "bicycle": MapLayer.GENERIC_DRIVABLE_AREA,
    "shoulder": MapLayer.GENERIC_DRIVABLE_AREA,
}


@dataclass(frozen=True)
class Road:
    """Both directions of a road: blocks in the order of its reference pieces, and the connectors in each gap."""

    forward: list[Block]
    backward: list[Block]
    gaps: list[tuple[str, ...]]


def draw_lane_width(rng: Generator) -> float:
    """Width of a layout's lanes in metres."""
    return round(float(rng.uniform(3.3, 3.75)), 2)


def add_road(builder: NetworkBuilder, pieces: list[Line], lanes: tuple[int, int], speed_mps: float) -> Road:
    """Adds a road along `pieces` (block, gap, block, ...); `lanes` are those along and against the reference."""
    ahead, against = lanes
    width = builder.lane_width_m
    back_pieces = [curves.reverse(piece) for piece in pieces]
    forward = [builder.block(p, ahead, speed_mps) for p in pieces[::2]] if ahead else []
    backward = [builder.block(p, against, speed_mps) for p in back_pieces[::2]] if against else []
    gaps = []
    for k, gap in enumerate(pieces[1::2]):
        ids: tuple[str, ...] = ()
        if ahead:
            ids += builder.connect(forward[k], forward[k + 1], [(i, i) for i in range(ahead)], speed_mps, gap)
        if against:
            pairs = [(i, i) for i in range(against)]
            ids += builder.connect(backward[k + 1], backward[k], pairs, speed_mps, back_pieces[2 * k + 1])
        gaps.append(ids)
        outline = (curves.offset(gap, against * width), curves.offset(gap, -ahead * width))
        builder.area(MapLayer.INTERSECTION, np.concatenate([outline[1][:, :2], outline[0][::-1, :2]]))
    return Road(forward, backward, gaps)


def _sides(builder: NetworkBuilder, pieces: list[Line], lanes: tuple[int, int], rng: Generator) -> tuple[float, float]:
    """Adds strips and walkways on both sides; returns the widths of the strips right and left."""
    widths = []
    for count, side_pieces in zip(lanes, (pieces, [curves.reverse(p) for p in pieces][::-1]), strict=True):
        kind = str(rng.choice(["none", "parking", "bicycle", "shoulder"], p=[0.2, 0.4, 0.2, 0.2]))
        edge = count * builder.lane_width_m
        if kind != "none":
            for piece in side_pieces[::2]:
                builder.strip(kind, piece, edge, _SIDE_WIDTH_M[kind], _SIDE_LAYER[kind])
        widths.append(_SIDE_WIDTH_M[kind])
        builder.strip("walkway", curves.chain(*side_pieces), edge + widths[-1], WALKWAY_M, MapLayer.WALKWAY)
    return widths[0], widths[1]


def _crossing(builder: NetworkBuilder, road: Road, pieces: list[Line], gap: int, reach: tuple[float, float]) -> None:
    """Adds a crosswalk with stop lines in the middle of a straight gap; `reach` is to the walkways right and left."""
    start = pieces[2 * gap + 1][0]
    right = curves.segment(start, CROSSING_GAP_M / 2, -reach[0] - CURB_M)
    line = curves.straight(right + np.array([0.0, 0.0, np.pi / 2]), sum(reach) + 2 * CURB_M)
    index = builder.crosswalk(line, frozenset(), curb_m=CURB_M)
    for connector in road.gaps[gap]:
        builder.stop_line(connector, 0.0, index)
    for blocks, before in ((road.forward, gap), (road.backward, gap + 1)):
        if blocks:
            add_stop_polygon(builder, blocks[before])


def add_stop_polygon(builder: NetworkBuilder, block: Block) -> None:
    """Adds the stop polygon across the end of a block."""
    end = block.reference[-1]
    width = len(block.lanes) * builder.lane_width_m
    corners = [(-STOP_POLYGON_M, 0.0), (-STOP_POLYGON_M, -width), (0.0, -width), (0.0, 0.0)]
    builder.area(MapLayer.STOP_POLYGON, np.array([curves.segment(end, *c)[:2] for c in corners]))


def routes_of(builder: NetworkBuilder, turn: Callable[[tuple[str, ...]], str], focus: dict[str, float]) -> list[Route]:
    """All ways; the focus is at `focus[element]` metres into the first element that has one, else in the middle."""
    routes = []
    for way in builder.ways():
        starts = np.concatenate([[0.0], np.cumsum([builder.length_of(element) for element in way])])
        found = [starts[k] + focus[element] for k, element in enumerate(way) if element in focus]
        routes.append(Route(way, float(found[0] if found else starts[-1] / 2), turn(way)))
    return routes


def straight_road(rng: Generator) -> Layout:
    """Two-way straight road of 1 to 3 lanes a direction, sometimes with a crosswalk in the middle."""
    builder = NetworkBuilder(draw_lane_width(rng))
    lanes = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    speed = float(rng.choice([11.176, 13.411, 15.646, 20.117]))
    crossing = bool(rng.random() < 0.45)
    if crossing:
        speed = min(speed, 13.411)
    lengths = [*rng.uniform(70, 95, 2), *rng.uniform(70, 95, 2)]
    pieces, start = [], np.array([-lengths[0] - lengths[1], 0.0, 0.0])
    for k, length in enumerate(lengths):
        pieces.append(curves.straight(start, length))
        if k < len(lengths) - 1:
            pieces.append(curves.straight(pieces[-1][-1], CROSSING_GAP_M if crossing and k == 1 else GAP_M))
            start = pieces[-1][-1]
    road = add_road(builder, pieces, lanes, speed)
    sides = _sides(builder, pieces, lanes, rng)
    focus: dict[str, float] = {}
    if crossing:
        reach = tuple(count * builder.lane_width_m + side for count, side in zip(lanes, sides, strict=True))
        _crossing(builder, road, pieces, 1, reach)
        focus = dict.fromkeys(road.gaps[1], 0.0)
    return builder.layout("straight", routes_of(builder, lambda way: "straight", focus))


def curve(rng: Generator) -> Layout:
    """Two-way road with a bend of 40 to 110 degrees and 25 to 110 m radius, a left and a right one by direction."""
    builder = NetworkBuilder(draw_lane_width(rng))
    lanes = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    speed = float(rng.choice([11.176, 13.411, 15.646]))
    radius = float(np.exp(rng.uniform(np.log(25.0), np.log(110.0))))
    angle = float(np.deg2rad(rng.uniform(40, 110)) * rng.choice([-1.0, 1.0]))
    pieces = [curves.straight(np.array([-100.0, 0.0, 0.0]), rng.uniform(80, 110))]
    pieces.append(curves.straight(pieces[-1][-1], GAP_M))
    pieces.append(curves.bend(pieces[-1][-1], radius, angle))
    pieces.append(curves.straight(pieces[-1][-1], GAP_M))
    pieces.append(curves.straight(pieces[-1][-1], rng.uniform(80, 110)))
    road = add_road(builder, pieces, lanes, speed)
    _sides(builder, pieces, lanes, rng)
    bends = {road.forward[1].id: angle, road.backward[1].id: -angle}
    focus = dict.fromkeys((*road.forward[1].lanes, *road.backward[1].lanes), 0.0)

    def turn(way: tuple[str, ...]) -> str:
        block = road.forward[1] if way[2] in road.forward[1].lanes else road.backward[1]
        return "left" if bends[block.id] > 0 else "right"

    return builder.layout("curve", routes_of(builder, turn, focus))


def merge(rng: Generator) -> Layout:
    """Main road of 1 or 2 lanes which a ramp joins from the right; both of its lanes end in the same one."""
    builder = NetworkBuilder(draw_lane_width(rng))
    width = builder.lane_width_m
    ahead, against = int(rng.integers(1, 3)), int(rng.integers(0, 3))
    speed, ramp_speed = float(rng.choice([15.646, 17.881, 20.117])), float(rng.choice([11.176, 13.411]))
    zone = float(rng.uniform(55, 70))
    lengths = (rng.uniform(110, 130), zone, rng.uniform(80, 100), GAP_M, rng.uniform(100, 120))
    pieces, start = [], np.array([-lengths[0], 0.0, 0.0])
    for length in lengths:
        pieces.append(curves.straight(start, length))
        start = pieces[-1][-1]
    road = add_road(builder, pieces, (ahead, against), speed)
    tilt = float(np.deg2rad(rng.uniform(4, 9)))
    ramp_end = np.array([0.0, -(ahead * width + rng.uniform(1.0, 3.0) + width / 2), tilt])
    approach = curves.straight(np.zeros(3), float(rng.uniform(90, 110)))
    bent = curves.bend(approach[-1], float(rng.uniform(45, 90)), -float(np.deg2rad(rng.uniform(25, 60))))
    last = curves.straight(bent[-1], 12.0)
    ramp_line = curves.chain(curves.densify(approach), bent, curves.densify(last))
    ramp_line = curves.place_end(ramp_line, ramp_end)
    ramp = builder.block(curves.offset(ramp_line, width / 2), 1, ramp_speed)
    (joining,) = builder.connect(ramp, road.forward[1], [(0, ahead - 1)], speed)
    line = builder.line_of(joining)
    strip = np.concatenate([curves.offset(line, -width / 2), curves.offset(line, width / 2)[::-1]])[:, :2]
    main = shapely.box(0.0, -ahead * width, zone, against * width)
    builder.area(MapLayer.INTERSECTION, np.asarray(shapely.union(main, shapely.Polygon(strip)).exterior.coords)[:-1])
    builder.strip("shoulder", ramp_line, width / 2, _SIDE_WIDTH_M["shoulder"], MapLayer.GENERIC_DRIVABLE_AREA)
    left = (curves.offset(ramp_line, width / 2 + RAMP_LEFT_SHOULDER_M), curves.offset(ramp_line, width / 2))
    builder.area(MapLayer.GENERIC_DRIVABLE_AREA, ring(*left))
    for piece in (pieces[2], pieces[4]):
        builder.strip("shoulder", piece, ahead * width, _SIDE_WIDTH_M["shoulder"], MapLayer.GENERIC_DRIVABLE_AREA)
    walkway = curves.reverse(curves.chain(*pieces))
    builder.strip("walkway", walkway, against * width + 2.0, WALKWAY_M, MapLayer.WALKWAY)
    focus = dict.fromkeys((joining, *road.gaps[0][:ahead]), 0.0)
    routes = routes_of(builder, lambda way: "merge" if joining in way else "straight", focus)
    return builder.layout("merge", routes, merge_zone_m=40.0)
