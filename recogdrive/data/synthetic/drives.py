"""One drive through a piece of town: layout, lights, traffic and expert, drawn again until the expert drives well."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import shapely
from numpy.random import Generator

from recogdrive.data.synthetic import expert, roads
from recogdrive.data.synthetic.intersection import intersection
from recogdrive.data.synthetic.lights import Lights, draw_lights
from recogdrive.data.synthetic.network import Layout, Route
from recogdrive.data.synthetic.paths import PathTables
from recogdrive.data.synthetic.population import (
    Objects,
    draw_fixed,
    draw_fleet,
    draw_walkers,
    ego_start,
    join_objects,
    pick_routes,
    stop_schedule,
)
from recogdrive.data.synthetic.traffic import STEP_S, Fleet, Motion, settle, simulate
from recogdrive.data.types import FRAME_INTERVAL_S, HISTORY_FRAMES, AgentClass, MapLayer

LAYOUTS: Mapping[str, Callable[[Generator], Layout]] = MappingProxyType(
    {"straight": roads.straight_road, "curve": roads.curve, "intersection": intersection, "merge": roads.merge}
)
"""Every kind of road by name."""
ROAD_LAYERS = (MapLayer.ROADBLOCK, MapLayer.INTERSECTION, MapLayer.CARPARK_AREA)
"""Where the expert drives."""
DRIVABLE_LAYERS = (*ROAD_LAYERS, MapLayer.GENERIC_DRIVABLE_AREA)
"""What NAVSIM's drivable area consists of."""
RECORDED_FUTURE_FRAMES = 10
WARM_UP_S = 1.0
"""Driven before the first recorded frame, so that nobody is still reacting to how they were placed."""
MAX_ATTEMPTS = 60
_HISTORY_S = (HISTORY_FRAMES - 1) * FRAME_INTERVAL_S
TIMES_S = STEP_S * np.arange(
    -round((_HISTORY_S + WARM_UP_S) / STEP_S), round(RECORDED_FUTURE_FRAMES * FRAME_INTERVAL_S / STEP_S) + 1
)
"""Simulated times; 0 is now."""
RECORDED = slice(round(WARM_UP_S / STEP_S), None)
FRAMES = slice(round(WARM_UP_S / STEP_S), None, round(FRAME_INTERVAL_S / STEP_S))
"""The recorded frames among the simulated times."""
EARLIER_FRAMES = slice(FRAMES.start - FRAMES.step, -FRAMES.step, FRAMES.step)
"""As many frames, seen one frame interval earlier: they begin within the warm-up."""
_NOW = round(_HISTORY_S / STEP_S)
"""Index of the current time among the recorded ones."""


@dataclass(frozen=True)
class Drive:
    """A drive over `TIMES_S`, in the layout's frame.

    Attributes:
      layout: Where.
      outlines: shapely polygons of the layout's elements, in order.
      route: The ego's route.
      tables: Poses along it in row 0.
      ego: The ego.
      objects: Everything else.
      lights: Traffic lights.
      signal: What the light on the ego's route does, see `lights.SIGNALS`.
      attempts: How many drives were drawn until this one.
    """

    layout: Layout
    outlines: np.ndarray
    route: Route
    tables: PathTables
    ego: expert.EgoDrive
    objects: Objects
    lights: Lights
    signal: str
    attempts: int


def draw_drive(kind: str, rng: Generator) -> Drive:
    """Draws a drive on the given kind of road; only one without flaw is returned.

    See `expert.flaw` for what the driver must not do, and `expert.steered_flaw` for what the PDM score must not find.

    Raises RuntimeError if `MAX_ATTEMPTS` drives in a row have flaws.
    """
    flaws = []
    for attempt in range(1, MAX_ATTEMPTS + 1):
        drive, flaw = _attempt(kind, rng, attempt)
        if flaw is None:
            return drive
        flaws.append(flaw)
    raise RuntimeError(
        f"no clean expert drive on a {kind!r} road in {MAX_ATTEMPTS} attempts (last flaws: {', '.join(flaws[-3:])}); "
        "use another seed or scene number, and report this one"
    )


def _attempt(kind: str, rng: Generator, attempt: int) -> tuple[Drive, str | None]:
    """One drive and what is wrong with it."""
    layout = LAYOUTS[kind](rng)
    routes = pick_routes(layout, rng)
    tables = PathTables(layout, routes)
    lights, signal = draw_lights(layout, routes[0], TIMES_S, rng)
    limit = min(layout.speed_limit_mps[element] for element in routes[0].elements)
    start = ego_start(routes[0], signal, limit, -TIMES_S[0], rng)
    fleet, sizes = draw_fleet(layout, tables, start, rng)
    walkers, crossings = draw_walkers(layout, lights, TIMES_S, rng)
    stops = stop_schedule(layout, tables, fleet, lights, crossings)
    speed = settle(tables, fleet, stops, layout.merge_zone_m)
    fleet = Fleet(fleet.path, fleet.s_m, speed, fleet.front_m, fleet.rear_m, fleet.drivers)
    motion = simulate(tables, fleet, stops, layout.merge_zone_m)
    ego = expert.ego_drive(tables, 0, motion, 0, float(np.clip(rng.normal(0.0, 0.2), -0.4, 0.4)))
    vehicles = _vehicles(tables, fleet, motion, sizes)
    objects = join_objects(vehicles, walkers, draw_fixed(layout, len(TIMES_S), rng))
    outlines = outlines_of(layout)
    seen_ego, seen_objects = _recorded_ego(ego), _recorded_objects(objects)
    found = expert.flaw(
        seen_ego,
        seen_objects,
        len(vehicles.classes),
        Lights(lights.connectors, lights.red[RECORDED]),
        _light_stops(layout, tables),
        _polygons(layout, outlines, ROAD_LAYERS),
        float(tables.length_m[0]),
    ) or expert.steered_flaw(seen_ego, seen_objects, _polygons(layout, outlines, DRIVABLE_LAYERS), _NOW)
    return Drive(layout, outlines, routes[0], tables, ego, objects, lights, signal, attempt), found


def outlines_of(layout: Layout) -> np.ndarray:
    """shapely polygons of a layout's elements, in order."""
    counts = [len(element.polygon) for element in layout.elements]
    points = np.concatenate([element.polygon for element in layout.elements])
    return shapely.polygons(shapely.linearrings(points, indices=np.repeat(np.arange(len(counts)), counts)))


def _vehicles(tables: PathTables, fleet: Fleet, motion: Motion, sizes: np.ndarray) -> Objects:
    """Everybody in the fleet but the ego, until their route ends."""
    path, s = fleet.path[1:], motion.s_m[:, 1:]
    return Objects(
        np.full(len(path), AgentClass.VEHICLE, dtype=np.int8),
        sizes[1:],
        tables.pose(path, s),
        motion.speed_mps[:, 1:],
        s < tables.length_m[path] - sizes[1:, 0] / 2,
    )


def _light_stops(layout: Layout, tables: PathTables) -> list[tuple[str, float]]:
    """Connector and arc length of every light on the ego's route."""
    elements = tables.routes[0].elements
    return [
        (line.connector, float(tables.starts[0][elements.index(line.connector)] + line.at_m))
        for line in layout.stop_lines
        if line.crosswalk is None and line.connector in elements
    ]


def _polygons(layout: Layout, outlines: np.ndarray, layers: Collection[MapLayer]) -> np.ndarray:
    """Prepared polygons of some layers."""
    polygons = outlines[[element.layer in layers for element in layout.elements]]
    shapely.prepare(polygons)
    return polygons


def _recorded_ego(ego: expert.EgoDrive) -> expert.EgoDrive:
    return expert.EgoDrive(ego.poses[RECORDED], ego.velocity[RECORDED], ego.acceleration[RECORDED], ego.s_m[RECORDED])


def _recorded_objects(objects: Objects) -> Objects:
    return Objects(
        objects.classes,
        objects.size_m,
        objects.poses[RECORDED],
        objects.speed_mps[RECORDED],
        objects.present[RECORDED],
    )
