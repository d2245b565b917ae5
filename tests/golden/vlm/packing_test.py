"""Rows of several samples against the reference's packed mode: segments, positions, weights of labels."""

import itertools
import json

import numpy as np
import pytest

from recogdrive.data.vlm.rows import make_row
from recogdrive.data.vlm.samples import VlmSample


@pytest.fixture(scope="module")
def cases(golden_dir):
    cases = json.loads((golden_dir / "vlm" / "packed_loss_weight.json").read_text())
    assert cases
    return cases


def _packed(case):
    labels = np.asarray(case["labels"], np.int32)
    bounds = case["cu_seqlens"]
    samples = [
        VlmSample(np.abs(labels[a:b]), labels[a:b], np.zeros((0, 4, 4, 3), np.uint8))
        for a, b in itertools.pairwise(bounds)
    ]
    return make_row(
        samples, num_tokens=len(labels), num_tiles=1, tile_size=4, pad_id=0, loss_reduction=case["loss_reduction"]
    )


def test_labels_weigh_what_they_weigh_in_the_reference(cases):
    for case in cases:
        weight = _packed(case)["loss_weight"]
        np.testing.assert_allclose(weight, case["loss_weight_after_mask"], atol=1e-6, err_msg=case["loss_reduction"])


def test_segments_and_positions_restart_with_every_sample(cases):
    for case in cases:
        row = _packed(case)
        np.testing.assert_array_equal(row["position_ids"], case["position_ids"])
        np.testing.assert_array_equal(row["segment_ids"] - 1, case["data_index"])
        np.testing.assert_array_equal(row["labels"], case["labels"])
