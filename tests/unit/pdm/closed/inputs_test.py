"""Tests of pdm/closed/inputs.py."""

import dataclasses
import math

import numpy as np
import pytest

from recogdrive.data.navsim_log import LogFrame
from recogdrive.data.types import AgentClass, Detections, MapLayer
from recogdrive.pdm.closed.inputs import drivable_map, extended_facts, red_connectors, scene_inputs
from recogdrive.pdm.closed.route import route_blocks
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.scene import PolygonLayer

PLACE = np.array([1000.0, 2000.0])


def seen(*rows):
    """Detections of rows (token, class, x, y) in the ego's own frame, moving at 2 m/s to its left."""
    return Detections(
        boxes=np.array([[x, y, 0.5, 4.0, 2.0, 1.5, 0.1] for _, _, x, y in rows]).reshape(-1, 7),
        classes=np.array([AgentClass[kind.upper()] for _, kind, _, _ in rows], dtype=np.int8),
        velocity=np.tile([0.0, 2.0], (len(rows), 1)),
        track_tokens=tuple(row[0] for row in rows),
    )


def frames(count=14, detections=None, lights=None):
    """Frames of a drive to the north at 10 m/s; frame 3 is now."""
    return [
        LogFrame(
            token=f"token{k}",
            timestamp_us=1_000_000 + 500_000 * k,
            map_name="toy",
            roadblock_ids=("a", "ab"),
            pose=np.array([PLACE[0], PLACE[1] + 5.0 * (k - 3), math.pi / 2]),
            velocity=np.array([10.0, 0.1], np.float32) if k < 4 else None,
            acceleration=np.array([0.5, -0.25], np.float32) if k < 4 else None,
            command=np.array([0, 1, 0, 0], np.float32),
            red_light_connectors=tuple((lights or {}).get(k, ())),
            detections=(detections or {}).get(k, seen()),
            cameras={},
        )
        for k in range(count)
    ]


def test_the_local_frame_is_at_the_ego_and_not_turned():
    inputs = scene_inputs(frames(), "log")
    assert inputs.token == "token3" and inputs.origin.tolist() == [1000, 2000, 0]
    assert inputs.state.tolist() == [0, 0, math.pi / 2, 10, pytest.approx(0.1), 0.5, -0.25, 0, 0, 0, 0]
    np.testing.assert_allclose(inputs.center, [0, 1.461], atol=1e-12)
    np.testing.assert_allclose(inputs.footprint.bounds, [-1.1485, -1.127, 1.1485, 4.049], atol=1e-12)


def test_the_human_s_way_is_in_the_initial_rear_axle_frame():
    np.testing.assert_allclose(scene_inputs(frames(), "log").human_poses[:, 0], np.arange(1, 9) * 5.0)


def test_objects_are_moved_from_their_own_frame_s_ego():
    """10 m ahead of where the ego is 1 s from now, that is 20 m to the north of where it is."""
    inputs = scene_inputs(frames(detections={5: seen(("x", "vehicle", 10.0, 1.0))}), "log")
    (found,) = (d for d in inputs.detections if d.track_tokens)
    np.testing.assert_allclose(found.boxes[0, :2], [-1.0, 20.0], atol=1e-9)
    assert found.boxes[0, 6] == pytest.approx(math.pi / 2 + 0.1)
    np.testing.assert_allclose(found.velocity[0], [-2.0, 0.0], atol=1e-12)


def test_objects_of_a_frame_are_ordered_by_class():
    rows = [("c", "barrier", 1, 1), ("b", "vehicle", 2, 2), ("a", "pedestrian", 3, 3), ("d", "vehicle", 4, 4)]
    inputs = scene_inputs(frames(detections={3: seen(*rows)}), "log")
    assert inputs.detections[0].track_tokens == ("b", "d", "a", "c")


def test_too_few_future_frames_are_refused_with_the_filter_to_set():
    with pytest.raises(SceneError, match="scene token3: 8 future frames, .* num_future_frames=10"):
        scene_inputs(frames(12), "log")


def test_frames_without_annotations_are_refused():
    made = frames()
    made[6] = dataclasses.replace(made[6], detections=None)
    with pytest.raises(SceneError, match="have no annotations"):
        scene_inputs(made, "log")


def test_the_map_holds_roads_with_lanes_joints_lanes_alone_junctions_and_car_parks(city):
    city.road("a", (0, 0), (40, 0), lanes=2).road("b", (50, 0), (90, 0)).joint("ab", "a", "b", (40, 0), (50, 0))
    city.road("far", (150, 0), (190, 0))
    square = [[38, -5], [52, -5], [52, 5], [38, 5]]
    city.area(MapLayer.INTERSECTION, "i", square).area(MapLayer.CARPARK_AREA, "p", square)
    city.area(MapLayer.GENERIC_DRIVABLE_AREA, "g", square)
    found = drivable_map(city.graph(), np.array([10.0, 0.0]))
    assert [e.id for e in found.elements] == ["a", "b", "a.0", "a.1", "b.0", "ab.0", "i", "p"]
    road, lane = PolygonLayer.ROADBLOCK, PolygonLayer.LANE
    others = [PolygonLayer.LANE_CONNECTOR, PolygonLayer.INTERSECTION, PolygonLayer.CARPARK_AREA]
    assert list(found.layers) == [road, road, lane, lane, lane, *others]


def test_lanes_at_a_point_include_those_whose_border_it_is_on(chain):
    found = drivable_map(chain, np.array([10.0, 0.0]))
    assert {lane.element.id for lane in found.lanes_at(np.array([40.0, 0.0]), chain)} == {"a.0", "ab.0"}
    assert found.lanes_at(np.array([10.0, 30.0]), chain) == []


def test_red_connectors_are_those_of_the_given_lanes_in_the_log_s_order(chain):
    lanes = [lane for block in route_blocks(chain, ["a", "ab", "b", "bc"]) for lane in block.lanes]
    frame = frames(lights={3: ("bc.0", "cd.0", "nowhere", "ab.0")})[3]
    assert [lane.element.id for lane in red_connectors(frame, lanes, chain)] == ["bc.0", "ab.0"]


def test_sightings_are_the_first_and_last_of_the_nine_frames_to_four_seconds(chain):
    shown = {3: ("a", "b"), 4: ("a",), 6: ("a", "c"), 11: ("c",), 12: ("d", "a")}
    detections = {k: seen(*((token, "vehicle", 30.0, 9.0) for token in tokens)) for k, tokens in shown.items()}
    inputs = scene_inputs(frames(detections=detections), "log")
    facts = extended_facts(inputs, ("a", "b", "c", "d"), route_blocks(chain, ["a"]), chain, np.dtype(np.float32))
    assert facts.agent_sightings.tolist() == [[0, 3], [0, 0], [3, 8], [-1, -1]]


def test_lights_of_the_uncorrected_route_are_kept_with_the_frames_in_which_they_are_red(chain):
    """Frames 3 and 5 are now and 1 s from now; the light of bc is not on the log's route, frame 12 is 4.5 s away."""
    lights = {3: ("ab.0", "bc.0"), 5: ("ab.0",), 12: ("ab.0",)}
    inputs = scene_inputs(frames(lights=lights), "log")
    route = route_blocks(chain, ["a", "ab"])
    facts = extended_facts(inputs, (), route, chain, np.dtype(np.float32))
    assert facts.light_frames.tolist() == [0b101] and facts.light_offsets.tolist() == [0, 4]
    assert facts.light_vertices.dtype == np.float32
    np.testing.assert_array_equal(facts.light_vertices[:, 0], np.float32([40, 50, 50, 40]) - 1000)


def test_the_history_is_in_the_frame_of_now(chain):
    facts = extended_facts(scene_inputs(frames(), "log"), (), route_blocks(chain, ["a"]), chain, np.dtype(np.float32))
    assert facts.history_states[:, 1].tolist() == [-15, -10, -5, 0]
    assert facts.history_states[0, 3:7].tolist() == [10, pytest.approx(0.1), 0.5, -0.25]
    assert facts.history_times_us.tolist() == [1_000_000, 1_500_000, 2_000_000, 2_500_000]
