"""Layouts and the plan of a run: epochs, shapes, how full batches are."""

import pickle

import numpy as np
import pytest

from recogdrive.data.vlm.grouping import LengthBucketed
from recogdrive.data.vlm.layouts import PackedRows, PaddedRows
from recogdrive.data.vlm.plan import RunPlan
from recogdrive.data.vlm.survey import Survey


def _survey(tokens, tiles=None, supervised=None):
    tokens = np.asarray(tokens, np.int32)
    tiles = np.zeros_like(tokens) if tiles is None else np.asarray(tiles, np.int32)
    supervised = np.ones_like(tokens) if supervised is None else np.asarray(supervised, np.int32)
    return Survey(tokens, tiles, supervised, (), len(tokens))


def _random_survey(count=50):
    generator = np.random.default_rng(0)
    return _survey(generator.integers(1, 10, count), generator.integers(0, 3, count))


def _plan(survey, layout, batch_size=4, seed=0):
    return RunPlan(survey, layout, batch_size=batch_size, seed=seed, max_seq_length=20)


LAYOUTS = [PackedRows(20, 5), PaddedRows(), PaddedRows((3, 6, 20), (1, 4), LengthBucketed(2))]


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_every_epoch_shows_every_usable_sample_once(layout):
    survey = _survey([3, 4, 5, 6, 7] * 4, supervised=[1, 0, 1, 1, 1] * 4)
    plan = _plan(survey, layout)
    number = 0
    for epoch in range(3):
        seen = []
        for _ in range(len(plan.epoch(epoch))):
            row_epoch, samples = plan.row(number)
            assert row_epoch == epoch
            seen += plan.indices[samples].tolist()
            number += 1
        assert sorted(seen) == survey.usable.tolist()


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_rows_do_not_depend_on_the_order_of_asking(layout):
    survey = _random_survey()
    forwards, backwards = _plan(survey, layout), pickle.loads(pickle.dumps(_plan(survey, layout)))
    numbers = range(0, 200, 7)
    expected = {number: forwards.row(number) for number in numbers}
    for number in reversed(numbers):
        epoch, samples = backwards.row(number)
        assert epoch == expected[number][0]
        np.testing.assert_array_equal(samples, expected[number][1])


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_the_shape_of_a_batch_fits_all_its_rows(layout):
    plan = _plan(_random_survey(), layout)
    for batch in range(30):
        num_tokens, num_tiles = plan.batch_shape(batch)
        for row in range(4):
            _, samples = plan.row(batch * 4 + row)
            assert plan.tokens[samples].sum() <= num_tokens
            assert plan.tiles[samples].sum() <= num_tiles


def test_padded_rows_have_the_smallest_size_that_fits_the_longest_of_a_batch():
    plan = _plan(_survey([2, 2, 2, 2], [0, 2, 0, 0]), PaddedRows((3, 6), (1, 2, 3)))
    assert plan.batch_shape(0) == (3, 2)


def test_without_buckets_rows_are_as_long_as_samples_may_be_and_have_the_most_tiles():
    assert _plan(_survey([2, 3], [2, 1]), PaddedRows()).batch_shape(0) == (20, 2)
    assert _plan(_survey([2, 3]), PaddedRows()).batch_shape(0) == (20, 1)


def test_sizes_that_are_open_are_what_is_asked_for_and_others_must_do():
    assert PaddedRows().shape(20, 3) == (20, 3)
    assert PaddedRows((8, 32)).shape(20, 0) == (32, 1)
    with pytest.raises(ValueError, match=r"33 is more than the largest of the sizes \(8, 32\)"):
        PaddedRows((8, 32)).shape(33, 1)


def test_a_layout_serves_several_sources():
    layout = PaddedRows()
    _plan(_survey([2], [1]), layout)
    assert _plan(_survey([2], [3]), layout).batch_shape(0) == (20, 3)


def test_packed_rows_have_one_shape():
    plan = _plan(_random_survey(), PackedRows(20, 5))
    assert {plan.batch_shape(batch) for batch in range(20)} == {(20, 5)}
    assert plan.efficiency()["shapes"] == 1


def test_buckets_save_padding_and_cost_shapes():
    survey = _random_survey(400)
    fixed = _plan(survey, PaddedRows()).efficiency()
    bucketed = _plan(survey, PaddedRows((2, 4, 6, 8, 10), (), LengthBucketed(8))).efficiency()
    assert bucketed["padding_waste"] < 0.3 < fixed["padding_waste"]
    assert 1 == fixed["shapes"] < bucketed["shapes"] <= 5


def test_how_full_batches_are_is_counted_over_the_first_epoch():
    plan = _plan(_survey([5, 5, 5, 5], [1, 1, 0, 0], [2, 2, 2, 2]), PackedRows(10, 2), batch_size=1)
    facts = plan.efficiency()
    assert (facts["rows"], facts["samples_per_row"], facts["packing_efficiency"]) == (2, 2, 1)
    assert (facts["tokens_per_batch"], facts["supervised_tokens_per_batch"]) == (10, 4)
    assert (facts["tile_efficiency"], facts["tiles_per_batch"], facts["padding_waste"]) == (0.5, 1, 0)


@pytest.mark.parametrize(
    "layout, message",
    [
        (PackedRows(8, 5), "row_tokens=8"),
        (PackedRows(20, 1), "row_tiles=1"),
        (PaddedRows((8,)), r"buckets=\(8,\), the largest has 9"),
        (PaddedRows((), (1,)), r"tile_buckets=\(1,\), the largest has 2"),
    ],
)
def test_samples_that_do_not_fit_are_refused_before_the_run(layout, message):
    with pytest.raises(ValueError, match=message):
        _plan(_survey([9, 1], [2, 0]), layout)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PackedRows(0), "row_tokens=0"),
        (lambda: PackedRows(1, 0), "row_tiles=0"),
        (lambda: PackedRows(1, 1, 0), "open_rows=0"),
        (lambda: PaddedRows((4, 0)), r"buckets=\(4, 0\)"),
        (lambda: PaddedRows((), (0,)), r"tile_buckets=\(0,\)"),
    ],
)
def test_sizes_that_are_not_positive_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
