"""Reads pickles as data, without running anything they contain.

Numbers, strings, containers and arrays come out as what they are. An object of a class that the caller lists comes out
as a `Record` of what its pickle says; no such class is imported or needed. Anything else is refused, and named with
its file. Source: specification of the log format, section 6.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from recogdrive.data.pickle_machine import execute
from recogdrive.data.pickle_names import PLAIN_NAMES, Name, RefusedError, Unfinished

MAX_LOG_BYTES = 2**30
"""Published logs have some megabytes; a file beyond this is not one."""
_MAX_LOG_INSTRUCTIONS = 2**25
MAX_RECORD_INSTRUCTIONS = 2**24

_MAX_DEPTH = 64
_MAX_REPEATS = 8
_FREE_REPEATS = 2**16
_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})


class DataPickleError(ValueError):
    """A pickle that cannot be used; the message names the file."""


class ForbiddenPickleError(DataPickleError):
    """A pickle that asks for something beyond plain data."""


class CorruptPickleError(DataPickleError):
    """A pickle that ends early, does not parse or is too large."""


class RecordForm(StrEnum):
    """How the objects of a class are written."""

    CALL = "called with positional arguments"
    STATE = "given a dict of attributes"
    SLOTS = "given the values of its slots"
    CONTENT = "given its content as bytes"


class Record(Unfinished):
    """An object of a class that is not here: what its pickle says of it.

    Attributes:
      class_name: Module and name of its class, or of the function that makes it.
      args: Arguments, of form `CALL`, or the bytes alone, of form `CONTENT`; else empty.
      fields: Attributes by name, of the other forms; else empty. None while the object has not been given its state.
    """

    __slots__ = ("_form", "args", "class_name", "fields")

    def __init__(self, class_name: str, form: RecordForm, args: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.class_name = class_name
        self._form = form
        self.args = args
        self.fields: dict[str, Any] | None = {} if form is RecordForm.CALL else None

    def __repr__(self) -> str:
        return f"Record({self.class_name})"

    def build(self, state: Any) -> Any:
        """Takes the attributes; only once, and only in the form of its class."""
        if self._form is RecordForm.CONTENT and self.fields is None and type(state) is bytes:
            self.args, self.fields = (state,), {}
            return self
        if self._form is RecordForm.SLOTS:
            if type(state) is not tuple or len(state) != 2 or state[0] is not None:
                raise RefusedError(f"a {self.class_name} without the values of its slots")
            state = state[1]
        if self.fields is not None or type(state) is not dict or not {str}.issuperset(map(type, state)):
            raise RefusedError(f"a {self.class_name} that is not just {self._form}")
        self.fields = state
        return self


class _RecordName(Name):
    """Stands for a class of the caller's list."""

    __slots__ = ("_form",)

    def __init__(self, title: str, form: RecordForm) -> None:
        super().__init__(title)
        self._form = form

    def call(self, args: tuple[Any, ...]) -> Any:
        if self._form is RecordForm.CALL or (self._form is RecordForm.CONTENT and not args):
            return Record(self.title, self._form, args)
        return super().call(args)

    def new(self, args: tuple[Any, ...]) -> Any:
        if self._form in (RecordForm.STATE, RecordForm.SLOTS) and not args:
            return Record(self.title, self._form)
        return super().new(args)


def load_log_pickle(path: str | Path, max_bytes: int = MAX_LOG_BYTES) -> Any:
    """Loads a pickle of builtin containers, scalars and NumPy arrays of numbers or strings.

    Args:
      path: File to read.
      max_bytes: Largest file that is read.

    Raises:
      ForbiddenPickleError: It names a class, function or array type beyond those, or holds containers that contain
        themselves, are nested too deeply or repeat each other too often; nothing of it has run.
      CorruptPickleError: It ends early, does not parse, or is larger than `max_bytes`.
      OSError: It cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    return _load(data, str(path), PLAIN_NAMES, "a driving log", max_bytes, _MAX_LOG_INSTRUCTIONS)


def load_record_pickle(
    source: str | Path | bytes,
    records: Mapping[tuple[str, str], RecordForm],
    *,
    what: str,
    max_bytes: int,
    name: str = "",
    max_instructions: int = MAX_RECORD_INSTRUCTIONS,
) -> Any:
    """Loads what `load_log_pickle` loads, and objects of listed classes as `Record`.

    Args:
      source: File to read, or its content.
      records: (module, class or function) -> how its objects are written. What is not listed is refused.
      what: What the file should be, for messages ("a metric cache").
      max_bytes: Largest content that is read.
      name: The file's name for messages, where `source` is its content.
      max_instructions: Longest pickle; writers need about one instruction for 5 bytes.

    Raises:
      ForbiddenPickleError: See `load_log_pickle`; or an object of a listed class is written in another form.
      CorruptPickleError: It ends early, does not parse, or is larger than `max_bytes`.
      OSError: It cannot be read.
    """
    if isinstance(source, bytes):
        data = source
    else:
        name = name or str(source)
        with Path(source).open("rb") as file:
            data = file.read(max_bytes + 1)
    names: dict[tuple[str, str], Name] = {key: _RecordName(".".join(key), form) for key, form in records.items()}
    return _load(data, name, {**names, **PLAIN_NAMES}, what, max_bytes, max_instructions)


def load_pickle_content(
    data: bytes, name: str, names: Mapping[tuple[str, str], Name], *, what: str, max_bytes: int
) -> Any:
    """Loads what `load_log_pickle` loads, and what the given names stand for.

    Args:
      data: Content of the file.
      name: Of the file, for messages.
      names: (module, name) -> what it stands for; see `pickle_names`.
      what: What the file should be, for messages.
      max_bytes: Largest content that is read.

    Raises:
      ForbiddenPickleError: See `load_log_pickle`.
      CorruptPickleError: It ends early, does not parse, or is larger than `max_bytes`.
    """
    return _load(data, name, {**names, **PLAIN_NAMES}, what, max_bytes, MAX_RECORD_INSTRUCTIONS)


def _load(
    data: bytes, name: str, names: Mapping[tuple[str, str], Name], what: str, max_bytes: int, max_instructions: int
) -> Any:
    if len(data) > max_bytes:
        raise CorruptPickleError(f"{name} is larger than {max_bytes} bytes; it cannot be {what}. Check the download.")
    try:
        loaded = execute(data, names, max_instructions)
        items = _check(loaded, {}, 0)
        if items > _MAX_REPEATS * len(data) + _FREE_REPEATS:
            raise RefusedError(f"containers that repeat each other to {items} items")
    except RefusedError as refusal:
        raise ForbiddenPickleError(
            f"{name} contains {refusal}, which {what} has no use for; it was refused and nothing was run. "
            "If the file comes from a source you trust, convert it to plain lists, dicts and arrays first."
        ) from None
    except Exception as error:  # a broken stream can fail in any way: IndexError, KeyError, MemoryError ...
        raise CorruptPickleError(
            f"{name} ({len(data)} bytes) is not a readable pickle: {type(error).__name__}: {error}. "
            "It may be truncated; download it again."
        ) from error
    return loaded


def _check(value: Any, done: dict[int, int], depth: int) -> int:
    """Refuses whatever is not whole, plain data without cycles.

    Args:
      value: A container, a record or anything else.
      done: Identity of each container -> number of items in it, 0 while it is being looked at.
      depth: How deep in containers `value` is.

    Returns:
      How many items the value holds, those of shared containers as often as they are referred to.
    """
    if type(value) in _SCALARS or isinstance(value, np.ndarray | np.generic):
        return 1
    known = done.get(id(value))
    if known is not None:
        if known == 0:
            raise RefusedError(f"a {_title(value)} that contains itself")
        return known
    if depth > _MAX_DEPTH:
        raise RefusedError(f"containers nested deeper than {_MAX_DEPTH}")
    done[id(value)] = 0
    count = 1
    for items in _contents(value):
        for item in items:
            count += 1 if type(item) in _SCALARS else _check(item, done, depth + 1)
    done[id(value)] = count
    return count


def _contents(value: Any) -> tuple[Any, ...]:
    """What a container holds, as collections. Keys of dicts and elements of sets are scalars already."""
    kind = type(value)
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        return (value,)
    if kind is dict:
        return (value.values(),)
    if kind is Record:
        if value.fields is None:
            raise RefusedError(f"a {value.class_name} without its state")
        return value.args, value.fields.values()
    raise RefusedError("the mere name " + value.title if isinstance(value, Name) else f"an unfinished {_title(value)}")


def _title(value: Any) -> str:
    return value.class_name if isinstance(value, Record) else type(value).__name__.lstrip("_").lower()
