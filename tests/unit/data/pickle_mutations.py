"""Seeded damage to pickles: of their bytes, of their instructions, and of the values in them."""

import decimal
import enum
import os
import pathlib
import pickle
import pickletools
import struct

import numpy as np

MODULES = ("os", "posix", "builtins", "__builtin__", "subprocess", "numpy", "shapely", "nuplan.common.maps", "sys", "")
NAMES = ("system", "eval", "exec", "getattr", "load", "Popen", "__class__", "dtype.__init__", "modules", "a.b.c", "")


def text(value):
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def calls(canary):
    """Instructions that create the file `canary` where they are executed."""
    command = text(f"touch {canary}")
    system = b"cos\nsystem\n"
    return (
        system + command + b"\x85R",
        text("os") + text("system") + b"\x93" + command + b"\x85R",
        b"c__builtin__\neval\n" + text(f"open({str(canary)!r}, 'w')") + b"\x85R",
        b"cbuiltins\ngetattr\ncos\npath\n" + text("os") + b"\x86R" + b"0" + system + command + b"\x85R",
        b"(" + command + b"ios\nsystem\n",
        b"(" + system + command + b"o",
    )


def hostile(canary):
    """Instructions that call something, reserve much memory, change what they find or are none."""
    system = b"cos\nsystem\n"
    arguments = text(f"touch {canary}") + b"\x85"
    return (
        *calls(canary),
        system + arguments + b"\x81",
        system + arguments + b"}\x92",
        b"\x82\x01",
        b"\x84\xff\xff\xff\x7f",
        b"Pid\n",
        b"K\x01Q",
        b"\x97",
        b"}" + text("__setstate__") + system + b"sb",
        b"cnumpy\ndtype\n}" + text("call") + system + b"sb",
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R",
        b"2\x86" * 40,
        b"(2t" * 30,
        b"}2\x86N" * 25 + b"s",
        b"0",
        b"1",
        b"]" * 5000,
        b"(" * 5000,
        b"r\xff\xff\xff\x7f",
        b"q\xff",
        b"p99999999999\n",
        b"j\xff\xff\xff\x7f",
        b"B\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x00",
        b"\x8d\x00\x00\x00\x00\x01\x00\x00\x00",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\xff",
        b"\x8a\xff" + b"\x7f" * 255,
        b"I" + b"9" * 5000 + b"\n",
        b"L" + b"9" * 60 + b"L\n",
        b"F" + b"9" * 400 + b"\n",
        b"Vx\\ud800\n",
        b"\x8c\x03\xed\xa0\x80",
        b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
        b"\x80\x09",
        b".",
    )


def damage_bytes(random, data):
    """Flips, inserts, removes, repeats or cuts off bytes."""
    data = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        kind, place = random.integers(6), int(random.integers(len(data))) if data else 0
        length = int(random.integers(1, 40))
        if kind == 0 and data:
            data[place] ^= 1 << int(random.integers(8))
        elif kind == 1 and data:
            data[place] = int(random.integers(256))
        elif kind == 2:
            data[place:place] = random.bytes(length)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        else:
            del data[place:]
    return bytes(data)


class Instructions:
    """A pickle cut into its instructions.

    Args:
      data: The pickle.
    """

    def __init__(self, data):
        starts = [position for _, _, position in pickletools.genops(data)]
        self.parts = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
        self.codes = [part[:1] for part in self.parts]
        self.names = [i for i, part in enumerate(self.parts) if part[:1] == b"\x8c" and part[1] < 90]

    def damage(self, random, canary):
        """Bytes with instructions renamed, mislengthed, repeated, dropped, swapped or inserted."""
        parts = list(self.parts)
        for _ in range(int(random.integers(1, 3))):
            kind, place = random.integers(7), int(random.integers(1, len(parts)))
            if kind == 0:
                chosen = str(random.choice(MODULES if random.integers(2) else NAMES)).encode()
                parts[int(random.choice(self.names))] = b"\x8c" + bytes([len(chosen)]) + chosen
            elif kind == 1 and len(parts[place]) > 1:
                changed = bytearray(parts[place])
                changed[1 + int(random.integers(min(8, len(changed) - 1)))] = int(random.integers(256))
                parts[place] = bytes(changed)
            elif kind == 2:
                parts.insert(place, parts[place])
            elif kind == 3:
                del parts[place]
            elif kind == 4:
                parts[place] = pick(random, self.codes) + parts[place][1:]
            elif kind == 5:
                other = int(random.integers(1, len(parts)))
                parts[place], parts[other] = parts[other], parts[place]
            else:
                parts.insert(place, pick(random, hostile(canary)))
        return b"".join(parts)


class Call:
    """Pickles as the instruction to call `function(*args)`."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


class Unknown:
    """A class that no reader knows."""


def junk(random, canary):
    """A value of a wrong type, shape, size or kind."""
    cycle = [1]
    cycle.append(cycle)
    deep = []
    doubled, listed = ("x",), [0.5]
    for _ in range(int(random.choice([20, 60, 200]))):
        deep, doubled, listed = [deep], (doubled, doubled), [listed, listed]
    values = (
        None,
        pick(random, (float("nan"), float("inf"), -float("inf"), -0.0, 1e308, -1e308, 5e-324)),
        pick(random, (0, -1, 1, 7, -(2**31), 2**31, 2**62, 2**63, 2**64, 10**30, 10**3000, -(10**300))),
        bool(random.integers(2)),
        pick(random, ("", "x", "ü\u202e\u0000", "\ud800", "nan", "1.5", "../../etc/passwd", "a\nb", "x" * 100_000)),
        pick(random, (b"", b"x" * 10, bytearray(5), random.bytes(300))),
        pick(random, ([], {}, (), set(), frozenset({1}))),
        {"extra": 1, 2: "x", None: b"y"},
        {("a", 1): 2},
        1 + 2j,
        cycle,
        deep,
        doubled,
        listed,
        [1, [2, 3], "x"],
        list(range(1000)),
        np.zeros(random.integers(0, 4, int(random.integers(0, 5)))),
        np.full((3, 7), np.nan),
        np.full((2, 3), np.inf, dtype=np.float32),
        np.array(["a", "vehicle"]),
        np.array([{}, None], dtype=object),
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype=[("a", "f8")]),
        np.arange(5).astype(pick(random, ("i1", "u8", ">f4", "f2", "c16", "?"))),
        np.float32(random.normal()),
        np.int64(-5),
        np.str_("x"),
        decimal.Decimal("1.5"),
        pathlib.PurePosixPath("/etc/passwd"),
        Unknown(),
        Unknown,
        Call(os.system, f"touch {canary}"),
        Call(eval, f"open({str(canary)!r}, 'w')"),
        Call(getattr, "x", "upper"),
        np.array([Call(os.system, f"touch {canary}")], dtype=object),
    )
    return pick(random, values)


def pick(random, choices):
    """One of a sequence."""
    return choices[int(random.integers(len(choices)))]


def damage_value(random, value, canary):
    """Replaces, removes or adds something in a structure, in place; returns what stands for `value` afterwards."""
    places = _places(value)
    if not places or random.random() < 0.08:
        return _damaged_leaf(random, value, canary)
    key = pick(random, places)
    holder = _holder(value)
    if random.random() < 0.08 and not isinstance(holder, tuple):
        if random.integers(2) and hasattr(holder, "__delitem__"):
            del holder[key]
        elif isinstance(holder, dict):
            holder["surplus"] = junk(random, canary)
        elif isinstance(holder, list):
            holder.insert(key, junk(random, canary))
        return value
    if isinstance(holder, _Slots):
        setattr(value, key, damage_value(random, getattr(value, key), canary))
        return value
    changed = damage_value(random, holder[key], canary)
    if isinstance(holder, tuple):
        replaced = (*holder[:key], changed, *holder[key + 1 :])
        if holder is value:
            return replaced
        value.args = replaced
    else:
        holder[key] = changed
    return value


class _Slots(tuple):
    """Names of the slots of an object."""


def _holder(value):
    """What holds the parts of a value: itself, its attributes or its arguments."""
    if isinstance(value, dict | list | tuple):
        return value
    if isinstance(getattr(value, "args", None), tuple):
        return value.args
    if getattr(type(value), "__slots__", ()) and not hasattr(value, "__dict__"):
        return _Slots(type(value).__slots__)
    return getattr(value, "__dict__", ())


def _places(value):
    if isinstance(value, str | bytes | np.ndarray | np.generic | enum.Enum):
        return []
    holder = _holder(value)
    if isinstance(holder, dict):
        return list(holder)
    return list(holder) if isinstance(holder, _Slots) else list(range(len(holder)))


def _damaged_leaf(random, value, canary):
    if isinstance(value, np.ndarray) and value.size and random.integers(2):
        return _damaged_array(random, value)
    if type(value) in (int, float) and random.integers(2):
        return pick(random, (-value, value * 1e9, float(value) + 0.5, str(value), [value]))
    return junk(random, canary)


def _damaged_array(random, array):
    changed = array.copy()
    kind = random.integers(7)
    if kind == 0:
        return changed[:-1]
    if kind == 1:
        return changed.tolist()
    if kind == 2:
        return changed[None]
    if kind == 3 and changed.dtype.kind == "f":
        changed.flat[int(random.integers(changed.size))] = random.choice([np.nan, np.inf, -1e300, -5.0])
        return changed
    if kind == 4:
        return changed.astype(str)
    if kind == 5:
        return changed.astype(object)
    return np.concatenate([changed, changed])


def dumped(value, protocol):
    """A pickle of a damaged structure; None where Python cannot write it."""
    try:
        return pickle.dumps(value, protocol)
    except (RecursionError, pickle.PicklingError, TypeError, AttributeError, ValueError):
        return None
