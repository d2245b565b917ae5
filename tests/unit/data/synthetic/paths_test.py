import numpy as np
import pytest

from recogdrive.data.synthetic import curves
from recogdrive.data.synthetic.network import Layout, Route
from recogdrive.data.synthetic.paths import PathTables


def layout_of(lines, limits=None):
    limits = limits or dict.fromkeys(lines, 10.0)
    return Layout("straight", (), lines, limits, ())


@pytest.fixture
def fork():
    """Lanes a (30 m) and x (15 m) join in lane d (40 m), over b (20 m) and c; e and f are another way on from a."""
    a = curves.straight(np.zeros(3), 30.0)
    b = curves.straight(a[-1], 20.0)
    d = curves.straight(b[-1], 40.0)
    x = curves.straight(np.array([0.0, 50.0, 0.0]), 15.0)
    routes = (Route(("a", "b", "d"), 0, ""), Route(("x", "c", "d"), 0, ""), Route(("a", "e", "f"), 0, ""))
    lines = {"a": a, "b": b, "d": d, "x": x, "e": b, "f": d}
    lines["c"] = curves.join(x[-1], d[0])
    return layout_of(lines), routes


def test_poses_are_found_by_arc_length_across_elements(fork):
    layout, routes = fork
    tables = PathTables(layout, routes[:1])
    np.testing.assert_allclose(tables.at(tables.poses, np.array([0, 0]), np.array([12.3, 71.9]))[:, 0], [12.3, 71.9])
    assert tables.starts[0].tolist() == [0.0, 30.0, 50.0, 90.0]
    assert tables.length_m[0] == 90.0


def test_between_grid_points_motion_goes_along_the_heading():
    tables = PathTables(
        layout_of({"a": curves.join(np.zeros(3), np.array([9.0, 9.0, np.pi / 2]))}), (Route(("a",), 0, ""),)
    )
    s = np.arange(0.5, 13.0, 0.01)
    poses = tables.pose(np.array(0), s)
    step = np.diff(poses[:, :2], axis=0)
    middle = (poses[1:, 2] + poses[:-1, 2]) / 2
    np.testing.assert_allclose(np.arctan2(step[:, 1], step[:, 0]), middle, atol=0.015)
    np.testing.assert_allclose(np.linalg.norm(step, axis=1), 0.01, rtol=5e-3)


def test_headings_continue_across_the_half_turn():
    first = curves.bend(np.array([0.0, 0.0, 3.0]), 30.0, 0.5)
    second = curves.straight(first[-1], 20.0)
    second[:, 2] -= 2 * np.pi
    tables = PathTables(layout_of({"a": first, "b": second}), (Route(("a", "b"), 0, ""),))
    assert np.abs(np.diff(tables.poses[0, :, 2])).max() < 0.1
    assert tables.poses[0, -1, 2] == pytest.approx(3.5)


def test_speed_in_a_bend_keeps_lateral_acceleration_at_2_5():
    line = curves.bend(np.zeros(3), 25.0, 2.0)
    tables = PathTables(layout_of({"a": line}, {"a": 30.0}), (Route(("a",), 0, ""),))
    assert tables.speed_mps.min() == pytest.approx(np.sqrt(2.5 * 25.0), rel=5e-3)


def test_a_slower_limit_ahead_is_approached_with_1_3_metres_per_second_squared():
    a = curves.straight(np.zeros(3), 100.0)
    b = curves.straight(a[-1], 50.0)
    tables = PathTables(layout_of({"a": a, "b": b}, {"a": 20.0, "b": 10.0}), (Route(("a", "b"), 0, ""),))
    # 30 m before the slower part: v^2 = 10^2 + 2 * 1.3 * 30.
    assert tables.at(tables.speed_mps, np.array([0]), np.array([70.0]))[0] == pytest.approx(np.sqrt(178.0))
    assert tables.speed_mps[0, 2 * 100 + 1] == pytest.approx(10.0)


def test_vehicles_on_one_route_see_each_other_everywhere(fork):
    tables = PathTables(*fork)
    assert tables.shared(1, 1, 40.0) == (0.0, -np.inf, np.inf)


def test_a_vehicle_that_joins_counts_from_before_its_connector_with_its_distance_to_the_merge(fork):
    tables = PathTables(*fork)
    offset, low, high = tables.shared(0, 1, merge_zone_m=10.0)
    # d starts at 50 m of the follower's route; the leader's connector c starts after the 15 m of x.
    assert offset == pytest.approx(50.0 - tables.starts[1][2])
    assert low == pytest.approx(15.0 - 10.0)
    assert high == np.inf


def test_a_vehicle_that_turns_off_counts_until_its_tail_has_left(fork):
    tables = PathTables(*fork)
    offset, low, high = tables.shared(0, 2, merge_zone_m=10.0)
    assert (offset, low, high) == (0.0, -np.inf, 30.0 + 7.0)


def test_routes_without_a_common_element_ignore_each_other(fork):
    tables = PathTables(*fork)
    _, low, high = tables.shared(1, 2, merge_zone_m=10.0)
    assert low > high
