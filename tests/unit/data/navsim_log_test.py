"""Frames of a log: what is accepted, what is refused, and where it ends up in a scene."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from recogdrive.data.navsim_log import command_one_hot, parse_frame, parse_windows, read_log, scene_of
from recogdrive.data.types import AgentClass, Box, Command, MapPatch

ORIGIN = np.array([365_000.0, 143_000.0])


def scene(frames, **changes):
    parsed = parse_windows(frames, "log-a000", [0], len(frames), "refuse")
    return scene_of([parsed[i] for i in range(len(frames))], "log-a000", MapPatch(50.0, ()), Path("/data"), changes)


def test_the_scene_frame_is_the_ego_of_the_fourth_frame(make_frames):
    made = scene(make_frames())
    # 10 m/s straight on: 5 m a frame.
    np.testing.assert_allclose(made.ego.poses, [[-15, 0, 0], [-10, 0, 0], [-5, 0, 0], [0, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(made.future, [[5 * k, 0, 0] for k in range(1, 11)], atol=1e-9)
    np.testing.assert_allclose(made.origin, [ORIGIN[0], ORIGIN[1] + 15, math.pi / 2])
    assert made.token == "a000000000000003" and made.timestamp_us == 2_500_000


def test_a_parked_car_stays_in_place_in_the_scene_frame(make_frames):
    made = scene(make_frames())
    assert len(made.detections) == 14
    for detections in made.detections:
        np.testing.assert_allclose(detections.boxes, [[15, 2, 0.9, 4.5, 1.9, 1.6, 0]], atol=1e-9)
        assert detections.classes.tolist() == [AgentClass.VEHICLE] and detections.track_tokens == ("parked",)


def test_a_frame_turned_against_the_current_one_turns_its_boxes_and_velocities(make_frames):
    # At frame 0 the ego faces east while it faces north at frame 3; what is ahead of it then is to the right now.
    made = scene(make_frames(changes={0: {"ego2global_rotation": np.array([1.0, 0, 0, 0])}}))
    first = made.detections[0]
    np.testing.assert_allclose(first.boxes[0, [Box.X, Box.Y]], [-15 + 2, -30], atol=1e-9)
    assert first.boxes[0, Box.HEADING] == pytest.approx(-math.pi / 2)
    np.testing.assert_allclose(first.velocity, [[0, -1]], atol=1e-12)
    np.testing.assert_allclose(made.ego.poses[0], [-15, 0, -math.pi / 2], atol=1e-9)


def test_headings_of_boxes_are_wrapped(make_frames):
    frames = make_frames()
    frames[3]["anns"]["gt_boxes"][0, Box.HEADING] = 5.0
    assert scene(frames).current_detections.boxes[0, Box.HEADING] == pytest.approx(5.0 - 2 * math.pi)


def test_velocity_and_acceleration_stay_in_the_axes_of_their_own_time(make_frames):
    turned = {0: {"ego2global_rotation": np.array([1.0, 0, 0, 0]), "ego_dynamic_state": [3.0, 1.0, 0.1, 0.2]}}
    made = scene(make_frames(changes=turned))
    np.testing.assert_array_equal(made.ego.velocity, np.float32([[3, 1], [10, 0], [10, 0], [10, 0]]))
    np.testing.assert_array_equal(made.ego.acceleration[0], np.float32([0.1, 0.2]))
    assert made.ego.velocity.dtype == np.float32 and made.ego.poses.dtype == np.float64


def test_route_lights_and_cameras_are_those_of_the_current_frame(make_frames):
    made = scene(make_frames(changes={3: {"roadblock_ids": ["9"], "traffic_lights": [(4, True), (5, False)]}}))
    assert made.roadblock_ids == ("9",) and made.red_light_connectors == {"4"}
    assert made.cameras["cam_f0"] == "/data/log-a000/CAM_F0/0000000000000003.jpg" and len(made.cameras) == 8


def test_a_window_without_future_has_none(make_frames):
    made = scene(make_frames(count=4), kind="test")
    assert made.future is None and len(made.detections) == 4 and made.metadata == {"kind": "test"}


def test_unannotated_frames_have_no_objects(make_frames):
    frames = make_frames(count=4)
    for raw in frames:
        del raw["anns"]
    for detections in scene(frames).detections:
        assert detections.boxes.shape == (0, 7) and detections.velocity.shape == (0, 2)
        assert detections.classes.shape == (0,) and detections.track_tokens == ()


def test_a_frame_with_no_objects_is_empty_whatever_the_shape_of_nothing(make_frames):
    empty = {key: [] for key in ("gt_boxes", "gt_names", "gt_velocity_3d", "instance_tokens", "track_tokens")}
    frames = make_frames(changes={3: {"anns": empty}})
    assert scene(frames).current_detections.boxes.shape == (0, 7)


def test_all_seven_classes_have_the_numbers_of_nuplan(make_frames):
    names = ["vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object"]
    anns = {
        "gt_boxes": np.ones((7, 7)),
        "gt_names": np.array(names),
        "gt_velocity_3d": np.zeros((7, 3)),
        "instance_tokens": names,
        "track_tokens": names,
    }
    made = parse_frame(make_frames(count=1, changes={0: {"anns": anns}})[0], "Log a")
    assert made.detections.classes.tolist() == list(range(7)) and made.detections.classes.dtype == np.int8


def test_yaw_is_the_one_of_the_reference_on_a_slope(make_frames):
    quaternion = np.array([0.9, 0.02, -0.03, 0.3])
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    made = parse_frame(make_frames(count=1, changes={0: {"ego2global_rotation": quaternion}})[0], "Log a")
    assert made.pose[2] == pytest.approx(math.atan2(2 * (w * z - x * y), 1 - 2 * (y * y + z * z)), abs=1e-15)


@pytest.mark.parametrize("command", list(Command))
def test_commands_of_length_four_are_taken_as_they_are(command):
    one_hot = np.eye(4, dtype=np.int64)[command]
    np.testing.assert_array_equal(command_one_hot(one_hot, "refuse", "Log a"), one_hot)


@pytest.mark.parametrize("command", range(3))
def test_commands_of_length_three_get_no_unknown_only_when_asked(command):
    three = np.eye(3, dtype=np.int64)[command]
    padded = command_one_hot(three, "pad", "Log a")
    np.testing.assert_array_equal(padded, np.eye(4)[command])
    with pytest.raises(ValueError, match=r'Log a: .* has 3 entries.*three_way_commands="pad"'):
        command_one_hot(three, "refuse", "Log a")


@pytest.mark.parametrize(
    "value", [[0, 0, 0, 0], [1, 1, 0, 0], [0, 2, 0, 0], [0.5, 0.5, 0, 0], [1, -1, 1, 0], [math.nan, 1, 0, 0]]
)
def test_commands_that_are_not_one_hot_are_refused_with_their_value(value):
    with pytest.raises(ValueError, match="not one-hot"):
        command_one_hot(value, "pad", "Log a")


@pytest.mark.parametrize("value", [1, [1, 0], [1, 0, 0, 0, 0], [[1, 0, 0, 0]], "left", None])
def test_commands_of_another_form_are_refused(value):
    with pytest.raises(ValueError, match="no vector of length 4"):
        command_one_hot(value, "pad", "Log a")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("field", "inner", "place"),
    [
        ("ego2global_translation", None, (1,)),
        ("ego2global_rotation", None, (3,)),
        ("ego_dynamic_state", None, (2,)),
        ("anns", "gt_boxes", (0, 4)),
        ("anns", "gt_velocity_3d", (0, 1)),
    ],
)
def test_a_number_that_is_not_finite_names_log_token_and_field(make_frames, field, inner, place, bad):
    raw = make_frames(count=1)[0]
    holder, key = (raw, field) if inner is None else (raw[field], inner)
    holder[key] = np.array(holder[key], dtype=np.float64)
    holder[key][place] = bad
    with pytest.raises(ValueError, match="not a finite number") as error:
        parse_frame(raw, "Log 2021-a, frame 0")
    message = str(error.value)
    assert "2021-a" in message and raw["token"] in message
    assert f"{inner or field}{list(place)}" in message and str(bad) in message


def test_the_status_of_future_frames_is_not_looked_at(make_frames):
    frames = make_frames(changes={9: {"ego_dynamic_state": [math.nan] * 4, "driving_command": None}})
    assert scene(frames).future.shape == (10, 3)
    with pytest.raises(ValueError, match="frame 9.*ego_dynamic_state"):
        parse_windows(frames, "log-a000", [0, 6], 8, "refuse")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ego2global_translation": [1.0, 2.0]}, r"ego2global_translation has shape \(2,\)"),
        ({"ego2global_rotation": [0, 0, 0, 0]}, "no rotation"),
        ({"ego_dynamic_state": ["a", 0, 0, 0]}, "ego_dynamic_state holds something other than numbers"),
        ({"traffic_lights": [(1.5, True)]}, "traffic_lights is no list"),
        ({"traffic_lights": [7]}, "traffic_lights is no list"),
        ({"anns": [1]}, "anns is a list"),
        ({"anns": {"gt_boxes": []}}, "gt_names is missing"),
        ({"cams": None}, "another type"),
        ({"timestamp": 1.5}, "another type"),
        ({"cams": {"CAM_F0": {"data_path": "../../etc/passwd"}}}, "leads out of"),
        ({"cams": {"CAM_F0": {"data_path": "/etc/passwd"}}}, "leads out of"),
    ],
)
def test_a_field_of_another_form_names_token_and_field(make_frames, changes, message):
    raw = make_frames(count=1, changes={0: changes})[0]
    with pytest.raises(ValueError, match=message) as error:
        parse_frame(raw, "Log a")
    assert raw["token"] in str(error.value)


def test_a_missing_pose_is_named(make_frames):
    raw = make_frames(count=1)[0]
    del raw["ego2global_rotation"]
    with pytest.raises(ValueError, match="ego2global_rotation is missing"):
        parse_frame(raw, "Log a")


def test_annotations_of_different_lengths_are_refused(make_frames):
    raw = make_frames(count=1)[0]
    raw["anns"]["track_tokens"] = ["a", "b"]
    with pytest.raises(ValueError, match=r"different lengths: .*'track_tokens': 2"):
        parse_frame(raw, "Log a")


def test_an_unknown_class_is_named_with_the_known_ones(make_frames):
    raw = make_frames(count=1)[0]
    raw["anns"]["gt_names"] = np.array(["submarine"])
    with pytest.raises(ValueError, match=r"\['submarine'\]; known are \['vehicle'"):
        parse_frame(raw, "Log a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "holds a dict instead of a list"),
        ([1, 2], "frame 0 lacks every key"),
        ([{"token": "a", "timestamp": 1}], "frame 0 lacks map_location, roadblock_ids, cams"),
    ],
)
def test_a_pickle_that_is_no_log_is_refused_with_its_path(tmp_path, content, message):
    path = tmp_path / "log.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_log(path)
    assert str(path) in str(error.value)
