"""Scenes as rows for the VLM."""

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.vlm.cameras import FileCamera, TownCamera
from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.data.vlm.pictures import FilePicture, PictureError
from recogdrive.data.vlm.scene_prompts import ScenePrompts
from recogdrive.data.vlm.tiling import Tiling
from recogdrive.data.vlm.tokenizer import train_tokenizer

TILING = Tiling(image_size=28, max_tiles=2)


@pytest.fixture(scope="module")
def town():
    return SyntheticTown(num_scenes=3, seed=5)


@pytest.fixture(scope="module")
def tokenizer(town):
    prompt = DrivingPrompt("town")
    return train_tokenizer([turn.text for scene in town for turn in prompt.prompt(scene)], vocab_size=800)


@pytest.fixture(scope="module")
def make(tokenizer):
    def make(**changes):
        given = {
            "prompt": DrivingPrompt("town"),
            "camera": TownCamera(width=64, height=32),
            "tiling": TILING,
            "tokenizer": tokenizer,
            "tokens_per_tile": 4,
            "num_tokens": 120,
            "tiles_per_scene": 4,
        }
        return ScenePrompts(**{**given, **changes})

    return make


def test_a_row_is_padded_on_the_left(make, town, tokenizer):
    row = make().inputs(town[0])
    real = row["segment_ids"] == 1
    length = real.sum()
    assert 0 < length < 120 and real[-length:].all() and not real[:-length].any()
    assert (row["input_ids"][:-length] == tokenizer.pad_id).all() and (row["position_ids"][:-length] == 1).all()
    assert row["position_ids"][-length:].tolist() == list(range(length))
    assert {name: (value.dtype, value.shape) for name, value in row.items()} == {
        "input_ids": (np.int32, (120,)),
        "segment_ids": (np.int32, (120,)),
        "position_ids": (np.int32, (120,)),
        "tiles": (np.uint8, (4, 28, 28, 3)),
        "num_tiles": (np.int32, ()),
    }


def test_the_prompt_ends_where_the_answer_begins(make, town, tokenizer):
    row = make().inputs(town[0])
    text = tokenizer.decode(row["input_ids"][row["segment_ids"] == 1])
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_every_tile_has_its_vectors_in_the_prompt(make, town, tokenizer):
    row = make().inputs(town[0])
    assert row["num_tiles"] == 3  # Two cells and the thumbnail.
    assert (row["input_ids"] == tokenizer.img_context_id).sum() == 3 * 4
    expected = TILING.tiles(TownCamera(width=64, height=32).picture(town[0]).open())
    np.testing.assert_array_equal(row["tiles"][:3], expected)
    assert not row["tiles"][3:].any()


def test_a_longer_prompt_is_refused_with_scene_and_length(make, town):
    length = int((make().inputs(town[1])["segment_ids"] == 1).sum())
    assert (make(num_tokens=length).inputs(town[1])["segment_ids"] == 1).all()
    with pytest.raises(ValueError, match=f"Scene {town[1].token} .* {length} tokens, rows have {length - 1}"):
        make(num_tokens=length - 1).inputs(town[1])


def test_more_tiles_than_slots_are_refused_with_scene_and_number(make, town):
    with pytest.raises(ValueError, match=f"Scene {town[0].token} .* 64 x 32 pixels gives 3 tiles, rows have 2 slots"):
        make(tiles_per_scene=2).inputs(town[0])


def test_a_missing_picture_is_an_error(make, town):
    scene = dataclasses.replace(town[0], cameras={"cam_f0": "/nowhere.jpg"})
    with pytest.raises(PictureError, match=r"nowhere\.jpg"):
        make(camera=FileCamera()).inputs(scene)


def test_another_picture_takes_the_place_of_the_cameras(make, town, tmp_path):
    path = tmp_path / "front.png"
    Image.new("RGB", (40, 40), (1, 2, 3)).save(path)
    row = make(camera=FileCamera()).picture_inputs(town[0], FilePicture(str(path)))
    assert row["num_tiles"] == 1 and (row["tiles"][0] == [1, 2, 3]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": DrivingPrompt("inference")},
        {"camera": TownCamera(width=66, height=32)},
        {"tiling": Tiling(image_size=28, max_tiles=3)},
        {"num_tokens": 121},
        {"tiles_per_scene": 5},
        {"tokens_per_tile": 1},
    ],
)
def test_the_fingerprint_changes_with_whatever_rows_depend_on(make, change):
    assert make().fingerprint == make().fingerprint
    assert make(**change).fingerprint != make().fingerprint


def test_the_fingerprint_changes_with_the_tokenizer(make):
    other = train_tokenizer(["Plan the trajectory."], vocab_size=720)
    assert make(tokenizer=other).fingerprint != make().fingerprint


def test_a_tokenizer_is_read_from_its_folder_when_it_is_needed(make, town, tokenizer, tmp_path):
    prompts = make(tokenizer=tmp_path / "vlm")
    with pytest.raises(ValueError, match="no folder .*vlm"):
        prompts.inputs(town[0])
    tokenizer.save(tmp_path / "vlm")
    np.testing.assert_array_equal(prompts.inputs(town[0])["input_ids"], make().inputs(town[0])["input_ids"])


def test_the_tokenizer_of_the_weights_is_taken_where_none_is_set(make, town, tokenizer, tmp_path):
    run = tmp_path / "run"
    tokenizer.save(run / "export" / "original")
    (run / "export" / "original" / "config.json").write_text("{}")
    prompts = make(tokenizer=None)
    with pytest.raises(ValueError, match=r"ScenePrompts\.tokenizer is not set"):
        prompts.inputs(town[0])
    assert prompts.with_tokenizer_of(run).fingerprint == make().fingerprint
    assert make().with_tokenizer_of(tmp_path / "nowhere").fingerprint == make().fingerprint


def test_it_can_be_sent_to_worker_processes(make, town):
    sent = pickle.loads(pickle.dumps(make()))
    np.testing.assert_array_equal(sent.inputs(town[2])["input_ids"], make().inputs(town[2])["input_ids"])


@pytest.mark.parametrize("name", ["tokens_per_tile", "num_tokens", "tiles_per_scene"])
def test_sizes_must_be_positive(make, name):
    with pytest.raises(ValueError, match=f"ScenePrompts.{name}=0"):
        make(**{name: 0})
