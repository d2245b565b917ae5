"""The data of a fine-tuning run: opened when needed, budgets of faults, sources of tokenizers, the gin fragment."""

import gin
import numpy as np
import pytest

from recogdrive.composition import compose
from recogdrive.data.vlm.fine_tuning_data import FolderTokenizer, TownTokenizer
from recogdrive.data.vlm.grouping import LengthBucketed
from recogdrive.data.vlm.layouts import PaddedRows
from recogdrive.data.vlm.meta_folder import write_meta
from recogdrive.data.vlm.tiling import Tiling


def test_conversations_are_opened_when_asked_for_and_once(tiny_sft):
    opened = []

    def opener():
        opened.append(1)
        return tiny_sft.conversations()

    data = tiny_sft.data(train=opener, held_out=opener)
    assert not opened
    assert data.open_train() is data.open_train()
    assert len(opened) == 1
    data.open_held_out()
    assert len(opened) == 2


def test_the_description_says_what_was_found_or_why_nothing_was(tiny_sft):
    def absent():
        raise ValueError("meta.json cannot be read\nmore of it")

    data = tiny_sft.data(train=tiny_sft.conversations, held_out=absent)
    assert data.describe() == {
        "train": "8 conversations of town_1",
        "held out": "not available: meta.json cannot be read",
    }
    assert tiny_sft.data().describe()["held out"] == "none"


@pytest.mark.parametrize("setting", [{"loss_reduction": "mean"}, {"max_skipped": 1.5}])
def test_settings_that_do_not_exist_are_refused(tiny_sft, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        tiny_sft.data(**setting)


@pytest.mark.parametrize(
    "layout, tiling, expected",
    [
        (None, Tiling(28), (160, 3)),
        (PaddedRows(), Tiling(28, max_tiles=6), (160, 7)),
        (PaddedRows(), Tiling(28, max_tiles=6, thumbnail=False), (160, 6)),
        (PaddedRows(), Tiling(28, max_tiles=6, dynamic=False), (160, 1)),
        (PaddedRows((64, 128), (2, 4), LengthBucketed()), Tiling(28), (128, 4)),
    ],
)
def test_the_largest_row_is_that_of_the_layout_or_of_one_long_sample(tiny_sft, layout, tiling, expected):
    data = tiny_sft.data(**({} if layout is None else {"layout": layout}))
    data.tiling = tiling
    assert data.largest_row() == expected


def test_the_towns_tokenizer_is_trained_from_its_texts_or_read_from_the_weights(tiny_sft, tmp_path):
    trained = TownTokenizer(tiny_sft.conversations(), vocab_size=768).open(None)
    assert trained.fingerprint == TownTokenizer(tiny_sft.conversations(), vocab_size=768).open(None).fingerprint
    tiny_sft.tokenizer.save(tmp_path / "export" / "original")
    (tmp_path / "export" / "original" / "config.json").write_text("{}")
    read = TownTokenizer(tiny_sft.conversations(seed=5), vocab_size=800).open(tmp_path)
    assert read.fingerprint == tiny_sft.tokenizer.fingerprint


def test_the_default_size_of_the_towns_tokenizer_is_large_enough(tiny_sft):
    assert TownTokenizer(tiny_sft.conversations(1)).open(None).vocab_size > 700


def test_a_folders_tokenizer_wins_over_that_of_the_weights(tiny_sft, tmp_path):
    tiny_sft.tokenizer.save(tmp_path)
    read = FolderTokenizer(str(tmp_path)).open(tmp_path / "weights that are not looked at")
    assert read.fingerprint == tiny_sft.tokenizer.fingerprint


def test_random_weights_bring_no_tokenizer(tiny_sft):
    with pytest.raises(ValueError, match="set TOKENIZER"):
        FolderTokenizer().open(None)


@pytest.fixture
def meta_folder(tiny_sft, tmp_path):
    """Conversations about five scenes as JPEG files, JSONL and a meta file, with the tokenizer beside them."""
    write_meta(tmp_path, {"town": tiny_sft.conversations(5)})
    tiny_sft.tokenizer.save(tmp_path / "tokenizer")
    return tmp_path


def composed(folder, *bindings):
    """`FineTuningData` as the fragment for meta files binds it."""
    common = [f"META='{folder}/meta.json'", f"META_FOLDER='{folder}'", f"TOKENIZER='{folder}/tokenizer'"]
    common += ["IMAGE_SIZE=28", "HELD_OUT=2", "MAX_TILES=2", "MAX_SEQ_LENGTH=160", "PackedRows.row_tokens=160"]
    compose(None, ["experiments/2b_sft.gin"], [*common, "PackedRows.row_tiles=8", *bindings])
    return gin.get_configurable("FineTuningData")()


def sampled(data, folder):
    return data.samples(data.open_train(), data.tokenizer.open(None), 1, 0, folder / "survey")


def test_a_meta_files_records_are_split_and_become_batches(meta_folder):
    data = composed(meta_folder)
    train, held_out = data.open_train(), data.open_held_out()
    assert (len(train), len(held_out)) == (8, 2)
    names = {source[i].id for source in (train, held_out) for i in range(len(source))}
    assert len(names) == 10
    samples, survey = sampled(data, meta_folder)
    stream = data.stream(samples, survey, batch_size=2, seed=0, process_index=0, process_count=1)
    batch = next(stream)
    stream.close()
    assert batch["input_ids"].shape == (2, 160)
    assert batch["tiles"].shape == (2, 8, 28, 28, 3)
    # 'sample': the labels of each sample weigh 1 together.
    assert batch["loss_weight"].sum() == pytest.approx(batch["segment_ids"].max(axis=1).sum(), rel=1e-5)


def test_one_opened_mixture_serves_both_parts(meta_folder):
    data = composed(meta_folder)
    assert data.open_train()._source is data.open_held_out()._source


def missing_image(folder):
    """Takes away the image of a record in the training part; returns file and line."""
    train = composed(folder).open_train()
    shown = next(c for c in map(train.__getitem__, range(len(train))) if c.pictures)
    (folder / "images" / shown.pictures[0].name.rpartition("/")[2]).unlink()
    return shown.origin


def test_a_missing_image_refuses_the_run_with_file_and_line(meta_folder):
    origin = missing_image(meta_folder)
    with pytest.raises(ValueError) as caught:
        sampled(composed(meta_folder), meta_folder)
    assert "max_skipped=0 allows 0" in str(caught.value)
    assert f"{origin}: " in str(caught.value) and f"{meta_folder}/town.jsonl:" in str(caught.value)


def test_as_many_records_as_allowed_are_left_out_and_listed(meta_folder):
    origin = missing_image(meta_folder)
    faults = len([line for line in (meta_folder / "town.jsonl").read_text().splitlines() if "image" in line])
    data = composed(meta_folder, f"MAX_SKIPPED={faults}")
    _, survey = sampled(data, meta_folder)
    left_out = len(survey.faults)
    assert 1 <= left_out <= 2  # One image serves up to two records of a scene.
    assert len(survey.usable) == 8 - left_out
    assert origin in (meta_folder / "survey" / "faults.csv").read_text()


def test_without_a_meta_file_the_knob_to_set_is_named(tmp_path):
    compose(None, ["experiments/2b_sft.gin"], [])
    data = gin.get_configurable("FineTuningData")()
    assert "set META" in data.describe()["train"]
    with pytest.raises(ValueError, match="set META"):
        data.open_train()


def test_efficiency_is_logged_with_the_first_epochs_figures(tiny_sft, caplog, tmp_path):
    data = tiny_sft.data()
    samples, survey = data.samples(data.open_train(), tiny_sft.tokenizer, 1, 0, tmp_path)
    with caplog.at_level("INFO", logger="absl"):
        stream = data.stream(samples, survey, batch_size=2, seed=0, process_index=0, process_count=1)
    figures = stream.efficiency()
    assert f"packing efficiency {figures['packing_efficiency']:.1%}" in caplog.text
    assert np.isclose(figures["packing_efficiency"], survey.tokens.sum() / (figures["rows"] * 160))
