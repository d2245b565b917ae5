"""The scene source: NAVSIM's selection of windows, parity with the reference on real logs, the contract of a source."""

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
from recogdrive.data.safe_pickle import load_log_pickle
from recogdrive.data.samples import NavsimSplit, SceneSource, TimedScenes
from recogdrive.data.scene_filter import SceneFilter
from recogdrive.data.types import PACIFICA, AgentClass, Box, MapLayer
from recogdrive.geometry import from_frame, wrap_angle

pytestmark = pytest.mark.usefixtures("no_variables")

EVERY = SceneFilter(frame_interval=1)


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


def test_clocks_and_split_are_known_without_building_scenes(real):
    assert [real.time_of(i) for i in range(0, len(real), 7)] == [real[i].timestamp_us for i in range(0, len(real), 7)]
    assert isinstance(real, TimedScenes) and isinstance(real, NavsimSplit) and real.split == "mini"


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


def test_a_log_split_is_looked_up_from_the_data_root(write_data, make_frames):
    root = write_data({"log-a000": make_frames("log-a000"), "log-b000": make_frames("log-b000")})
    (root / "split.yaml").write_text("train_logs: [log-b000]\nval_logs: []\ntest_logs: []\n")
    scenes = NavsimScenes(str(root), scene_filter=SceneFilter(), log_split="split.yaml")
    assert scenes.log_of(0) == "log-b000" and scenes.report["logs"] == 1
