from collections import Counter

import numpy as np
import pytest
import shapely

from recogdrive.data.synthetic import curves
from recogdrive.data.synthetic.drives import LAYOUTS, TIMES_S
from recogdrive.data.synthetic.lights import Lights, draw_lights
from recogdrive.data.synthetic.network import Crosswalk, Layout, Route, StopLine, Strip
from recogdrive.data.synthetic.paths import PathTables
from recogdrive.data.synthetic.population import (
    Crossing,
    draw_fixed,
    draw_fleet,
    draw_walkers,
    ego_start,
    pick_routes,
    stop_schedule,
)
from recogdrive.data.synthetic.traffic import Drivers, Fleet
from recogdrive.data.types import AgentClass, MapLayer
from recogdrive.geometry import box_corners

NO_LIGHTS = Lights((), np.zeros((len(TIMES_S), 0), dtype=bool))


def strip_layout(kind):
    line = curves.straight(np.zeros(3), 100.0)
    return Layout("straight", (), {}, {}, (), strips=(Strip(kind, line),))


def crossing_layout(closed_by=()):
    line = curves.straight(np.zeros(3), 10.0)
    return Layout("straight", (), {}, {}, (), crosswalks=(Crosswalk(line, frozenset(closed_by)),))


def polygons(layout, *layers):
    return shapely.union_all([shapely.Polygon(e.polygon) for e in layout.elements if e.layer in layers])


def footprints(objects, which):
    corners = box_corners(objects.poses[0, which], objects.size_m[which, 0], objects.size_m[which, 1])
    return shapely.polygons(corners)


def test_turns_are_drawn_evenly_and_the_ego_route_comes_first():
    layout = LAYOUTS["intersection"](np.random.default_rng(2))
    rng = np.random.default_rng(0)
    turns = Counter(pick_routes(layout, rng)[0].turn for _ in range(600))
    assert set(turns) == {route.turn for route in layout.routes}
    assert min(turns.values()) > 150


def test_no_route_is_picked_twice():
    layout = LAYOUTS["intersection"](np.random.default_rng(2))
    routes = pick_routes(layout, np.random.default_rng(0))
    assert len(set(map(id, routes))) == len(routes) <= 7


@pytest.mark.parametrize("signal", ["red", "turned_red", "turned_green"])
def test_before_a_light_that_is_or_was_red_the_ego_starts_ahead_of_the_stop_line(signal):
    route = Route((), 120.0, "straight")
    starts = [ego_start(route, signal, 12.0, 2.5, np.random.default_rng(k))[0] for k in range(50)]
    assert max(starts) + 4.05 < 120.0


def test_vehicles_start_apart_from_each_other_and_the_ego_comes_first():
    for seed, make in enumerate(list(LAYOUTS.values()) * 4):
        rng = np.random.default_rng(seed)
        layout = make(rng)
        tables = PathTables(layout, pick_routes(layout, rng))
        fleet, size = draw_fleet(layout, tables, (60.0, 8.0), rng)
        assert (fleet.path[0], fleet.s_m[0]) == (0, 60.0)
        poses = tables.at(tables.poses, fleet.path, fleet.s_m)
        boxes = shapely.polygons(box_corners(poses, size[:, 0], size[:, 1]))
        assert not any(boxes[a].intersects(boxes[b]) for a in range(len(boxes)) for b in range(a))


def test_vehicles_other_than_the_ego_start_on_lanes():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        layout = LAYOUTS["intersection"](rng)
        tables = PathTables(layout, pick_routes(layout, rng))
        fleet, _ = draw_fleet(layout, tables, (60.0, 8.0), rng)
        lead = fleet.path[1:] == 0  # one that was put in front of the ego may start anywhere
        for path, s in zip(fleet.path[1:][~lead], fleet.s_m[1:][~lead], strict=True):
            assert (np.searchsorted(tables.starts[path], s, side="right") - 1) % 2 == 0


def test_a_pedestrian_needs_the_time_that_the_crosswalk_takes():
    for seed in range(20):
        objects, crossings = draw_walkers(crossing_layout(), NO_LIGHTS, TIMES_S, np.random.default_rng(seed))
        if crossings and TIMES_S[0] + 0.2 < TIMES_S[crossings[0].blocks][0] and not crossings[0].blocks[-1]:
            pace = objects.speed_mps.max()
            duration = crossings[0].blocks.sum() * 0.1
            # Vehicles wait from 1.5 s before until 0.8 m before the other side.
            assert duration == pytest.approx(1.5 + (10.0 - 0.8) / pace, abs=0.11)
            break
    else:
        pytest.fail("no pedestrian crossed within the recorded time")


def test_nobody_crosses_before_traffic_that_has_green():
    lights = Lights(("7",), np.zeros((len(TIMES_S), 1), dtype=bool))
    for seed in range(20):
        _, crossings = draw_walkers(crossing_layout({"7"}), lights, TIMES_S, np.random.default_rng(seed))
        assert crossings == []


def test_walkers_move_along_their_heading_at_their_speed():
    for kind in ("walkway", "bicycle"):
        for seed in range(8):
            objects, _ = draw_walkers(strip_layout(kind), NO_LIGHTS, TIMES_S, np.random.default_rng(seed))
            step = np.diff(objects.poses[..., :2], axis=0)
            heading = objects.poses[1:, :, 2]
            along = np.stack([np.cos(heading), np.sin(heading)], -1) * objects.speed_mps[1:, :, None] * 0.1
            moving = (objects.speed_mps[1:] > 0) & (objects.speed_mps[:-1] > 0)
            np.testing.assert_allclose(step[moving][1:-1], along[moving][1:-1], atol=1e-9)


def test_bicycles_ride_on_their_strips_and_people_walk_on_walkways():
    classes = {"walkway": AgentClass.PEDESTRIAN, "bicycle": AgentClass.BICYCLE}
    for kind, expected in classes.items():
        drawn = [draw_walkers(strip_layout(kind), NO_LIGHTS, TIMES_S, np.random.default_rng(k))[0] for k in range(10)]
        assert {int(c) for objects in drawn for c in objects.classes} == {expected}


def test_parked_cars_stand_in_car_parks_without_touching():
    found = 0
    for seed in range(25):
        layout = LAYOUTS["straight"](np.random.default_rng(seed))
        objects = draw_fixed(layout, 3, np.random.default_rng(seed))
        cars = footprints(objects, objects.classes == AgentClass.VEHICLE)
        ground = polygons(layout, MapLayer.CARPARK_AREA)
        found += len(cars)
        assert all(ground.buffer(1e-6).covers(car) for car in cars)
        assert not any(cars[a].intersects(cars[b]) for a in range(len(cars)) for b in range(a))
    assert found > 20


def test_obstacles_stand_off_the_lanes(layouts):
    found = Counter()
    for seed, layout in enumerate(layouts):
        objects = draw_fixed(layout, 3, np.random.default_rng(seed))
        lanes = polygons(layout, MapLayer.LANE, MapLayer.LANE_CONNECTOR)
        assert not any(lanes.intersects(box) for box in footprints(objects, slice(None))), layout.kind
        found.update(objects.classes.tolist())
    assert set(found) >= {
        AgentClass.TRAFFIC_CONE,
        AgentClass.BARRIER,
        AgentClass.CZONE_SIGN,
        AgentClass.GENERIC_OBJECT,
    }


def test_fixed_objects_do_not_move():
    objects = draw_fixed(strip_layout("parking"), 5, np.random.default_rng(1))
    assert len(objects.classes) > 0
    assert np.ptp(objects.poses, axis=0).max() == 0
    assert objects.speed_mps.max() == 0


def test_the_stop_schedule_puts_lights_and_crosswalks_at_their_place_on_the_route():
    a = curves.straight(np.zeros(3), 40.0)
    b = curves.straight(a[-1], 20.0)
    lines = (StopLine("b", 0.0), StopLine("b", 15.0, crosswalk=0))
    layout = Layout("x", (), {"a": a, "b": b}, {"a": 9.0, "b": 9.0}, (), stop_lines=lines)
    tables = PathTables(layout, (Route(("a", "b"), 0.0, "straight"),))
    one = np.ones(1)
    fleet = Fleet(np.zeros(1, dtype=int), one, one, one, one, Drivers(one, one, one, one, one))
    red = np.array([[True], [True], [False], [False]])
    crossing = Crossing(0, np.array([False, True, True, False]))
    stops = stop_schedule(layout, tables, fleet, Lights(("b",), red), [crossing])
    assert stops.s_m.tolist() == [[40.0, 55.0]]
    assert stops.active[:, 0].tolist() == [[True, False], [True, True], [False, True]]


def test_a_route_without_closed_stop_lines_has_none():
    layout = LAYOUTS["straight"](np.random.default_rng(0))
    rng = np.random.default_rng(0)
    tables = PathTables(layout, pick_routes(layout, rng))
    fleet, _ = draw_fleet(layout, tables, (60.0, 8.0), rng)
    stops = stop_schedule(layout, tables, fleet, draw_lights(layout, layout.routes[0], TIMES_S, rng)[0], [])
    assert np.isinf(stops.s_m).all()
    assert not stops.active.any()
