import functools

import numpy as np
import pytest

NEW, STOP = 6, 63


@pytest.fixture(scope="module")
def model(tiny_vlm):
    return tiny_vlm()


@pytest.fixture(scope="module")
def params(model, lively):
    return lively(model)


@pytest.fixture(scope="module")
def prompts_run(model, params, compiled):
    """Generation, compiled ahead of time: one program for all batches of a shape, or calling it raises."""
    cache = {}

    def run(batch, stop_ids=(STOP,)):
        if stop_ids not in cache:
            function = functools.partial(model.generate, max_new_tokens=NEW, stop_ids=stop_ids)
            cache[stop_ids] = compiled(function, params, batch)
        return tuple(map(np.asarray, cache[stop_ids](params, batch)))

    return run


@pytest.fixture(scope="module")
def prompts(vlm_batch):
    batch = vlm_batch(lengths=(12, 7, 5), tiles=(2, 1, 0), left=True)
    return {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids", "tiles", "num_tiles")}


@pytest.fixture(scope="module")
def expected(model, params, prompts, compiled):
    """Tokens by running the whole sequence anew for each."""
    tokens = prompts["input_ids"].shape[1]
    batch = {
        name: np.pad(value, ((0, 0), (0, NEW))) if value.ndim == 2 else value.copy() for name, value in prompts.items()
    }
    forward = compiled(lambda p, b: model.logits(p, model.hidden_states(p, b)), params, batch)
    for step in range(tokens, tokens + NEW):
        batch["input_ids"][:, step] = np.argmax(forward(params, batch)[:, step - 1], axis=-1)
        batch["segment_ids"][:, step] = 1
        batch["position_ids"][:, step] = batch["position_ids"][:, step - 1] + 1
    return batch["input_ids"][:, tokens:]


def test_tokens_are_those_of_running_the_whole_sequence_anew_for_each(prompts_run, prompts, expected):
    assert len(np.unique(expected)) > 3
    assert STOP not in expected
    tokens, lengths = prompts_run(prompts)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(lengths, [NEW] * 3)


def test_a_row_ends_before_its_first_stop_and_the_rest_is_filled_up(prompts_run, prompts, expected):
    stop = int(expected[0, 2])
    tokens, lengths = prompts_run(prompts, (STOP, stop))
    for row, own in enumerate(expected):
        stops = np.flatnonzero(own == stop)
        length = stops[0] if len(stops) else NEW
        assert lengths[row] == length
        np.testing.assert_array_equal(tokens[row, :length], own[:length])
        assert (tokens[row, length:] == STOP).all()
    assert lengths[0] <= 2


def test_a_row_of_padding_gets_no_token_and_does_not_disturb_the_others(prompts_run, prompts, expected):
    segments = prompts["segment_ids"].copy()
    segments[1] = 0
    tokens, lengths = prompts_run({**prompts, "segment_ids": segments})
    np.testing.assert_array_equal(lengths, [NEW, 0, NEW])
    np.testing.assert_array_equal(tokens[[0, 2]], expected[[0, 2]])
    assert (tokens[1] == STOP).all()


def test_no_room_for_tokens_and_no_stop_are_refused(model, params, prompts):
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        model.generate(params, prompts, 0, (STOP,))
    with pytest.raises(ValueError, match="stop_ids is empty"):
        model.generate(params, prompts, 3, ())
