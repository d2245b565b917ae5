"""Orders of samples within an epoch; the contract of `LengthGrouped` is tested with the golden data."""

import numpy as np
import pytest

from recogdrive.data.vlm.grouping import LengthBucketed, LengthGrouped, Shuffled

LENGTHS = np.random.default_rng(0).integers(1, 5000, 203)
ORDERS = [Shuffled(), LengthGrouped(2, 4), LengthBucketed(4)]


def _order(order, lengths=LENGTHS, batch_size=8, seed=0, epoch=0, lead=0):
    return order.order(lengths, batch_size=batch_size, seed=seed, epoch=epoch, lead=lead)


def _padding(lengths, order, batch_size=8, first=0):
    """Share of positions that padding every whole batch to its longest sample wastes."""
    whole = order[first : first + (len(order) - first) // batch_size * batch_size]
    batches = lengths[whole].reshape(-1, batch_size)
    return 1 - batches.sum() / (batches.max(1) * batch_size).sum()


@pytest.mark.parametrize("order", ORDERS, ids=repr)
def test_every_epoch_is_another_permutation_by_seed(order):
    orders = [_order(order, epoch=0), _order(order, epoch=1), _order(order, seed=1)]
    for one in orders:
        np.testing.assert_array_equal(np.sort(one), np.arange(len(LENGTHS)))
    assert len({tuple(one) for one in orders}) == 3
    np.testing.assert_array_equal(_order(order), orders[0])


@pytest.mark.parametrize("order", ORDERS, ids=repr)
@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_few_samples_are_an_epoch_too(order, count):
    assert sorted(_order(order, LENGTHS[:count], lead=5)) == list(range(count))


def test_buckets_waste_little_padding_and_groups_do_not_help():
    random, grouped, bucketed = (_padding(LENGTHS, _order(order)) for order in ORDERS)
    assert bucketed < 0.2 < random
    assert grouped > bucketed


@pytest.mark.parametrize("lead", [1, 3, 7])
def test_batches_of_like_length_start_where_the_last_epoch_s_batch_ends(lead):
    order = _order(LengthBucketed(4), lead=lead)
    assert _padding(LENGTHS, order, first=8 - lead) < 0.2


def test_the_batches_of_a_window_are_mixed():
    order = _order(LengthBucketed(100))
    means = LENGTHS[order[:200]].reshape(-1, 8).mean(1)
    assert (np.diff(means) < 0).any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LengthBucketed(0), "window=0"),
        (lambda: LengthGrouped(0, 1), "group_size=0"),
        (lambda: LengthGrouped(1, 0), "num_groups=0"),
    ],
)
def test_numbers_that_are_not_positive_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
