"""The stream: order, epochs, shards, resume."""

import json

import numpy as np
import pytest

from recogdrive.data.batching import BatchStream, order_of


class Numbers:
    """`size` samples that are their own index."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"index": np.int32(index), "square": np.float32(index**2)}


def stream(size=10, batch_size=4, seed=0, **kwargs):
    return BatchStream(Numbers(size), batch_size=batch_size, seed=seed, **kwargs)


def test_every_epoch_shows_every_sample_once_in_a_new_order():
    order = order_of(stream(size=10, batch_size=4), 15).reshape(6, 10)
    assert (np.sort(order, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in order.tolist()}) == 6


def test_the_order_is_a_function_of_the_seed():
    np.testing.assert_array_equal(order_of(stream(seed=3), 8), order_of(stream(seed=3), 8))
    assert (order_of(stream(seed=3), 8) != order_of(stream(seed=4), 8)).any()


def test_all_rows_of_a_batch_belong_together():
    batch = next(stream())
    np.testing.assert_array_equal(batch["square"], batch["index"].astype(np.float32) ** 2)


def test_a_batch_may_be_larger_than_the_split():
    assert next(stream(size=3, batch_size=8))["index"].shape == (8,)


@pytest.mark.parametrize("taken", [0, 1, 5, 13])
def test_a_restored_stream_continues_exactly(taken):
    whole = order_of(stream(), 20)
    first = stream()
    if taken:
        order_of(first, taken)
    state = json.loads(json.dumps(first.get_state()))
    second = stream()
    second.set_state(state)
    np.testing.assert_array_equal(order_of(second, 20 - taken), whole[taken:])


def test_the_state_does_not_run_ahead_with_prefetching():
    s = stream(prefetch=8, num_threads=4)
    order_of(s, 3)
    assert s.get_state()["next_batch"] == 3


def test_restoring_goes_back_as_well_as_forward():
    s = stream()
    state = s.get_state()
    before = order_of(s, 5)
    s.set_state(state)
    np.testing.assert_array_equal(order_of(s, 5), before)


@pytest.mark.parametrize("changed", [{"batch_size": 2}, {"seed": 1}, {"size": 11}])
def test_a_state_of_another_order_is_refused_by_what_changed(changed):
    name = {"size": "samples"}.get(next(iter(changed)), next(iter(changed)))
    with pytest.raises(ValueError, match=f"trained with {name}="):
        stream(**changed).set_state(stream().get_state())


@pytest.mark.parametrize("processes", [2, 4])
def test_each_process_has_its_part_of_every_global_batch_in_order(processes):
    """Rows of a process lie together on its devices: noise drawn by row meets the same samples as in one process."""
    whole = order_of(stream(batch_size=8), 10)
    parts = [order_of(stream(batch_size=8, process_index=i, process_count=processes), 10) for i in range(processes)]
    assert all(part.shape == (10, 8 // processes) for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.heavy
def test_worker_processes_change_neither_order_nor_resume():
    whole = order_of(stream(), 12)
    first = stream(num_workers=2)
    np.testing.assert_array_equal(order_of(first, 5), whole[:5])
    state = first.get_state()
    first.close()
    second = stream(num_workers=1)
    second.set_state(state)
    np.testing.assert_array_equal(order_of(second, 7), whole[5:])
    second.close()


def test_a_closed_stream_goes_on_where_it_was():
    whole = order_of(stream(), 6)
    s = stream()
    order_of(s, 2)
    s.close()
    np.testing.assert_array_equal(order_of(s, 4), whole[2:])


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="holds no samples"):
        stream(size=0)


@pytest.mark.parametrize(
    "batch_size, processes, advice", [(30, 8, "e.g. 32"), (0, 1, "multiple of 1"), (3, 4, "e.g. 4")]
)
def test_a_batch_that_does_not_divide_over_processes_is_refused_with_a_valid_size(batch_size, processes, advice):
    with pytest.raises(ValueError, match=rf"batch_size={batch_size} does not divide over {processes}.*{advice}"):
        stream(batch_size=batch_size, process_count=processes)
