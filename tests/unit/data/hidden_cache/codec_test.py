"""Tests of data/hidden_cache/codec.py."""

import ml_dtypes
import numpy as np
import pytest

from recogdrive.data.hidden_cache import codec


def round_trip(rows):
    out = np.full_like(rows, 0xDEAD)
    codec.decode_lossless(codec.encode_lossless(rows), out)
    return out


def realistic(rows, width, seed=0):
    """Normal values, log-normal scales of channels, three outlier channels."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, width)) * np.exp(0.5 * rng.normal(size=width))
    values[:, [1, width // 3, width // 2]] *= 100
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


@pytest.mark.parametrize("shape", [(1, 65536), (4096, 16), (64, 1024)])
def test_every_bit_pattern_comes_back(shape):
    rows = np.random.default_rng(0).permutation(np.arange(65536, dtype=np.uint16)).reshape(shape)
    np.testing.assert_array_equal(round_trip(rows), rows)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 200_000), (193, 1536), (65, 1537)])
def test_blocks_of_any_number_of_rows_and_channels_come_back(shape):
    rows = np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)
    np.testing.assert_array_equal(round_trip(rows), rows)


def test_equal_rows_take_almost_nothing():
    rows = np.broadcast_to(realistic(1, 256), (2000, 256)).copy()
    coded = codec.encode_lossless(rows)
    np.testing.assert_array_equal(round_trip(rows), rows)
    assert len(coded.high.data) + len(coded.low.data) < 0.02 * rows.nbytes


def test_realistic_states_keep_two_thirds_of_their_bytes():
    rows = realistic(700, 1536)
    coded = codec.encode_lossless(rows)
    assert len(coded.low.data) == rows.size  # Noise stays as it is, so that reading it is a copy.
    share = (len(coded.high.data) + len(coded.low.data)) / rows.nbytes
    assert share < codec.BFLOAT16_SHARE


def test_rows_are_written_into_the_memory_given():
    rows = realistic(70, 1536)
    memory = np.zeros((80, 1536), np.uint16)
    codec.decode_lossless(codec.encode_lossless(rows), memory[10:])
    np.testing.assert_array_equal(memory[10:], rows)
    assert not memory[:10].any()


def test_the_same_rows_make_the_same_bytes():
    assert codec.encode_lossless(realistic(99, 512)) == codec.encode_lossless(realistic(99, 512))


def test_eight_bits_are_off_by_at_most_half_a_level_and_the_rounding_of_bfloat16():
    rows = realistic(300, 512)
    coded, error = codec.encode_int8(rows)
    out = np.empty_like(rows)
    codec.decode_int8(coded, out)
    values, found = (bits.view(ml_dtypes.bfloat16).astype(np.float64) for bits in (rows, out))
    largest = np.abs(values).max(axis=0)
    relative = np.abs(found - values) / largest
    assert relative.max() <= 0.5 / 127 + 2**-8
    assert error.max_relative == pytest.approx(relative.max(), rel=1e-5)
    rms = np.sqrt(np.mean((found - values) ** 2) / np.mean(values**2))
    assert error.rms_relative == pytest.approx(rms, rel=1e-5)


def test_eight_bits_keep_zeros_signs_and_channels_of_tiny_numbers():
    values = np.array([[0.0, 1.0, -2.0, 1e-38], [0.0, -1.0, 2.0, -1e-38]])
    rows = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    coded, error = codec.encode_int8(rows)
    out = np.empty_like(rows)
    codec.decode_int8(coded, out)
    np.testing.assert_allclose(
        out.view(ml_dtypes.bfloat16).astype(np.float64), rows.view(ml_dtypes.bfloat16).astype(np.float64), rtol=0.01
    )
    assert error.max_relative < 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_eight_bits_refuse_what_is_not_finite_and_name_the_channel(bad):
    values = np.ones((4, 5))
    values[2, 3] = bad
    with pytest.raises(codec.CodecError, match="channel 3"):
        codec.encode_int8(values.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_planes_of_another_size_are_refused():
    coded = codec.encode_lossless(realistic(70, 64))
    cut = coded._replace(low=coded.low._replace(data=coded.low.data[:-1]))
    with pytest.raises(codec.CodecError, match="plane of 70 x 64"):
        codec.decode_lossless(cut, np.empty((70, 64), np.uint16))
    with pytest.raises(codec.CodecError, match="64 channels instead of 65"):
        codec.decode_lossless(coded, np.empty((70, 65), np.uint16))


def test_a_block_that_claims_another_size_is_not_decompressed():
    rows = realistic(70, 64)
    coded = codec.encode_lossless(rows)
    with pytest.raises(codec.CodecError, match="does not hold"):
        codec.decode_lossless(coded, np.empty((80, 64), np.uint16))


def test_a_damaged_block_is_refused():
    coded = codec.encode_lossless(realistic(70, 64))
    damaged = bytes([*coded.high.data[:2], 0, *coded.high.data[3:]])
    with pytest.raises(codec.CodecError, match="block 0"):
        codec.decode_lossless(coded._replace(high=coded.high._replace(data=damaged)), np.empty((70, 64), np.uint16))
