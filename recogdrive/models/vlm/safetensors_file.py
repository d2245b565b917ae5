"""Reads and writes safetensors files piece by piece, so that no second copy of the weights is ever in memory.

Format: 8 bytes, little endian, the size of the header; the header, JSON of name -> dtype, shape, start and end of the
bytes; then the bytes of all tensors without gaps. Source: the format's public description.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Those whose every value float32 holds."""
PIECE = 1 << 18
"""Numbers handled at a time: few enough to stay in the cache of a core from reading to hashing."""
_SIZE = 8
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


class Entry(NamedTuple):
    """A tensor of a file: its dtype as the header spells it, its shape, and where its bytes start in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class SafetensorsFile:
    """An opened file's header.

    Attributes:
      path: The file.
      entries: Name -> what is known of that tensor, in the order of their bytes.
    """

    path: Path
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFile":
        """Reads and checks the header.

        Raises:
          OSError: The file cannot be read.
          ValueError: It is truncated or damaged; names the file.
        """
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_SIZE), "little")
            if size < _SIZE or length > size - _SIZE:
                raise ValueError(f"{path} is truncated or no safetensors file: {size} bytes do not hold its header")
            text = file.read(length)
        try:
            header = json.loads(text)
            entries = {
                name: Entry(str(entry["dtype"]), tuple(map(int, entry["shape"])), int(entry["data_offsets"][0]))
                for name, entry in header.items()
                if name != "__metadata__"
            }
            ends = {name: int(header[name]["data_offsets"][1]) for name in entries}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file: its header cannot be read") from error
        ordered = sorted(entries, key=lambda name: (entries[name].start, ends[name]))
        position = 0
        for name in ordered:
            entry, end = entries[name], ends[name]
            width = _BYTES.get(entry.dtype)
            wrong_size = width is not None and end - entry.start != math.prod(entry.shape) * width
            if entry.start != position or end < position or wrong_size or min(entry.shape, default=0) < 0:
                raise ValueError(f"{path} is damaged: the bytes of {name} do not lie where its header says")
            position = end
        if size - _SIZE - length != position:
            kind = "truncated" if size - _SIZE - length < position else "longer than its header says"
            raise ValueError(f"{path} is {kind}: {size} of {position + _SIZE + length} bytes; download it again")
        start = _SIZE + length
        return cls(path, {name: entries[name]._replace(start=start + entries[name].start) for name in ordered})

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """A tensor's numbers as float32 in order, flat, at most `PIECE` at a time.

        An array is overwritten by the next one.

        Raises:
          ValueError: The file became shorter since it was opened.
        """
        entry = self.entries[name]
        dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
        stored = np.empty(min(PIECE, count), dtype)
        widened = stored if dtype == np.float32 else np.empty(stored.shape, np.float32)
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            for start in range(0, count, PIECE):
                number = min(PIECE, count - start)
                _read_into(file, stored[:number].view(np.uint8), self.path)
                if widened is not stored:
                    widened[:number] = stored[:number]
                yield widened[:number]


class Tensor(NamedTuple):
    """A tensor to write: its name and the arrays it is made of, one below the other along the first axis."""

    name: str
    parts: Sequence[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        rows = [part.shape for part in self.parts]
        return rows[0] if len(rows) == 1 else (sum(shape[0] for shape in rows), *rows[0][1:])


def write_safetensors(path: Path, tensors: Sequence[Tensor], dtype: str) -> None:
    """Writes tensors as one file, cast to one dtype, a key of `DTYPES`, piece by piece.

    The file is only complete when this returns: write into a temporary folder.
    """
    width, header, position = DTYPES[dtype].itemsize, {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        end = position + math.prod(tensor.shape) * width
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _SIZE)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_SIZE, "little") + text)
        for tensor in tensors:
            for part in tensor.parts:
                flat = np.ascontiguousarray(part).reshape(-1)
                for start in range(0, flat.size, PIECE):
                    piece = np.ascontiguousarray(flat[start : start + PIECE].astype(DTYPES[dtype], copy=False))
                    file.write(piece.view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _read_into(file: Any, buffer: np.ndarray, path: Path) -> None:
    """Fills a buffer; the system may hand over less than asked for in one go."""
    view, filled = memoryview(buffer), 0
    while filled < len(view):
        got = file.readinto(view[filled:])
        if not got:
            raise ValueError(f"{path} ended before its time; was it written to while it was read?")
        filled += got
