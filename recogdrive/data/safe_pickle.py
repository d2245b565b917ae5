"""Reads log pickles without running anything they contain.

Only the names of `_ALLOWED` resolve, and none of them to the real thing: each is a wrapper of this file that checks
its arguments, so a hostile pickle can neither call foreign code nor reach NumPy's own `__setstate__`, which trusts
sizes and flags. What comes out are builtin containers, scalars and plain arrays. Source: specification of the log
format, section 6.1.
"""

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

MAX_LOG_BYTES = 2**30
"""Published logs have some megabytes; a file beyond this is not one."""
_MAX_DEPTH = 64
_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})
_ARRAY_KINDS = "biufcSU"
"""Booleans, numbers and fixed-width strings: no objects, records or dates."""


class LogPickleError(ValueError):
    """A log pickle that cannot be used; the message names the file."""


class ForbiddenPickleError(LogPickleError):
    """A pickle that asks for something beyond plain data."""


class CorruptPickleError(LogPickleError):
    """A pickle that ends early or does not parse."""


class _RefusedError(Exception):
    """What was refused, raised inside the unpickler and completed with the file's name outside."""


class _Constructor:
    """A callable with nothing on it that a BUILD instruction could change."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., Any]):
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_make", make)

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _RefusedError(f"an assignment to {self._name}.{name}")

    def __setstate__(self, state: Any) -> NoReturn:
        raise _RefusedError(f"a change of {self._name}")


class _Dtype:
    """Stands for a `numpy.dtype` while unpickling; takes its state without NumPy's `__setstate__`."""

    __slots__ = ("dtype",)

    def __init__(self, spec: str):
        if not isinstance(spec, str):
            raise _RefusedError(f"an array type described by {type(spec).__name__}")
        try:
            dtype = np.dtype(spec)
        except TypeError as error:
            raise _RefusedError(f"the array type {spec!r}") from error
        if dtype.kind not in _ARRAY_KINDS or dtype.names is not None or dtype.subdtype is not None:
            raise _RefusedError(f"an array of type {spec!r} (only numbers, booleans and strings are allowed)")
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", ">", "|", "=")):
            raise _RefusedError("an array type in an unknown form")
        if any(part is not None for part in state[2:5]):
            raise _RefusedError("an array type with fields")
        # Item size, alignment and flags of the state are what the type's name already says; they are not believed.
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array in the making, between `_reconstruct` and its state; `_plain` turns it into a plain one."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise _RefusedError("an array state in an unknown form")
        _, shape, dtype, fortran, data = state
        _check_content(data, dtype, shape)
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), bytes(data)))


def _check_content(data: Any, dtype: Any, shape: Any) -> None:
    """Refuses bytes, type and shape that do not agree with each other."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise _RefusedError("an array whose content is not bytes of a simple type")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _RefusedError(f"an array of shape {shape!r}")
    size = math.prod(shape) * dtype.dtype.itemsize
    if size != len(data):
        raise _RefusedError(
            f"an array of shape {shape} and type {dtype.dtype} with {len(data)} bytes instead of {size}"
        )


def _filled(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """The bytes as a read-only array in C order."""
    _check_content(data, dtype, shape)
    if dtype.dtype.itemsize == 0:
        return np.zeros(shape, dtype.dtype)
    return np.frombuffer(bytes(data), dtype=dtype.dtype).reshape(shape)


def _make_dtype(spec: Any = None, align: Any = False, copy: Any = False) -> _Dtype:
    return _Dtype(spec)


def _make_array(subtype: Any, shape: Any, kind: Any) -> _Array:
    if subtype is not _NDARRAY or shape != (0,) or kind not in (b"b", "b"):
        raise _RefusedError("an array built in an unknown way")
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _make_scalar(dtype: Any, data: Any = b"") -> np.generic:
    return _filled(data, dtype, ())[()]


def _make_from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if order not in ("C", "F"):
        raise _RefusedError(f"an array in order {order!r}")
    # Fortran bytes are those of the transposed array in C order.
    array = _filled(buffer, dtype, tuple(reversed(shape)) if order == "F" and isinstance(shape, tuple) else shape)
    return (array.T if order == "F" else array).copy(order=order)


def _make_encoded(text: Any, encoding: Any = None) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"_codecs.encode with encoding {encoding!r}")
    return text.encode("latin1")


def _make_bytes(kind: type) -> Callable[..., Any]:
    def make(*args: Any) -> Any:
        # A number here would reserve that much memory.
        if args and isinstance(args[0], str):
            return kind(_make_encoded(*args))
        if len(args) > 1 or (args and not isinstance(args[0], bytes | bytearray)):
            raise _RefusedError(f"{kind.__name__} of something other than bytes")
        return kind(*args)

    return make


def _make_from(kind: type, *argument_types: type) -> Callable[..., Any]:
    def make(*args: Any) -> Any:
        if not all(isinstance(argument, argument_types) for argument in args):
            raise _RefusedError(f"{kind.__name__} of {', '.join(type(a).__name__ for a in args)}")
        return kind(*args)

    return make


_NDARRAY = object()
"""Stands for the class `numpy.ndarray`, which pickles only name and never call."""


def _allowed() -> dict[tuple[str, str], Any]:
    containers = (list, tuple, set, frozenset, dict)
    makers = {kind.__name__: _make_from(kind, *containers) for kind in containers}
    makers |= {kind.__name__: _make_from(kind, bool, int, float) for kind in (bool, int, float, complex)}
    makers |= {"str": _make_from(str, str), "bytes": _make_bytes(bytes), "bytearray": _make_bytes(bytearray)}
    table: dict[tuple[str, str], Any] = {
        (module, name): make for module in ("builtins", "__builtin__") for name, make in makers.items()
    }
    table["numpy", "dtype"] = _make_dtype
    table["_codecs", "encode"] = _make_encoded
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = _make_array
        table[f"{core}.multiarray", "scalar"] = _make_scalar
        table[f"{core}.numeric", "_frombuffer"] = _make_from_buffer
    allowed = {key: _Constructor(".".join(key), make) for key, make in table.items()}
    return {**allowed, ("numpy", "ndarray"): _NDARRAY}


_ALLOWED = MappingProxyType(_allowed())


class _LogUnpickler(pickle.Unpickler):
    """Resolves the names of `_ALLOWED` and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _RefusedError("a persistent id")


def _plain(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """Replaces arrays in the making by plain ones, in place; refuses whatever is not plain data."""
    if type(value) in _SCALARS or isinstance(value, np.generic):
        return value
    if depth > _MAX_DEPTH:
        raise _RefusedError(f"containers nested deeper than {_MAX_DEPTH}")
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, np.ndarray):
        done[id(value)] = value.view(np.ndarray)
    elif isinstance(value, list):
        done[id(value)] = value
        value[:] = [item if type(item) in _SCALARS else _plain(item, done, depth + 1) for item in value]
    elif isinstance(value, dict):
        done[id(value)] = value
        for key, item in value.items():
            if type(item) not in _SCALARS:
                value[key] = _plain(item, done, depth + 1)
    elif isinstance(value, tuple):
        done[id(value)] = tuple([_plain(item, done, depth + 1) for item in value])
    elif isinstance(value, set | frozenset):
        done[id(value)] = value
        if not all(isinstance(item, bool | int | float | str | bytes) for item in value):
            raise _RefusedError("a set of something other than scalars")
    else:
        raise _RefusedError(f"a value of type {type(value).__name__}")
    return done[id(value)]


def load_log_pickle(path: str | Path, max_bytes: int = MAX_LOG_BYTES) -> Any:
    """Loads a pickle of builtin containers, scalars and NumPy arrays of numbers or strings.

    Args:
      path: File to read.
      max_bytes: Largest file that is read.

    Raises:
      ForbiddenPickleError: It names a class, function or array type beyond those; nothing of it has run.
      CorruptPickleError: It ends early, does not parse, or is larger than `max_bytes`.
      OSError: It cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise CorruptPickleError(f"{path} is larger than {max_bytes} bytes; it cannot be a log. Check the download.")
    unpickler = _LogUnpickler(io.BytesIO(data))
    try:
        # The originals must stay alive while `_plain` tells them apart by id.
        loaded = unpickler.load()
        return _plain(loaded, {})
    except _RefusedError as refusal:
        raise ForbiddenPickleError(
            f"{path} contains {refusal}, which a driving log has no use for; it was refused and nothing was run. "
            "If the file comes from a source you trust, convert it to plain lists, dicts and arrays first."
        ) from None
    except Exception as error:  # a broken stream can fail in any way: EOFError, KeyError, MemoryError ...
        raise CorruptPickleError(
            f"{path} ({len(data)} bytes) is not a readable pickle: {type(error).__name__}: {error}. "
            "It may be truncated; download it again."
        ) from error
