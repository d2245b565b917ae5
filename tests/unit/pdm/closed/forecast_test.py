"""Tests of pdm/closed/forecast.py."""

import numpy as np
import pytest
import shapely

from recogdrive.data.types import AgentClass
from recogdrive.pdm.closed.forecast import NUM_MAPS, forecast

CENTER = np.array([1.461, 0.0])
FOOTPRINT = shapely.box(-1.127, -1.1485, 4.049, 1.1485)


def vehicle(token, x, y=0.0, heading=0.0, vx=0.0, vy=0.0, kind="vehicle"):
    return token, kind, x, y, heading, 4.0, 2.0, vx, vy


def made(found, lights=(), ignored=frozenset()):
    return forecast(found, CENTER, FOOTPRINT, lights, np.zeros(2), ignored)


def centres(around, step):
    tree = around.maps[step // 2]
    return shapely.get_coordinates(shapely.centroid(tree.geometries)).round(9).tolist()


def test_agents_move_on_along_their_heading_at_their_speed(detections):
    around = made(detections(vehicle("a", 20, heading=np.pi / 2, vx=3.0, vy=4.0)))
    assert len(around.maps) == NUM_MAPS == 26
    assert centres(around, 0) == [[20, 0]]
    # The velocity is 53 degrees off the heading: its length counts, its direction does not.
    assert centres(around, 20) == [[20, 10]]
    assert centres(around, 21) == [[20, 10]]
    assert centres(around, 50) == [[20, 25]]


def test_an_agent_that_moves_against_its_heading_goes_backwards(detections):
    around = made(detections(vehicle("a", 20, vx=-2.0)))
    assert centres(around, 10) == [[18, 0]]


def test_static_objects_stay_whatever_their_velocity_says(detections):
    around = made(detections(vehicle("cone", 20, vx=5.0, kind="traffic_cone")))
    assert centres(around, 50) == [[20, 0]]
    assert around.speeds.tolist() == [5.0] and not around.velocities.any()


def test_obstacles_are_static_ones_vehicles_pedestrians_bicycles_each_by_distance(detections):
    rows = [vehicle("b", 9, kind="bicycle"), vehicle("v2", 40), vehicle("p", 30, kind="pedestrian"), vehicle("v1", -20)]
    around = made(detections(*rows, vehicle("s", 80, kind="barrier")))
    assert around.tokens == ("s", "v1", "v2", "p", "b")


def test_only_the_nearest_fifty_vehicles_are_looked_at(detections):
    around = made(detections(*(vehicle(str(k), 80 - 0.5 * k, 10) for k in range(60))))
    assert set(around.tokens) == {str(k) for k in range(10, 60)}


@pytest.mark.parametrize(("kind", "most"), [("pedestrian", 25), ("bicycle", 10), ("generic_object", 50)])
def test_the_other_classes_have_limits_of_their_own(detections, kind, most):
    around = made(detections(*(vehicle(str(k), 80, k - 30, kind=kind) for k in range(60))))
    assert len(around.tokens) == most
    assert set(around.classes) == {AgentClass[kind.upper()]}


def test_objects_beyond_a_hundred_metres_are_not_looked_at(detections):
    around = made(detections(vehicle("near", 101.4), vehicle("far", 101.5)))
    assert around.tokens == ("near",)


def test_what_touches_the_ego_at_the_start_is_ignored_from_then_on(detections):
    around = made(detections(vehicle("touching", 6.0), vehicle("ahead", 6.5)))
    assert around.collided_tokens == {"touching"}
    assert around.agent_poses().shape == (51, 1, 3)
    assert around.agent_poses()[0, 0, 0] == 6.5


def test_tracks_to_ignore_are_left_out(detections):
    around = made(detections(vehicle("a", 20), vehicle("b", 30)), ignored=frozenset({"a"}))
    assert around.tokens == ("b",)


def test_the_poses_at_all_steps_are_those_of_the_maps(detections):
    around = made(detections(vehicle("a", 20, vx=10.0)))
    assert around.agent_poses()[:5, 0, 0].tolist() == [20, 20, 22, 22, 24]


def test_a_red_light_is_ignored_only_if_the_ego_is_wholly_within_it(detections, city):
    city.road("a", (-40, 0), (-20, 0)).road("b", (20, 0), (60, 0))
    city.joint("within", "a", "b", (-20, 0), (20, 0)).joint("touched", "a", "b", (3, 0), (20, 0))
    graph = city.graph()
    lights = [graph.connector("within.0"), graph.connector("touched.0")]
    around = made(detections(vehicle("a", 30)), lights)
    assert around.tokens == ("a", "red_light_within.0", "red_light_touched.0")
    assert around.collided_tokens == {"red_light_within.0"}
    assert around.num_objects == 1


def test_a_red_light_to_ignore_is_ignored_wherever_the_ego_is(detections, city):
    city.road("a", (0, 0), (20, 0)).road("b", (40, 0), (60, 0)).joint("ab", "a", "b", (20, 0), (40, 0))
    light = city.graph().connector("ab.0")
    assert made(detections(), [light]).collided_tokens == frozenset()
    ignored = frozenset({"red_light_ab.0"})
    assert made(detections(), [light], ignored).collided_tokens == ignored


def test_nothing_around_is_a_forecast_too(detections):
    around = made(detections())
    assert around.tokens == () and around.agent_poses().shape == (51, 0, 3)
