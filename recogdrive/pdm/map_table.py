"""Polygons that scenes share, each stored once; a scene names its own by their numbers.

Scenes of one drive see the same map again and again. Polygons are kept in the coordinates in which they are equal for
all of them: global ones where the map has a place in the world, else those of the scene.
"""

import itertools
import zlib
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from recogdrive.pdm.array_codec import compress, decompress

_CRC_BYTES = 4
_DIFFERENCES = {"ring_offsets": 2, "polygon_offsets": 2, "layers": 0}
_VERTEX_DIFFERENCES = (0, 1)
"""Whichever is smaller: repeated vertices compress best as they are, surveyed outlines as steps."""


class Polygons(NamedTuple):
    """P polygons of R rings with V vertices, as in `PdmScene`.

    Attributes:
      vertices: (V, 2) without repeated closing points.
      ring_offsets: (R + 1,) int32.
      polygon_offsets: (P + 1,) int32.
      layers: (P,) int8 of `PolygonLayer`.
    """

    vertices: Float[np.ndarray, "V 2"]
    ring_offsets: Int[np.ndarray, "R1"]
    polygon_offsets: Int[np.ndarray, "P1"]
    layers: Int[np.ndarray, "P"]

    def take(self, numbers: Int[np.ndarray, "N"]) -> "Polygons":
        """Some of the polygons, in the given order.

        Raises:
          IndexError: There is no such polygon.
        """
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self.layers)):
            raise IndexError(f"polygons {numbers.min()} to {numbers.max()} of a table of {len(self.layers)}")
        rings, polygon_offsets = _ranges(self.polygon_offsets, numbers)
        vertices, ring_offsets = _ranges(self.ring_offsets, rings)
        return Polygons(self.vertices[vertices], ring_offsets, polygon_offsets, self.layers[numbers])

    @classmethod
    def none(cls, dtype: np.dtype) -> Self:
        """No polygons."""
        start = np.zeros(1, dtype=np.int32)
        return cls(np.zeros((0, 2), dtype), start, start, np.zeros(0, dtype=np.int8))

    def to_bytes(self) -> bytes:
        """The table as a stream of Arrow with one row, behind its CRC-32."""
        row: dict[str, Any] = {name: compress(getattr(self, name), differences=n) for name, n in _DIFFERENCES.items()}
        tried = [(compress(self.vertices, differences=n), n) for n in _VERTEX_DIFFERENCES]
        row["vertices"], row["vertex_differences"] = min(tried, key=lambda one: len(one[0]))
        row |= {f"num_{name}": len(array) for name, array in self._asdict().items()}
        batch = pa.RecordBatch.from_pylist([{**row, "dtype": self.vertices.dtype.name}])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content = sink.getvalue().to_pybytes()
        return zlib.crc32(content).to_bytes(_CRC_BYTES, "little") + content

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The table of `to_bytes`.

        Raises:
          ValueError: The bytes are damaged.
        """
        check, content = content[:_CRC_BYTES], content[_CRC_BYTES:]
        if zlib.crc32(content).to_bytes(_CRC_BYTES, "little") != check:
            raise ValueError("the checksum of the map table does not match")
        (values,) = pa.ipc.open_stream(content).read_all().to_pylist()
        dtypes = {"layers": np.dtype(np.int8)}
        arrays = {
            name: decompress(
                values[name], (values[f"num_{name}"],), dtypes.get(name, np.dtype(np.int32)), differences=n
            )
            for name, n in _DIFFERENCES.items()
        }
        shape, dtype = (values["num_vertices"], 2), np.dtype(values["dtype"])
        arrays["vertices"] = decompress(values["vertices"], shape, dtype, differences=values["vertex_differences"])
        return cls(**arrays)


def _ranges(offsets: Int[np.ndarray, "N1"], numbers: Int[np.ndarray, "K"]) -> tuple[np.ndarray, np.ndarray]:
    """What lies in the intervals with these numbers, one interval after the other, and the intervals' own offsets."""
    starts, counts = offsets[numbers], np.diff(offsets)[numbers]
    ends = np.cumsum(counts)
    members = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
    return members, np.concatenate([[0], ends]).astype(np.int32)


class PolygonPool:
    """Collects polygons, each once.

    Args:
      dtype: Of the vertices.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._numbers: dict[tuple[bytes, bytes, int], int] = {}
        self._rings: list[np.ndarray] = []
        self._ring_counts: list[int] = []

    def add(self, polygons: Polygons) -> Int[np.ndarray, "P"]:
        """Numbers of these polygons in the pool; equal ones (layer, rings and every bit) share a number."""
        vertices = np.ascontiguousarray(polygons.vertices)
        numbers = np.empty(len(polygons.layers), dtype=np.int32)
        for position, layer in enumerate(polygons.layers.tolist()):
            first, last = polygons.polygon_offsets[position : position + 2]
            bounds = polygons.ring_offsets[first : last + 1]
            outline = vertices[bounds[0] : bounds[-1]]
            key = (outline.tobytes(), np.diff(bounds).tobytes(), layer)
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self._ring_counts)
                self._ring_counts.append(int(last - first))
                self._rings += [vertices[a:b] for a, b in itertools.pairwise(bounds)]
            numbers[position] = number
        return numbers

    def table(self) -> Polygons:
        """Everything collected, in the order of the numbers."""
        return Polygons(
            vertices=np.concatenate([np.zeros((0, 2), self._dtype), *self._rings]),
            ring_offsets=np.cumsum([0, *map(len, self._rings)], dtype=np.int32),
            polygon_offsets=np.cumsum([0, *self._ring_counts], dtype=np.int32),
            layers=np.array([layer for _, _, layer in self._numbers], dtype=np.int8),
        )
