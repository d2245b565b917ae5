"""The scene source on bad data: what is missing, damaged or out of range is named and counted."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from recogdrive.data.navsim import NavsimScenes
from recogdrive.data.safe_pickle import CorruptPickleError, ForbiddenPickleError
from recogdrive.data.scene_filter import SceneFilter

pytestmark = pytest.mark.usefixtures("no_variables")

EVERY = SceneFilter(frame_interval=1)


def current_frames(source):
    """Frame indices of the current frames, all of one log."""
    return [int(source[i].metadata["frame_index"]) for i in range(len(source))]


def test_a_filter_that_matches_nothing_says_what_was_dropped_and_why(make_frames, write_data):
    root = write_data({"log-a000": make_frames(count=15)})
    with pytest.raises(ValueError, match=r"matches nothing.*dropped not listed 2.*tokens not found 1"):
        NavsimScenes(str(root), scene_filter=dataclasses.replace(EVERY, tokens=("f" * 16,)))
    with pytest.raises(ValueError, match=r"matches nothing.*dropped short 1\b.*windows of 19 frames"):
        NavsimScenes(str(root), scene_filter=SceneFilter(num_future_frames=15))


def test_missing_root_split_and_log_are_errors_of_construction(make_frames, write_data, tmp_path):
    with pytest.raises(ValueError, match="OPENSCENE_DATA_ROOT"):
        NavsimScenes()
    with pytest.raises(FileNotFoundError, match="nearest folder"):
        NavsimScenes(str(tmp_path / "gone"))
    root = str(write_data({"log-a000": make_frames()}))
    with pytest.raises(FileNotFoundError, match="Did you mean 'mini'"):
        NavsimScenes(root, split="minii")
    with pytest.raises(FileNotFoundError, match="1 of the 1 logs"):
        NavsimScenes(root, scene_filter=SceneFilter(log_names=("log-a001",)))
    (tmp_path / "navsim_logs" / "test").mkdir()
    with pytest.raises(ValueError, match="'test' is empty"):
        NavsimScenes(root, split="test")


def with_images(root, frames, cameras=("CAM_F0",), leave_out=()):
    for index, frame in enumerate(frames):
        for camera in cameras:
            path = root / "sensor_blobs" / "mini" / frame["cams"][camera]["data_path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if index not in leave_out:
                path.write_bytes(b"\xff\xd8")
    return str(root)


def test_a_missing_image_stops_construction_and_is_named(make_frames, write_data):
    frames = make_frames(count=17)
    root = with_images(write_data({"log-a000": frames}), frames, leave_out=(4,))
    with pytest.raises(FileNotFoundError, match=r"1 of 4 scenes .*CAM_F0/0000000000000004\.jpg.*on_missing_camera"):
        NavsimScenes(root, scene_filter=EVERY, require_cameras=("cam_f0",))
    assert len(NavsimScenes(root, scene_filter=EVERY)) == 4


def test_scenes_without_their_image_are_left_out_counted_and_named_when_asked(make_frames, write_data, caplog):
    frames = make_frames(count=17)
    root = with_images(write_data({"log-a000": frames}), frames, leave_out=(4, 9))
    source = NavsimScenes(root, scene_filter=EVERY, require_cameras=("cam_f0",), on_missing_camera="skip")
    # Frame 9 is no current frame of a scene: its image is not needed.
    assert current_frames(source) == [3, 5, 6]
    assert source.report["missing_camera"] == 1 and source.report["scenes"] == 3
    assert [path.rsplit("/", 1)[1] for path in source.missing_images] == ["0000000000000004.jpg"]
    assert "0000000000000004.jpg" in caplog.text and "left out" in caplog.text


def test_an_empty_image_and_one_the_log_does_not_list_count_as_missing(make_frames, write_data):
    frames = make_frames(count=15)
    del frames[3]["cams"]["CAM_B0"]
    root = write_data({"log-a000": frames})
    with_images(root, frames, cameras=("CAM_F0",))
    (root / "sensor_blobs" / "mini" / frames[4]["cams"]["CAM_F0"]["data_path"]).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 scenes .*0000000000000004\.jpg"):
        NavsimScenes(str(root), scene_filter=EVERY, require_cameras=("cam_f0",))
    with pytest.raises(FileNotFoundError, match=f"cam_b0 of token {frames[3]['token']}"):
        NavsimScenes(str(root), scene_filter=EVERY, require_cameras=("cam_b0",), on_missing_camera="skip")


@pytest.mark.parametrize(
    ("field", "key"), [("ego_dynamic_state", None), ("anns", "gt_boxes"), ("anns", "gt_velocity_3d")]
)
def test_a_number_that_is_not_finite_stops_construction_and_names_its_place(make_frames, write_data, field, key):
    frames = make_frames(count=14)
    holder, name = (frames[2], field) if key is None else (frames[2][field], key)
    holder[name] = np.full_like(np.array(holder[name], dtype=float), np.nan)
    root = write_data({"log-a000": frames})
    with pytest.raises(ValueError, match="not a finite number") as error:
        NavsimScenes(str(root))
    for part in ("log-a000", frames[2]["token"], name, "nan"):
        assert part in str(error.value)


def test_a_bad_frame_outside_every_window_harms_nothing(make_frames, write_data):
    frames = make_frames(count=15, changes={14: {"ego2global_translation": np.full(3, np.nan)}})
    root = str(write_data({"log-a000": frames}))
    assert len(NavsimScenes(root)) == 1
    with pytest.raises(ValueError, match="frame 14"):
        NavsimScenes(root, scene_filter=EVERY)


def test_corrupt_and_crafted_logs_are_named(make_frames, write_data):
    whole = pickle.dumps(make_frames())
    with pytest.raises(CorruptPickleError, match=r"log-a000\.pkl"):
        NavsimScenes(str(write_data({"log-a000": whole[: len(whole) // 2]})))
    with pytest.raises(ForbiddenPickleError, match=r"log-a000\.pkl contains posix\.system"):
        NavsimScenes(str(write_data({"log-a000": b"cposix\nsystem\n(S'true'\ntR."})))


def test_unknown_commands_pass_and_commands_of_length_three_only_when_asked(make_frames, write_data):
    unknown = {index: {"driving_command": np.array([0, 0, 0, 1])} for index in range(14)}
    source = NavsimScenes(str(write_data({"log-a000": make_frames(changes=unknown)})))
    np.testing.assert_array_equal(source[0].ego.command[-1], [0, 0, 0, 1])
    old = {index: {"driving_command": np.array([0, 0, 1])} for index in range(14)}
    root = str(write_data({"log-a000": make_frames(changes=old)}))
    with pytest.raises(ValueError, match='set three_way_commands="pad"'):
        NavsimScenes(root)
    padded = NavsimScenes(root, three_way_commands="pad")[0].ego.command
    np.testing.assert_array_equal(padded, [[0, 0, 1, 0]] * 4)


def test_frames_with_a_gap_between_them_are_kept_skipped_or_refused_but_always_counted(make_frames, write_data, caplog):
    # Frame 15 was lost: from there on, time stamps are 0.5 s later.
    frames = make_frames(count=17, changes={i: {"timestamp": 1_500_000 + 500_000 * i} for i in (15, 16)})
    root = str(write_data({"log-a000": frames}))
    kept = NavsimScenes(root, scene_filter=EVERY)
    assert len(kept) == 4 and kept.report["time_gaps"] == 2 and "0.5 s apart" in caplog.text
    skipped = NavsimScenes(root, scene_filter=EVERY, on_time_gap="skip")
    assert current_frames(skipped) == [3, 4] and skipped.report["time_gaps"] == 2
    with pytest.raises(ValueError, match=r"2 of 4 scenes.*on_time_gap"):
        NavsimScenes(root, scene_filter=EVERY, on_time_gap="error")


def test_clocks_that_jitter_by_a_lidar_sweep_are_no_gap(make_frames, write_data):
    jitter = {i: {"timestamp": 1_000_000 + 500_000 * i + (-1) ** i * 25_000} for i in range(14)}
    assert NavsimScenes(str(write_data({"log-a000": make_frames(changes=jitter)}))).report["time_gaps"] == 0


def test_logs_without_annotations_serve_only_filters_without_future(make_frames, write_data):
    frames = make_frames(count=8)
    for frame in frames:
        del frame["anns"]
    root = str(write_data({"log-a000": frames}, split="private_test_e2e"))
    private = SceneFilter(num_future_frames=0, has_route=False)
    source = NavsimScenes(root, split="private_test_e2e", scene_filter=private)
    assert len(source) == 2 and source[0].future is None
    assert [len(d.boxes) for d in source[0].detections] == [0, 0, 0, 0]


def test_a_frame_without_annotations_is_refused_where_a_future_is_wanted(make_frames, write_data):
    frames = make_frames(changes={7: {"anns": None}})
    with pytest.raises(ValueError, match=r"no annotations \(anns\).*num_future_frames=0"):
        NavsimScenes(str(write_data({"log-a000": frames})))


def test_a_city_without_map_is_an_error_of_construction(make_frames, write_data):
    frames = make_frames(changes={3: {"map_location": "us-ma-boston"}})
    with pytest.raises(ValueError, match="knows no city 'us-ma-boston'"):
        NavsimScenes(str(write_data({"log-a000": frames})))


def test_fewer_scenes_than_an_official_filter_has_are_reported_loudly(make_frames, write_data, caplog):
    root = str(write_data({"log-a000": make_frames()}))
    source = NavsimScenes(root, scene_filter=SceneFilter(name="navtest"))
    assert "navtest has 1 scenes, but 12146 are expected" in caplog.text
    assert source.report["expected_scenes"] == 12_146


def test_a_part_of_navtrain_is_held_against_its_own_count(make_frames, write_data, caplog, tmp_path):
    root = str(write_data({"log-a000": make_frames()}))
    split = tmp_path / "logs.yaml"
    split.write_text("train_logs: ['log-a000']\nval_logs: []\ntest_logs: []\n")
    NavsimScenes(root, scene_filter=SceneFilter(name="navtrain"), log_split=str(split))
    assert "85109 are expected of navtrain/train_logs" in caplog.text


def test_tokens_that_were_not_found_are_reported_loudly(make_frames, write_data, caplog):
    frames = make_frames()
    root = str(write_data({"log-a000": frames}))
    NavsimScenes(root, scene_filter=SceneFilter(tokens=(frames[3]["token"],)))
    assert "expected" not in caplog.text
    NavsimScenes(root, scene_filter=SceneFilter(tokens=(frames[3]["token"], "f" * 16)))
    assert "has 1 scenes, but 2 are expected of its token list" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_missing_camera": "ignore"}, "on_missing_camera='ignore'"),
        ({"on_missing_log": "no"}, "on_missing_log='no'"),
        ({"on_time_gap": "warn"}, "on_time_gap='warn'"),
        ({"three_way_commands": "pads"}, "Did you mean 'pad'"),
        ({"require_cameras": ("cam_f1",)}, "'cam_f1' is not one of .*'cam_f0'"),
        ({"require_cameras": "cam_f0"}, "must be a list"),
        ({"log_names": "log-a000"}, "must be a list"),
        ({"log_names": ("log-a000",), "log_split": "x.yaml"}, "not both"),
        ({"log_split": "x.yaml", "log_split_part": "train"}, "Did you mean 'train_logs'"),
        ({"map_radius_m": 0.0}, "map_radius_m=0.0"),
        ({"map_radius_m": math.nan}, "map_radius_m=nan"),
        ({"logs_in_memory": 0}, "logs_in_memory=0"),
        ({"scene_filter": SceneFilter(num_history_frames=3)}, "num_history_frames=3"),
        ({"scene_filter": SceneFilter(num_future_frames=7)}, "num_future_frames=7"),
    ],
)
def test_an_argument_out_of_range_is_refused_with_its_value(make_frames, write_data, arguments, message):
    root = str(write_data({"log-a000": make_frames()}))
    with pytest.raises(ValueError, match=message):
        NavsimScenes(root, **arguments)
