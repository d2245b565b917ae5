"""Reads pickles that hold torch tensors, without torch and without running anything they contain.

`pickle.dump` writes a tensor as a call of torch's `_rebuild_tensor_v2` on a storage, and the storage as the bytes of a
`torch.save` in its old format: five short pickles, a count, and the numbers. These pickles are looked at instruction by
instruction and never executed. Source: torch 2.13, `torch/storage.py` and `torch/serialization.py`.
"""

import io
import itertools
import math
import pickletools
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from recogdrive.data.pickle_names import Name, RefusedError, shorten
from recogdrive.data.safe_pickle import load_pickle_content

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES: Mapping[str, np.dtype] = MappingProxyType(
    {
        f"torch {kind}Storage": np.dtype(dtype)
        for kind, dtype in {
            "Float": "<f4",
            "Double": "<f8",
            "Half": "<f2",
            "BFloat16": ml_dtypes.bfloat16,
            "Long": "<i8",
            "Int": "<i4",
            "Byte": "u1",
            "Bool": "?",
        }.items()
    }
)
_LONGEST_HEADER = 64
"""Instructions of one of the short pickles; writers need about 35."""
_COUNT = struct.Struct("<q")
_SILENT = frozenset({"PROTO", "BINPUT", "MARK", "EMPTY_DICT", "EMPTY_LIST", "SETITEMS", "APPEND", "TUPLE", "STOP"})
_VALUES = frozenset({"LONG1", "BININT", "BININT1", "BININT2", "BINUNICODE", "GLOBAL"})
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "BINPERSID": "persistent id"}


def load_tensor_pickle(data: bytes, name: str, *, what: str, max_bytes: int) -> Any:
    """Loads a pickle of builtin containers, numbers, arrays and torch tensors, which come out as NumPy arrays.

    Args:
      data: Content of the file.
      name: Of the file, for messages.
      what: What the file should be, for messages.
      max_bytes: Largest content that is read.

    Raises:
      ForbiddenPickleError: It asks for anything else; nothing of it has run.
      CorruptPickleError: It ends early, does not parse, or is larger than `max_bytes`.
    """
    return load_pickle_content(data, name, _NAMES, what=what, max_bytes=max_bytes)


class _Function(Name):
    """A function of this file."""

    __slots__ = ("_function",)

    def __init__(self, title: str, function: Callable[..., Any]) -> None:
        super().__init__(title)
        self._function = function

    def call(self, args: tuple[Any, ...]) -> Any:
        return self._function(*args)


def _storage(data: Any) -> np.ndarray:
    """The numbers of a storage, (n,)."""
    if type(data) is not bytes:
        raise RefusedError("a torch storage that is not made of bytes")
    stream = io.BytesIO(data)
    magic, protocol, system, described, keys = (_literals(stream) for _ in range(5))
    if magic != [_MAGIC] or protocol != [_PROTOCOL]:
        raise RefusedError("a torch storage in an unknown format")
    if "little_endian" not in system or system[system.index("little_endian") + 1 :][:1] != [True]:
        raise RefusedError("a torch storage that is not little-endian")
    if len(described) != 7 or described[0] != "storage" or described[-2:] != [None, "persistent id"]:
        raise RefusedError("a torch storage described in an unknown way")
    kind, key, _, count = described[1:5]
    if kind not in _STORAGES:
        raise RefusedError(shorten(f"a torch storage of kind {kind}"))
    if keys != [key] or type(count) is not int or count < 0:
        raise RefusedError("a torch storage whose parts do not fit together")
    dtype, start = _STORAGES[kind], stream.tell() + _COUNT.size
    stored = _COUNT.unpack_from(data, start - _COUNT.size)[0]
    if stored != count or len(data) - start != count * dtype.itemsize:
        raise RefusedError(f"a torch storage of {count} numbers with {len(data) - start} bytes")
    return np.frombuffer(data, dtype, count, start)


def _literals(stream: io.BytesIO) -> list[Any]:
    """Values that a short pickle holds, in order; it is not executed."""
    found: list[Any] = []
    for code, value, _ in itertools.islice(pickletools.genops(stream), _LONGEST_HEADER):
        if code.name in _VALUES:
            found.append(value)
        elif code.name in _CONSTANTS:
            found.append(_CONSTANTS[code.name])
        elif code.name not in _SILENT:
            raise RefusedError(f"the instruction {code.name} in a torch storage")
        if code.name == "STOP":
            return found
    raise RefusedError("a torch storage whose description does not end")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> np.ndarray:
    """A tensor as an array of its own, within its storage."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or type(offset) is not int or hooks != {}:
        raise RefusedError("a torch tensor built in an unknown way")
    numbers = (*size, *stride) if type(size) is tuple and type(stride) is tuple else (None,)
    if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in numbers) or offset < 0:
        raise RefusedError("a torch tensor whose shape is no tuple of sizes")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else offset
    if count > len(storage) or (count and last >= len(storage)):
        raise RefusedError(shorten(f"a torch tensor of shape {size} in a storage of {len(storage)} numbers"))
    if not count:
        return np.zeros(size, storage.dtype)
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False).copy()


def _empty_dict(*args: Any) -> dict[str, Any]:
    if args:
        raise RefusedError("an OrderedDict with items")
    return {}


_NAMES: Mapping[tuple[str, str], Name] = MappingProxyType(
    {
        ("torch._utils", "_rebuild_tensor_v2"): _Function("torch._utils._rebuild_tensor_v2", _tensor),
        ("torch.storage", "_load_from_bytes"): _Function("torch.storage._load_from_bytes", _storage),
        ("collections", "OrderedDict"): _Function("collections.OrderedDict", _empty_dict),
    }
)
