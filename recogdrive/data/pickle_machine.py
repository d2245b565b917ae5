"""Executes the instructions of a pickle that describe data, and none that could do more.

Python's own unpickler, whatever its `find_class` refuses, still reserves memory for any size a stream names, hashes
whatever it makes a key and changes attributes of what it finds. This one knows the few instructions that writers of
plain data use; names resolve through the caller's table, and what they give is called by this package's code alone.
Work and memory are proportional to the length of the stream. Source: Python's `pickletools`, which defines the format.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from recogdrive.data.pickle_instructions import MAX_NUMBER_TEXT, Instruction, containers, line, numbers, texts
from recogdrive.data.pickle_names import Name, RefusedError, Unfinished, shorten

_MAX_PROTOCOL = 5
_STOP, _MEMOIZE, _GET, _SHORT_TEXT, _SMALL = b".\x94h\x8cK"
_SPEND = 4
"""Bytes of arrays and elements of sets that a stream may make for each of its own bytes; a writer needs two."""
_SPEND_BASE = 2**16

Names = Mapping[tuple[str, str], Name]


def execute(data: bytes, names: Names, max_instructions: int) -> Any:
    """Runs a pickle and returns the object it describes.

    Args:
      data: The pickle.
      names: (module, name) -> what it stands for. Any other name is refused.
      max_instructions: Longest run.

    Raises:
      RefusedError: It asks for a name that is not listed, for an instruction that data has no use for, or for more
        memory than its length justifies.
      Exception: It is no pickle, or ends early; of any type.
    """
    stack: list[Any] = []
    memo: list[Any] = []
    table = [_refusing(code) for code in range(256)]
    for instructions in (
        numbers(data, stack.append),
        texts(data, stack.append),
        containers(stack),
        _memory(data, stack, memo),
        _objects(data, stack, memo, names),
    ):
        for code, instruction in instructions.items():
            table[code[0]] = instruction
    position = 0
    push, remember = stack.append, memo.append
    for _ in range(max_instructions):
        code = data[position]
        # Half of all instructions are one of these.
        if code == _MEMOIZE:
            remember(stack[-1])
            position += 1
        elif code == _GET:
            push(memo[data[position + 1]])
            position += 2
        elif code == _SHORT_TEXT:
            end = position + 2 + data[position + 1]
            push(data[position + 2 : end].decode())
            position = end
        elif code == _SMALL:
            push(data[position + 1])
            position += 2
        elif code == _STOP:
            if len(stack) != 1:
                raise ValueError(f"{len(stack)} objects are left where there should be one")
            return stack[0]
        else:
            position = table[code](position + 1)
    raise RefusedError(f"more than {max_instructions} instructions")


_FORBIDDEN = {
    b"P": "a persistent id",
    b"Q": "a persistent id",
    b"i": "the instruction INST",
    b"o": "the instruction OBJ",
    b"\x92": "the instruction NEWOBJ_EX",
    b"\x82": "a class by its number",
    b"\x83": "a class by its number",
    b"\x84": "a class by its number",
    b"\x97": "a buffer outside of the file",
    b"\x98": "a buffer outside of the file",
    b"0": "the instruction POP",
    b"1": "the instruction POP_MARK",
    b"2": "the instruction DUP",
    b"S": "text of Python 2",
    b"T": "text of Python 2",
    b"U": "text of Python 2",
}


def _refusing(code: int) -> Instruction:
    """Stands for an instruction that is not executed."""

    def refuse(position: int) -> NoReturn:
        forbidden = _FORBIDDEN.get(bytes([code]))
        if forbidden is None:
            raise ValueError(f"byte {code:#04x} is no instruction")
        raise RefusedError(forbidden)

    return refuse


def _memory(data: bytes, stack: list[Any], memo: list[Any]) -> dict[bytes, Instruction]:
    """Remembers objects under numbers and fetches them again. Marks of protocol and frame do nothing."""
    push = stack.append

    def get4(position: int) -> int:
        push(memo[int.from_bytes(data[position : position + 4], "little")])
        return position + 4

    def get_text(position: int) -> int:
        text, position = line(data, position, MAX_NUMBER_TEXT)
        push(memo[_place(text)])
        return position

    def put(place: int) -> None:
        # Writers number objects in the order in which they remember them.
        if place > len(memo):
            raise ValueError(f"object {len(memo)} is remembered as number {place}")
        memo[place : place + 1] = stack[-1:]

    def put1(position: int) -> int:
        put(data[position])
        return position + 1

    def put4(position: int) -> int:
        put(int.from_bytes(data[position : position + 4], "little"))
        return position + 4

    def put_text(position: int) -> int:
        text, position = line(data, position, MAX_NUMBER_TEXT)
        put(_place(text))
        return position

    def protocol(position: int) -> int:
        if data[position] > _MAX_PROTOCOL:
            raise ValueError(f"protocol {data[position]} is unknown")
        return position + 1

    return {
        b"j": get4,
        b"g": get_text,
        b"q": put1,
        b"r": put4,
        b"p": put_text,
        b"\x80": protocol,
        b"\x95": lambda position: position + 8,
    }


def _place(text: bytes) -> int:
    place = int(text)
    if place < 0:
        raise ValueError(f"{place} is no number of an object")
    return place


def _objects(data: bytes, stack: list[Any], memo: list[Any], names: Names) -> dict[bytes, Instruction]:
    """Names, calls, and states of objects."""
    pop = stack.pop
    # Copying a remembered buffer takes a few bytes of the stream, however large it is.
    left = _SPEND * len(data) + _SPEND_BASE

    def spend(value: Any) -> Any:
        nonlocal left
        if isinstance(value, Unfinished):
            value.place = len(memo)
        elif isinstance(value, np.ndarray):
            left -= value.nbytes
        elif type(value) in (bytes, bytearray, set, frozenset):
            left -= len(value)
        if left < 0:
            raise RefusedError("more memory than its length accounts for")
        return value

    def resolve(module: Any, name: Any) -> Name:
        found = names.get((module, name)) if type(module) is str and type(name) is str else None
        if found is None:
            raise RefusedError(shorten(f"{module}.{name}" if isinstance(module, str) else "a name that is no text"))
        return found

    def global_(position: int) -> int:
        module, position = line(data, position)
        name, position = line(data, position)
        stack.append(resolve(module.decode(), name.decode()))
        return position

    def stack_global(position: int) -> int:
        name, module = pop(), pop()
        stack.append(resolve(module, name))
        return position

    def named(args: Any) -> Name:
        if not isinstance(stack[-1], Name):
            raise RefusedError(f"a call of a value of type {type(stack[-1]).__name__}")
        if type(args) is not tuple:
            raise RefusedError(f"a call of {stack[-1].title} without a tuple of arguments")
        return stack[-1]

    def reduce(position: int) -> int:
        args = pop()
        stack[-1] = spend(named(args).call(args))
        return position

    def newobj(position: int) -> int:
        args = pop()
        stack[-1] = spend(named(args).new(args))
        return position

    def build(position: int) -> int:
        state = pop()
        target = stack[-1]
        if not isinstance(target, Unfinished):
            raise RefusedError(f"a change of {target.title if isinstance(target, Name) else type(target).__name__}")
        value = target.build(state)
        if value is not target:
            stack[-1] = spend(value)
            if target.place < len(memo) and memo[target.place] is target:
                memo[target.place] = value
        return position

    return {b"c": global_, b"\x93": stack_global, b"R": reduce, b"\x81": newobj, b"b": build}
