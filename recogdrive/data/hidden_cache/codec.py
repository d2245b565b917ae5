"""bfloat16 arrays as bytes: lossless, by planes of bits, or as 8-bit integers with a scale a channel.

A bfloat16 number is a sign, eight bits of exponent and seven of mantissa. Of hidden states, sign and mantissa look like
noise and stay as they are; exponents take few values, fewer still once each channel's usual exponent is subtracted, and
shrink to a third by a Huffman code. Decoding is a handful of passes over blocks that fit a core's cache.
"""

from collections.abc import Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np
import zstandard
from jaxtyping import Float32, UInt8, UInt16

Rows = UInt16[np.ndarray, "n V"]
"""Bit patterns of bfloat16 numbers."""

_BLOCK_BYTES = 98_304
"""Numbers of a block, at most: its planes and temporaries stay in the cache of a core."""
_SAMPLED_ROWS = 256
"""Rows that a channel's usual exponent is counted on."""
_MANTISSA_BITS = 7
_SIGN_AND_MANTISSA = np.uint16(0x807F)
_LARGEST_INT8 = 127
_WORTH_IT = 0.95
"""Share of its bytes that a compressed block may keep: below that, decompressing costs more than it saves."""

# Matches shorter than seven bytes hardly occur in hidden states and cost more time than they save bytes: what remains
# is zstd's Huffman code of single bytes, which is also its fastest to decode.
_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_DFAST, min_match=7, window_log=17, hash_log=6, chain_log=6
)

BFLOAT16_SHARE = 0.67
"""What lossless planes keep of the bytes of bfloat16; measured, see `docs/hidden_cache.md`."""
INT8_SHARE = 0.46
"""Likewise of 8-bit integers."""


class CodecError(ValueError):
    """Bytes that do not decode, or numbers that cannot be encoded."""


class Plane(NamedTuple):
    """One byte of every number, in blocks.

    Attributes:
      sizes: (blocks,) little-endian uint32 bytes of every block; a block as long as its content is not compressed.
      data: The blocks, one after the other.
    """

    sizes: bytes | memoryview
    data: bytes | memoryview


class Int8Error(NamedTuple):
    """What 8-bit integers lose.

    Attributes:
      max_relative: Largest error of a number, relative to the largest magnitude in its channel.
      rms_relative: Root mean square of all errors, relative to that of all numbers.
    """

    max_relative: float
    rms_relative: float


class Lossless(NamedTuple):
    """An array of bfloat16, exactly.

    Attributes:
      exponents: (V,) uint8, each channel's usual exponent, as bytes.
      high: Exponents less the channel's, modulo 256.
      low: Sign (most significant bit) and mantissa.
    """

    exponents: bytes | memoryview
    high: Plane
    low: Plane


class Int8(NamedTuple):
    """An array of bfloat16, rounded.

    Attributes:
      scales: (V,) little-endian float32 as bytes: value of one unit in each channel.
      plane: (n, V) int8 multiples of it.
    """

    scales: bytes | memoryview
    plane: Plane


def encode_lossless(rows: Rows) -> Lossless:
    """Splits bit patterns, whatever they stand for, into planes."""
    exponents = (rows >> _MANTISSA_BITS).astype(np.uint8)  # The sign, bit 8 here, falls off.
    usual = _usual(exponents)
    low = ((rows >> 8) & 0x80 | rows & 0x7F).astype(np.uint8)
    return Lossless(usual.tobytes(), _compress(exponents - usual), _compress(low))


def decode_lossless(coded: Lossless, out: Rows) -> None:
    """Writes the rows into `out`, whose shape is theirs.

    Raises:
      CodecError: The planes do not have that many bytes.
    """
    width = out.shape[1]
    usual = np.frombuffer(coded.exponents, np.uint8)
    if usual.shape != (width,):
        raise CodecError(f"exponents of {len(usual)} channels instead of {width}")
    unit = _rows_at_once(width)
    exponents, low16 = np.empty((unit, width), np.uint8), np.empty((unit, width), np.int16)
    for start, high, low in zip(
        range(0, len(out), unit), _blocks(coded.high, out.shape), _blocks(coded.low, out.shape), strict=True
    ):
        target = out[start : start + unit]
        exponent, bits = exponents[: len(target)], low16[: len(target)]
        np.add(high, usual, out=exponent)
        target[...] = exponent
        np.left_shift(target, _MANTISSA_BITS, out=target)
        bits[...] = low.view(np.int8)  # Widening repeats the sign in all upper bits; one of them is its place.
        bits = bits.view(np.uint16)
        np.bitwise_and(bits, _SIGN_AND_MANTISSA, out=bits)
        np.bitwise_or(target, bits, out=target)


def encode_int8(rows: Rows) -> tuple[Int8, Int8Error]:
    """Rounds to multiples of a 127th of each channel's largest magnitude, and says what that loses.

    Raises:
      CodecError: Some number is not finite.
    """
    values = rows.view(ml_dtypes.bfloat16).astype(np.float32)
    largest = np.abs(values).max(axis=0)
    if not np.isfinite(largest).all():
        raise CodecError(f"channel {int(np.argmin(np.isfinite(largest)))} is not finite; 8-bit integers cannot hold it")
    # Divided in float64: a channel of tiny numbers would otherwise have scale 0.
    scales = (largest.astype(np.float64) / _LARGEST_INT8).astype(np.float32)
    safe = np.where(scales > 0, scales, 1)
    levels = np.clip(np.rint(values / safe), -_LARGEST_INT8, _LARGEST_INT8).astype(np.int8)
    coded = Int8(scales.astype("<f4").tobytes(), _compress(levels.view(np.uint8)))
    rounded = np.empty_like(rows)
    _from_int8(levels, scales, np.empty_like(values), rounded)
    error = np.abs(rounded.view(ml_dtypes.bfloat16).astype(np.float32) - values)
    relative = error.max(axis=0) / np.where(largest > 0, largest, 1)
    scale = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
    rms = float(np.sqrt(np.square(error, dtype=np.float64).mean()))
    return coded, Int8Error(float(relative.max()), rms / scale if scale else 0.0)


def decode_int8(coded: Int8, out: Rows) -> None:
    """Writes the rounded rows into `out`, whose shape is theirs.

    Raises:
      CodecError: The plane does not have that many bytes.
    """
    width = out.shape[1]
    scales = np.frombuffer(coded.scales, "<f4")
    if scales.shape != (width,):
        raise CodecError(f"scales of {len(scales)} channels instead of {width}")
    unit = _rows_at_once(width)
    values = np.empty((unit, width), np.float32)
    for start, levels in zip(range(0, len(out), unit), _blocks(coded.plane, out.shape), strict=True):
        _from_int8(levels.view(np.int8), scales, values[: len(levels)], out[start : start + unit])


def _from_int8(levels: np.ndarray, scales: Float32[np.ndarray, "V"], values: np.ndarray, out: Rows) -> None:
    """Writes the bfloat16 numbers that levels stand for into `out`; `values` is float32 memory of the same shape."""
    values[...] = levels
    np.multiply(values, scales, out=values)
    # Rounding by hand, ties away from zero, takes two thirds of the time of a conversion by ml_dtypes.
    bits = values.view(np.uint32)
    np.add(bits, np.uint32(0x8000), out=bits)
    np.right_shift(bits, 16, out=bits)
    out[...] = bits


def _usual(exponents: UInt8[np.ndarray, "n V"]) -> UInt8[np.ndarray, "V"]:
    """Each channel's commonest exponent among some evenly spaced rows."""
    step = max(1, len(exponents) // _SAMPLED_ROWS)
    sampled = exponents[::step].astype(np.int64)
    width = sampled.shape[1]
    counts = np.bincount((sampled + 256 * np.arange(width)).ravel(), minlength=256 * width)
    return counts.reshape(width, 256).argmax(axis=1).astype(np.uint8)


def _rows_at_once(width: int) -> int:
    return max(1, _BLOCK_BYTES // width)


def _compress(plane: UInt8[np.ndarray, "n V"]) -> Plane:
    unit = _rows_at_once(plane.shape[1])
    compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
    blocks = []
    for start in range(0, len(plane), unit):
        block = np.ascontiguousarray(plane[start : start + unit])
        small = compressor.compress(block)
        blocks.append(small if len(small) <= _WORTH_IT * block.nbytes else block.tobytes())
    return Plane(np.array([len(block) for block in blocks], "<u4").tobytes(), b"".join(blocks))


def _blocks(plane: Plane, shape: tuple[int, ...]) -> Iterator[UInt8[np.ndarray, "r V"]]:
    """The blocks of a plane of an (n, V) array, decompressed one after the other.

    Raises:
      CodecError: They are not what such a plane has.
    """
    rows, width = shape
    unit = _rows_at_once(width)
    sizes = np.frombuffer(plane.sizes, "<u4").tolist()
    if len(sizes) != -(-rows // unit) or sum(sizes) != len(plane.data):
        raise CodecError(f"{len(sizes)} blocks of {sum(sizes)} bytes do not make a plane of {rows} x {width}")
    data = memoryview(plane.data)
    decompressor = zstandard.ZstdDecompressor()
    position = 0
    for number, size in enumerate(sizes):
        block = data[position : position + size]
        position += size
        count = min(unit, rows - number * unit) * width
        if size != count:
            # A frame knows its size; one that claims another is not read, so that it reserves no memory.
            try:
                if zstandard.frame_content_size(block) != count:
                    raise CodecError(f"block {number} does not hold {count} bytes")
                block = decompressor.decompress(block)
            except zstandard.ZstdError as error:
                raise CodecError(f"block {number} does not decompress: {error}") from error
        yield np.frombuffer(block, np.uint8).reshape(-1, width)
