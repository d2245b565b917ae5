"""Rules of no at-fault collision, one by one (sections 10 and 9 of the algorithm's description)."""

import jax
import numpy as np
import pytest

from recogdrive.pdm.contact import NEVER, first_contacts
from recogdrive.pdm.metrics.collision import STANDING_MPS, collisions, first_of
from recogdrive.pdm.state import HALF_LENGTH_M, REAR_AXLE_TO_CENTER_M

_collisions = jax.jit(collisions)
_first_contacts = jax.jit(first_contacts)

# The footprint reaches from x = -1.127 to 4.049 and 1.1485 to either side.
AHEAD = {"x": 6.0}
BEHIND = {"x": -3.0}
BESIDE = {"x": 1.5, "y": 2.0, "size": (2.0, 2.0)}
FAR = {"x": 500.0}


@pytest.fixture
def judged(x64, ego_along_x, tracks, on_lane):
    """Score, step and track of two tracks that are first touched at `contact`."""

    def run(first, second=FAR, *, contact=(7, NEVER), ego=None, areas=None):
        found = _collisions(
            ego_along_x() if ego is None else ego,
            tracks(first, second),
            on_lane() if areas is None else areas,
            np.array([[contact]], np.int32),
        )
        score, step, track = (np.asarray(v)[0, 0].item() for v in found)
        return score, step, track

    return run


NO_FAULT = (1.0, -1, -1)


def test_without_contact_there_is_no_collision(judged):
    assert judged(AHEAD, contact=(NEVER, NEVER)) == NO_FAULT


def test_driving_into_a_moving_track_ahead_is_at_fault(judged):
    assert judged(AHEAD) == (0.0, 7, 0)


def test_a_stopped_ego_is_not_at_fault(judged, ego_along_x):
    assert judged(AHEAD, ego=ego_along_x(speed=0.0)) == NO_FAULT


@pytest.mark.parametrize("faster, expected", [(False, NO_FAULT), (True, (0.0, 7, 0))])
def test_an_ego_at_exactly_5_cm_a_second_is_stopped(judged, ego_along_x, faster, expected):
    speed = np.nextafter(STANDING_MPS, 1) if faster else STANDING_MPS
    assert judged(AHEAD, ego=ego_along_x(speed=speed)) == expected


def test_the_egos_speed_counts_at_the_contact(judged, ego_along_x):
    speed = np.full(41, 8.0)
    speed[7] = 0.0
    assert judged(AHEAD, ego=ego_along_x(speed=speed)) == NO_FAULT
    assert judged(AHEAD, ego=ego_along_x(speed=speed), contact=(8, NEVER)) == (0.0, 8, 0)


def test_a_stopped_ego_is_not_at_fault_even_for_a_stopped_track(judged, ego_along_x):
    assert judged({**AHEAD, "stopped": True}, ego=ego_along_x(speed=0.0)) == NO_FAULT


def test_being_hit_from_behind_is_no_fault(judged):
    assert judged(BEHIND) == NO_FAULT


def test_backing_into_a_stopped_track_is_at_fault(judged):
    assert judged({**BEHIND, "stopped": True}) == (0.0, 7, 0)


def test_a_stopped_track_beside_is_hit_at_fault(judged):
    assert judged({**BESIDE, "stopped": True}) == (0.0, 7, 0)


def test_behind_comes_before_front(judged):
    # A long vehicle whose centre is behind and that reaches across the front of the ego.
    assert judged({"x": -5.0, "size": (30.0, 2.0)}) == NO_FAULT


def test_a_track_beside_is_no_fault_on_the_own_lane(judged):
    assert judged(BESIDE) == NO_FAULT


@pytest.mark.parametrize("area", ["several_lanes", "off_road"])
def test_a_track_beside_is_hit_at_fault_between_lanes_and_off_the_road(judged, on_lane, area):
    assert judged(BESIDE, areas=on_lane(**{area: [7]})) == (0.0, 7, 0)
    assert judged(BESIDE, areas=on_lane(**{area: [6, 8]})) == NO_FAULT


@pytest.mark.parametrize("area", ["intersection", "oncoming"])
def test_an_intersection_or_an_oncoming_lane_makes_no_fault(judged, on_lane, area):
    assert judged(BESIDE, areas=on_lane(**{area: range(41)})) == NO_FAULT


def test_being_hit_from_behind_is_no_fault_off_the_road_either(judged, on_lane):
    assert judged(BEHIND, areas=on_lane(off_road=range(41))) == NO_FAULT


def test_a_static_object_costs_half(judged):
    assert judged({**AHEAD, "static": True}) == (0.5, 7, 0)


def test_a_static_object_and_a_vehicle_cost_everything_from_the_first_on(judged):
    cone = {**AHEAD, "static": True}
    assert judged(cone, AHEAD, contact=(3, 20)) == (0.0, 3, 0)
    assert judged(cone, AHEAD, contact=(20, 3)) == (0.0, 3, 1)


def test_of_tracks_hit_at_once_the_first_column_is_named(judged):
    assert judged(AHEAD, AHEAD, contact=(9, 9)) == (0.0, 9, 0)


def test_a_contact_without_fault_is_not_named(judged):
    assert judged(BEHIND, AHEAD, contact=(2, 9)) == (0.0, 9, 1)


def test_a_front_that_just_touches_is_a_front_collision(judged, ego_along_x):
    # The front lies at exactly 0, and so does the rear of the first track; the second is one digit away.
    ego = ego_along_x(rear_x=-HALF_LENGTH_M - REAR_AXLE_TO_CENTER_M)
    ego = ego._replace(footprint=ego.footprint._replace(x=np.full((1, 1, 41), -HALF_LENGTH_M)))
    assert judged({"x": 2.0}, ego=ego) == (0.0, 7, 0)
    assert judged({"x": np.nextafter(2.0, 3.0)}, ego=ego) == NO_FAULT


def test_a_track_is_ignored_after_a_contact_without_fault(x64, ego_along_x, tracks, on_lane):
    # The ego touches the car ahead while standing, then drives into it; a second car is hit later.
    ego = ego_along_x(rear_x=np.maximum(np.arange(41) - 10, 0) * 0.5, speed=np.where(np.arange(41) <= 10, 0.0, 5.0))
    agents = tracks({"x": 6.0}, {"x": 18.0})
    contact = _first_contacts(ego.footprint, ego.speed, ego.speed < 0, agents).collision
    assert np.asarray(contact)[0, 0].tolist() == [0, 34]
    score, step, track = _collisions(ego, agents, on_lane(), contact)
    assert (score.item(), step.item(), track.item()) == (0.0, 34, 1)


def test_the_first_of_no_tracks_is_none():
    step, track = first_of(np.zeros((2, 3, 0), np.int32))
    assert (np.asarray(step) == -1).all() and (np.asarray(track) == -1).all()
    assert step.shape == track.shape == (2, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_score_has_the_dtype_of_the_motion(x64, ego_along_x, tracks, on_lane, dtype):
    ego, agents = jax.tree.map(lambda v: v if v.dtype == bool else v.astype(dtype), (ego_along_x(), tracks(AHEAD, FAR)))
    assert jax.eval_shape(collisions, ego, agents, on_lane(), np.zeros((1, 1, 2), np.int32))[0].dtype == dtype
