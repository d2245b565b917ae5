"""Tests of pdm/array_codec.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recogdrive.pdm.array_codec import compress, decompress


@settings(max_examples=60, deadline=None)
@given(
    bits=st.lists(st.integers(0, 2**64 - 1), min_size=12, max_size=12),
    dtype=st.sampled_from([np.float32, np.float64, np.int32, np.uint64]),
    differences=st.integers(0, 2),
)
def test_every_bit_pattern_comes_back(bits, dtype, differences):
    """NaN payloads, infinities and denormals included."""
    array = np.array(bits, dtype=np.uint64).view(dtype)[:12].reshape(4, 3)
    back = decompress(compress(array, differences=differences), array.shape, array.dtype, differences=differences)
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()


@pytest.mark.parametrize("differences", [0, 1, 2])
def test_arrays_of_nothing_come_back(differences):
    array = np.zeros((0, 3), dtype=np.float32)
    back = decompress(compress(array, differences=differences), array.shape, array.dtype, differences=differences)
    assert back.shape == (0, 3) and back.dtype == np.float32


def test_what_comes_back_is_writable_and_independent():
    array = np.arange(6.0)
    back = decompress(compress(array), array.shape, array.dtype)
    back[0] = 9
    assert array[0] == 0


def test_linear_motion_takes_a_fraction_of_its_coordinates():
    line = np.linspace(-50, 80, 4000, dtype=np.float32)[:, None]
    assert len(compress(line, differences=2)) < 0.4 * len(compress(line))


def test_bytes_of_another_length_are_refused():
    content = compress(np.arange(6.0))
    with pytest.raises((ValueError, OSError)):
        decompress(content, (5,), np.dtype(np.float64))
