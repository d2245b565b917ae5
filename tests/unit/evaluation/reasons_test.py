"""Why points were lost, in words."""

import numpy as np
import pytest

from recogdrive.evaluation.reasons import failed_signals, losses_of, object_name, sentence


@pytest.fixture
def explain(make_scene, pdm_scene, telling_scorer):
    """Kinds and sentence of a trajectory of which the scorer says this."""

    def explain(**told):
        scene = pdm_scene(make_scene())
        scores = telling_scorer({(scene.token, 0): told}).score([scene], np.zeros((1, 1, 8, 3)))
        losses = losses_of(scene, scores, 0, 0)
        return [str(loss.kind) for loss in losses], sentence(losses)

    return explain


COLLISION = {"no_at_fault_collisions": 0.0, "collision_step": 23, "collision_track": 0}
OFF_ROAD = {"drivable_area_compliance": 0.0, "off_road_step": 11, "off_road_corner": 0}
TTC = {"time_to_collision_within_bound": 0.0, "ttc_step": 18, "ttc_ahead_steps": 6, "ttc_track": 1}


def test_nothing_is_said_of_a_trajectory_that_lost_nothing(explain):
    assert explain() == ([], "")


def test_a_collision_names_the_object_and_the_time(explain):
    assert explain(**COLLISION) == (["collision"], "hits a vehicle after 2.3 s")


def test_a_static_object_costs_half_and_is_named_too(explain):
    told = {"no_at_fault_collisions": 0.5, "collision_step": 0, "collision_track": 2}
    assert explain(**told) == (["collision"], "hits a traffic cone from the start")


@pytest.mark.parametrize(
    ("corner", "name"), [(0, "front left"), (1, "rear left"), (2, "rear right"), (3, "front right")]
)
def test_an_off_road_corner_is_named(explain, corner, name):
    kinds, text = explain(**OFF_ROAD | {"off_road_corner": corner})
    assert (kinds, text) == (["off_road"], f"{name} corner off the drivable area after 1.1 s")


def test_a_violation_of_time_to_collision_tells_when_and_how_far_ahead(explain):
    assert explain(**TTC) == (
        ["time_to_collision"],
        "time to collision: at 1.8 s would hit a pedestrian 0.6 s later",
    )


def test_a_projection_of_no_time_at_all_touches(explain):
    assert explain(**TTC | {"ttc_ahead_steps": 0})[1] == "time to collision: at 1.8 s touches a pedestrian"


def test_an_uncomfortable_signal_is_given_with_its_worst_value_and_bounds(explain):
    signals = np.array([True, True, True, False, True, True])
    low, high = np.full(6, -0.5), np.full(6, 0.5)
    high[3] = 6.1
    told = {"comfort": 0.0, "comfort_ok": signals, "comfort_min": low, "comfort_max": high}
    assert explain(**told) == (["comfort"], "longitudinal jerk 6.10 m/s^3 outside -4.13 ... 4.13")
    low[3] = -9.0
    assert "jerk -9.00 m/s^3" in explain(**told)[1], "-9 is 4.87 below its bound, 6.1 only 1.97 above"


def test_two_signals_out_of_bounds_are_two_losses(explain):
    signals = np.array([False, True, True, True, True, False])
    low, high = np.full(6, -4.5), np.full(6, 1.25)
    told = {"comfort": 0.0, "comfort_ok": signals, "comfort_min": low, "comfort_max": high}
    assert explain(**told) == (
        ["comfort", "comfort"],
        "longitudinal acceleration -4.50 m/s^2 outside -4.05 ... 2.4; yaw rate -4.50 rad/s outside -0.95 ... 0.95",
    )


@pytest.mark.parametrize(("share", "text"), [(0.12, "12 % of the progress"), (0.9949, "99 % of the progress")])
def test_missing_progress_is_given_in_percent(explain, share, text):
    assert explain(ego_progress=share) == (["progress"], text)


def test_progress_that_rounds_to_all_of_it_is_no_loss(explain):
    assert explain(ego_progress=0.996) == ([], "")


def test_progress_that_a_collision_took_is_not_mentioned(explain):
    assert explain(**COLLISION, ego_progress=0.0)[0] == ["collision"]


def test_progress_under_a_half_penalty_is_mentioned(explain):
    told = {"no_at_fault_collisions": 0.5, "collision_step": 3, "collision_track": 2, "ego_progress": 0.5}
    assert explain(**told)[0] == ["collision", "progress"]


def test_the_way_off_the_route_is_given_in_metres(explain):
    assert explain(driving_direction_compliance=0.5, oncoming_m=3.14) == (
        ["direction"],
        "3.1 m within 1 s off the route's lanes",
    )


def test_several_losses_stand_in_order_of_gravity(explain):
    kinds, text = explain(**TTC, **OFF_ROAD, **COLLISION)
    assert kinds == ["collision", "off_road", "time_to_collision"]
    assert text.count("; ") == 2 and text.startswith("hits a vehicle")


def test_an_invalid_trajectory_has_no_losses(explain):
    assert explain(valid=False, score=np.nan, no_at_fault_collisions=np.nan) == ([], "")


def test_failed_signals_are_listed_by_name(make_scene, pdm_scene, telling_scorer):
    scene = pdm_scene(make_scene())
    told = {"comfort_ok": np.array([True, True, False, True, True, False])}
    scores = telling_scorer({(scene.token, 0): told}).score([scene], np.zeros((1, 2, 8, 3)))
    assert failed_signals(scores, 0, 0) == "jerk magnitude, yaw rate"
    assert failed_signals(scores, 0, 1) == ""


def test_a_track_that_the_scene_does_not_have_is_refused(make_scene, pdm_scene):
    with pytest.raises(IndexError, match="has 3 tracks; track 3 is none of them"):
        object_name(pdm_scene(make_scene()), 3)
