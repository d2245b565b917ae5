"""How a scene lies in a shard of the container: one row of an Arrow file.

Names, numbers and the small fixed arrays are plain columns; every other array is a binary column of its own,
Zstandard over little-endian bytes. Sequences over time or along a line are stored as second differences of their bit
patterns (whole numbers modulo 2^32 or 2^64, hence exact): linear motion leaves differences of a few units in the last
place, which compress four times as well as the coordinates themselves.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.state import STATE_SIZE
from recogdrive.pdm.validation import SHAPES

VERSION = 1
"""Number of this layout."""

_TEXTS = ("token", "log_name", "map_name", "normaliser_name")
_FIXED = {"origin": 3, "ego_state": STATE_SIZE}
_ARRAYS = tuple(name for name in SHAPES if name not in _FIXED)
_DIFFERENCES = ("agent_poses", "ring_offsets", "polygon_offsets", "centerline", "normaliser_poses")
_MASKS = ("agent_valid",)
_COUNTED = {"A": "agent_types", "V": "vertices", "R1": "ring_offsets", "P1": "polygon_offsets", "C": "centerline"}
"""Sizes kept in columns, and the array whose length they are; P follows from P1."""
_CODEC = "zstd"
_LEVEL = 3

SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in _TEXTS),
        pa.field("timestamp_us", pa.int64()),
        *(pa.field(name, pa.list_(pa.float64(), size)) for name, size in _FIXED.items()),
        *(pa.field(f"size_{name.lower()}", pa.int32()) for name in _COUNTED),
        *(pa.field(name, pa.binary()) for name in _ARRAYS),
        pa.field("crc32", pa.uint32()),
    ]
)
"""Columns of a shard."""

Row = Mapping[str, Any]


def dtypes_of(scene: PdmScene) -> dict[str, str]:
    """Dtype of every array that a container stores in one dtype for all its scenes."""
    return {name: getattr(scene, name).dtype.name for name in _ARRAYS}


def encode(scene: PdmScene) -> Row:
    """The row of a valid scene."""
    codec = pa.Codec(_CODEC, compression_level=_LEVEL)
    row: dict[str, Any] = {name: getattr(scene, name) for name in _TEXTS}
    row["timestamp_us"] = int(scene.timestamp_us)
    row |= {name: getattr(scene, name).tolist() for name in _FIXED}
    row |= {f"size_{name.lower()}": len(getattr(scene, array)) for name, array in _COUNTED.items()}
    row |= {name: codec.compress(_to_bytes(name, getattr(scene, name)), asbytes=True) for name in _ARRAYS}
    row["crc32"] = _checksum(row)
    return row


def table(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table with the columns of `SCHEMA`."""
    return pa.table({name: [row[name] for row in rows] for name in SCHEMA.names}, schema=SCHEMA)


def decode(columns: Mapping[str, pa.Array], index: int, dtypes: Mapping[str, str]) -> PdmScene:
    """The scene of one row.

    Raises:
      ValueError: The row is damaged.
    """
    cells = {name: columns[name][index] for name in SCHEMA.names}
    row = {name: cell.as_buffer() if name in _ARRAYS else cell.as_py() for name, cell in cells.items()}
    if _checksum(row) != row["crc32"]:
        raise ValueError("its checksum does not match")
    sizes = {name: row[f"size_{name.lower()}"] for name in _COUNTED}
    sizes["P"] = sizes["P1"] - 1
    codec = pa.Codec(_CODEC)
    arrays = {}
    for name in _ARRAYS:
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in SHAPES[name])
        arrays[name] = _from_bytes(name, codec, row[name], shape, np.dtype(dtypes[name]))
    return PdmScene(
        **{name: row[name] for name in _TEXTS},
        timestamp_us=row["timestamp_us"],
        **{name: np.array(row[name], dtype=np.float64) for name in _FIXED},
        **arrays,
    )


def _checksum(row: Row) -> int:
    """CRC-32 over everything else in a row, in the order of the columns."""
    total = 0
    for name in SCHEMA.names[:-1]:
        value = row[name]
        if name in _FIXED:
            value = np.array(value, dtype="<f8")
        elif name not in _ARRAYS:
            value = str(value).encode()
        total = zlib.crc32(value, total)
    return total


def _bits(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"<u{dtype.itemsize}")


def _little(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _to_bytes(name: str, array: np.ndarray) -> bytes:
    if name in _MASKS:
        return (array.T.astype("<u8") << np.arange(len(array), dtype="<u8")).sum(axis=-1, dtype="<u8").tobytes()
    if name in _DIFFERENCES:
        bits = np.ascontiguousarray(np.moveaxis(_little(array), 0, -1)).view(_bits(array.dtype))
        for _ in range(2):
            bits = np.diff(bits, axis=-1, prepend=bits.dtype.type(0))
        return bits.tobytes()
    return _little(array).tobytes()


def _from_bytes(name: str, codec: pa.Codec, data: pa.Buffer, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if name in _MASKS:
        masks = np.frombuffer(codec.decompress(data, 8 * shape[1]), dtype="<u8")
        return (masks >> np.arange(shape[0], dtype="<u8")[:, None] & np.uint64(1)).astype(bool)
    content = codec.decompress(data, int(np.prod(shape)) * dtype.itemsize)
    if name in _DIFFERENCES:
        bits = np.frombuffer(content, dtype=_bits(dtype)).reshape(*shape[1:], shape[0])
        for _ in range(2):
            bits = np.cumsum(bits, axis=-1, dtype=bits.dtype)
        return np.ascontiguousarray(np.moveaxis(bits, -1, 0)).view(dtype)
    return np.frombuffer(content, dtype=dtype).reshape(shape).copy()
