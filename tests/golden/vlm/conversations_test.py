"""Token ids, labels and prompts against the reference: every record under every setting that is stored."""

import json

import numpy as np
import pytest

from recogdrive.data.vlm.chat import DEFAULT_SYSTEM, IGNORED, tokenise_prompt
from recogdrive.data.vlm.conversations import Cause, ConversationError, Turn, parse_conversation
from recogdrive.data.vlm.rows import make_row
from recogdrive.data.vlm.samples import VlmSamples


class Records:
    """Lines of a file as conversations, by the records' names."""

    name = "records"

    def __init__(self, folder):
        lines = (folder / "conversations.jsonl").read_bytes().splitlines()
        self.by_name = {
            json.loads(line)["id"]: parse_conversation(line, origin=f"records:{number}", root=folder / "images")
            for number, line in enumerate(lines, start=1)
        }
        self.names = list(self.by_name)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.by_name[self.names[index]]


@pytest.fixture(scope="module")
def index(golden_dir):
    return json.loads((golden_dir / "vlm" / "conversations_index.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden_dir):
    with np.load(golden_dir / "vlm" / "conversations.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def samples_of(golden_dir, index, reference_tokenizer, tiling_of):
    """Samples of all records under a setting, by its name."""
    records = Records(golden_dir / "vlm")
    return {
        setting["name"]: VlmSamples(
            records,
            reference_tokenizer,
            tiling_of(setting, index["image_size"], index["min_dynamic_patch"]),
            tokens_per_tile=index["num_image_token"],
            max_seq_length=setting["max_seq_length"],
        )
        for setting in index["settings"]
    }


def _singles(index, status):
    entries = [entry for entry in index["index"] if entry.get("status") == status]
    assert entries
    return entries


def _at(samples, name):
    return samples.conversations.names.index(name)


def _row(samples, sample, num_tokens):
    return make_row(
        [sample],
        num_tokens=num_tokens,
        num_tiles=max(1, len(sample.tiles)),
        tile_size=samples.tiling.image_size,
        pad_id=samples.tokenizer.pad_id,
    )


def test_ids_labels_mask_and_positions_are_those_of_the_reference(index, arrays, samples_of):
    for entry in _singles(index, "ok"):
        samples, key = samples_of[entry["setting"]], entry["key"]
        sample = samples[_at(samples, entry["record"])]
        row = _row(samples, sample, entry["length"])
        np.testing.assert_array_equal(row["input_ids"], arrays[f"{key}/input_ids"], err_msg=key)
        np.testing.assert_array_equal(row["labels"], arrays[f"{key}/labels"], err_msg=key)
        np.testing.assert_array_equal(row["position_ids"], arrays[f"{key}/position_ids"], err_msg=key)
        np.testing.assert_array_equal(row["segment_ids"] != 0, arrays[f"{key}/attention_mask"] != 0, err_msg=key)


def test_tiles_and_supervised_tokens_are_as_many_as_in_the_reference(index, samples_of):
    for entry in _singles(index, "ok"):
        samples = samples_of[entry["setting"]]
        size = samples.measure(_at(samples, entry["record"]))
        assert size.supervised == entry["num_supervised"], entry["key"]
        assert size.tiles == sum(entry["image_flags"]), entry["key"]


def test_samples_whose_images_are_cut_off_are_those_that_the_reference_refuses(index, samples_of):
    for entry in _singles(index, "rejected"):
        samples = samples_of[entry["setting"]]
        with pytest.raises(ConversationError) as caught:
            samples.measure(_at(samples, entry["record"]))
        assert caught.value.cause is Cause.TOO_LONG


def test_collated_batches_differ_only_where_the_reference_masks_exclamation_marks(index, arrays, samples_of):
    entries = [entry for entry in index["index"] if "collated" in entry]
    assert entries
    for entry in entries:
        samples, key = samples_of[entry["setting"]], entry["collated"]
        reference = {name: arrays[f"{key}/{name}"] for name in ("input_ids", "labels", "attention_mask")}
        for number, record in enumerate(entry["records"]):
            sample = samples[_at(samples, record)]
            row = _row(samples, sample, reference["input_ids"].shape[1])
            real = row["segment_ids"] != 0
            assert (reference["input_ids"][number][~real] == 0).all()
            np.testing.assert_array_equal(row["input_ids"][real], reference["input_ids"][number][real])
            np.testing.assert_array_equal(row["labels"], reference["labels"][number])
            masked = reference["attention_mask"][number] != 0
            np.testing.assert_array_equal(masked, real & (row["input_ids"] != 0))
            assert (row["labels"][~real] == IGNORED).all()


def test_prompts_of_the_hidden_state_cache_are_those_of_the_reference(golden_dir, reference_tokenizer, index):
    folder = golden_dir / "vlm"
    prompts = json.loads((folder / "prompts.json").read_text())
    cases = json.loads((folder / "cache_prompts.json").read_text())["cases"]
    with np.load(folder / "cache_prompts.npz") as stored:
        for case in cases:
            question = prompts["examples"][case["example"]]["inference_question"]
            turns = (Turn("system", prompts["system_message"]), Turn("human", question))
            ids = tokenise_prompt(turns, reference_tokenizer, [case["tiles"]], index["num_image_token"])
            assert len(ids) == case["real_tokens"]
            reference = next(stored[name] for name in stored.files if name == f"{case['key']}/input_ids")
            np.testing.assert_array_equal(ids, reference.reshape(-1)[-len(ids) :])


def test_the_default_system_text_is_the_wire_string(golden_dir):
    prompts = json.loads((golden_dir / "vlm" / "prompts.json").read_text())
    assert prompts["internvl2_5_template"]["default_system_message"] == DEFAULT_SYSTEM
