"""A mixture of data sets against the reference: order, repetitions, tiles and tokens."""

import json

import numpy as np
import pytest

from recogdrive.data.vlm.meta import ConversationMixture
from recogdrive.data.vlm.samples import VlmSamples


@pytest.fixture(scope="module")
def expected(golden_dir):
    return json.loads((golden_dir / "vlm" / "meta" / "expected.json").read_text())


@pytest.fixture(scope="module")
def mixture(golden_dir):
    folder = golden_dir / "vlm"
    return ConversationMixture(folder / "meta" / "meta.json", base_folder=folder)


def test_data_sets_have_as_many_conversations_as_in_the_reference(mixture, expected):
    assert mixture.sizes == expected["dataset_lengths"]
    assert len(mixture) == expected["total"]


def test_conversations_come_in_the_reference_s_order_with_its_tiles_and_tokens(
    mixture, expected, reference_tokenizer, tiling_of
):
    setting = expected["settings"]
    samples = VlmSamples(
        mixture,
        reference_tokenizer,
        tiling_of(setting, setting["image_size"], setting["min_dynamic_patch"]),
        tokens_per_tile=setting["num_image_token"],
        max_seq_length=12288,
    )
    names = np.repeat(list(mixture.sizes), list(mixture.sizes.values()))
    for index, (data_set, record, tiles, tokens) in enumerate(expected["items"]):
        conversation, size = mixture[index], samples.measure(index)
        own_tiles = size.tiles if conversation.pictures else 1  # The reference gives a text a white tile that it drops.
        assert (names[index], conversation.id, own_tiles, size.tokens) == (data_set, record, tiles, tokens)


def test_repetitions_of_a_record_have_its_number(mixture, expected):
    records = [(data_set, record) for data_set, record, *_ in expected["items"]]
    distinct = list(dict.fromkeys(records))
    assert mixture.record_numbers.tolist() == [distinct.index(record) for record in records]
