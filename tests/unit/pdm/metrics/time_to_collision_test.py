"""Rules of time to collision, one by one (section 14 of the algorithm's description)."""

import jax
import numpy as np
import pytest

from recogdrive.pdm.contact import NEVER, first_contacts
from recogdrive.pdm.metrics.time_to_collision import STANDING_MPS, time_to_collision

_ttc = jax.jit(time_to_collision)
_first_contacts = jax.jit(first_contacts)

AHEAD = {"x": 20.0}
BEHIND = {"x": -20.0}
BESIDE = {"x": 5.0, "y": 8.0}
FAR = {"x": 500.0}
FINE = (1.0, -1, -1, -1)


@pytest.fixture
def judged(x64, ego_along_x, tracks, on_lane):
    """Score, step, steps ahead and track of two tracks first met at (step, number of the projection)."""

    def run(first, second=FAR, *, contact=((7, 2), None), areas=None):
        index = [NEVER if c is None else 4 * c[0] + c[1] for c in contact]
        found = _ttc(
            ego_along_x(), tracks(first, second), on_lane() if areas is None else areas, np.array([[index]], np.int32)
        )
        return tuple(np.asarray(v)[0, 0].item() for v in found)

    return run


def test_without_contact_there_is_no_violation(judged):
    assert judged(AHEAD, contact=(None, None)) == FINE


@pytest.mark.parametrize("projection, ahead_steps", [(0, 0), (1, 3), (2, 6), (3, 9)])
def test_a_track_ahead_is_a_violation_anywhere(judged, projection, ahead_steps):
    assert judged(AHEAD, contact=((7, projection), None)) == (0.0, 7, ahead_steps, 0)


def test_a_track_beside_is_none_on_the_own_lane(judged):
    assert judged(BESIDE) == FINE


@pytest.mark.parametrize("area", ["several_lanes", "off_road", "intersection"])
def test_a_track_beside_is_one_between_lanes_off_the_road_and_in_an_intersection(judged, on_lane, area):
    assert judged(BESIDE, areas=on_lane(**{area: [7]})) == (0.0, 7, 6, 0)
    # The area counts at the step itself, not at the projected one.
    assert judged(BESIDE, areas=on_lane(**{area: [6, 8, 13]})) == FINE


def test_an_oncoming_lane_makes_no_difference(judged, on_lane):
    assert judged(BESIDE, areas=on_lane(oncoming=range(41))) == FINE


@pytest.mark.parametrize("area", ["several_lanes", "off_road", "intersection"])
def test_a_track_behind_never_is_one(judged, on_lane, area):
    assert judged(BEHIND, areas=on_lane(**{area: range(41)})) == FINE


def test_a_stopped_or_static_track_counts_like_any_other(judged):
    assert judged({**AHEAD, "stopped": True}) == judged({**AHEAD, "static": True}) == (0.0, 7, 6, 0)


def test_the_track_is_seen_where_it_will_be(judged):
    # Beside until 0.9 s, ahead from 1.0 s on.
    moving = {"x": np.where(np.arange(51) < 10, 0.0, 20.0), "y": np.where(np.arange(51) < 10, 8.0, 0.0)}
    assert judged(moving, contact=((7, 0), None)) == FINE
    assert judged(moving, contact=((7, 1), None)) == (0.0, 7, 3, 0)


def test_the_earliest_violation_is_named_by_step_then_projection(judged):
    assert judged(AHEAD, AHEAD, contact=((7, 0), (6, 3))) == (0.0, 6, 9, 1)
    assert judged(AHEAD, AHEAD, contact=((7, 1), (7, 3))) == (0.0, 7, 3, 0)
    assert judged(AHEAD, AHEAD, contact=((7, 1), (7, 1))) == (0.0, 7, 3, 0)


def test_a_contact_that_is_no_violation_is_passed_over(judged):
    assert judged(BEHIND, AHEAD, contact=((2, 0), (9, 3))) == (0.0, 9, 9, 1)


@pytest.fixture
def driven(x64, ego_along_x, tracks, on_lane):
    """The same with contacts as the ego's motion has them."""

    def run(*described, speed, rear_x=0.0, areas=None):
        ego, agents = ego_along_x(rear_x=rear_x, speed=speed), tracks(*described)
        contact = _first_contacts(ego.footprint, ego.speed, ego.speed < STANDING_MPS, agents).projected
        return tuple(
            np.asarray(v)[0, 0].item() for v in _ttc(ego, agents, on_lane() if areas is None else areas, contact)
        )

    return run


def test_straight_ahead_within_nine_tenths_of_a_second(driven):
    # 10 m/s without moving: the front at 4.049 reaches 13.049 m.
    assert driven({"x": 15.04}, FAR, speed=10.0) == (0.0, 0, 9, 0)
    assert driven({"x": 15.06}, FAR, speed=10.0) == FINE


def test_the_way_of_the_track_until_then_counts(driven):
    leading = {"x": 11.0 + np.arange(51)}
    assert driven(leading, FAR, speed=10.0) == FINE


def test_an_ego_that_stands_is_not_projected_and_keeps_no_track_in_mind(driven):
    # It stands within the track for two seconds, then starts: the violation is of that step.
    speed = np.where(np.arange(41) < 20, 0.0, 1.0)
    assert driven({"x": 5.0}, FAR, speed=speed) == (0.0, 20, 0, 0)
    assert driven({"x": 5.0}, FAR, speed=0.0) == FINE


@pytest.mark.parametrize("slower, expected", [(True, FINE), (False, (0.0, 0, 0, 0))])
def test_5_mm_a_second_is_not_standing(driven, slower, expected):
    speed = np.nextafter(STANDING_MPS, 0) if slower else STANDING_MPS
    assert driven({"x": 5.0}, FAR, speed=speed) == expected


def test_a_track_is_ignored_after_a_contact_that_is_no_violation(driven, on_lane):
    # Met beside the ego on its own lane; later, in the intersection, it no longer counts.
    beside = {"x": 1.5, "y": 2.0, "size": (2.0, 2.0)}
    assert driven(beside, FAR, speed=1.0, areas=on_lane(intersection=range(5, 41))) == FINE
    assert driven(beside, FAR, speed=1.0, areas=on_lane(intersection=range(41))) == (0.0, 0, 0, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_score_has_the_dtype_of_the_motion(x64, ego_along_x, tracks, on_lane, dtype):
    ego, agents = jax.tree.map(lambda v: v if v.dtype == bool else v.astype(dtype), (ego_along_x(), tracks(AHEAD, FAR)))
    shapes = jax.eval_shape(time_to_collision, ego, agents, on_lane(), np.zeros((1, 1, 2), np.int32))
    assert shapes[0].dtype == dtype
