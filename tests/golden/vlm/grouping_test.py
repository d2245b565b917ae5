"""The contract of length grouping, property by property, on the reference's cases."""

import json

import numpy as np
import pytest

from recogdrive.data.vlm.grouping import grouped_order, split_evenly

SEEDS = range(300)


@pytest.fixture(scope="module")
def golden(golden_dir):
    return json.loads((golden_dir / "vlm" / "length_grouping.json").read_text())


@pytest.fixture(scope="module")
def cases(golden):
    assert golden["order_cases"]
    return golden["order_cases"]


def _order(case, seed, epoch=0):
    lengths = np.asarray(case["lengths"])
    return grouped_order(lengths, case["per_device_batch"], case["world_times_accum"], seed=seed, epoch=epoch)


def _megabatches(case, order):
    size = case["per_device_batch"] * case["world_times_accum"]
    return [order[start : start + size] for start in range(0, len(order), size)]


def _imbalance(case, order):
    """Mean over whole megabatches of the heaviest group over the mean group."""
    lengths = np.asarray(case["lengths"])
    size = case["per_device_batch"] * case["world_times_accum"]
    whole = order[: len(order) // size * size]
    totals = lengths[whole].reshape(-1, case["world_times_accum"], case["per_device_batch"]).sum(-1)
    return float((totals.max(1) / totals.mean(1)).mean())


def test_an_epoch_is_a_permutation(cases):
    for case in cases:
        np.testing.assert_array_equal(np.sort(_order(case, 0)), np.arange(case["n"]))


def test_membership_of_megabatches_is_random_by_seed(cases):
    for case in cases:
        first = {frozenset(_megabatches(case, _order(case, seed))[0].tolist()) for seed in range(20)}
        assert len(first) > 10


def test_groups_are_sorted_by_falling_length(cases):
    for case in cases:
        lengths, group = np.asarray(case["lengths"]), case["per_device_batch"]
        for part in _megabatches(case, _order(case, 3))[:-1]:
            assert (np.diff(lengths[part].reshape(-1, group), axis=1) <= 0).all()


def test_the_same_seed_gives_the_same_order_and_every_epoch_a_new_one(cases):
    for case in cases:
        np.testing.assert_array_equal(_order(case, 5), _order(case, 5))
        assert len({tuple(_order(case, 5, epoch)) for epoch in range(4)}) == 4
        assert (_order(case, 5) != _order(case, 6)).any()


def test_groups_are_balanced_as_well_as_the_reference_s(cases):
    for case in [case for case in cases if case["per_device_batch"] > 1]:
        mean = np.mean([_imbalance(case, _order(case, seed)) for seed in SEEDS])
        assert mean <= case["ref_imbalance_p99_300_seeds"] + 0.02
        assert mean < case["random_imbalance_mean_300_seeds"]


def test_groups_of_one_make_megabatches_sorted_by_falling_length(cases):
    single = [case for case in cases if case["per_device_batch"] == 1]
    assert single
    for case in single:
        lengths = np.asarray(case["lengths"])
        for part in _megabatches(case, _order(case, 1)):
            assert (np.diff(lengths[part]) <= 0).all() or len(part) % case["world_times_accum"]


def test_a_last_megabatch_that_does_not_divide_is_dealt_in_strides(cases):
    uneven = [case for case in cases if len(_megabatches(case, _order(case, 0))[-1]) % case["world_times_accum"]]
    assert uneven
    for case in uneven:
        lengths = np.asarray(case["lengths"])
        last, groups = _megabatches(case, _order(case, 0))[-1], case["world_times_accum"]
        falling = sorted(lengths[last].tolist(), reverse=True)
        expected = [length for group in range(groups) for length in falling[group::groups]]
        assert lengths[last].tolist() == expected


def test_splits_are_those_of_the_reference(golden):
    assert golden["split_even_cases"]
    for case in golden["split_even_cases"]:
        groups = split_evenly(case["indices_sorted_desc"], case["lengths"], case["num_chunks"])
        assert groups == case["chunks"]
