"""Signalised intersections of two roads, with four arms or three."""

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

from recogdrive.data.synthetic import curves
from recogdrive.data.synthetic.network import Block, Layout, NetworkBuilder, Route, ring
from recogdrive.data.synthetic.roads import (
    CURB_M,
    GAP_M,
    WALKWAY_M,
    add_road,
    add_stop_polygon,
    draw_lane_width,
    routes_of,
)
from recogdrive.data.types import MapLayer

MOUTH_M = 4.5
"""From the end of the rounded curb to the stop line; the crosswalk lies between them."""
CROSSWALK_M = 2.5
"""From the stop line to the middle of the crosswalk."""
TURNS = {1: "right", 2: "straight", 3: "left"}
"""What leaving by the arm so many quarter turns further (counter-clockwise) than one's own is called."""


class _Arm:
    """One arm: direction `quarter` quarter turns from the x axis, its mouth `mouth_m` from the centre."""

    def __init__(self, quarter: int, lanes: int, mouth_m: float, half_width_m: float):
        self.quarter, self.lanes, self.mouth_m, self.half_width_m = quarter, lanes, mouth_m, half_width_m
        angle = quarter * np.pi / 2
        self.outward = np.round(np.array([np.cos(angle), np.sin(angle)]))
        self.left = np.round(np.array([-np.sin(angle), np.cos(angle)]))
        self.inbound: Block | None = None
        self.outbound: Block | None = None

    def point(self, along_m: float, left_m: float) -> Float[np.ndarray, "2"]:
        return along_m * self.outward + left_m * self.left

    def pose(self, along_m: float, left_m: float, turn_rad: float = 0.0) -> Float[np.ndarray, "3"]:
        return np.append(self.point(along_m, left_m), self.quarter * np.pi / 2 + turn_rad)


def intersection(rng: Generator) -> Layout:
    """Two crossing roads of 1 or 2 lanes a direction, or a T; lights, crosswalks and stop polygons at every arm."""
    builder = NetworkBuilder(draw_lane_width(rng))
    speed = float(rng.choice([8.941, 11.176, 13.411]))
    curb_radius = float(rng.uniform(6.5, 10.0))
    lanes = tuple(int(n) for n in rng.integers(1, 3, size=2))
    half = [n * builder.lane_width_m for n in lanes]
    missing = int(rng.integers(4)) if rng.random() < 0.35 else None
    arms = {}
    for quarter in range(4):
        if quarter != missing:
            axis = quarter % 2
            arms[quarter] = _Arm(quarter, lanes[axis], half[1 - axis] + curb_radius + MOUTH_M, half[axis])
            _add_arm(builder, arms[quarter], speed, rng)
    movements = {
        (a, k): _add_movement(builder, arms[a], arms[(a + k) % 4], TURNS[k], speed)
        for a in arms
        for k in TURNS
        if (a + k) % 4 in arms
    }
    _add_center(builder, arms, half, curb_radius)
    for a, arm in arms.items():
        _add_crosswalk(builder, arm, [movements[key] for key in movements if key[0] == a])
        for key, connectors in movements.items():
            if (key[0] + key[1]) % 4 == a:
                for connector in connectors:
                    at_m = builder.length_of(connector) - MOUTH_M
                    builder.stop_line(connector, at_m, len(builder.crosswalks) - 1)
    turn_of = {connector: TURNS[key[1]] for key, ids in movements.items() for connector in ids}

    def turn(way: tuple[str, ...]) -> str:
        return next(turn_of[element] for element in way if element in turn_of)

    routes: list[Route] = routes_of(builder, turn, dict.fromkeys(turn_of, 0.0))
    return builder.layout("intersection", routes, _phases(arms, movements, lanes))


def _add_arm(builder: NetworkBuilder, arm: _Arm, speed_mps: float, rng: Generator) -> None:
    """Adds the road of an arm, in one block a direction or in two, its stop polygon, shoulders and walkways."""
    length = float(rng.uniform(95, 125))
    pieces = [curves.straight(arm.pose(arm.mouth_m, 0.0), length)]
    if rng.random() < 0.4:
        near = float(rng.uniform(45, 65))
        pieces = [curves.straight(arm.pose(arm.mouth_m, 0.0), near)]
        pieces.append(curves.straight(pieces[-1][-1], GAP_M))
        pieces.append(curves.straight(pieces[-1][-1], length - near))
    road = add_road(builder, pieces, (arm.lanes, arm.lanes), speed_mps)
    arm.outbound, arm.inbound = road.forward[0], road.backward[0]
    add_stop_polygon(builder, arm.inbound)
    for line in (pieces, [curves.reverse(piece) for piece in pieces][::-1]):
        whole = curves.chain(*line)
        builder.strip("walkway", whole, arm.half_width_m, WALKWAY_M, MapLayer.WALKWAY)
        builder.strip("shoulder", whole, arm.half_width_m + 0.1, 1.0, None)


def _add_movement(builder: NetworkBuilder, start: _Arm, end: _Arm, turn: str, speed_mps: float) -> tuple[str, ...]:
    """Adds the connectors of one movement: turns from and to the outermost lane, straight on lane by lane."""
    if turn == "straight":
        reference = np.stack([start.pose(start.mouth_m, 0.0, np.pi), end.pose(end.mouth_m, 0.0)])
        reference[1, 2] = reference[0, 2]
        pairs = [(k, k) for k in range(start.lanes)]
        return builder.connect(start.inbound, end.outbound, pairs, speed_mps, reference, light=True)
    pair = (0, 0) if turn == "left" else (start.lanes - 1, end.lanes - 1)
    # A right turn that began at the mouth would cut the curb.
    straight_m = MOUTH_M if turn == "right" else 0.0
    return builder.connect(start.inbound, end.outbound, [pair], speed_mps, light=True, straight_ends_m=straight_m)


def _add_center(builder: NetworkBuilder, arms: dict[int, _Arm], half: list[float], curb_radius_m: float) -> None:
    """Adds the area all connectors lie in, and the walkways around its corners."""
    outline = []
    angle = np.linspace(0.0, np.pi / 2, 7)
    for quarter, arm in arms.items():
        outline += [arm.point(arm.mouth_m, -arm.half_width_m), arm.point(arm.mouth_m, arm.half_width_m)]
        following = arms.get((quarter + 1) % 4)
        if following is None:
            continue
        # The curb between two arms is a quarter circle around a point off the road.
        middle = arm.point(following.half_width_m + curb_radius_m, arm.half_width_m + curb_radius_m)
        spread = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
        toward = -spread[:, 1:] * arm.left - spread[:, :1] * arm.outward
        outline += list(middle + curb_radius_m * toward)
        edges = []
        for inner_m in (0.0, WALKWAY_M):
            ends = (
                arm.point(arm.mouth_m, arm.half_width_m + inner_m),
                following.point(following.mouth_m, -following.half_width_m - inner_m),
            )
            edges.append(np.vstack([ends[0], middle + (curb_radius_m - inner_m) * toward, ends[1]]))
        builder.area(MapLayer.WALKWAY, ring(edges[0], edges[1]))
    builder.area(MapLayer.INTERSECTION, np.array(outline))
    for quarter in set(range(4)) - set(arms):
        across = half[(quarter + 1) % 2]
        mouth = arms[(quarter + 1) % 4].mouth_m
        left = _Arm(quarter, 0, 0.0, 0.0)
        edge = np.stack([left.pose(across, mouth, -np.pi / 2), left.pose(across, -mouth, -np.pi / 2)])
        builder.strip("walkway", curves.reverse(edge), 0.0, WALKWAY_M, MapLayer.WALKWAY)


def _add_crosswalk(builder: NetworkBuilder, arm: _Arm, inbound: list[tuple[str, ...]]) -> None:
    """Adds the crosswalk of an arm, to be used while everything that enters over it has red."""
    along = arm.mouth_m - CROSSWALK_M
    start = arm.pose(along, -arm.half_width_m - CURB_M, np.pi / 2)
    line = curves.straight(start, 2 * (arm.half_width_m + CURB_M))
    builder.crosswalk(line, frozenset(c for connectors in inbound for c in connectors), curb_m=CURB_M)


def _phases(
    arms: dict[int, _Arm], movements: dict[tuple[int, int], tuple[str, ...]], lanes: tuple[int, ...]
) -> list[frozenset[str]]:
    """Sets of movements without conflicts that have green together.

    With a lane for left turns these wait for a phase of their own; on single lanes each arm has a phase of its own.
    """
    groups: list[list[tuple[int, int]]] = []
    for axis in range(2):
        on_axis = [a for a in arms if a % 2 == axis]
        if lanes[axis] == 1 or len(on_axis) == 1:
            groups += [[(a, k) for k in TURNS] for a in on_axis]
        else:
            groups += [[(a, k) for a in on_axis for k in (1, 2)], [(a, 3) for a in on_axis]]
    phases = [frozenset(c for key in group for c in movements.get(key, ())) for group in groups]
    return [phase for phase in phases if phase]
