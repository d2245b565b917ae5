"""Arrays as compressed bytes, lossless: Zstandard over little-endian bytes.

Sequences over time or along a line are stored as differences of their bit patterns (whole numbers modulo 2^32 or 2^64,
hence exact): second differences for motion, which leaves a few units in the last place where it is linear, first ones
for outlines.
"""

import numpy as np
import pyarrow as pa

_CODEC = "zstd"
_LEVEL = 3


def compress(array: np.ndarray, *, differences: int = 0) -> bytes:
    """Bytes of an array.

    Args:
      array: Of numbers; its first axis is the sequence.
      differences: How often neighbours along it are subtracted from each other.
    """
    content = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if differences:
        bits = np.ascontiguousarray(np.moveaxis(content, 0, -1)).view(_bits(array.dtype))
        for _ in range(differences):
            bits = np.diff(bits, axis=-1, prepend=bits.dtype.type(0))
        content = bits
    return pa.Codec(_CODEC, compression_level=_LEVEL).compress(content.tobytes(), asbytes=True)


def decompress(data: bytes | pa.Buffer, shape: tuple[int, ...], dtype: np.dtype, *, differences: int = 0) -> np.ndarray:
    """The array again; writable and in memory of its own.

    Raises:
      ValueError, OSError: The bytes are not those of such an array.
    """
    content = pa.Codec(_CODEC).decompress(data, int(np.prod(shape)) * dtype.itemsize)
    if not differences:
        return np.frombuffer(content, dtype=dtype.newbyteorder("<")).reshape(shape).astype(dtype)
    bits = np.frombuffer(content, dtype=_bits(dtype)).reshape(*shape[1:], shape[0])
    for _ in range(differences):
        bits = np.cumsum(bits, axis=-1, dtype=bits.dtype)
    return np.ascontiguousarray(np.moveaxis(bits, -1, 0)).view(dtype)


def _bits(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"<u{dtype.itemsize}")
