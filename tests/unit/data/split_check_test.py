"""Whether a split is complete: scenes as `NavsimScenes` finds them, and every reason why some are not there."""

import os
import pickle

import pytest

from recogdrive.data import log_check
from recogdrive.data.navsim import NavsimScenes
from recogdrive.data.scene_filter import SceneFilter
from recogdrive.data.split_check import ImageCounts, SplitDefinition, check_splits

EVERY = SceneFilter(frame_interval=1, name="every")
LONG = 16
"""Frames of the made-up logs: three scenes each, at frames 3, 4 and 5."""


def definition(**changes):
    return SplitDefinition(**{"name": "mini", "split": "mini", "scene_filter": EVERY} | changes)


def check(root, *definitions, **options):
    return check_splits(root, root / "maps", definitions or [definition()], **{"cameras": ()} | options)


def token(log, index):
    return f"{log[-4:]}{index:012x}"


@pytest.fixture
def two_logs(make_frames, write_data):
    return write_data({name: make_frames(name, LONG) for name in ("log-a000", "log-b000")})


@pytest.fixture
def with_images(two_logs):
    """The two logs with all images of their frames, one byte each."""
    for log in ("log-a000", "log-b000"):
        for camera in ("CAM_F0", "CAM_L0"):
            folder = two_logs / "sensor_blobs" / "mini" / log / camera
            folder.mkdir(parents=True)
            for index in range(LONG):
                (folder / f"{index:016x}.jpg").write_bytes(b"x")
    return two_logs


def image(root, log, camera, index):
    return root / "sensor_blobs" / "mini" / log / camera / f"{index:016x}.jpg"


def test_a_whole_split_is_complete(two_logs):
    (report,) = check(two_logs, definition(expected_scenes=6))
    assert report.complete and report.problems == ()
    assert (report.logs, report.logs_expected, report.frames) == (2, 2, 2 * LONG)
    assert (report.scenes, report.scenes_expected, report.gaps) == (6, 6, 0)
    assert report.cities == ("sg-one-north",) and report.damaged == {}


@pytest.mark.parametrize(
    "scene_filter",
    [
        EVERY,
        SceneFilter(),
        SceneFilter(frame_interval=2, has_route=False),
        SceneFilter(frame_interval=1, tokens=(token("log-a000", 4), token("log-b000", 9))),
        SceneFilter(num_future_frames=0, frame_interval=3, log_names=("log-b000",)),
    ],
)
def test_scenes_are_those_that_training_takes(scene_filter, make_frames, write_data):
    changes = {6: {"roadblock_ids": []}, 8: {"token": token("log-a000", 5)}, 11: {"timestamp": 7_500_000}}
    root = write_data({"log-a000": make_frames("log-a000", 25, changes), "log-b000": make_frames("log-b000", 20)})
    source = NavsimScenes(str(root), scene_filter=scene_filter)
    (report,) = check(root, definition(scene_filter=scene_filter))
    assert report.scenes == len(source) > 0
    assert report.gaps == source.report["time_gaps"]
    assert report.logs == source.report["logs"]


def test_scenes_of_navsim_mini_are_those_that_training_takes(navsim_mini):
    for name in ("mini_all", "mini_nonoverlap", "mini_tokens"):
        source = NavsimScenes(str(navsim_mini), scene_filter=f"splits/{name}.yaml")
        (report,) = check_splits(
            navsim_mini, navsim_mini / "maps", [definition(scene_filter=f"splits/{name}.yaml")], history_images=True
        )
        assert report.scenes == len(source) and report.complete
        assert set(report.images) == {f"cam_{place}" for place in ("f0", "l0", "l1", "l2", "r0", "r1", "r2", "b0")}


def test_fewer_scenes_than_expected_make_a_split_incomplete(two_logs):
    (report,) = check(two_logs, definition(expected_scenes=7))
    assert report.problems == ("6 scenes instead of 7",)


def test_the_official_number_is_expected_of_an_official_filter(two_logs):
    tokens = tuple(token("log-a000", i) for i in (3, 4))
    (report,) = check(two_logs, definition(scene_filter=SceneFilter(frame_interval=1, tokens=tokens, name="navmini")))
    assert report.scenes_expected == 396
    assert report.problems == ("the scene filter lists 2 tokens instead of 396", "2 scenes instead of 396")


def test_tokens_that_no_log_has_make_a_split_incomplete(two_logs):
    tokens = (token("log-a000", 3), "ffff")
    (report,) = check(two_logs, definition(scene_filter=SceneFilter(frame_interval=1, tokens=tokens)))
    assert (report.scenes, report.scenes_expected) == (1, 2) and report.problems == ("1 scenes instead of 2",)


def test_logs_that_the_filter_names_and_the_disk_lacks_are_named(two_logs):
    names = ("log-a000", "log-b000", "log-c000")
    (report,) = check(two_logs, definition(scene_filter=SceneFilter(frame_interval=1, log_names=names)))
    assert (report.logs, report.logs_expected, report.missing_logs) == (2, 3, ("log-c000",))
    assert report.problems == ("1 of 3 logs are missing: log-c000",) and report.scenes == 6


def test_damaged_logs_are_named_with_their_reason_and_the_others_are_checked(make_frames, write_data):
    nan = {4: {"ego_dynamic_state": [float("nan"), 0, 0, 0]}}
    root = write_data(
        {
            "log-a000": make_frames("log-a000", LONG),
            "log-b000": pickle.dumps(make_frames("log-b000", LONG))[:-200],
            "log-c000": make_frames("log-c000", LONG, nan),
            "log-d000": make_frames("log-d000", LONG, {3: {"roadblock_ids": None}}),
            "log-e000": pickle.dumps({"not": "a list"}),
        }
    )
    (report,) = check(root)
    assert report.scenes == 3 and report.logs == 5
    assert report.problems == ("4 of 5 logs are damaged, see below",)
    assert list(report.damaged) == ["log-b000", "log-c000", "log-d000", "log-e000"]
    assert "log-b000.pkl" in report.damaged["log-b000"]
    assert "ego_dynamic_state[0] is nan" in report.damaged["log-c000"]
    assert "roadblock_ids=None is no list of names" in report.damaged["log-d000"]
    assert "holds a dict instead of a list of frames" in report.damaged["log-e000"]


def test_a_log_without_annotations_is_damaged_unless_no_future_is_asked_for(make_frames, write_data):
    frames = make_frames("log-a000", LONG)
    for frame in frames:
        del frame["anns"]
    root = write_data({"log-a000": frames})
    now = definition(name="now", scene_filter=SceneFilter(num_future_frames=0, frame_interval=1))
    with_future, without = check(root, definition(), now)
    assert "no annotations" in with_future.damaged["log-a000"] and with_future.scenes == 0
    assert without.complete and without.scenes == LONG - 3


def test_missing_and_empty_images_are_counted_by_camera_and_named(with_images):
    image(with_images, "log-a000", "CAM_F0", 3).unlink()
    image(with_images, "log-b000", "CAM_F0", 5).unlink()
    image(with_images, "log-b000", "CAM_L0", 4).write_bytes(b"")
    # Of no scene's current frame: these are of no concern.
    image(with_images, "log-a000", "CAM_F0", 2).unlink()
    image(with_images, "log-a000", "CAM_F0", 6).unlink()
    (report,) = check(with_images, cameras=("cam_f0", "cam_l0"))
    assert report.images == {"cam_f0": ImageCounts(6, 2, 0), "cam_l0": ImageCounts(6, 0, 1)}
    named = [str(image(with_images, *place)) for place in (("log-a000", "CAM_F0", 3), ("log-b000", "CAM_L0", 4))]
    assert report.first_images[:2] == tuple(named)
    assert report.problems == (f"3 of 12 images are missing or empty: {', '.join(report.first_images)}",)
    assert report.scenes == 6


def test_images_of_history_frames_are_checked_once_each_if_asked_for(with_images):
    image(with_images, "log-a000", "CAM_F0", 0).unlink()
    (report,) = check(with_images, cameras=("cam_f0",), history_images=True)
    # Scenes at frames 3, 4, 5 look back to frame 0: six frames a log.
    assert report.images == {"cam_f0": ImageCounts(12, 1, 0)} and not report.complete
    (current,) = check(with_images, cameras=("cam_f0",))
    assert current.complete


def test_a_camera_that_a_log_does_not_list_is_missing(make_frames, write_data):
    changes = {3: {"cams": {}}}
    (report,) = check(write_data({"log-a000": make_frames("log-a000", LONG, changes)}), cameras=("cam_b0",))
    assert report.images == {"cam_b0": ImageCounts(3, 3, 0)}
    assert f"cam_b0 of token {token('log-a000', 3)}, which the log does not list" in report.first_images


def test_frames_that_are_not_half_a_second_apart_are_counted_and_no_reason_to_refuse(make_frames, write_data):
    frames = make_frames("log-a000", LONG)
    for frame in frames[15:]:
        frame["timestamp"] += 500_000
    (report,) = check(write_data({"log-a000": frames}))
    # Only the last of the three windows reaches frame 15.
    assert (report.gaps, report.first_gaps) == (1, (token("log-a000", 5),)) and report.complete


def test_a_missing_map_makes_a_split_incomplete_once_for_each_city(two_logs):
    map_file = two_logs / "maps" / "sg-one-north" / "9.17.1964" / "map.gpkg"
    map_file.unlink()
    (report,) = check(two_logs)
    assert (
        len(report.problems) == 1 and f"map of sg-one-north: No map of sg-one-north at {map_file}" in report.problems[0]
    )
    map_file.write_text("oops")
    assert "is no GeoPackage" in check(two_logs)[0].problems[0]


def test_parts_of_the_log_split_are_counted_apart(two_logs):
    (two_logs / "parts.yaml").write_text("train_logs: [log-a000, other]\nval_logs: [log-b000]\ntest_logs: [none]\n")
    (report,) = check(two_logs, definition(log_split="parts.yaml"))
    assert report.parts == {"train_logs": (3, None), "val_logs": (3, None)} and report.complete
    official = SceneFilter(frame_interval=1, name="navtrain")
    (report,) = check(two_logs, definition(log_split="parts.yaml", scene_filter=official))
    assert report.parts == {"train_logs": (3, 85_109), "val_logs": (3, 18_179)}
    assert "train_logs: 3 scenes instead of 85,109" in report.problems


def test_what_is_not_there_at_all_is_a_problem_and_not_an_error(two_logs):
    (report,) = check(
        two_logs, definition(name="navtest", split="tset", scene_filter="navtest.yaml", log_split="split.yaml")
    )
    assert (report.logs, report.scenes, report.scenes_expected) == (0, 0, 12_146)
    folder, scene_filter, log_split = sorted(report.problems)
    assert "No split 'tset'" in folder
    assert "log split: No YAML file" in scene_filter
    assert "scene filter: No YAML file" in log_split and "train_test_split" in log_split


def test_a_filter_that_matches_nothing_makes_a_split_incomplete(make_frames, write_data):
    root = write_data({"log-a000": make_frames("log-a000", 13)})
    assert check(root)[0].problems == ("no log has a scene that the filter takes",)


def test_a_filter_with_another_history_is_refused_in_words(two_logs):
    (report,) = check(two_logs, definition(scene_filter=SceneFilter(num_history_frames=3)))
    assert report.problems == ("scene filter: num_history_frames=3, scenes have 4",)


def test_a_log_that_several_splits_want_is_read_once(two_logs, monkeypatch):
    read = []
    read_log = log_check.read_log
    monkeypatch.setattr(log_check, "read_log", lambda path: read.append(path.stem) or read_log(path))
    only_b = definition(name="b", scene_filter=SceneFilter(log_names=("log-b000",)))
    every, b = check(two_logs, definition(), only_b)
    assert read == ["log-a000", "log-b000"]
    assert (every.scenes, b.scenes) == (6, 1)


def test_a_folder_that_may_not_be_opened_is_named(two_logs, monkeypatch):
    folder = two_logs / "navsim_logs" / "mini"
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).startswith(str(folder)):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (report,) = check(two_logs)
    assert not report.complete and report.scenes == 0


@pytest.mark.heavy
def test_processes_find_what_one_process_finds(make_frames, write_data):
    root = write_data({f"log-{i:04d}": make_frames(f"log-{i:04d}", LONG) for i in range(40)} | {"log-x": b"damaged"})
    definitions = [definition(), definition(name="tokens", scene_filter=SceneFilter(tokens=(token("0007", 3),)))]
    alone = check(root, *definitions, workers=1)
    assert check(root, *definitions, workers=2) == alone
    assert alone[0].scenes == 120 and list(alone[0].damaged) == ["log-x"] and alone[1].scenes == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cameras": ("cam_f1",)}, "no camera 'cam_f1'. Did you mean .*'cam_f0'"), ({"workers": 0}, "workers=0 must be")],
)
def test_options_that_mean_nothing_are_refused(two_logs, options, message):
    with pytest.raises(ValueError, match=message):
        check(two_logs, **options)
