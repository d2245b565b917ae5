"""What the names in a pickle stand for: nothing real, only functions of this file that check what they are given.

Source: the reduce forms of Python's builtins and of NumPy.
"""

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

KEYS = frozenset({type(None), bool, int, float, str, bytes})
"""What may be hashed: the hash of a tuple of shared tuples takes time exponential in its depth."""
_MAX_NAME = 200
_DTYPE = re.compile(r"[<>|=]?(\?|[biufc][1-9][0-9]?|[SU][0-9]{1,9})")
"""Booleans, numbers and fixed-width strings: no objects, records or dates."""
_LARGEST_CHARACTER = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)


class RefusedError(Exception):
    """Something that no plain data needs; says what it is. Whoever knows the file completes the message."""


class Name:
    """What the name of a class or function stands for. Nothing of the pickle's choosing can change it."""

    __slots__ = ("title",)

    def __init__(self, title: str) -> None:
        self.title = title

    def call(self, args: tuple[Any, ...]) -> Any:
        """What the function returns, or the object that the class makes of these arguments."""
        raise RefusedError(f"a call of {self.title}")

    def new(self, args: tuple[Any, ...]) -> Any:
        """An object of the class, without its state."""
        raise RefusedError(f"an object of {self.title}")


class Unfinished:
    """An object that a later instruction may give its state.

    Attributes:
      place: Number under which the stream remembers the object, where it does so at once, as writers do.
    """

    __slots__ = ("place",)

    def __init__(self) -> None:
        self.place = -1

    def build(self, state: Any) -> Any:
        """Takes the state; returns the object, or what takes its place from now on."""
        raise NotImplementedError


def shorten(text: str) -> str:
    """Text of a file as messages show it: printable and of limited length."""
    shown = text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}..."
    return shown if shown.isprintable() else ascii(shown)


def hashable(items: list[Any] | tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
    """Elements of a set; raises RefusedError unless all are scalars."""
    if not all(type(item) in KEYS for item in items):
        raise RefusedError("a set of something other than scalars")
    return items


class _Function(Name):
    """A function of this file."""

    __slots__ = ("_function",)

    def __init__(self, title: str, function: Callable[..., Any]) -> None:
        super().__init__(title)
        self._function = function

    def call(self, args: tuple[Any, ...]) -> Any:
        return self._function(*args)


class _Dtype(Unfinished):
    """A type of arrays; takes its state without NumPy's `__setstate__`, which trusts sizes and flags."""

    __slots__ = ("dtype",)

    def __init__(self, spec: Any, align: Any = False, copy: Any = False) -> None:
        super().__init__()
        if not isinstance(spec, str):
            raise RefusedError(f"an array type described by {type(spec).__name__}")
        if not _DTYPE.fullmatch(spec):
            raise RefusedError(f"an array of type {shorten(spec)!r} (only numbers, booleans and strings are allowed)")
        self.dtype = np.dtype(spec)

    def build(self, state: Any) -> Any:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", ">", "|", "=")):
            raise RefusedError("an array type in an unknown form")
        if any(part is not None for part in state[2:5]):
            raise RefusedError("an array type with fields")
        # Item size, alignment and flags of the state are what the type's name already says; they are not believed.
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])
        return self


class _Array(Unfinished):
    """An array without its content."""

    __slots__ = ()

    def __init__(self, subtype: Any, shape: Any, kind: Any) -> None:
        super().__init__()
        if subtype is not _NDARRAY or shape != (0,) or kind not in (b"b", "b"):
            raise RefusedError("an array built in an unknown way")

    def build(self, state: Any) -> Any:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise RefusedError("an array state in an unknown form")
        _, shape, dtype, fortran, data = state
        array = _filled(data, dtype, shape, "F" if fortran is True else "C")
        # As NumPy's own `__setstate__` does.
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _filled(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """The bytes as an array; refuses bytes, type and shape that do not agree with each other."""
    if type(dtype) is not _Dtype or type(data) not in (bytes, bytearray):
        raise RefusedError("an array whose content is not bytes of a simple type")
    if type(shape) is not tuple or not {int}.issuperset(map(type, shape)) or (shape and min(shape) < 0):
        raise RefusedError("an array whose shape is no tuple of sizes")
    dtype = dtype.dtype
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size != len(data) or (dtype.itemsize == 0 and count > 1):
        raise RefusedError(
            shorten(f"an array of shape {shape} and type {dtype} with {len(data)} bytes instead of {size}")
        )
    if size == 0:
        return np.zeros(shape, dtype, order)
    if dtype.kind == "U":
        _check_characters(np.frombuffer(data, dtype=np.dtype("u4").newbyteorder(dtype.byteorder)))
    return np.ndarray(shape, dtype, data, order=order).copy(order)


def _check_characters(codes: np.ndarray) -> None:
    low, high = _SURROGATES
    if codes.max() >= low and (((codes >= low) & (codes <= high)) | (codes > _LARGEST_CHARACTER)).any():
        raise RefusedError("an array of strings with numbers that are no characters")


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _filled(data, dtype, (), "C")[()]


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if order not in ("C", "F"):
        raise RefusedError("an array in an unknown order")
    return _filled(buffer, dtype, shape, order)


def _encoded(text: Any, encoding: Any = None) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(shorten(f"_codecs.encode with encoding {encoding if isinstance(encoding, str) else None!r}"))
    return text.encode("latin1")


def _bytes(kind: type) -> Callable[..., Any]:
    def make(*args: Any) -> Any:
        # A number here would reserve that much memory.
        if args and isinstance(args[0], str):
            return kind(_encoded(*args))
        if len(args) > 1 or (args and not isinstance(args[0], bytes | bytearray)):
            raise RefusedError(f"{kind.__name__} of something other than bytes")
        return kind(*args)

    return make


def _set(kind: type) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        if not isinstance(items, list | tuple):
            raise RefusedError(f"{kind.__name__} of a {type(items).__name__}")
        return kind(hashable(items))

    return make


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise RefusedError("complex of something other than two numbers")
    return complex(real, imaginary)


_NDARRAY = Name("numpy.ndarray")
"""The class is only named in pickles, never called."""


def _plain_names() -> dict[tuple[str, str], Name]:
    functions: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encoded,
    }
    for module in ("builtins", "__builtin__"):
        functions |= {(module, kind.__name__): _bytes(kind) for kind in (bytes, bytearray)}
        functions |= {(module, kind.__name__): _set(kind) for kind in (set, frozenset)}
        functions[module, "complex"] = _complex
    for core in ("numpy.core", "numpy._core"):
        functions[f"{core}.multiarray", "_reconstruct"] = _Array
        functions[f"{core}.multiarray", "scalar"] = _scalar
        functions[f"{core}.numeric", "_frombuffer"] = _from_buffer
    names: dict[tuple[str, str], Name] = {key: _Function(".".join(key), f) for key, f in functions.items()}
    return {**names, ("numpy", "ndarray"): _NDARRAY}


PLAIN_NAMES: Mapping[tuple[str, str], Name] = MappingProxyType(_plain_names())
"""(module, name) -> what it stands for, for numbers, bytes, sets and arrays of numbers or strings."""
