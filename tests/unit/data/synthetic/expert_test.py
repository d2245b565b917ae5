import dataclasses

import numpy as np
import pytest
import shapely

from recogdrive.data.synthetic import curves, expert
from recogdrive.data.synthetic.lights import Lights
from recogdrive.data.synthetic.network import Layout, Route
from recogdrive.data.synthetic.paths import PathTables
from recogdrive.data.synthetic.population import Objects, join_objects
from recogdrive.data.synthetic.traffic import Motion
from recogdrive.data.types import Command
from recogdrive.geometry import box_corners, from_frame

TIMES_S = np.arange(41) * 0.1


def steady(speed=10.0, start=20.0):
    """Motion of one vehicle at constant speed over 4 s."""
    flat = np.ones((len(TIMES_S), 1))
    return Motion(start + speed * TIMES_S[:, None], speed * flat, 0 * flat)


def tables_of(line):
    layout = Layout("straight", (), {"a": line}, {"a": 15.0}, ())
    return PathTables(layout, (Route(("a",), 0.0, "straight"),))


@pytest.fixture
def straight_drive():
    return expert.ego_drive(tables_of(curves.straight(np.zeros(3), 200.0)), 0, steady(), 0, 0.0)


def one_object(x, y, heading=0.0, size=(4.0, 2.0, 1.5), present=True):
    shape = (len(TIMES_S), 1)
    return Objects(
        np.zeros(1, dtype=np.int8),
        np.array([size]),
        np.broadcast_to(np.array([x, y, heading]), (*shape, 3)),
        np.zeros(shape),
        np.full(shape, present),
    )


def flaw_of(drive, objects, vehicles=0, red=False, lane=(-10.0, -2.0, 210.0, 2.0), end_m=200.0):
    lights = Lights(("7",), np.full((len(TIMES_S), 1), red))
    drivable = np.array([shapely.box(*lane)])
    return expert.flaw(drive, objects, vehicles, lights, [("7", 40.0)], drivable, end_m)


def test_a_bend_that_shifts_2_metres_to_the_left_within_20_metres_commands_left():
    # Chords of 5 m, then straight on at an angle: the lateral shift after 20 m is 15 sin(angle).
    for shift, command in ((2.01, Command.LEFT), (1.99, Command.STRAIGHT)):
        angle = np.arcsin(shift / 15.0)
        line = np.array([[0, 0, 0], [5, 0, angle], [5 + 40 * np.cos(angle), 40 * np.sin(angle), angle]])
        assert expert.driving_command(line, np.zeros(2)) == command
        mirrored = line * [1, -1, -1]
        right = Command.RIGHT if command == Command.LEFT else Command.STRAIGHT
        assert expert.driving_command(mirrored, np.zeros(2)) == right


def test_a_bend_more_than_20_metres_ahead_does_not_count_yet():
    line = np.array([[0.0, 0, 0], [21, 0, np.pi / 2], [21, 50, np.pi / 2]])
    assert expert.driving_command(line, np.array([0.5, 0.0])) == Command.STRAIGHT
    assert expert.driving_command(line, np.array([4.0, 0.0])) == Command.LEFT


def test_the_command_is_in_the_frame_of_the_line_and_not_of_the_ego():
    line = np.array([[0.0, 0, 1.1], [30 * np.cos(1.1), 30 * np.sin(1.1), 1.1]])
    assert expert.driving_command(line, np.array([0.3, -0.2])) == Command.STRAIGHT


def test_a_line_that_ends_early_counts_up_to_its_end():
    line = np.array([[0.0, 0, 0], [5, 0, np.pi / 2], [5, 2.5, np.pi / 2]])
    assert expert.driving_command(line, np.zeros(2)) == Command.LEFT


def test_a_lateral_offset_decays_by_e_over_18_metres():
    tables = tables_of(curves.straight(np.zeros(3), 200.0))
    drive = expert.ego_drive(tables, 0, steady(9.0), 0, 0.4)
    np.testing.assert_allclose(drive.poses[[0, 20, 40], 1], 0.4 * np.exp([0.0, -1.0, -2.0]), rtol=1e-6)


def test_heading_follows_the_drive_beside_the_lane_centre():
    tables = tables_of(curves.straight(np.zeros(3), 200.0))
    drive = expert.ego_drive(tables, 0, steady(9.0), 0, 0.4)
    step = np.diff(drive.poses[:, :2], axis=0)
    between = (drive.poses[1:, 2] + drive.poses[:-1, 2]) / 2
    np.testing.assert_allclose(np.arctan2(step[:, 1], step[:, 0]), between, atol=1e-5)


def test_in_a_circle_the_lateral_acceleration_is_speed_squared_by_radius():
    tables = tables_of(curves.bend(np.zeros(3), 40.0, 2.5))
    drive = expert.ego_drive(tables, 0, steady(8.0, start=25.0), 0, 0.0)
    np.testing.assert_allclose(drive.acceleration[2:-2, 1], 8.0**2 / 40.0, rtol=0.02)
    np.testing.assert_allclose(drive.velocity[:, 1], 0.0)


def test_corners_of_the_footprint_lie_where_the_vehicle_constants_say():
    corners = expert.ego_corners(np.array([[10.0, 5.0, 0.0]]))[0]
    np.testing.assert_allclose(corners[0], [10 + 1.461 + 2.588, 5 + 1.1485])
    np.testing.assert_allclose(corners[2], [10 + 1.461 - 2.588, 5 - 1.1485])


def test_overlap_of_boxes_agrees_with_shapely():
    rng = np.random.default_rng(0)
    poses = rng.uniform([-4, -4, -3], [4, 4, 3], (300, 2, 3))
    size = rng.uniform(1, 5, (300, 2, 2))
    first, second = (box_corners(poses[:, k], size[:, k, 0], size[:, k, 1]) for k in range(2))
    expected = [shapely.Polygon(a).intersects(shapely.Polygon(b)) for a, b in zip(first, second, strict=True)]
    assert expert.boxes_overlap(first, second).tolist() == expected


def test_a_drive_past_a_parked_car_is_clean_and_one_into_it_is_not(straight_drive):
    assert flaw_of(straight_drive, one_object(45.0, 3.0)) is None
    assert flaw_of(straight_drive, one_object(45.0, 1.5)) == "collision"


def test_something_that_has_left_cannot_be_hit(straight_drive):
    assert flaw_of(straight_drive, one_object(45.0, 0.0, present=False)) is None


def test_leaving_the_road_with_one_corner_is_a_flaw(straight_drive):
    assert flaw_of(straight_drive, one_object(0.0, 9.0), lane=(-10, -1.1, 210, 2.0)) == "off the drivable area"


def test_crossing_the_stop_line_at_red_is_a_flaw(straight_drive):
    assert flaw_of(straight_drive, one_object(0.0, 9.0), red=True) == "crossing a red light"


def test_hard_braking_is_a_flaw(straight_drive):
    braking = dataclasses.replace(straight_drive, acceleration=straight_drive.acceleration - [5.0, 0.0])
    assert flaw_of(braking, one_object(0.0, 9.0)) == "braking too hard"


def test_a_route_that_ends_during_the_drive_is_a_flaw(straight_drive):
    assert flaw_of(straight_drive, one_object(0.0, 9.0), end_m=70.0) == "the route ends too early"


def test_other_vehicles_in_each_other_are_a_flaw_but_only_moving_ones(straight_drive):
    both = join_objects(one_object(100.0, 8.0), one_object(101.0, 8.0))
    assert flaw_of(straight_drive, both, vehicles=2) == "collision of other vehicles"
    assert flaw_of(straight_drive, both, vehicles=0) is None


LONG_S = np.arange(51) * 0.1


def long_drive(radius=None, speed=10.0):
    """Straight on along x, or in a circle to the left, for 5 s from now on."""
    way = speed * LONG_S
    angle = way / radius if radius else 0 * way
    xy = (radius * np.sin(angle), radius * (1 - np.cos(angle))) if radius else (way, 0 * way)
    velocity = np.stack([speed + 0 * way, 0 * way], -1)
    return expert.EgoDrive(np.stack([*xy, angle], -1), velocity, 0 * velocity, way)


def long_objects(poses, present=True):
    shape = (len(LONG_S), 1)
    poses = np.broadcast_to(np.asarray(poses, dtype=np.float64), (*shape, 3))
    size = np.array([[4.0, 2.0, 1.5]])
    return Objects(np.zeros(1, dtype=np.int8), size, poses, np.zeros(shape), np.full(shape, present))


def steered_flaw_of(drive, objects=None, road=None):
    ground = shapely.box(-100, -100, 100, 100) if road is None else road
    shapely.prepare(ground)
    objects = long_objects([0, 90, 0]) if objects is None else objects
    return expert.steered_flaw(drive, objects, np.array([ground]), 0)


def test_a_bend_that_the_recorded_car_fits_into_is_left_by_the_steered_one():
    bend = long_drive(radius=40.0)
    lane = shapely.Point(0, 40).buffer(41.8, quad_segs=64).difference(shapely.Point(0, 40).buffer(38.2, quad_segs=64))
    recorded = shapely.points(expert.ego_corners(bend.poses))
    assert shapely.covers(lane, recorded).all()
    assert steered_flaw_of(bend, road=lane) == "off the drivable area when steered"
    wide = shapely.Point(0, 40).buffer(43.5, quad_segs=64).difference(shapely.Point(0, 40).buffer(38.2, quad_segs=64))
    assert steered_flaw_of(bend, road=wide) is None


def test_corners_of_one_footprint_may_lie_in_different_polygons():
    halves = np.array([shapely.box(-100, -100, 17, 100), shapely.box(17, -100, 100, 100)])
    shapely.prepare(halves)
    assert expert.steered_flaw(long_drive(), long_objects([0, 90, 0]), halves, 0) is None


@pytest.mark.parametrize(("gap", "flaw"), [(9.0, "a collision within a second when steered"), (9.1, None)])
def test_a_standing_car_must_be_further_away_than_the_way_of_nine_tenths_of_a_second(gap, flaw):
    # At 10 m/s the front, grown by 0.05 m, ends up 9.05 m further on; after 4 s it is at 44.049 m itself.
    assert steered_flaw_of(long_drive(), long_objects([44.049 + gap + 2.0, 0, 0])) == flaw


def test_a_leader_as_fast_may_be_near():
    x = 10.0 * LONG_S[:, None] + 4.049 + 0.5 + 2.0
    assert steered_flaw_of(long_drive(), long_objects(np.stack([x, 0 * x, 0 * x], -1))) is None


def test_a_car_close_behind_or_beside_the_projection_is_none_of_its_business():
    x = 10.0 * LONG_S[:, None]
    assert steered_flaw_of(long_drive(), long_objects(np.stack([x - 4.0, 0 * x, 0 * x], -1))) is None
    assert steered_flaw_of(long_drive(), long_objects([20.0, 2.3, 0.0])) is None


def test_in_a_bend_the_projection_along_the_tangent_hits_what_the_drive_itself_passes():
    bend = long_drive(radius=40.0, speed=12.0)
    parked = long_objects(from_frame(np.array([16.5, -0.4, 0.0]), bend.poses[20]))
    recorded = shapely.polygons(expert.ego_corners(bend.poses, expert.CLEARANCE_M))
    other = shapely.Polygon(box_corners(parked.poses[0, 0], np.array(4.0), np.array(2.0)))
    assert not shapely.intersects(recorded, other).any()
    assert steered_flaw_of(bend, parked) == "a collision within a second when steered"


def test_the_projection_meets_others_where_they_are_at_its_time():
    # Crosses at 1.5 s where the front would be by then, going on as at 0.6 s; at other times it is off the road.
    crossing = np.zeros((len(LONG_S), 1, 3))
    crossing[:, 0, 0] = 4.049 + 15.0
    crossing[:, 0, 1] = 8.0 * (LONG_S - 1.5)
    assert steered_flaw_of(long_drive(), long_objects(crossing)) == "a collision within a second when steered"
    late = crossing + np.array([0.0, 24.0, 0.0])
    assert steered_flaw_of(long_drive(), long_objects(late)) is None


def test_who_is_absent_cannot_be_hit_by_the_steered_car():
    assert steered_flaw_of(long_drive(), long_objects([20.0, 0, 0], present=False)) is None
