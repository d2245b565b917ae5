"""One scene of the hidden-state cache as bytes, and back.

A record is the length of its header, the header as JSON, and the sections the header lists, one after the other. Rows
of padding, which are the same vector as long as padding attends to nothing, are stored as that vector; where they
differ they are stored as rows, so that the padded tensor comes back bit for bit in every case.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float32

from recogdrive.data.hidden_cache.codec import (
    CodecError,
    Int8,
    Int8Error,
    Lossless,
    Plane,
    decode_int8,
    decode_lossless,
    encode_int8,
    encode_lossless,
)
from recogdrive.data.types import FUTURE_FRAMES, HISTORY_FRAMES

VERSION = 1
"""Number of this layout."""

_MAGIC = b"RDHS"
_PREFIX = struct.Struct("<4sI")
_SMALL = {"history": (HISTORY_FRAMES, 3), "status": (8,), "target": (FUTURE_FRAMES, 3)}
_LARGEST = 2**31


class RecordError(ValueError):
    """A record that cannot be made, or does not hold what it should."""


class Storage(StrEnum):
    """How hidden states are kept."""

    BFLOAT16 = "bfloat16"
    """Exactly."""
    INT8 = "int8"
    """As multiples of a 127th of each channel's largest magnitude in the scene."""


class Padding(StrEnum):
    """How the rows before the real ones are kept."""

    NONE = "none"
    VECTOR = "vector"
    ROWS = "rows"


@dataclass(frozen=True)
class HiddenStates:
    """What the planner learns from of one scene.

    Attributes:
      token: Of the scene.
      log_name: Its log.
      tokens: (T, V) bfloat16 hidden states, LEFT padded.
      length: Real rows, the last ones; 1 to T.
      history: (4, 3) float32 past poses.
      status: (8,) float32, see `recogdrive.data.samples.status_feature`.
      target: (8, 3) float32 driven trajectory; None where it is unknown.
    """

    token: str
    log_name: str
    tokens: np.ndarray
    length: int
    history: Float32[np.ndarray, "4 3"]
    status: Float32[np.ndarray, "8"]
    target: Float32[np.ndarray, "8 3"] | None

    @property
    def mask(self) -> Bool[np.ndarray, "T"]:
        """True where a row is real."""
        return np.arange(len(self.tokens)) >= len(self.tokens) - self.length


def encode_record(states: HiddenStates, storage: Storage) -> tuple[bytes, Int8Error | None]:
    """Bytes of a record, and what its storage loses; None if nothing.

    Raises:
      RecordError: Shapes or types are others than `HiddenStates` says, or 8-bit integers cannot hold the states.
    """
    _check(states)
    rows = np.ascontiguousarray(states.tokens).view(np.uint16)
    first = len(rows) - states.length
    padding = _padding(rows[:first])
    kept = rows if padding is Padding.ROWS else rows[first:]
    sections: list[tuple[str, bytes]] = [("history", _floats(states.history)), ("status", _floats(states.status))]
    if states.target is not None:
        sections.append(("target", _floats(states.target)))
    if padding is Padding.VECTOR:
        sections.append(("padding", rows[0].astype("<u2").tobytes()))
    error = None
    if storage is Storage.INT8:
        try:
            coded, error = encode_int8(kept)
        except CodecError as refused:
            raise RecordError(f"scene {states.token}: {refused}") from refused
        sections += [("scales", coded.scales), *_plane_sections("levels", coded.plane)]
    else:
        exact = encode_lossless(kept)
        sections += [("exponents", exact.exponents)]
        sections += [*_plane_sections("high", exact.high), *_plane_sections("low", exact.low)]
    header = {
        "version": VERSION,
        "token": states.token,
        "log": states.log_name,
        "length": states.length,
        "shape": list(rows.shape),
        "storage": storage,
        "padding": padding,
        "sections": [[name, len(data)] for name, data in sections],
    }
    if error is not None:
        header["error"] = list(error)
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([_PREFIX.pack(_MAGIC, len(text)), text, *(data for _, data in sections)]), error


def decode_record(data: bytes, out: np.ndarray | None = None) -> HiddenStates:
    """The scene of a record.

    Args:
      data: The record.
      out: (T, V) bfloat16 memory to write the states into; new memory unless given.

    Raises:
      RecordError: It is none, or not whole, or `out` has another shape.
    """
    header, sections = _parse(data)
    try:
        tokens, length = header["shape"][0], header["length"]
        if out is None:
            out = np.empty(header["shape"], ml_dtypes.bfloat16)
        elif list(out.shape) != header["shape"]:
            raise RecordError(f"states of shape {tuple(header['shape'])} where {out.shape} are expected")
        rows = out.view(np.uint16)
        first = tokens - length
        if header["padding"] == Padding.VECTOR:
            rows[:first] = np.frombuffer(sections["padding"], "<u2")
        kept = rows if header["padding"] == Padding.ROWS else rows[first:]
        if header["storage"] == Storage.INT8:
            decode_int8(Int8(sections["scales"], _plane(sections, "levels")), kept)
        else:
            coded = Lossless(sections["exponents"], _plane(sections, "high"), _plane(sections, "low"))
            decode_lossless(coded, kept)
        small = {name: _array(sections[name], shape) for name, shape in _SMALL.items() if name in sections}
        return HiddenStates(
            header["token"], header["log"], out, length, small["history"], small["status"], small.get("target")
        )
    except (KeyError, TypeError, IndexError, CodecError) as error:
        raise RecordError(f"it is damaged: {error!r}") from error


def token_of(data: bytes) -> str:
    """Token of a record, without decoding it; raises RecordError if it is none, or not whole."""
    return str(_parse(data)[0].get("token"))


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, memoryview]]:
    """Header and sections; the record is exactly as long as they say."""
    if len(data) < _PREFIX.size:
        raise RecordError(f"{len(data)} bytes are no record")
    magic, size = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise RecordError("it is no record of hidden states")
    try:
        header = json.loads(data[_PREFIX.size : _PREFIX.size + size])
        version = header["version"]
        lengths = [(str(name), int(length)) for name, length in header["sections"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"its header is damaged: {error!r}") from error
    if version != VERSION:
        raise RecordError(f"it has format {version!r}, this version reads {VERSION}")
    view, position, sections = memoryview(data), _PREFIX.size + size, {}
    for name, length in lengths:
        sections[name] = view[position : position + length]
        position += length
    if position != len(data) or any(length < 0 for _, length in lengths):
        raise RecordError(f"it has {len(data)} bytes instead of {position}")
    return header, sections


def _check(states: HiddenStates) -> None:
    tokens = states.tokens
    if tokens.ndim != 2 or tokens.dtype != ml_dtypes.bfloat16 or not 0 < tokens.size < _LARGEST:
        raise RecordError(
            f"scene {states.token}: hidden states are {tokens.dtype} {tokens.shape}; expected bfloat16 (T, V)"
        )
    if not 0 < states.length <= len(tokens):
        raise RecordError(f"scene {states.token}: {states.length} real rows of {len(tokens)}")
    for name, shape in _SMALL.items():
        array = getattr(states, name)
        if array is not None and (array.shape != shape or array.dtype != np.float32):
            raise RecordError(f"scene {states.token}: {name} is {array.dtype} {array.shape}; expected float32 {shape}")


def _padding(rows: np.ndarray) -> Padding:
    if not len(rows):
        return Padding.NONE
    return Padding.VECTOR if (rows == rows[0]).all() else Padding.ROWS


def _floats(array: np.ndarray) -> bytes:
    return array.astype("<f4").tobytes()


def _array(data: memoryview, shape: Sequence[int]) -> np.ndarray:
    values = np.frombuffer(data, "<f4")
    if values.size != np.prod(shape):
        raise CodecError(f"{values.size} numbers instead of {tuple(shape)}")
    return values.reshape(shape).astype(np.float32)


def _plane_sections(name: str, plane: Plane) -> list[tuple[str, bytes]]:
    return [(f"{name}_sizes", bytes(plane.sizes)), (name, bytes(plane.data))]


def _plane(sections: Mapping[str, memoryview], name: str) -> Plane:
    return Plane(sections[f"{name}_sizes"], sections[name])
