"""Instructions of a pickle that make numbers, texts and containers. Source: Python's `pickletools`."""

import struct
from collections.abc import Callable
from typing import Any

from recogdrive.data.pickle_names import KEYS, RefusedError, hashable

Instruction = Callable[[int], int]
"""Takes the position after its own byte, returns that of the next instruction."""

MAX_NUMBER_TEXT = 64
_MAX_INTEGER_BYTES = 9
"""An unsigned 64-bit integer needs 9; longer ones have slow arithmetic and text, and data has no use for them."""


def line(data: bytes, position: int, longest: int | None = None) -> tuple[bytes, int]:
    """Text up to the end of the line, and the position behind it."""
    end = data.index(b"\n", position)
    if longest is not None and end - position > longest:
        raise RefusedError(f"a number of {end - position} characters")
    return data[position:end], end + 1


def numbers(data: bytes, push: Callable[[Any], None]) -> dict[bytes, Instruction]:
    """None, booleans, integers and floating-point numbers."""
    float64 = struct.Struct(">d")
    int32 = struct.Struct("<i")

    def constant(value: Any) -> Instruction:
        def run(position: int) -> int:
            push(value)
            return position

        return run

    def binint(position: int) -> int:
        push(int32.unpack_from(data, position)[0])
        return position + 4

    def binint2(position: int) -> int:
        push(data[position] | data[position + 1] << 8)
        return position + 2

    def long1(position: int) -> int:
        length = data[position]
        if length > _MAX_INTEGER_BYTES:
            raise RefusedError(f"an integer of {length} bytes")
        push(int.from_bytes(data[position + 1 : position + 1 + length], "little", signed=True))
        return position + 1 + length

    def long4(position: int) -> int:
        length = int32.unpack_from(data, position)[0]
        raise RefusedError(f"an integer of {length} bytes")

    def integer_text(position: int) -> int:
        text, position = line(data, position, MAX_NUMBER_TEXT)
        push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else _integer(text))
        return position

    def long_text(position: int) -> int:
        text, position = line(data, position, MAX_NUMBER_TEXT)
        push(_integer(text.removesuffix(b"L")))
        return position

    def float_text(position: int) -> int:
        text, position = line(data, position, MAX_NUMBER_TEXT)
        push(float(text))
        return position

    def binfloat(position: int) -> int:
        push(float64.unpack_from(data, position)[0])
        return position + 8

    return {
        b"N": constant(None),
        b"\x88": constant(True),
        b"\x89": constant(False),
        b"J": binint,
        b"M": binint2,
        b"\x8a": long1,
        b"\x8b": long4,
        b"I": integer_text,
        b"L": long_text,
        b"F": float_text,
        b"G": binfloat,
    }


def _integer(text: bytes) -> int:
    value = int(text)
    if value.bit_length() > 8 * _MAX_INTEGER_BYTES - 1:
        raise RefusedError(f"an integer of {value.bit_length()} bits")
    return value


def texts(data: bytes, push: Callable[[Any], None]) -> dict[bytes, Instruction]:
    """Strings and bytes. Python slices end with the data, so that a length beyond it reserves no memory."""

    def counted(size: int, convert: Callable[[bytes], Any]) -> Instruction:
        def run(position: int) -> int:
            start = position + size
            end = start + int.from_bytes(data[position:start], "little")
            push(convert(data[start:end]))
            return end

        return run

    def line_text(position: int) -> int:
        text, position = line(data, position)
        decoded = text.decode("raw_unicode_escape")
        decoded.encode()  # Refuses halves of surrogate pairs, as `bytes.decode` does.
        push(decoded)
        return position

    return {
        b"V": line_text,
        b"X": counted(4, bytes.decode),
        b"\x8d": counted(8, bytes.decode),
        b"C": counted(1, bytes),
        b"B": counted(4, bytes),
        b"\x8e": counted(8, bytes),
        b"\x96": counted(8, bytearray),
    }


def containers(stack: list[Any]) -> dict[bytes, Instruction]:
    """Lists, tuples, dicts and sets."""
    push, pop = stack.append, stack.pop
    marks: list[int] = []

    def mark(position: int) -> int:
        marks.append(len(stack))
        return position

    def marked() -> list[Any]:
        height = marks.pop()
        if height > len(stack):
            raise ValueError("the stack is shorter than its mark")
        items = stack[height:]
        del stack[height:]
        return items

    def pushing(make: Callable[[], Any]) -> Instruction:
        def run(position: int) -> int:
            push(make())
            return position

        return run

    def tuple1(position: int) -> int:
        stack[-1] = (stack[-1],)
        return position

    def tuple2(position: int) -> int:
        last = pop()
        stack[-1] = (stack[-1], last)
        return position

    def tuple3(position: int) -> int:
        last, middle = pop(), pop()
        stack[-1] = (stack[-1], middle, last)
        return position

    def append(position: int) -> int:
        item = pop()
        _expect(stack[-1], list).append(item)
        return position

    def appends(position: int) -> int:
        items = marked()
        _expect(stack[-1], list).extend(items)
        return position

    def setitem(position: int) -> int:
        value, key = pop(), pop()
        _fill(_expect(stack[-1], dict), [key, value])
        return position

    def setitems(position: int) -> int:
        items = marked()
        _fill(_expect(stack[-1], dict), items)
        return position

    def additems(position: int) -> int:
        items = marked()
        _expect(stack[-1], set).update(hashable(items))
        return position

    return {
        b"(": mark,
        b")": pushing(tuple),
        b"]": pushing(list),
        b"}": pushing(dict),
        b"\x8f": pushing(set),
        b"l": pushing(marked),
        b"t": pushing(lambda: tuple(marked())),
        b"d": pushing(lambda: _fill({}, marked())),
        b"\x91": pushing(lambda: frozenset(hashable(marked()))),
        b"\x85": tuple1,
        b"\x86": tuple2,
        b"\x87": tuple3,
        b"a": append,
        b"e": appends,
        b"s": setitem,
        b"u": setitems,
        b"\x90": additems,
    }


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise RefusedError(f"a {kind.__name__}'s items put into a value of type {type(value).__name__}")
    return value


def _fill(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    keys = items[::2]
    for key in keys:
        if type(key) not in KEYS:
            raise RefusedError(f"a dict with a {type(key).__name__} as its key")
    target.update(zip(keys, items[1::2], strict=True))
    return target
