"""The pickle of a leaderboard submission, written without the classes it names.

The server unpickles with navsim, nuplan-devkit and NumPy 1.x at hand, none of which this package has. The instructions
are therefore emitted one by one: nothing is imported, no stand-in class is registered anywhere, and arrays go through
`numpy.core.multiarray`, which NumPy 1 and 2 both know. Equal content gives equal bytes.
"""

import pickle
import struct
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from recogdrive.data.types import FRAME_INTERVAL_S, FUTURE_FRAMES

PROTOCOL = 4
TRAJECTORY = ("navsim.common.dataclasses", "Trajectory")
SAMPLING = ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling")
HORIZON_S = FUTURE_FRAMES * FRAME_INTERVAL_S
_RECONSTRUCT = ("numpy.core.multiarray", "_reconstruct")
_NDARRAY = ("numpy", "ndarray")
_DTYPE = ("numpy", "dtype")
_POSE_SIZE = 3
_ANY_SIZE = -1
"""Item size and alignment in a dtype's state, where its name says them."""


def submission_bytes(texts: Mapping[str, str], predictions: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> bytes:
    """A submission as its pickle, protocol 4.

    Args:
      texts: Entries of the submission that are strings.
      predictions: Entries that are lists of plans, one element a seed: token -> (8, 3) float32 poses.

    Source: NAVSIM `run_create_submission_pickle.py`.
    """
    stream = _Stream()
    stream.put(pickle.EMPTY_DICT, pickle.MARK)
    for key, value in texts.items():
        stream.text(key)
        stream.text(value)
    for key, seeds in predictions.items():
        stream.text(key)
        stream.put(pickle.EMPTY_LIST, pickle.MARK)
        for plans in seeds:
            stream.put(pickle.EMPTY_DICT, pickle.MARK)
            for token, poses in plans.items():
                stream.text(token)
                _put_trajectory(stream, poses)
            stream.put(pickle.SETITEMS)
        stream.put(pickle.APPENDS)
    stream.put(pickle.SETITEMS, pickle.STOP)
    return stream.content()


class _Stream:
    """Instructions so far, and the place in the unpickler's memo of what comes again and again."""

    def __init__(self) -> None:
        self._parts = [pickle.PROTO, bytes([PROTOCOL])]
        self._memo: dict[object, int] = {}

    def content(self) -> bytes:
        return b"".join(self._parts)

    def put(self, *instructions: bytes) -> None:
        self._parts += instructions

    def text(self, value: str) -> None:
        encoded = value.encode("utf-8")
        if len(encoded) < 256:
            self.put(pickle.SHORT_BINUNICODE, bytes([len(encoded)]), encoded)
        else:
            self.put(pickle.BINUNICODE, struct.pack("<I", len(encoded)), encoded)

    def integer(self, value: int) -> None:
        if 0 <= value < 256:
            self.put(pickle.BININT1, bytes([value]))
        else:
            self.put(pickle.BININT, struct.pack("<i", value))

    def number(self, value: float) -> None:
        self.put(pickle.BINFLOAT, struct.pack(">d", value))

    def short_bytes(self, value: bytes) -> None:
        self.put(pickle.SHORT_BINBYTES, bytes([len(value)]), value)

    def once(self, key: object, write: Callable[[], None]) -> None:
        """What `write` puts on the unpickler's stack: written the first time, fetched from the memo from then on."""
        if key in self._memo:
            self.put(pickle.BINGET, bytes([self._memo[key]]))
            return
        write()
        # The unpickler numbers what it memoises in this order too; `write` may have memoised things itself.
        self._memo[key] = len(self._memo)
        self.put(pickle.MEMOIZE)

    def key(self, value: str) -> None:
        self.once(value, lambda: self.text(value))

    def name(self, module_and_name: tuple[str, str]) -> None:
        def write() -> None:
            module, name = module_and_name
            self.text(module)
            self.text(name)
            self.put(pickle.STACK_GLOBAL)

        self.once(module_and_name, write)


def _put_trajectory(stream: _Stream, poses: np.ndarray) -> None:
    stream.name(TRAJECTORY)
    stream.put(pickle.EMPTY_TUPLE, pickle.NEWOBJ, pickle.EMPTY_DICT, pickle.MARK)
    stream.key("poses")
    _put_array(stream, poses)
    stream.key("trajectory_sampling")
    stream.once((*SAMPLING, "instance"), lambda: _put_sampling(stream))
    stream.put(pickle.SETITEMS, pickle.BUILD)


def _put_sampling(stream: _Stream) -> None:
    """8 poses, 4 s, every 0.5 s: one object that all trajectories share, as in the reference."""
    stream.name(SAMPLING)
    stream.put(pickle.EMPTY_TUPLE, pickle.NEWOBJ, pickle.EMPTY_DICT, pickle.MARK)
    stream.key("num_poses")
    stream.integer(FUTURE_FRAMES)
    stream.key("time_horizon")
    stream.number(HORIZON_S)
    stream.key("interval_length")
    stream.number(FRAME_INTERVAL_S)
    stream.put(pickle.SETITEMS, pickle.BUILD)


def _put_array(stream: _Stream, poses: np.ndarray) -> None:
    """`_reconstruct(ndarray, (0,), b"b")`, then the state (1, (8, 3), float32, C order, bytes)."""
    stream.name(_RECONSTRUCT)
    stream.name(_NDARRAY)
    stream.integer(0)
    stream.put(pickle.TUPLE1)
    stream.short_bytes(b"b")
    stream.put(pickle.TUPLE3, pickle.REDUCE, pickle.MARK)
    stream.integer(1)
    stream.integer(FUTURE_FRAMES)
    stream.integer(_POSE_SIZE)
    stream.put(pickle.TUPLE2)
    stream.once((*_DTYPE, "instance"), lambda: _put_float32(stream))
    stream.put(pickle.NEWFALSE)
    stream.short_bytes(np.ascontiguousarray(poses, dtype="<f4").tobytes())
    stream.put(pickle.TUPLE, pickle.BUILD)


def _put_float32(stream: _Stream) -> None:
    """`dtype("f4", False, True)`, then its state: version 3, little-endian, no fields."""
    stream.name(_DTYPE)
    stream.text("f4")
    stream.put(pickle.NEWFALSE, pickle.NEWTRUE, pickle.TUPLE3, pickle.REDUCE, pickle.MARK)
    stream.integer(3)
    stream.text("<")
    stream.put(pickle.NONE, pickle.NONE, pickle.NONE)
    stream.integer(_ANY_SIZE)
    stream.integer(_ANY_SIZE)
    stream.integer(0)
    stream.put(pickle.TUPLE, pickle.BUILD)
