"""Samples in a row: segments, positions, tiles, padding, weights."""

import numpy as np
import pytest

from recogdrive.data.vlm.rows import make_row, token_weights
from recogdrive.data.vlm.samples import VlmSample


def _sample(length, tiles, fill):
    labels = np.full(length, -100, np.int32)
    labels[-2:] = fill
    return VlmSample(np.full(length, fill, np.int32), labels, np.full((tiles, 2, 2, 3), fill, np.uint8))


def _row(samples, num_tokens=9, num_tiles=4, **kwargs):
    return make_row(samples, num_tokens=num_tokens, num_tiles=num_tiles, tile_size=2, pad_id=7, **kwargs)


def test_samples_are_segments_with_positions_of_their_own():
    row = _row([_sample(3, 1, 11), _sample(4, 2, 12)])
    assert row["input_ids"].tolist() == [11, 11, 11, 12, 12, 12, 12, 7, 7]
    assert row["segment_ids"].tolist() == [1, 1, 1, 2, 2, 2, 2, 0, 0]
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3, 1, 1]
    assert row["labels"].tolist() == [-100, 11, 11, -100, -100, 12, 12, -100, -100]
    assert row["loss_weight"].tolist() == [0, 1, 1, 0, 0, 1, 1, 0, 0]


def test_tiles_follow_in_the_order_of_samples_and_real_ones_come_first():
    row = _row([_sample(2, 1, 11), _sample(2, 0, 12), _sample(2, 2, 13)])
    assert row["num_tiles"] == 3
    assert row["tiles"][:, 0, 0, 0].tolist() == [11, 13, 13, 0]


def test_no_samples_make_a_row_of_padding():
    row = _row([])
    assert row["num_tiles"] == 0 and not row["segment_ids"].any() and not row["loss_weight"].any()


def test_entries_have_the_dtypes_of_a_batch():
    dtypes = {name: value.dtype for name, value in _row([_sample(3, 1, 1)]).items()}
    assert dtypes.pop("tiles") == np.uint8
    assert dtypes.pop("loss_weight") == np.float32
    assert set(dtypes.values()) == {np.dtype(np.int32)}


@pytest.mark.parametrize("reduction, weight", [("token", 1), ("sample", 1 / 4), ("square", 1 / 2)])
def test_labels_weigh_by_their_number(reduction, weight):
    weights = token_weights(np.array([-100, 1, 1, -100, 1, 1], np.int32), reduction)
    np.testing.assert_allclose(weights, np.array([0, 1, 1, 0, 1, 1]) * weight)


@pytest.mark.parametrize("reduction", ["token", "sample", "square"])
def test_a_sample_without_labels_weighs_nothing(reduction):
    assert token_weights(np.full(3, -100, np.int32), reduction).tolist() == [0, 0, 0]


def test_another_reduction_is_refused():
    with pytest.raises(ValueError, match="loss_reduction='mean' must be one of 'token', 'sample', 'square'"):
        token_weights(np.zeros(1, np.int32), "mean")


@pytest.mark.parametrize("limits", [(5, 4), (9, 1)])
def test_what_does_not_fit_is_refused(limits):
    with pytest.raises(ValueError, match="6 tokens and 2 tiles do not fit"):
        _row([_sample(6, 2, 1)], *limits)
