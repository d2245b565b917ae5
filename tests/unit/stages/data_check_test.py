"""The data check: what it finds, writes and refuses."""

import json
import shutil

import pytest

from recogdrive.composition import Composition
from recogdrive.data.scene_filter import SceneFilter
from recogdrive.data.split_check import SplitDefinition
from recogdrive.experiment import find_experiment
from recogdrive.run_folder import RunFolder
from recogdrive.stages.data_check import DataCheck, IncompleteDataError

EVERY = SceneFilter(frame_interval=1)
MINI = SplitDefinition("mini", "mini", EVERY, expected_scenes=35)
NAVTEST = SplitDefinition("navtest", "test", "navtest.yaml")


def folder(path):
    return RunFolder(path, Composition(find_experiment("data_check"), "A = 1\n"), None)


def lines_with(printed, word):
    return [" ".join(line.split()) for line in printed.splitlines() if word in line]


def test_a_complete_split_passes_and_everything_is_written(navsim_mini, tmp_path, capsys):
    stage = DataCheck(["mini"], [MINI, NAVTEST], data_root=str(navsim_mini))
    assert stage.run(folder(tmp_path), None) == {"mini/scenes": 35}
    printed = capsys.readouterr().out
    assert "mini mini 2 of 2 0 35 of 35 280 of 280 0 complete" in lines_with(printed, "mini")
    assert "INCOMPLETE" not in printed
    record = json.loads((tmp_path / "data_check.json").read_text())
    assert record["complete"] == {"mini": True}
    assert record["splits"][0]["images"]["cam_f0"] == {"wanted": 35, "missing": 0, "empty": 0}
    assert [city["city"] for city in record["inventory"]["maps"]] == sorted(
        path.name for path in (navsim_mini / "maps").iterdir() if path.is_dir()
    )
    needs = {need["cache"]["name"]: need["bytes"]["mini"] for need in record["disk"]["needs"]}
    assert needs["official metric cache"] == 35 * 290_000
    assert record["disk"]["free_bytes"] > 0
    assert json.loads((tmp_path / "run.json").read_text())["data"] == {"mini": "35 scenes in 2 logs, complete"}


def test_an_incomplete_split_fails_after_everything_was_printed_and_written(navsim_mini, tmp_path, capsys):
    stage = DataCheck(["mini", "navtest"], [MINI, NAVTEST], data_root=str(navsim_mini))
    with pytest.raises(IncompleteDataError, match=r"1 of 2 requested splits are incomplete: navtest\. What they lack"):
        stage.run(folder(tmp_path), None)
    printed = capsys.readouterr().out
    assert "navtest test 0 0 0 of 12,146 - 0 INCOMPLETE" in lines_with(printed, "navtest")
    assert "navtest is incomplete\n" in printed and "No split 'test'" in printed
    assert json.loads((tmp_path / "data_check.json").read_text())["complete"] == {"mini": True, "navtest": False}


def test_a_root_that_is_not_named_or_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    with pytest.raises(ValueError, match="set the variable OPENSCENE_DATA_ROOT, or DATA_ROOT"):
        DataCheck(["mini"], [MINI]).run(folder(tmp_path / "a"), None)
    with pytest.raises(FileNotFoundError, match="does not exist; the nearest folder"):
        DataCheck(["mini"], [MINI], data_root=str(tmp_path / "x" / "y")).run(folder(tmp_path / "b"), None)


def test_an_empty_root_fails_and_says_what_is_missing(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    with pytest.raises(IncompleteDataError):
        DataCheck(["mini"], [MINI], data_root=str(tmp_path / "data")).run(folder(tmp_path / "run"), None)
    printed = capsys.readouterr().out
    assert "no folder " + str(tmp_path / "data" / "navsim_logs") in printed
    assert "has no folder navsim_logs (it has: nothing)" in printed


def test_sensor_data_that_is_not_there_makes_a_split_incomplete_unless_no_camera_is_asked_for(
    navsim_mini, tmp_path, capsys
):
    for name in ("maps", "navsim_logs"):
        shutil.copytree(navsim_mini / name, tmp_path / "data" / name)
    with pytest.raises(IncompleteDataError):
        DataCheck(["mini"], [MINI], data_root=str(tmp_path / "data")).run(folder(tmp_path / "a"), None)
    assert "280 of 280 images are missing or empty" in capsys.readouterr().out
    stage = DataCheck(["mini"], [MINI], data_root=str(tmp_path / "data"), cameras=())
    assert stage.run(folder(tmp_path / "b"), None) == {"mini/scenes": 35}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"splits": ["navtset"]}, "no split 'navtset' to check. Did you mean 'navtest'"),
        ({"splits": "navtest"}, "must be a list of names, such as"),
        ({"splits": []}, "must be a list of names"),
        ({"known_splits": [MINI, MINI]}, "Two splits share a name"),
        ({"cameras": "cam_f0"}, "must be a list of names"),
        ({"cameras": ["front"]}, "no camera 'front'"),
        ({"workers": 0}, "workers=0 must be positive"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataCheck(**{"splits": ["mini"], "known_splits": [MINI, NAVTEST]} | arguments)


def test_a_parent_is_refused(tmp_path):
    with pytest.raises(ValueError, match="starts from no run"):
        DataCheck(["mini"], [MINI]).run(folder(tmp_path / "run"), tmp_path)


def test_the_description_needs_no_data(monkeypatch):
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    description = DataCheck(["navtest", "mini"], [MINI, NAVTEST], cameras=()).describe()
    assert description.data == {
        "navtest": "folder test, scene filter navtest.yaml",
        "mini": "folder mini, scene filter given",
    }
    assert description.notes == ["data root: the variable OPENSCENE_DATA_ROOT", "images checked: none"]
