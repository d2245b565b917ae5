"""Conversations written as InternVL's files and read again."""

import json

import numpy as np
import pytest

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.vlm.cameras import TownCamera
from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.data.vlm.meta import ConversationMixture
from recogdrive.data.vlm.meta_folder import write_meta
from recogdrive.data.vlm.scene_conversations import SceneConversations


@pytest.fixture(scope="module")
def source():
    town = SyntheticTown(num_scenes=2, seed=4)
    return SceneConversations(town, DrivingPrompt("sft"), TownCamera(64, 36), questions_per_scene=5)


def test_conversations_come_back_from_the_files_with_their_pixels(source, tmp_path):
    path = write_meta(tmp_path / "town", {"town": source}, image_format="PNG")
    mixture = ConversationMixture(path, base_folder=tmp_path / "town")
    assert len(mixture) == len(source)
    for index in range(len(source)):
        given, read = source[index], mixture[index]
        assert (read.id, read.turns) == (given.id, given.turns)
        assert len(read.pictures) == len(given.pictures)
        for one, other in zip(read.pictures, given.pictures, strict=True):
            np.testing.assert_array_equal(np.asarray(one.open()), np.asarray(other.open()))


def test_jpeg_pictures_are_close_and_written_once_a_scene(source, tmp_path):
    write_meta(tmp_path, {"town": source})
    images = sorted((tmp_path / "images").iterdir())
    assert len(images) == len(source.scenes)
    mixture = ConversationMixture(tmp_path / "meta.json", base_folder=tmp_path)
    pair = [np.asarray(c[0].pictures[0].open()).astype(float) for c in (mixture, source)]
    assert np.abs(pair[0] - pair[1]).mean() < 4.0


def test_text_alone_has_no_image_and_paths_are_relative(source, tmp_path):
    path = write_meta(tmp_path, {"town": source})
    records = [json.loads(line) for line in (tmp_path / "town.jsonl").read_text().splitlines()]
    assert any("image" not in record for record in records)
    entry = json.loads(path.read_text())["town"]
    assert entry["root"] == "images"
    assert entry["annotation"] == "town.jsonl"
    assert entry["length"] == len(source)


def test_several_data_sets_go_into_one_meta_file(source, tmp_path):
    write_meta(tmp_path, {"a": source, "b": source})
    assert ConversationMixture(tmp_path / "meta.json", base_folder=tmp_path).sizes == {
        "a": len(source),
        "b": len(source),
    }


def test_a_folder_that_holds_a_meta_file_is_left_alone(source, tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match="exists; write to a new folder"):
        write_meta(tmp_path, {"town": source})


@pytest.mark.parametrize(
    ("sources", "choice", "message"),
    [
        ({}, {}, "no sources"),
        ({"a/b": None}, {}, "cannot name a file"),
        ({"a": None}, {"image_format": "GIF"}, "image_format='GIF'"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, sources, choice, message):
    with pytest.raises(ValueError, match=message):
        write_meta(tmp_path, sources, **choice)
