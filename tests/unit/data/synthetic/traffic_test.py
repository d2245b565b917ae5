import numpy as np
import pytest

from recogdrive.data.synthetic import curves
from recogdrive.data.synthetic.network import Layout, Route
from recogdrive.data.synthetic.paths import PathTables
from recogdrive.data.synthetic.traffic import (
    STEP_S,
    Drivers,
    Fleet,
    StopSchedule,
    idm_acceleration,
    settle,
    simulate,
)

LIMIT_MPS = 12.0


@pytest.fixture
def road():
    """One straight route of 500 m."""
    layout = Layout("straight", (), {"a": curves.straight(np.zeros(3), 500.0)}, {"a": LIMIT_MPS}, ())
    return PathTables(layout, (Route(("a",), 0.0, "straight"),))


def drivers(count, factor=1.0):
    constant = [np.full(count, value) for value in (1.5, 2.0, 1.2, 2.0)]
    return Drivers(np.broadcast_to(np.asarray(factor, float), count).copy(), *constant)


def fleet(s, v, factor=1.0):
    s, v = np.asarray(s, float), np.asarray(v, float)
    half = np.full(len(s), 2.5)
    return Fleet(np.zeros(len(s), dtype=int), s, v, half, half, drivers(len(s), factor))


def never(count, seconds=10.0):
    return StopSchedule(np.full((count, 1), np.inf), np.zeros((round(seconds / STEP_S), count, 1), dtype=bool))


def closed(count, at_m, seconds=10.0, until_s=np.inf):
    active = np.arange(round(seconds / STEP_S)) * STEP_S < until_s
    return StopSchedule(np.full((count, 1), at_m), np.broadcast_to(active[:, None, None], (len(active), count, 1)))


def test_idm_on_a_free_road_is_a_times_one_minus_the_fourth_power_of_the_speed_ratio():
    a = idm_acceleration(*np.array([[6.0], [12.0], [np.inf], [0.0]]), drivers(1))
    assert a[0] == pytest.approx(1.5 * (1 - 0.5**4))


def test_idm_behind_a_slower_leader_matches_the_hand_worked_value():
    # s* = 2 + 10 * 1.2 + 10 * (10 - 8) / (2 sqrt(1.5 * 2)) = 19.7735; a = 1.5 (1 - (10/12)^4 - (19.7735/25)^2)
    a = idm_acceleration(*np.array([[10.0], [12.0], [25.0], [8.0]]), drivers(1))
    assert a[0] == pytest.approx(1.5 * (1 - 0.4822531 - 0.6255958), abs=2e-4)


def test_idm_ignores_a_leader_that_runs_away():
    # The dynamic part of the wanted gap, 5 * 1.2 + 5 * (5 - 30) / 3.46, is negative and counts as zero.
    a = idm_acceleration(*np.array([[5.0], [10.0], [20.0], [30.0]]), drivers(1))
    assert a[0] == pytest.approx(1.5 * (1 - 0.5**4 - 0.1**2))


def test_a_vehicle_alone_reaches_the_limit_and_stays_below_it(road):
    motion = simulate(road, fleet([10.0], [0.0]), never(1, 30.0), 0.0)
    assert 0.97 * LIMIT_MPS < motion.speed_mps[-1, 0] <= LIMIT_MPS


def test_positions_are_the_integral_of_speed_and_speed_that_of_acceleration(road):
    motion = simulate(road, fleet([10.0, 45.0], [9.0, 3.0]), never(2), 0.0)
    mean = (motion.speed_mps[1:] + motion.speed_mps[:-1]) / 2
    np.testing.assert_allclose(np.diff(motion.s_m, axis=0), STEP_S * mean, atol=1e-12)
    np.testing.assert_allclose(np.diff(motion.speed_mps, axis=0), STEP_S * motion.acceleration_mps2[1:], atol=1e-12)


def test_a_follower_stops_behind_a_standing_vehicle_with_about_the_minimum_gap(road):
    motion = simulate(road, fleet([10.0, 90.0], [11.0, 0.0], factor=[1.0, 0.0]), never(2, 25.0), 0.0)
    assert motion.s_m[-1, 1] == 90.0
    gap = motion.s_m[-1, 1] - motion.s_m[-1, 0] - 5.0
    assert 1.5 < gap < 3.5
    assert motion.acceleration_mps2.min() > -4.0


def test_a_queue_never_overlaps(road):
    start = fleet([10.0, 24.0, 40.0, 58.0], [8.0, 10.0, 2.0, 6.0])
    start = Fleet(start.path, start.s_m, settle(road, start, never(4), 0.0), start.front_m, start.rear_m, start.drivers)
    motion = simulate(road, start, closed(4, 120.0, 25.0), 0.0)
    assert (np.diff(motion.s_m, axis=1) > 5.0).all()


def test_a_closed_stop_line_is_not_crossed_while_it_is_closed(road):
    motion = simulate(road, fleet([10.0], [11.0]), closed(1, 80.0, 20.0), 0.0)
    assert 75.0 < motion.s_m[-1, 0] + 2.5 < 80.0
    assert motion.speed_mps[-1, 0] < 0.1


def test_a_stop_line_that_opens_lets_vehicles_go_on(road):
    motion = simulate(road, fleet([70.0], [0.0]), closed(1, 80.0, 12.0, until_s=4.0), 0.0)
    assert motion.s_m[40, 0] + 2.5 < 80.0 < motion.s_m[-1, 0]


def test_who_can_no_longer_stop_drives_over_the_line(road):
    motion = simulate(road, fleet([70.0], [12.0]), closed(1, 80.0, 3.0), 0.0)
    assert motion.s_m[-1, 0] > 95.0
    assert motion.acceleration_mps2.min() > -1.0


def test_vehicles_never_reverse(road):
    motion = simulate(road, fleet([10.0, 14.0], [6.0, 0.0], factor=[1.0, 0.0]), never(2), 0.0)
    assert (np.diff(motion.s_m, axis=0) >= 0).all()


def test_settle_lowers_speeds_to_what_can_still_stop(road):
    speed = settle(road, fleet([40.0, 10.0], [12.0, 12.0], factor=[0.0, 1.0]), closed(2, 45.5), 0.0)
    # The first has 45.5 - 42.5 - 2 = 1 m to stop with 0.7 * 2 m/s^2; the second 25 - 2 = 23 m more than it.
    assert speed[0] == pytest.approx(np.sqrt(2 * 1.4 * 1.0))
    assert speed[1] == pytest.approx(np.sqrt(2 * 1.4 * 1.0 + 2 * 1.4 * 23.0))


def test_two_roads_zip_into_one_at_a_merge():
    a, x = curves.straight(np.zeros(3), 100.0), curves.straight(np.array([0.0, -30.0, 0.0]), 100.0)
    target = np.array([160.0, 0.0, 0.0])
    lines = {"a": a, "b": curves.join(a[-1], target), "d": curves.straight(target, 300.0)}
    lines |= {"x": x, "c": curves.join(x[-1], target)}
    layout = Layout("merge", (), lines, dict.fromkeys(lines, LIMIT_MPS), ())
    tables = PathTables(layout, (Route(("a", "b", "d"), 0, ""), Route(("x", "c", "d"), 0, "")))
    half, s = np.full(2, 2.5), np.array([72.0, 70.0])
    start = Fleet(np.array([0, 1]), s, np.array([12.0, 12.0]), half, half, drivers(2))
    motion = simulate(tables, start, never(2, 20.0), merge_zone_m=40.0)
    joined = motion.s_m - [tables.starts[0][2], tables.starts[1][2]]
    both = (joined > -3.0).all(axis=1)
    assert both.any()
    assert (np.abs(joined[both, 0] - joined[both, 1]) > 7.0).all()
    assert motion.acceleration_mps2.min() > -5.0
