"""Every part of the data that is not where it should be is named, with what is there instead."""

import pytest

from recogdrive.data.navsim_files import choose_logs, find_data_root, find_filter, find_maps_root, find_split, shown
from recogdrive.data.scene_filter import SceneFilter


@pytest.fixture
def folder(tmp_path):
    for log in ("2021.05.12_veh-25", "2021.06.09_veh-12", "2021.10.06_veh-50"):
        (tmp_path / f"{log}.pkl").touch()
    return tmp_path


def test_the_argument_comes_before_the_variable(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(tmp_path))
    assert find_data_root(None) == tmp_path
    assert find_data_root(str(tmp_path / "a")) == tmp_path / "a"


def test_without_a_data_root_the_variable_and_the_macro_are_named(monkeypatch):
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    with pytest.raises(ValueError, match="variable OPENSCENE_DATA_ROOT, or DATA_ROOT in the configuration"):
        find_data_root(None)


def test_a_data_root_that_does_not_exist_names_the_nearest_folder_above(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"from data_root.*nearest folder that does is {tmp_path}/data\."):
        find_data_root(str(tmp_path / "data" / "openscene" / "v1"))
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="from OPENSCENE_DATA_ROOT"):
        find_data_root(None)


def test_maps_are_in_the_argument_the_variable_or_the_data_root(tmp_path, monkeypatch):
    monkeypatch.delenv("NUPLAN_MAPS_ROOT", raising=False)
    assert find_maps_root(None, tmp_path) == tmp_path / "maps"
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path / "m"))
    assert find_maps_root(None, tmp_path) == tmp_path / "m"
    assert find_maps_root(str(tmp_path / "n"), tmp_path) == tmp_path / "n"


def test_a_data_root_without_logs_says_what_it_has(tmp_path):
    (tmp_path / "sensor_blobs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder navsim_logs \(it has: sensor_blobs\)"):
        find_split(tmp_path, "mini")


def test_an_unknown_split_is_answered_with_the_nearest(tmp_path):
    for split in ("trainval", "test"):
        (tmp_path / "navsim_logs" / split).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"No split 'trainvall'.*Did you mean 'trainval'\?"):
        find_split(tmp_path, "trainvall")


def test_a_split_without_logs_is_empty(tmp_path):
    (tmp_path / "navsim_logs" / "mini").mkdir(parents=True)
    (tmp_path / "navsim_logs" / "mini" / "readme.txt").touch()
    with pytest.raises(ValueError, match="'mini' is empty"):
        find_split(tmp_path, "mini")


def test_a_filter_is_taken_as_it_is_or_made_with_defaults(tmp_path):
    made = SceneFilter(max_scenes=3)
    assert find_filter(made, tmp_path) is made
    assert find_filter(None, tmp_path) == SceneFilter()


def test_a_filter_file_is_looked_for_in_the_working_folder_then_in_the_data_root(tmp_path, monkeypatch):
    here, root = tmp_path / "here", tmp_path / "data"
    for place, count in ((here, 1), (root, 2)):
        (place / "splits").mkdir(parents=True)
        (place / "splits" / "both.yaml").write_text(f"max_scenes: {count}\n")
    (root / "splits" / "data_only.yaml").write_text("max_scenes: 5\n")
    monkeypatch.chdir(here)
    assert find_filter("splits/both.yaml", root).max_scenes == 1
    assert find_filter("splits/data_only.yaml", root).max_scenes == 5
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'data_only\.yaml'"):
        find_filter("splits/data_onyl.yaml", root)


def test_a_filter_of_another_type_is_refused(tmp_path):
    with pytest.raises(TypeError, match="neither a SceneFilter nor the path"):
        find_filter({"max_scenes": 3}, tmp_path)


def test_logs_are_sorted_by_name(folder):
    chosen, missing = choose_logs(folder, SceneFilter())
    assert chosen == ("2021.05.12_veh-25", "2021.06.09_veh-12", "2021.10.06_veh-50") and missing == 0
    reverse = SceneFilter(log_names=("2021.10.06_veh-50", "2021.05.12_veh-25"))
    assert choose_logs(folder, reverse)[0] == ("2021.05.12_veh-25", "2021.10.06_veh-50")


def test_one_filter_can_be_split_by_log(folder):
    whole = SceneFilter(log_names=("2021.05.12_veh-25", "2021.06.09_veh-12"))
    assert choose_logs(folder, whole, log_names=["2021.06.09_veh-12"])[0] == ("2021.06.09_veh-12",)
    with pytest.raises(
        ValueError, match=r"'2021\.06\.09_veh-13', no log of the scene filter\. Did you mean '2021\.06\.09_veh-12'"
    ):
        choose_logs(folder, whole, log_names=["2021.06.09_veh-13"])


def test_a_log_that_was_asked_for_and_is_not_there_is_an_error_or_counted(folder, caplog):
    wanted = SceneFilter(log_names=("2021.06.09_veh-12", "2021.06.09_veh-99"))
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 logs .*2021\.06\.09_veh-99.*on_missing_log"):
        choose_logs(folder, wanted)
    assert choose_logs(folder, wanted, on_missing="skip") == (("2021.06.09_veh-12",), 1)
    assert "2021.06.09_veh-99" in caplog.text


def test_the_official_split_of_logs_is_intersected_with_the_filter(folder, tmp_path):
    path = tmp_path / "logs.yaml"
    path.write_text("train_logs: ['2021.05.12_veh-25', 'elsewhere']\nval_logs: ['2021.06.09_veh-12']\ntest_logs: []\n")
    whole = SceneFilter(log_names=("2021.05.12_veh-25", "2021.06.09_veh-12"))
    assert choose_logs(folder, whole, log_split=str(path))[0] == ("2021.05.12_veh-25",)
    assert choose_logs(folder, SceneFilter(), log_split=str(path), log_split_part="val_logs")[0] == (
        "2021.06.09_veh-12",
    )
    with pytest.raises(ValueError, match="matches none of the 3 logs .*test_logs"):
        choose_logs(folder, whole, log_split=str(path), log_split_part="test_logs")


def test_a_filter_for_no_log_at_all_is_refused(folder):
    with pytest.raises(ValueError, match="'none' matches none of the 3 logs"):
        choose_logs(folder, SceneFilter(log_names=(), name="none"))


def test_long_lists_are_cut_and_counted():
    assert shown("abcdefg") == "a, b, c, d, e and 2 more"
    assert shown(["a"]) == "a"
