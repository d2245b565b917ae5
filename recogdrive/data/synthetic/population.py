"""Who is on the road: vehicles with their drivers, pedestrians, bicycles, parked cars and obstacles."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.random import Generator

from recogdrive.data.synthetic import curves
from recogdrive.data.synthetic.lights import Lights
from recogdrive.data.synthetic.network import Layout, Route
from recogdrive.data.synthetic.paths import PathTables
from recogdrive.data.synthetic.traffic import Drivers, Fleet, StopSchedule
from recogdrive.data.types import PACIFICA, AgentClass

MAX_VEHICLES = 9
MAX_ROUTES = 7
"""So many routes at most are used at once."""
PARKING_SLOT_M = 7.0
NOTICED_S = 1.5
"""Vehicles stop for a pedestrian who is about to enter the road in this time."""
_EGO_FRONT_M = PACIFICA.length_m / 2 + PACIFICA.rear_axle_to_center_m
_EGO_REAR_M = PACIFICA.length_m / 2 - PACIFICA.rear_axle_to_center_m


@dataclass(frozen=True)
class Objects:
    """A objects over T times, in the layout's frame.

    Attributes:
      classes: (A,) int8 of `AgentClass`.
      size_m: (A, 3) length, width, height.
      poses: (T, A, 3) of the box centre.
      speed_mps: (T, A) along the heading.
      present: (T, A) whether it exists.
    """

    classes: np.ndarray
    size_m: Float[np.ndarray, "A 3"]
    poses: Float[np.ndarray, "T A 3"]
    speed_mps: Float[np.ndarray, "T A"]
    present: Bool[np.ndarray, "T A"]


@dataclass(frozen=True)
class Crossing:
    """A pedestrian on a crosswalk: its number, and whether vehicles have to stop for them, (T,) over time."""

    crosswalk: int
    blocks: Bool[np.ndarray, "T"]


def join_objects(*parts: Objects) -> Objects:
    """All objects of several groups, over the same times."""
    return Objects(
        np.concatenate([p.classes for p in parts]),
        np.concatenate([p.size_m for p in parts]),
        np.concatenate([p.poses for p in parts], axis=1),
        np.concatenate([p.speed_mps for p in parts], axis=1),
        np.concatenate([p.present for p in parts], axis=1),
    )


def pick_routes(layout: Layout, rng: Generator) -> tuple[Route, ...]:
    """Routes in use; the first is the ego's, drawn evenly over what it does after its focus."""
    turns = sorted({route.turn for route in layout.routes})
    turn = turns[int(rng.integers(len(turns)))]
    candidates = [route for route in layout.routes if route.turn == turn]
    ego = candidates[int(rng.integers(len(candidates)))]
    others = [route for route in layout.routes if route is not ego]
    order = rng.permutation(len(others))[: MAX_ROUTES - 1]
    return (ego, *(others[k] for k in order))


def ego_start(route: Route, signal: str, limit_mps: float, warm_up_s: float, rng: Generator) -> tuple[float, float]:
    """Arc length and speed of the ego's rear axle at the start of the warm-up."""
    speed = limit_mps * float(rng.uniform(0.3, 1.05))
    if signal == "red":
        ahead = float(rng.uniform(14.0, 50.0)) + warm_up_s * speed
    elif signal == "turned_green":
        ahead, speed = float(rng.uniform(6.5, 26.0)), float(rng.uniform(0.0, 4.0))
    elif signal == "turned_red":
        ahead = float(rng.uniform(10.0, 40.0)) + warm_up_s * speed
    elif signal == "green":
        ahead = float(rng.uniform(-14.0, 24.0)) + warm_up_s * 0.8 * speed
    else:
        if rng.random() < 0.15:
            speed = 0.0
        ahead = float(rng.uniform(-15.0, 55.0)) + warm_up_s * speed
    return max(route.focus_m - ahead, 6.0), speed


def draw_fleet(
    layout: Layout, tables: PathTables, ego: tuple[float, float], rng: Generator
) -> tuple[Fleet, Float[np.ndarray, "N 3"]]:
    """The ego (first) and other vehicles at their starting places, and the sizes of all.

    Others start on lanes only, at least a car's length and a half apart; often one leads the ego, at times slowly.
    """
    wanted = int(rng.integers(2, MAX_VEHICLES + 1))
    tries = 3 * wanted
    path = rng.integers(len(tables.routes), size=tries)
    share = rng.random(tries)
    starts = [tables.starts[p] for p in path]
    lane = [2 * int(rng.integers((len(s) + 1) // 2 if len(s) < 4 else 2)) for s in starts]
    place = np.array([s[k] + 7.0 + u * (s[k + 1] - s[k] - 14.0) for s, k, u in zip(starts, lane, share, strict=True)])
    leads = bool(rng.random() < 0.5)
    path[0], place[0] = 0, ego[0] + float(rng.uniform(14.0, 50.0)) if leads else place[0]
    path, place = np.append(0, path), np.append(ego[0], place)
    chosen = _apart(tables.at(tables.poses, path, place), place < tables.length_m[path] - 10.0, wanted)
    path, place = path[chosen], place[chosen]
    count = len(chosen)
    size = np.stack([rng.uniform(4.2, 5.1, count), rng.uniform(1.75, 2.05, count), rng.uniform(1.4, 1.9, count)], -1)
    straight_on = np.array([tables.routes[p].turn == "straight" for p in path])
    size[straight_on & (rng.random(count) < 0.12)] = (7.6, 2.4, 3.1)
    size[0] = PACIFICA.length_m, PACIFICA.width_m, PACIFICA.height_m
    factor = rng.uniform(0.75, 1.05, count)
    if leads and len(chosen) > 1 and chosen[1] == 1:
        # Standing vehicles block a lane for good only where nobody could take them for a queue at a light.
        standing = rng.random() < 0.3 and not layout.phases
        factor[1] = 0.0 if standing else rng.uniform(0.35, 1.0)
    factor[0] = 1.0
    speed = tables.at(tables.speed_mps, path, place) * factor * rng.uniform(0.6, 1.0, count)
    speed[0] = ego[1]
    drivers = Drivers(
        speed_factor=factor,
        acceleration_mps2=np.append(1.7, rng.uniform(1.2, 2.0, count - 1)),
        braking_mps2=np.append(2.0, rng.uniform(1.6, 2.6, count - 1)),
        headway_s=np.append(1.3, rng.uniform(1.0, 1.7, count - 1)),
        min_gap_m=np.append(2.0, rng.uniform(1.6, 2.6, count - 1)),
    )
    front, rear = size[:, 0] / 2, size[:, 0] / 2
    front[0], rear[0] = _EGO_FRONT_M, _EGO_REAR_M
    return Fleet(path, place, speed, front, rear, drivers), size


def _apart(poses: Float[np.ndarray, "N 3"], allowed: Bool[np.ndarray, "N"], wanted: int) -> list[int]:
    """The first pose and up to `wanted` of those after it that keep clear of those chosen before."""
    away = poses[None, :, :2] - poses[:, None, :2]
    cos, sin = np.cos(poses[:, None, 2]), np.sin(poses[:, None, 2])
    along, across = away[..., 0] * cos + away[..., 1] * sin, away[..., 1] * cos - away[..., 0] * sin
    near = (np.abs(along) < 12.0) & (np.abs(across) < 2.6)
    near |= near.T
    chosen = [0]
    for k in range(1, len(poses)):
        if allowed[k] and len(chosen) <= wanted and not near[k, chosen].any():
            chosen.append(k)
    return chosen


def draw_walkers(
    layout: Layout, lights: Lights, times_s: Float[np.ndarray, "T"], rng: Generator
) -> tuple[Objects, list[Crossing]]:
    """Pedestrians on walkways and crosswalks and bicycles on their strips; they keep their speed until their way ends.

    Crosswalks are entered only where all traffic entering over them has red until the other side is reached.
    """
    tracks, crossings, classes = [], [], []
    for index, crosswalk in enumerate(layout.crosswalks):
        if rng.random() < 0.45:
            continue
        length, pace = float(curves.arc_length(crosswalk.line)[-1]), float(rng.uniform(1.1, 1.7))
        begin_s = float(rng.uniform(-7.0, 1.0))
        on_road = (times_s > begin_s - NOTICED_S) & (times_s < begin_s + (length - 0.8) / pace)
        if not all(lights.is_red(connector)[on_road].all() for connector in crosswalk.closed_by):
            continue
        s = np.clip((times_s - begin_s) * pace, 0.0, length)
        tracks.append(_track(crosswalk.line, s, pace, bool(rng.random() < 0.5), float(rng.uniform(-0.8, 0.8))))
        crossings.append(Crossing(index, on_road))
        classes.append(AgentClass.PEDESTRIAN)
    for strip in layout.strips:
        pedestrian = strip.kind == "walkway"
        if not (pedestrian or strip.kind == "bicycle") or rng.random() < 0.6 or len(tracks) >= 6:
            continue
        length = float(curves.arc_length(strip.line)[-1])
        pace = float(rng.uniform(0.9, 1.7) if pedestrian else rng.uniform(3.0, 5.5))
        now = float(rng.uniform(0.3, 0.7) if length > 60 else rng.random()) * length
        s = np.clip(now + times_s * pace, 0.5, length - 0.5)
        side = float(rng.uniform(-0.7, 0.7)) if pedestrian else float(rng.uniform(-0.3, 0.3))
        tracks.append(_track(strip.line, s, pace, bool(pedestrian and rng.random() < 0.5), side))
        classes.append(AgentClass.PEDESTRIAN if pedestrian else AgentClass.BICYCLE)
    sizes = {AgentClass.PEDESTRIAN: (0.6, 0.6, 1.75), AgentClass.BICYCLE: (1.8, 0.6, 1.7)}
    return _objects(classes, [sizes[c] for c in classes], tracks, len(times_s)), crossings


def _track(
    line: Float[np.ndarray, "L 3"], s_m: Float[np.ndarray, "T"], pace_mps: float, backward: bool, side_m: float
) -> Float[np.ndarray, "T 4"]:
    """Poses and speed of somebody at arc lengths `s_m` of a line (from its end if backward)."""
    along = curves.arc_length(line)
    at = along[-1] - s_m if backward else s_m
    pose = np.stack([np.interp(at, along, line[:, axis]) for axis in range(3)], axis=-1)
    pose = curves.offset(pose, side_m)
    pose[:, 2] += np.pi * backward
    moving = np.gradient(s_m) > 1e-9
    return np.concatenate([pose, (pace_mps * moving)[:, None]], axis=-1)


def draw_fixed(layout: Layout, steps: int, rng: Generator) -> Objects:
    """Parked cars on their strips, and cones, barriers, signs and other things on shoulders and walkways."""
    classes: list[AgentClass] = []
    sizes: list[tuple[float, float, float]] = []
    tracks = []

    def put(agent_class: AgentClass, size: tuple[float, float, float], strip_line: np.ndarray, s: float) -> None:
        still = _track(strip_line, np.array([s, s]), 0.0, False, float(rng.uniform(-0.12, 0.12)))[0]
        classes.append(agent_class)
        sizes.append(size)
        tracks.append(np.broadcast_to(still, (steps, 4)))

    for strip in layout.strips:
        length = float(curves.arc_length(strip.line)[-1])
        if strip.kind == "parking" and len(tracks) < 5 and length > 3 * PARKING_SLOT_M:
            slots = int(length // PARKING_SLOT_M)
            for slot in rng.permutation(slots)[: int(rng.integers(0, 4))]:
                size = (float(rng.uniform(4.1, 4.9)), float(rng.uniform(1.75, 1.95)), float(rng.uniform(1.4, 1.8)))
                put(AgentClass.VEHICLE, size, strip.line, (slot + 0.5) * PARKING_SLOT_M)
        if strip.kind == "shoulder" and len(tracks) < 6 and rng.random() < 0.3:
            first = float(rng.uniform(0.05, 0.7)) * length
            if rng.random() < 0.6:
                for k in range(int(rng.integers(2, 4))):
                    put(AgentClass.TRAFFIC_CONE, (0.4, 0.4, 0.8), strip.line, min(first + 3.0 * k, length))
                put(AgentClass.CZONE_SIGN, (0.4, 0.7, 1.2), strip.line, max(first - 4.0, 0.0))
            else:
                put(AgentClass.BARRIER, (2.0, 0.5, 1.0), strip.line, first)
        if strip.kind == "walkway" and rng.random() < 0.12:
            put(AgentClass.GENERIC_OBJECT, (0.7, 0.7, 1.0), strip.line, float(rng.uniform(0.2, 0.8)) * length)
    return _objects(classes, sizes, tracks, steps)


def _objects(
    classes: list[AgentClass], sizes: list[tuple[float, float, float]], tracks: list[np.ndarray], steps: int
) -> Objects:
    """Objects that exist all the time, from their tracks (T, 4)."""
    stacked = np.stack(tracks, axis=1) if tracks else np.zeros((steps, 0, 4))
    return Objects(
        np.array(classes, dtype=np.int8),
        np.array(sizes, dtype=np.float64).reshape(-1, 3),
        stacked[..., :3],
        stacked[..., 3],
        np.ones((steps, len(classes)), dtype=bool),
    )


def stop_schedule(
    layout: Layout, tables: PathTables, fleet: Fleet, lights: Lights, crossings: list[Crossing]
) -> StopSchedule:
    """Where each vehicle's route meets closed stop lines, and when they are closed."""
    steps = len(lights.red) - 1
    per_route = []
    for route, starts in zip(tables.routes, tables.starts, strict=True):
        found = []
        for line in layout.stop_lines:
            if line.connector not in route.elements:
                continue
            if line.crosswalk is None:
                active = lights.is_red(line.connector)
            else:
                active = np.any([c.blocks for c in crossings if c.crosswalk == line.crosswalk], axis=0)
                active = np.broadcast_to(active, (steps + 1,))
            if active.any():
                found.append((starts[route.elements.index(line.connector)] + line.at_m, active[:steps]))
        per_route.append(found)
    width = max(1, max(len(found) for found in per_route))
    s_m = np.full((len(per_route), width), np.inf)
    active = np.zeros((steps, len(per_route), width), dtype=bool)
    for p, found in enumerate(per_route):
        for k, (at, closed) in enumerate(found):
            s_m[p, k], active[:, p, k] = at, closed
    return StopSchedule(s_m[fleet.path], active[:, fleet.path])
