"""How a scene lies in a shard of the container: one row of an Arrow file, its map as numbers of shared polygons.

Names, numbers and the small fixed arrays are plain columns; every other array is a binary column of its own, see
`array_codec`. A CRC-32 stands beside every row.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from recogdrive.pdm.array_codec import compress, decompress
from recogdrive.pdm.map_table import Polygons
from recogdrive.pdm.scene import ExtendedFacts, PdmScene
from recogdrive.pdm.state import STATE_SIZE
from recogdrive.pdm.validation import EXTENDED_SHAPES, SHAPES

VERSION = 2
"""Number of this layout."""

_TEXTS = ("token", "log_name", "map_name", "normaliser_name")
_FIXED = {"origin": 3, "ego_state": STATE_SIZE}
_MAP = ("vertices", "ring_offsets", "polygon_offsets", "polygon_layers")
"""What the shared polygons hold."""
_ARRAYS = tuple(name for name in SHAPES if name not in (*_FIXED, *_MAP))
_REFS = "polygon_refs"
_MASKS = ("agent_valid",)
_DIFFERENCES = {
    "agent_poses": 2,
    "centerline": 2,
    "normaliser_poses": 2,
    "normaliser_poses_v2": 2,
    "light_vertices": 1,
    _REFS: 1,
}
_COUNTED = {"A": "agent_types", "P": "polygon_layers", "C": "centerline"}
_EXTENDED_COUNTED = {"LV": "light_vertices", "L1": "light_offsets"}
"""Sizes kept in columns, and the array whose length they are; L follows from L1."""

SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in _TEXTS),
        pa.field("timestamp_us", pa.int64()),
        *(pa.field(name, pa.list_(pa.float64(), size)) for name, size in _FIXED.items()),
        *(pa.field(f"size_{name.lower()}", pa.int32()) for name in _COUNTED),
        pa.field("map_is_global", pa.bool_()),
        pa.field(_REFS, pa.binary()),
        *(pa.field(name, pa.binary()) for name in _ARRAYS),
        pa.field("is_extended", pa.bool_()),
        *(pa.field(f"size_{name.lower()}", pa.int32()) for name in _EXTENDED_COUNTED),
        *(pa.field(name, pa.binary()) for name in EXTENDED_SHAPES),
        pa.field("crc32", pa.uint32()),
    ]
)
"""Columns of a shard."""

_BINARY = (_REFS, *_ARRAYS, *EXTENDED_SHAPES)

Row = Mapping[str, Any]


def dtypes_of(scene: PdmScene) -> dict[str, str]:
    """Dtype of every array that a container stores in one dtype for all its scenes."""
    arrays = {name: getattr(scene, name) for name in (*_ARRAYS, *_MAP)}
    if scene.extended is not None:
        arrays |= {name: getattr(scene.extended, name) for name in EXTENDED_SHAPES}
    return {name: array.dtype.name for name, array in arrays.items()}


def encode(scene: PdmScene, polygon_refs: Int[np.ndarray, "P"], map_is_global: bool) -> Row:
    """The row of a valid scene.

    Args:
      scene: The scene.
      polygon_refs: Numbers of its polygons in the shard's table.
      map_is_global: Which of the shard's tables.
    """
    row: dict[str, Any] = {name: getattr(scene, name) for name in _TEXTS}
    row["timestamp_us"] = int(scene.timestamp_us)
    row |= {name: getattr(scene, name).tolist() for name in _FIXED}
    row |= {f"size_{name.lower()}": len(getattr(scene, array)) for name, array in _COUNTED.items()}
    row |= {"map_is_global": map_is_global, _REFS: _to_bytes(_REFS, polygon_refs)}
    row |= {name: _to_bytes(name, getattr(scene, name)) for name in _ARRAYS}
    facts = scene.extended
    row["is_extended"] = facts is not None
    for name, array in _EXTENDED_COUNTED.items():
        row[f"size_{name.lower()}"] = None if facts is None else len(getattr(facts, array))
    row |= {name: None if facts is None else _to_bytes(name, getattr(facts, name)) for name in EXTENDED_SHAPES}
    row["crc32"] = _checksum(row)
    return row


def decode(
    columns: Mapping[str, pa.Array], index: int, dtypes: Mapping[str, str], tables: Mapping[bool, Polygons]
) -> PdmScene:
    """The scene of one row.

    Args:
      columns: Of the shard.
      index: Number of the row.
      dtypes: Array -> dtype.
      tables: The shard's polygons: global ones under True, those in the coordinates of one scene under False.

    Raises:
      ValueError: The row is damaged.
    """
    cells = {name: columns[name][index] for name in SCHEMA.names}
    row = {name: cell.as_buffer() if name in _BINARY else cell.as_py() for name, cell in cells.items()}
    if _checksum(row) != row["crc32"]:
        raise ValueError("its checksum does not match")
    sizes = {name: row[f"size_{name.lower()}"] for name in (*_COUNTED, *_EXTENDED_COUNTED)}
    arrays = {name: _from_bytes(name, row[name], SHAPES[name], sizes, np.dtype(dtypes[name])) for name in _ARRAYS}
    fixed = {name: np.array(row[name], dtype=np.float64) for name in _FIXED}
    refs = _from_bytes(_REFS, row[_REFS], ("P",), sizes, np.dtype(np.int32))
    polygons = tables[row["map_is_global"]].take(refs)
    extended = None
    if row["is_extended"]:
        sizes["L"] = sizes["L1"] - 1
        extended = ExtendedFacts(
            **{
                name: _from_bytes(name, row[name], shape, sizes, np.dtype(dtypes[name]))
                for name, shape in EXTENDED_SHAPES.items()
            }
        )
    return PdmScene(
        **{name: row[name] for name in _TEXTS},
        timestamp_us=row["timestamp_us"],
        **fixed,
        **arrays,
        vertices=local_vertices(polygons.vertices, fixed["origin"], np.dtype(dtypes["vertices"]))
        if row["map_is_global"]
        else polygons.vertices,
        ring_offsets=polygons.ring_offsets,
        polygon_offsets=polygons.polygon_offsets,
        polygon_layers=polygons.layers,
        extended=extended,
    )


def local_vertices(vertices: np.ndarray, origin: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Global coordinates in a local frame that is not rotated: what a scene and its stored map must agree on."""
    return (vertices - origin[:2]).astype(dtype)


def _checksum(row: Row) -> int:
    """CRC-32 over everything else in a row, in the order of the columns."""
    total = 0
    for name in SCHEMA.names[:-1]:
        value = row[name]
        if name in _FIXED:
            value = np.array(value, dtype="<f8")
        elif name not in _BINARY or value is None:
            value = str(value).encode()
        total = zlib.crc32(value, total)
    return total


def _to_bytes(name: str, array: np.ndarray) -> bytes:
    if name in _MASKS:
        array = (array.T.astype("<u8") << np.arange(len(array), dtype="<u8")).sum(axis=-1, dtype="<u8")
    return compress(array, differences=_DIFFERENCES.get(name, 0))


def _from_bytes(
    name: str, data: pa.Buffer, shape: tuple[int | str, ...], sizes: Mapping[str, int], dtype: np.dtype
) -> np.ndarray:
    known = tuple(sizes[size] if isinstance(size, str) else size for size in shape)
    if name in _MASKS:
        masks = decompress(data, known[1:], np.dtype("<u8"))
        return (masks >> np.arange(known[0], dtype="<u8")[:, None] & np.uint64(1)).astype(bool)
    return decompress(data, known, dtype, differences=_DIFFERENCES.get(name, 0))
