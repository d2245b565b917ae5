"""The scene source: NAVSIM's selection of windows, parity with the reference on real logs, and bad data."""

import concurrent.futures
import dataclasses
import math
import multiprocessing
import pickle
from pathlib import Path

import gin
import numpy as np
import pytest

from recogdrive.data import navsim
from recogdrive.data.navsim import NavsimScenes
from recogdrive.data.safe_pickle import CorruptPickleError, ForbiddenPickleError, load_log_pickle
from recogdrive.data.samples import SceneSource
from recogdrive.data.scene_filter import SceneFilter
from recogdrive.data.types import PACIFICA, AgentClass, Box, MapLayer
from recogdrive.geometry import from_frame, wrap_angle

EVERY = SceneFilter(frame_interval=1)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    monkeypatch.delenv("NUPLAN_MAPS_ROOT", raising=False)


@pytest.fixture(scope="session")
def real(navsim_mini):
    return NavsimScenes(str(navsim_mini), scene_filter="splits/mini_all.yaml", maps_root=str(navsim_mini / "maps"))


def windows(source):
    """Frame indices of the current frames, by log."""
    return [(source.log_of(i), int(source[i].metadata["frame_index"])) for i in range(len(source))]


# Selection of windows


def test_windows_of_a_log_start_at_every_interval_and_the_short_ones_are_dropped(make_frames, write_data):
    root = write_data({"log-a000": make_frames(count=20)})
    source = NavsimScenes(str(root), scene_filter=SceneFilter(frame_interval=3))
    assert windows(source) == [("log-a000", 3), ("log-a000", 6), ("log-a000", 9)]
    # Starts 9, 12, 15 and 18 leave fewer than 14 frames.
    assert source.report["dropped_short"] == 4 and source.report["frames"] == 20


def test_windows_do_not_overlap_by_default(make_frames, write_data):
    source = NavsimScenes(str(write_data({"log-a000": make_frames(count=30)})))
    assert windows(source) == [("log-a000", 3), ("log-a000", 17)]


def test_logs_come_in_the_order_of_their_names(make_frames, write_data):
    root = write_data({name: make_frames(name) for name in ("log-c000", "log-a000", "log-b000")})
    assert [log for log, _ in windows(NavsimScenes(str(root)))] == ["log-a000", "log-b000", "log-c000"]


def test_a_scene_without_route_at_its_current_frame_is_dropped_only_when_one_is_required(make_frames, write_data):
    root = write_data({"log-a000": make_frames(count=16, changes={4: {"roadblock_ids": []}})})
    source = NavsimScenes(str(root), scene_filter=EVERY)
    assert windows(source) == [("log-a000", 3), ("log-a000", 5)] and source.report["dropped_no_route"] == 1
    assert len(NavsimScenes(str(root), scene_filter=dataclasses.replace(EVERY, has_route=False))) == 3


def test_only_listed_tokens_are_kept(make_frames, write_data):
    frames = make_frames(count=16)
    wanted = dataclasses.replace(EVERY, tokens=(frames[5]["token"], frames[3]["token"], "f" * 16))
    source = NavsimScenes(str(write_data({"log-a000": frames})), scene_filter=wanted)
    assert source.tokens == (frames[3]["token"], frames[5]["token"])
    assert (source.report["dropped_not_listed"], source.report["tokens_not_found"]) == (1, 1)


def test_a_repeated_token_takes_the_later_window_and_the_earlier_place(make_frames, write_data):
    first = make_frames("log-a000", count=15)
    second = make_frames("log-b000", count=14)
    second[3]["token"] = first[3]["token"]
    source = NavsimScenes(str(write_data({"log-a000": first, "log-b000": second})), scene_filter=EVERY)
    assert source.tokens == (first[3]["token"], first[4]["token"])
    assert windows(source) == [("log-b000", 3), ("log-a000", 4)] and source.report["repeated_tokens"] == 1


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 100])
def test_it_stops_at_the_maximum_of_scenes(make_frames, write_data, limit):
    root = write_data({name: make_frames(name, count=16) for name in ("log-a000", "log-b000")})
    source = NavsimScenes(str(root), scene_filter=dataclasses.replace(EVERY, max_scenes=limit))
    assert len(source) == min(limit, 6)
    assert source.tokens == NavsimScenes(str(root), scene_filter=EVERY).tokens[:limit]


def test_real_filters_give_their_published_counts(navsim_mini):
    for name, count in (("mini_all", 35), ("mini_nonoverlap", 4), ("mini_tokens", 10)):
        source = NavsimScenes(str(navsim_mini), scene_filter=f"splits/{name}.yaml")
        assert len(source) == count and source.report["scenes"] == count and source.name == name
        assert len(set(source.tokens)) == count


def test_one_filter_is_split_by_log(navsim_mini, real):
    parts = [
        NavsimScenes(str(navsim_mini), scene_filter="splits/mini_all.yaml", log_names=[log])
        for log in sorted(real.scene_filter.log_names)
    ]
    assert parts[0].tokens + parts[1].tokens == real.tokens
    assert {parts[0].log_of(i) for i in range(len(parts[0]))} == {min(real.scene_filter.log_names)}


# Parity on real logs


def test_the_human_future_and_the_ego_state_are_those_of_the_reference(real, golden_metric_cache):
    files = sorted(golden_metric_cache.glob("*.npz"))
    assert files
    for file in files:
        with np.load(file) as golden:
            scene = real[real.tokens.index(str(golden["token"]))]
            assert golden["plan_names"][0] == "human"
            np.testing.assert_allclose(scene.future[:8], golden["plan_poses"][0], rtol=0, atol=1e-6)
            np.testing.assert_allclose(scene.origin, golden["ego_state"][:3], rtol=0, atol=1e-9)
            np.testing.assert_array_equal(scene.ego.velocity[-1], golden["ego_state"][3:5].astype(np.float32))
            np.testing.assert_array_equal(scene.ego.acceleration[-1], golden["ego_state"][5:7].astype(np.float32))
            center = from_frame(np.array([PACIFICA.rear_axle_to_center_m, 0, 0]), scene.origin)
            np.testing.assert_allclose(center, golden["ego_center"], rtol=0, atol=1e-9)
            assert scene.timestamp_us == int(golden["ego_time_us"])
            assert (scene.log_name, scene.map_name) == (str(golden["log_name"]), str(golden["map_location"]))
            # The reference keeps the first of repeated route ids.
            assert list(dict.fromkeys(scene.roadblock_ids)) == golden["route_in"].tolist()


def test_objects_are_where_the_reference_saw_them_first(real, golden_metric_cache):
    for file in sorted(golden_metric_cache.glob("*.npz")):
        with np.load(file) as golden:
            tokens, types = golden["object_tokens"].tolist(), golden["object_types"]
            boxes, velocities = golden["object_box"], golden["object_velocity"]
            scene = real[real.tokens.index(str(golden["token"]))]
        first = {}
        for detections in scene.detections[3:]:
            for row, token in enumerate(detections.track_tokens):
                first.setdefault(token, (detections, row))
        assert first.keys() == set(tokens)
        for token, kind, box, velocity in zip(tokens, types, boxes, velocities, strict=True):
            detections, row = first[token]
            ours = detections.boxes[row]
            pose = from_frame(ours[[Box.X, Box.Y, Box.HEADING]], scene.origin)
            np.testing.assert_allclose(pose[:2], box[:2], rtol=0, atol=1e-8)
            assert abs(wrap_angle(pose[2] - box[2])) < 1e-8
            np.testing.assert_array_equal(ours[[Box.LENGTH, Box.WIDTH, Box.HEIGHT]], box[3:6])
            assert AgentClass(detections.classes[row]).name == kind
            if detections.classes[row] <= AgentClass.BICYCLE:  # the reference has no velocity for static objects
                turned = from_frame(np.array([*detections.velocity[row], 0.0]), np.array([0, 0, scene.origin[2]]))
                np.testing.assert_allclose(turned[:2], velocity, rtol=0, atol=1e-8)


def slow_pose(raw):
    """Position as a complex number and yaw as its turn, from the log's rotation matrix instead of its quaternion."""
    matrix = raw["ego2global"]
    turn = complex(matrix[0, 0], -matrix[0, 1])
    return complex(*raw["ego2global_translation"][:2]), turn / abs(turn)


def test_every_real_scene_equals_a_slow_conversion_from_rotation_matrices(real, navsim_mini):
    logs = {path.stem: load_log_pickle(path) for path in (navsim_mini / "navsim_logs" / "mini").glob("*.pkl")}
    for index, token in enumerate(real.tokens):
        scene = real[index]
        raw = logs[scene.log_name]
        now = next(i for i, frame in enumerate(raw) if frame["token"] == token)
        here, ahead = slow_pose(raw[now])
        poses = np.concatenate([scene.ego.poses, scene.future])
        assert len(poses) == 14 == len(scene.detections)
        for step, frame in enumerate(raw[now - 3 : now + 11]):
            there, turn = slow_pose(frame)
            moved = (there - here) / ahead
            assert abs(complex(*poses[step, :2]) - moved) < 1e-6
            assert abs(np.exp(1j * poses[step, 2]) - turn / ahead) < 1e-9
            detections = scene.detections[step]
            for box, ours in zip(frame["anns"]["gt_boxes"], detections.boxes, strict=True):
                center = (there + complex(*box[:2]) * turn - here) / ahead
                assert abs(complex(*ours[:2]) - center) < 1e-6
                assert abs(np.exp(1j * ours[Box.HEADING]) - np.exp(1j * box[6]) * turn / ahead) < 1e-9
            velocity = frame["anns"]["gt_velocity_3d"][:, :2] @ [1, 1j] * turn / ahead
            np.testing.assert_allclose(detections.velocity @ [1, 1j], velocity, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(scene.ego.command, [f["driving_command"] for f in raw[now - 3 : now + 1]])
        assert scene.red_light_connectors == {str(c) for c, red in raw[now]["traffic_lights"] if red}


def test_headings_of_every_real_scene_are_wrapped_and_the_present_is_the_origin(real):
    for index in range(len(real)):
        scene = real[index]
        np.testing.assert_array_equal(scene.ego.poses[-1], [0, 0, 0])
        for detections in scene.detections:
            assert np.all(np.abs(detections.boxes[:, Box.HEADING]) <= math.pi)


def test_the_map_lies_around_the_ego_in_the_scene_frame(real):
    for index in (0, 20):
        scene = real[index]
        lanes = scene.map.layer(MapLayer.LANE, MapLayer.LANE_CONNECTOR)
        vertices = np.concatenate([lane.centerline for lane in lanes])
        near = vertices[np.argsort(np.hypot(vertices[:, 0], vertices[:, 1]))[:5]]
        # Real driving follows a lane: some vertex close by points the ego's way.
        assert np.hypot(near[0, 0], near[0, 1]) < 3 and np.min(np.abs(near[:, 2])) < 0.3
        assert scene.map.radius_m == 100.0


def test_camera_paths_of_real_scenes_lead_to_images(navsim_mini):
    source = NavsimScenes(
        str(navsim_mini),
        scene_filter="splits/mini_tokens.yaml",
        require_cameras=("cam_f0", "cam_b0"),
        map_radius_m=20.0,
    )
    assert source.report["missing_camera"] == 0
    assert Path(source[0].cameras["cam_f0"]).read_bytes()[:2] == b"\xff\xd8"


# The contract of a source


def same(a, b):
    assert a.token == b.token and a.detections[5].track_tokens == b.detections[5].track_tokens
    np.testing.assert_array_equal(a.future, b.future)
    np.testing.assert_array_equal(a.detections[9].boxes, b.detections[9].boxes)
    assert [e.id for e in a.map.elements] == [e.id for e in b.map.elements]


def test_it_has_what_a_scene_source_needs(real):
    members = [*SceneSource.__annotations__, "__len__", "__getitem__", "log_of"]
    assert [member for member in members if not hasattr(real, member)] == []
    assert all(type(count) is int for count in real.report.values()) and isinstance(real.tokens, tuple)


def test_positions_out_of_range_are_refused_and_negative_ones_count_from_the_end(real):
    with pytest.raises(IndexError):
        real[len(real)]
    with pytest.raises(TypeError):
        real[1.5]
    assert real[-1].token == real.tokens[-1] and real[np.int64(2)].token == real.tokens[2]


def test_a_pickled_source_gives_the_same_scenes_and_carries_no_logs(real):
    real[0]
    dumped = pickle.dumps(real)
    assert len(dumped) < 10_000
    copy = pickle.loads(dumped)
    assert copy.tokens == real.tokens and copy.report == real.report
    for index in (0, 34):
        same(copy[index], real[index])


def test_threads_get_the_same_scenes_whatever_the_order(navsim_mini, real):
    fresh = NavsimScenes(str(navsim_mini), scene_filter="splits/mini_all.yaml", logs_in_memory=1)
    order = [(7 * i) % 35 for i in range(20)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for index, scene in zip(order, pool.map(fresh.__getitem__, order), strict=True):
            same(scene, real[index])


@pytest.mark.heavy
def test_a_worker_process_gets_the_same_scenes(real):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        same(pool.apply(real.__getitem__, (20,)), real[20])


@pytest.mark.parametrize(("in_memory", "reads"), [(2, 0), (1, 4)])
def test_a_log_in_memory_is_not_read_again(make_frames, write_data, monkeypatch, in_memory, reads):
    root = write_data({name: make_frames(name) for name in ("log-a000", "log-b000")})
    source = NavsimScenes(str(root), logs_in_memory=in_memory)
    count = []
    original = navsim.read_log
    monkeypatch.setattr(navsim, "read_log", lambda path: count.append(path) or original(path))
    for index in (0, 0, 1, 0, 1):
        source[index]
    assert len(count) == reads


def test_it_is_built_from_gin(make_frames, write_data):
    root = write_data({"log-a000": make_frames(count=15)})
    gin.parse_config(f"""
        NavsimScenes.data_root = '{root}'
        NavsimScenes.scene_filter = @SceneFilter()
        SceneFilter.frame_interval = 1
        SceneFilter.name = 'every'
    """)
    source = gin.get_configurable("NavsimScenes")()
    assert len(source) == 2 and source.name == "every"


def test_folders_come_from_the_variables(make_frames, write_data, monkeypatch, tmp_path):
    root = write_data({"log-a000": make_frames()})
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(root))
    assert len(NavsimScenes()) == 1
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path / "other"))
    with pytest.raises(FileNotFoundError, match=r"other does not exist.*NUPLAN_MAPS_ROOT"):
        NavsimScenes()


# Bad data


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
    assert [frame for _, frame in windows(source)] == [3, 5, 6]
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
    assert [frame for _, frame in windows(skipped)] == [3, 4] and skipped.report["time_gaps"] == 2
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


def test_a_log_split_is_looked_up_from_the_data_root(write_data, make_frames):
    root = write_data({"log-a000": make_frames("log-a000"), "log-b000": make_frames("log-b000")})
    (root / "split.yaml").write_text("train_logs: [log-b000]\nval_logs: []\ntest_logs: []\n")
    scenes = NavsimScenes(str(root), scene_filter=SceneFilter(), log_split="split.yaml")
    assert scenes.log_of(0) == "log-b000" and scenes.report["logs"] == 1
