"""What lies under the data roots, and words for what does not."""

import json
import os

import pytest

from recogdrive.data.inventory import FilterFile, LogFolder, in_words, map_problem, take_inventory

CITY = "sg-one-north"
FILTER = "num_history_frames: 4\nnum_future_frames: 10\nframe_interval: {}\ntokens: {}\nlog_names: {}\n"


@pytest.fixture
def root(make_frames, write_data, monkeypatch, tmp_path):
    """A data root of two logs in one split, and a working folder that holds nothing."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return write_data({"log-a000": make_frames("log-a000"), "log-b000": b"123"})


def test_logs_are_counted_and_weighed_by_split(root):
    (root / "navsim_logs" / "test").mkdir()
    (root / "navsim_logs" / "mini" / "notes.txt").write_text("no log")
    inventory = take_inventory(root, root / "maps")
    size = (root / "navsim_logs" / "mini" / "log-a000.pkl").stat().st_size
    assert inventory.logs == (LogFolder("mini", 2, size + 3), LogFolder("test", 0, 0))
    assert inventory.problems == (f"no folder {root / 'sensor_blobs'}",)


def test_sensors_are_counted_by_the_logs_that_have_them(root):
    for log, sensor in (("log-a000", "CAM_F0"), ("log-a000", "MergedPointCloud"), ("log-b000", "CAM_F0")):
        (root / "sensor_blobs" / "mini" / log / sensor).mkdir(parents=True)
    (folder,) = take_inventory(root, root / "maps").sensors
    assert (folder.split, folder.logs, folder.sensors) == ("mini", 2, {"CAM_F0": 2, "MergedPointCloud": 1})


def test_a_map_is_named_with_its_version_and_size(root):
    (city,) = take_inventory(root, root / "maps").maps
    path = root / "maps" / CITY / "9.17.1964" / "map.gpkg"
    assert (city.city, city.version, city.bytes, city.problem) == (CITY, "9.17.1964", path.stat().st_size, "")


def test_a_city_whose_file_is_missing_or_cut_has_a_problem_and_the_others_have_none(root):
    index = root / "maps" / "nuplan-maps-v1.0.json"
    index.write_text(json.dumps({CITY: {"version": "9.17.1964"}, "us-ma-boston": {"version": "9.12.1817"}}))
    good, missing = take_inventory(root, root / "maps").maps
    assert good.problem == "" and "No map of us-ma-boston" in missing.problem
    path = root / "maps" / CITY / "9.17.1964" / "map.gpkg"
    whole = path.stat().st_size
    os.truncate(path, whole - 1)
    cut = take_inventory(root, root / "maps").maps[0]
    assert cut.problem == f"{path} ends after {whole - 1:,} of {whole:,} bytes; download it again"


def test_a_file_that_is_no_database_is_no_map(tmp_path):
    path = tmp_path / "map.gpkg"
    path.write_text("version https://git-lfs.github.com/spec/v1\n" * 5)
    assert map_problem(path) == f"{path} is no GeoPackage (215 bytes); download it again"
    path.write_bytes(b"")
    assert "is no GeoPackage (0 bytes)" in map_problem(path)


@pytest.mark.parametrize(("content", "problem"), [(None, "no map index"), ("[", "is no map index"), ("7", "is no map")])
def test_a_map_index_that_cannot_be_used_is_a_problem(root, content, problem):
    index = root / "maps" / "nuplan-maps-v1.0.json"
    index.unlink()
    if content is not None:
        index.write_text(content)
    inventory = take_inventory(root, root / "maps")
    assert inventory.maps == () and any(problem in text and str(index) in text for text in inventory.problems)


def test_yaml_files_are_told_apart_and_others_left_out(root):
    folder = root / "config" / "scene_filter"
    folder.mkdir(parents=True)
    (folder / "some.yaml").write_text(FILTER.format(1, "['aa', 'bb', 'aa']", "[log-a000]"))
    (root / "every.yaml").write_text(FILTER.format("null", "null", "null"))
    (root / "logs.yaml").write_text("train_logs: [a, b]\nval_logs: [c]\ntest_logs: []\n")
    (root / "config" / "mini.yaml").write_text("data_split: mini\ndefaults:\n  - scene_filter: some\n")
    (root / "docker.yaml").write_text("services: {}\n")
    (root / "sensor_blobs").mkdir()
    (root / "sensor_blobs" / "hidden.yaml").write_text(FILTER.format(1, "null", "null"))
    assert set(take_inventory(root, root / "maps").filters) == {
        FilterFile("every.yaml", "scene filter", "all logs, a scene every 14 frames"),
        FilterFile("logs.yaml", "log split", "train_logs 2, val_logs 1, test_logs 0"),
        FilterFile("config/mini.yaml", "train_test_split", "some on folder mini"),
        FilterFile("config/scene_filter/some.yaml", "scene filter", "1 logs, 2 tokens"),
    }


def test_filters_of_the_working_folder_are_found_too_and_none_twice(root, monkeypatch):
    (root / "elsewhere" / "mine.yaml").write_text(FILTER.format(1, "null", "null"))
    (root / "every.yaml").write_text(FILTER.format(1, "null", "null"))
    assert [f.path for f in take_inventory(root, root / "maps").filters] == ["every.yaml", "elsewhere/mine.yaml"]
    monkeypatch.chdir(root)
    assert [f.path for f in take_inventory(root, root / "maps").filters] == ["every.yaml", "elsewhere/mine.yaml"]


def test_nothing_at_all_is_said_in_so_many_words(tmp_path):
    inventory = take_inventory(tmp_path, tmp_path / "maps")
    assert inventory.problems == (
        f"no folder {tmp_path / 'navsim_logs'}",
        f"no folder {tmp_path / 'sensor_blobs'}",
        f"no map index {tmp_path / 'maps' / 'nuplan-maps-v1.0.json'}",
    )
    (tmp_path / "navsim_logs").mkdir()
    assert f"{tmp_path / 'navsim_logs'} is empty" in take_inventory(tmp_path, tmp_path / "maps").problems


def test_a_folder_that_may_not_be_opened_is_named_and_the_rest_is_listed(root, monkeypatch):
    forbidden = root / "navsim_logs" / "mini"
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(forbidden):
            raise PermissionError(13, "Permission denied", str(forbidden))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    inventory = take_inventory(root, root / "maps")
    assert inventory.logs == (LogFolder("mini", problem=f"permission denied: {forbidden}"),)
    assert len(inventory.maps) == 1


def test_failures_are_put_in_words_without_numbers():
    assert in_words(PermissionError(13, "Permission denied", "/x")) == "permission denied: /x"
    assert in_words(FileNotFoundError("No split.")) == "No split."
    assert in_words(ValueError("bad")) == "bad"
