"""Tests of data/hidden_cache/record.py."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from recogdrive.data.hidden_cache.record import (
    RecordError,
    Storage,
    decode_record,
    encode_record,
    token_of,
)

from .conftest import bf16, make_states, same


def round_trip(states, storage=Storage.BFLOAT16):
    return decode_record(encode_record(states, storage)[0])


@pytest.mark.parametrize("padding", ["vector", "rows"])
@pytest.mark.parametrize("length", [1, 5, 11, 12])
def test_the_padded_tensor_comes_back_bit_for_bit(padding, length):
    states = make_states(3, length=length, padding=padding)
    assert same(round_trip(states), states)


def test_unequal_padding_with_nan_comes_back_bit_for_bit():
    states = make_states(3)
    states.tokens[:3] = bf16([[0x7FC1], [0xFF81], [0x8000]])
    assert same(round_trip(states), states)


def test_equal_padding_is_stored_once():
    wide = {"tokens": 400, "width": 64, "length": 100}
    sizes = [len(encode_record(make_states(1, padding=p, **wide), Storage.BFLOAT16)[0]) for p in ("vector", "rows")]
    once, rows = sizes
    assert once < 0.4 * rows


def test_a_scene_without_driven_trajectory_has_none():
    assert round_trip(make_states(1, target=False)).target is None


def test_the_mask_is_true_for_the_last_rows():
    assert make_states(length=9).mask.tolist() == [False] * 3 + [True] * 9


def test_eight_bit_states_keep_everything_else_exactly_and_state_their_error():
    states = make_states(2)
    data, error = encode_record(states, Storage.INT8)
    found = decode_record(data)
    assert same(dataclasses.replace(found, tokens=states.tokens), states)
    np.testing.assert_array_equal(found.tokens[:3].view(np.uint16), states.tokens[:3].view(np.uint16))  # Padding.
    difference = np.abs(found.tokens.astype(np.float32) - states.tokens.astype(np.float32))[3:]
    assert 0 < difference.max() <= error.max_relative * np.abs(states.tokens[3:].astype(np.float32)).max()


def test_states_are_written_into_the_memory_given():
    states = make_states(2)
    memory = np.zeros((12, 16), ml_dtypes.bfloat16)
    found = decode_record(encode_record(states, Storage.BFLOAT16)[0], memory)
    assert found.tokens is memory
    assert same(found, states)


def test_memory_of_another_shape_is_refused():
    with pytest.raises(RecordError, match=r"\(12, 16\) where \(11, 16\)"):
        decode_record(encode_record(make_states(), Storage.BFLOAT16)[0], np.zeros((11, 16), ml_dtypes.bfloat16))


def test_the_token_is_read_without_the_states():
    assert token_of(encode_record(make_states(7), Storage.BFLOAT16)[0]) == f"{7:016x}"


@pytest.mark.parametrize("storage", list(Storage))
def test_a_record_of_any_other_length_is_refused(storage):
    data, _ = encode_record(make_states(), storage)
    for cut in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(RecordError):
            decode_record(data[:cut])
    with pytest.raises(RecordError, match="bytes instead of"):
        decode_record(data + b"\0")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": np.zeros((12, 16), np.float32)}, "expected bfloat16"),
        ({"tokens": np.zeros(12, ml_dtypes.bfloat16)}, "expected bfloat16"),
        ({"length": 0}, "0 real rows of 12"),
        ({"length": 13}, "13 real rows of 12"),
        ({"history": np.zeros((4, 3))}, "history is float64"),
        ({"target": np.zeros((7, 3), np.float32)}, r"target is float32 \(7, 3\)"),
    ],
)
def test_states_of_another_form_are_refused_and_named(change, reason):
    with pytest.raises(RecordError, match=f"scene {0:016x}.*{reason}"):
        encode_record(dataclasses.replace(make_states(), **change), Storage.BFLOAT16)


def test_states_that_eight_bits_cannot_hold_are_refused():
    states = make_states()
    states.tokens[-1, 2] = np.inf
    with pytest.raises(RecordError, match="channel 2 is not finite"):
        encode_record(states, Storage.INT8)
    assert same(round_trip(states), states)
