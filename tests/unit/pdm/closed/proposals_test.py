"""Tests of pdm/closed/proposals.py."""

import math

import numpy as np
import pytest
import shapely

from recogdrive.pdm.closed.forecast import forecast
from recogdrive.pdm.closed.proposals import NUM_PROPOSALS, SPEED_FRACTIONS, propose

CENTER = np.array([1.461, 0.0])
FOOTPRINT = shapely.box(-1.127, -1.1485, 4.049, 1.1485)
LINE = np.stack([np.linspace(-20, 200, 45), np.zeros(45), np.zeros(45)], axis=1)


def around(detections, *rows, lights=()):
    return forecast(detections(*rows), CENTER, FOOTPRINT, lights, np.zeros(2))


def car(token, x, y=0.0, speed=0.0, kind="vehicle"):
    return token, kind, x, y, 0.0, 4.0, 2.0, speed, 0.0


def proposed(observed, speed=8.0, limit=10.0, ego=(0.0, 0.0, 0.0)):
    return propose(LINE, np.array(ego), speed, limit, observed)


def model(speed, target, leader, steps=40, start=20.0):
    """The driver model for one drive, number by number; `leader(step, progress, speed) -> position, speed, rear`."""
    progress, entry = start, (0.0, 0.0, 0.0)
    way = [(progress, speed)]
    for step in range(1, steps + 1):
        if step % 2 == 0:
            entry = leader(step, progress, speed)
        position, lead_speed, rear = entry
        wanted = 1.0 + 1.5 * speed + speed * (speed - lead_speed) / (2 * math.sqrt(1.5 * 3.0))
        gap = max(position - progress - rear, 1.0)
        acceleration = 1.5 * (1 - (speed / target) ** 10 - (wanted / gap) ** 2)
        progress, speed = progress + 0.1 * speed, speed + 0.1 * min(max(acceleration, -3.0), 1.5)
        way.append((progress, speed))
    return np.array(way)


def test_there_are_three_paths_of_five_speeds(detections):
    proposals = proposed(around(detections))
    assert proposals.poses.shape == (NUM_PROPOSALS, 41, 3) == (15, 41, 3)
    assert [paths.target_speeds.tolist() for paths in proposals.paths] == [[2, 4, 6, 8, 10]] * 3
    sides = proposals.poses[:, :, 1].reshape(3, -1)
    np.testing.assert_allclose(sides, np.broadcast_to([[0], [-1], [1]], sides.shape), atol=1e-12)


def test_without_a_limit_fifteen_metres_a_second_count(detections):
    assert proposed(around(detections), limit=None).paths[0].target_speeds[-1] == 15


def test_a_free_drive_follows_the_model_and_brakes_at_the_first_step(detections):
    driven = proposed(around(detections)).paths[0]
    for row, fraction in enumerate(SPEED_FRACTIONS):
        expected = model(8.0, 10 * fraction, lambda step, progress, speed: (220.0, 0.0, 2.588))
        np.testing.assert_allclose(driven.progress_m[row, :41], expected[:, 0], rtol=1e-12)
        np.testing.assert_allclose(driven.speeds[row, :41], expected[:, 1], rtol=1e-12)
        # The leader of the first step is all zeros: as if there were something one metre ahead.
        assert driven.speeds[row, 1] == pytest.approx(8.0 - 0.3)


def test_a_drive_keeps_its_distance_to_a_moving_car(detections):
    """The car's rear is at 28 m + 4 m/s t; the ego's front is 4.049 m ahead of its rear axle."""

    def leader(step, progress, speed):
        return 48.0 + 0.4 * step - 4.049, 4.0, 0.0

    driven = proposed(around(detections, car("a", 30.0, speed=4.0))).paths[0]
    # The first drive's entry is as the model has it: nothing was there before it.
    expected = model(8.0, 2.0, leader)
    np.testing.assert_allclose(driven.progress_m[0, :41], expected[:, 0], rtol=1e-9)
    np.testing.assert_allclose(driven.leaders[0, 2], [48.8 - 4.049, 4.0, 0.0], rtol=1e-9)
    assert driven.leaders[0, 3].tolist() == driven.leaders[0, 2].tolist()


def test_a_car_behind_or_beside_the_corridor_leads_nobody(detections):
    driven = proposed(around(detections, car("behind", -10.0), car("beside", 20.0, y=2.5))).paths[0]
    assert driven.leaders[:, 2].tolist() == [[220.0, 0.0, 2.588]] * 5


def test_the_path_beside_the_centre_line_has_a_corridor_of_its_own(detections):
    """The car at 2.5 m to the left reaches to 1.5 m; the corridor of the left path to 1 + 1.1485 m."""
    right, left = proposed(around(detections, car("beside", 20.0, y=2.5))).paths[1:]
    assert right.leaders[0, 2, 2] == 2.588
    assert left.leaders[0, 2, 0] == pytest.approx(20 + 18 - 4.049)


def test_a_static_object_has_no_speed(detections):
    driven = proposed(around(detections, car("cone", 30.0, speed=4.0, kind="traffic_cone"))).paths[0]
    assert driven.leaders[0, 2].tolist() == [pytest.approx(48.0 - 4.049), 0.0, 0.0]


@pytest.fixture
def crossing():
    """A car that crosses the path at 60 degrees and is on it, 20 m ahead, after 3 s; 2.5 m/s of its speed are along."""
    x, y = 20 - 3 * 5 * math.cos(math.pi / 3), -3 * 5 * math.sin(math.pi / 3)
    return "car", "vehicle", x, y, math.pi / 3, 4.0, 2.0, 5 * math.cos(math.pi / 3), 5 * math.sin(math.pi / 3)


def test_a_free_drive_keeps_the_speed_that_the_drive_before_it_left(detections, crossing):
    """The slow drives see the car; the fast one is past it."""
    driven = proposed(around(detections, crossing), speed=9.0).paths[0]
    slow, fast = driven.leaders[0, 30], driven.leaders[4, 30]
    assert driven.progress_m[0, 29] < 40 < driven.progress_m[4, 29]
    assert slow[1] == pytest.approx(2.5) and slow[0] < 40 and slow[2] == 0
    assert fast.tolist() == [220.0, pytest.approx(2.5), 2.588]


def test_a_red_light_has_the_speed_that_the_drive_before_it_left(detections, crossing, city):
    city.road("a", (-40, 0), (45, 0)).road("b", (60, 0), (100, 0)).joint("ab", "a", "b", (45, 0), (60, 0))
    light = city.graph().connector("ab.0")
    alone = proposed(around(detections, lights=[light]), speed=9.0).paths[0]
    assert alone.leaders[4, 2].tolist() == [pytest.approx(65.0 - 4.049), 0.0, 0.0]
    driven = proposed(around(detections, crossing, lights=[light]), speed=9.0).paths[0]
    assert driven.progress_m[4, 29] > 40
    assert driven.leaders[4, 30, 0] == pytest.approx(65.0 - 4.049)
    assert driven.leaders[4, 30, 1] == pytest.approx(2.5)


def test_the_winner_s_last_second_takes_nothing_from_other_drives(detections, crossing):
    observed = around(detections, crossing)
    proposals = proposed(observed, speed=9.0)
    proposals.finish(observed, 4)
    assert proposals.paths[0].leaders[4, 42].tolist() == [220.0, 0.0, 2.588]


def test_the_best_drive_goes_on_alone(detections):
    observed = around(detections, car("a", 30.0, speed=4.0))
    proposals = proposed(observed)
    poses = proposals.finish(observed, 6)
    assert poses.shape == (51, 3)
    np.testing.assert_array_equal(poses[:41], proposals.poses[6])
    assert (np.diff(poses[:, 0]) > 0).all()
    others = np.delete(np.arange(5), 1)
    assert not proposals.paths[1].poses[others, 41:].any()


def test_a_drive_starts_on_its_path_at_the_ego_s_place(detections):
    driven = proposed(around(detections), ego=(3.0, 0.7, 0.2)).paths[0]
    assert driven.poses[:, 0].tolist() == [[3.0, 0.0, 0.0]] * 5
    assert driven.progress_m[:, 0].tolist() == [23.0] * 5
