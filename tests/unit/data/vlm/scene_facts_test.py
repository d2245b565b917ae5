"""Facts about scenes, on hand-made surroundings."""

import dataclasses

import numpy as np
import pytest

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.types import AgentClass, Detections, MapElement, MapLayer, MapPatch
from recogdrive.data.vlm import scene_facts

EGO_FRONT_M = 1.461 + 5.176 / 2


@pytest.fixture(scope="module")
def town_scene():
    return SyntheticTown(num_scenes=1, seed=2)[0]


@pytest.fixture
def scene_with(town_scene):
    def build(*agents):
        """Agents are (class, x, y, heading); vehicles are 4 m long and 2 m wide, others 1 m."""
        rows = np.zeros((len(agents), 7))
        for row, (kind, x, y, heading) in zip(rows, agents, strict=True):
            size = (4.0, 2.0, 1.5) if kind == AgentClass.VEHICLE else (1.0, 1.0, 1.7)
            row[:] = (x, y, size[2] / 2, *size, heading)
        classes = np.array([agent[0] for agent in agents], dtype=np.int8)
        now = Detections(rows, classes, np.zeros((len(agents), 2)), tuple(f"t{k}" for k in range(len(agents))))
        return dataclasses.replace(town_scene, detections=(now,) * 4)

    return build


def straight(step_m, change_m=0.0):
    """A plan along x whose step grows by `change_m` each half second."""
    return np.column_stack([np.cumsum(step_m + change_m * np.arange(8)), np.zeros(8), np.zeros(8)])


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (straight(0.4), ("STOP", "STRAIGHT")),
        (straight(4.0), ("KEEP", "STRAIGHT")),
        (straight(2.0, 0.25), ("ACCELERATE", "STRAIGHT")),
        (straight(4.0, -0.25), ("DECELERATE", "STRAIGHT")),
    ],
)
def test_the_speed_of_a_plan_in_words(plan, words):
    assert scene_facts.plan_of(plan) == words


@pytest.mark.parametrize(
    ("end_y", "word"),
    [(4.1, "LEFT_TURN"), (-4.1, "RIGHT_TURN"), (3.9, "STRAIGHT"), (-3.9, "STRAIGHT"), (12.0, "LEFT_TURN")],
)
def test_a_plan_that_ends_aside_turns_to_that_side(end_y, word):
    plan = straight(4.0)
    plan[:, 1] = np.linspace(0, end_y, 8)
    assert scene_facts.plan_of(plan)[1] == word


@pytest.mark.parametrize(("end_y", "word"), [(4.1, "LEFT_CHANGE"), (-4.1, "RIGHT_CHANGE")])
def test_a_plan_that_hardly_turns_over_a_long_way_changes_the_lane(end_y, word):
    plan = straight(8.0)
    plan[:, 1] = np.linspace(0, end_y, 8)
    assert scene_facts.plan_of(plan)[1] == word


def test_the_gap_is_from_front_to_rear_of_the_nearest_vehicle_straight_ahead(scene_with):
    scene = scene_with((AgentClass.VEHICLE, 30.0, 0.0, 0.0), (AgentClass.VEHICLE, 20.0, 1.0, 0.0))
    assert scene_facts.gap_ahead_m(scene) == pytest.approx(20.0 - 2.0 - EGO_FRONT_M)


def test_a_vehicle_that_stands_across_reaches_half_its_width_towards_the_ego(scene_with):
    scene = scene_with((AgentClass.VEHICLE, 20.0, 0.0, np.pi / 2))
    assert scene_facts.gap_ahead_m(scene) == pytest.approx(20.0 - 1.0 - EGO_FRONT_M)


@pytest.mark.parametrize(
    "agent",
    [
        (AgentClass.VEHICLE, 20.0, 3.5, 0.0),
        (AgentClass.VEHICLE, -20.0, 0.0, 0.0),
        (AgentClass.VEHICLE, 60.0, 0.0, 0.0),
        (AgentClass.PEDESTRIAN, 20.0, 0.0, 0.0),
    ],
)
def test_what_is_aside_behind_far_or_no_vehicle_is_not_ahead(scene_with, agent):
    assert scene_facts.gap_ahead_m(scene_with(agent)) is None


def test_pedestrians_ahead_are_counted_and_others_not(scene_with):
    scene = scene_with(
        (AgentClass.PEDESTRIAN, 20.0, 5.0, 0.0),
        (AgentClass.PEDESTRIAN, 10.0, -8.0, 0.0),
        (AgentClass.PEDESTRIAN, 5.0, 20.0, 0.0),
        (AgentClass.PEDESTRIAN, -10.0, 0.0, 0.0),
        (AgentClass.PEDESTRIAN, 50.0, 0.0, 0.0),
        (AgentClass.VEHICLE, 20.0, 0.0, 0.0),
    )
    assert scene_facts.pedestrians_ahead(scene) == 2


def light(number, x, roadblock="7"):
    return MapElement(
        id=str(number),
        layer=MapLayer.LANE_CONNECTOR,
        polygon=None,
        centerline=np.array([[x, 0.0, 0.0], [x + 20.0, 0.0, 0.0]]),
        roadblock_id=roadblock,
        has_traffic_light=True,
    )


@pytest.mark.parametrize(
    ("lights", "red", "state"),
    [
        ([], (), None),
        ([light(1, 20.0)], (), "green"),
        ([light(1, 20.0)], ("1",), "red"),
        ([light(1, -5.0)], ("1",), None),
        ([light(1, 80.0)], ("1",), None),
        ([light(1, 20.0, roadblock="8")], ("1",), None),
        ([light(1, 50.0), light(2, 20.0)], ("1",), "green"),
        ([light(1, 20.0), light(2, 20.0)], ("2",), "red"),
    ],
)
def test_the_light_is_the_next_one_on_the_route(town_scene, lights, red, state):
    scene = dataclasses.replace(
        town_scene,
        map=MapPatch(100.0, tuple(lights)),
        roadblock_ids=("6", "7"),
        red_light_connectors=frozenset(red),
    )
    assert scene_facts.light_ahead(scene) == state


def test_speed_is_the_way_of_the_last_half_second(town_scene):
    history = np.array([[-9.0, 0.0, 0.0], [-6.0, 0.0, 0.0], [-3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    assert scene_facts.recent_speed_mps(history) == pytest.approx(10.0)
