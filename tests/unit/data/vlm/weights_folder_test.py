"""Where weights are looked for: in a folder itself, then in what a run exported."""

import pytest

from recogdrive.data.vlm.weights_folder import find_weights_folder


def make(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_of_weights_is_itself(tmp_path):
    folder = make(tmp_path / "weights")
    assert find_weights_folder(folder) == folder
    assert find_weights_folder(str(folder)) == folder


def test_a_run_is_its_export_in_the_original_layout_where_there_are_both(tmp_path):
    transformers = make(tmp_path / "run" / "export" / "transformers")
    assert find_weights_folder(tmp_path / "run") == transformers
    original = make(tmp_path / "run" / "export" / "original")
    assert find_weights_folder(tmp_path / "run") == original


def test_weights_in_a_folder_come_before_an_export_within_it(tmp_path):
    make(tmp_path / "run" / "export" / "original")
    (tmp_path / "run" / "config.json").write_text("{}")
    assert find_weights_folder(tmp_path / "run") == tmp_path / "run"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*absent"):
        find_weights_folder(tmp_path / "absent")


def test_a_folder_without_weights_is_refused_with_all_places_that_were_looked_at(tmp_path):
    with pytest.raises(ValueError) as caught:
        find_weights_folder(tmp_path)
    for place in ("", "export/original/", "export/transformers/"):
        assert f"{tmp_path}/{place}config.json" in str(caught.value)


def test_a_file_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no folder"):
        find_weights_folder(tmp_path / "model.safetensors")
