"""Conversations as samples: tiles of several images, limits, sizes, faults."""

import numpy as np
import pytest
from PIL import Image

from recogdrive.data.vlm.conversations import Cause, Conversation, ConversationError, Turn
from recogdrive.data.vlm.samples import VlmSamples
from recogdrive.data.vlm.tiling import Tiling


def _cause(samples, read):
    with pytest.raises(ConversationError, match=r"a\.jsonl:1: ") as caught:
        read(samples)
    return caught.value.cause


def test_a_sample_has_its_images_tiles_in_order(make_samples, record, image_file, tmp_path):
    names = [image_file("a.png", 8, 8, 1), image_file("b.png", 16, 8, 2)]
    sample = make_samples([record("<image> <image>", image=names)])[0]
    first, second = (Image.open(tmp_path / name) for name in names)
    tiling = Tiling(8, max_tiles=2)
    np.testing.assert_array_equal(sample.tiles, np.concatenate([tiling.tiles(first), tiling.tiles(second)]))
    assert sample.input_ids.dtype == sample.labels.dtype == np.int32


@pytest.mark.parametrize("images, expected", [(1, 5), (2, 2 * 3), (3, 3), (6, 6)])
def test_images_of_a_sample_share_its_limit_of_tiles(make_samples, record, image_file, images, expected):
    name = image_file(width=64, height=8)
    samples = make_samples([record("<image>" * images, image=[name] * images)])
    assert samples.measure(0).tiles == len(samples[0].tiles) == expected


def test_a_data_set_s_own_limit_wins(make_samples, record, image_file):
    records = [record("<image>", image=[image_file(width=64, height=8)])]
    assert make_samples(records, max_dynamic_patch=1).measure(0).tiles == 1
    assert make_samples(records, max_dynamic_patch=7).measure(0).tiles == 8


def test_a_text_has_no_tiles(make_samples, record):
    assert make_samples([record()])[0].tiles.shape == (0, 8, 8, 3)


def test_a_size_is_that_of_the_sample(make_samples, record, image_file):
    samples = make_samples([record("<image>", "answer", image=image_file()), record("q", "longer answer")])
    for index in range(2):
        size, sample = samples.measure(index), samples[index]
        assert (size.tokens, size.tiles) == (len(sample.input_ids), len(sample.tiles))
        assert size.supervised == (sample.labels != -100).sum()


def test_augmentation_changes_from_epoch_to_epoch_and_not_by_chance(make_samples, record, image_file):
    samples = make_samples([record("<image>", image=image_file())], data_augment=True)
    plain = make_samples([record("<image>", image=image_file())])[0].tiles
    first = samples.sample(0, epoch=0).tiles
    np.testing.assert_array_equal(first, samples.sample(0, epoch=0).tiles)
    epochs = [samples.sample(0, epoch).tiles for epoch in range(1, 6)]
    assert any((first != other).any() for other in epochs)
    assert (first != plain).any()


def test_a_missing_image_is_told_apart_from_a_damaged_one(make_samples, record, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    for read in (lambda s: s.measure(0), lambda s: s[0]):
        assert _cause(make_samples([record("<image>", image="absent.png")]), read) is Cause.MISSING_IMAGE
        assert _cause(make_samples([record("<image>", image="bad.png")]), read) is Cause.CORRUPT_IMAGE


def test_damage_behind_the_header_is_found_when_decoding(make_samples, record, tmp_path, image_file):
    path = tmp_path / image_file("a.jpg", 64, 64)
    path.write_bytes(path.read_bytes()[:-400])
    samples = make_samples([record("<image>", image="a.jpg")])
    assert samples.measure(0).tiles > 0
    assert _cause(samples, lambda s: s.measure(0, decode=True)) is Cause.CORRUPT_IMAGE
    assert _cause(samples, lambda s: s[0]) is Cause.CORRUPT_IMAGE


def test_a_sample_whose_answer_is_cut_off_is_there_without_labels(make_samples, record):
    samples = make_samples([record("q" * 100)], max_seq_length=50)
    assert samples.measure(0).supervised == 0
    assert (samples[0].labels == -100).all()


def test_a_size_that_a_picture_does_not_keep_is_a_fault(tokenizer):
    class Liar:
        name = "liar"

        def size(self):
            return 8, 8

        def open(self):
            return Image.new("RGB", (64, 8))

    class One:
        name = "one"

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Conversation("1", (Turn("human", "<image>"), Turn("gpt", "a")), (Liar(),), "a.jsonl:1")

    samples = VlmSamples(One(), tokenizer, Tiling(8), tokens_per_tile=2, max_seq_length=500)
    assert _cause(samples, lambda s: s[0]) is Cause.CORRUPT_IMAGE
    assert samples.fingerprint is None


def test_the_fingerprint_follows_what_decides_sizes(make_samples, record):
    def fingerprint(**changes):
        return make_samples([record()], **changes).fingerprint

    assert fingerprint() == fingerprint()
    assert (
        len({fingerprint(), fingerprint(max_seq_length=100), fingerprint(max_tiles=2), fingerprint(repeat_time=2)}) == 4
    )


@pytest.mark.parametrize("name", ["tokens_per_tile", "max_seq_length"])
def test_limits_must_be_positive(tokenizer, name):
    limits = {"tokens_per_tile": 1, "max_seq_length": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0 must be positive"):
        VlmSamples([], tokenizer, Tiling(), **limits)
