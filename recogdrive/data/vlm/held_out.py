"""Parts of a source of conversations: those to train on and those held out."""

import hashlib
import math
from collections.abc import Iterable

import gin
import numpy as np

from recogdrive.data.vlm.conversations import Conversation, ConversationSource

PARTS = ("training", "held_out")
_ROUNDING = 1e-9
"""Of a share times a number: a tenth of 30 are 3."""


@gin.register
class ConversationSubset:
    """One part of a source, split by a hash of the records' numbers.

    The split depends on the seed and the number of records alone. A record is in one part only: its repetitions stay
    together, and the held-out part has each record once. Conversations about one image may still be on both sides.

    Args:
      source: All conversations.
      part: "training" or "held_out".
      held_out: How many records are held out; below 1 their share, rounded up to at least one.
      seed: Of the split; the same for both parts.

    Attributes:
      name: Of the source and the part.
      record_numbers: As the source's.
      fingerprint: Of the source and the split; only where the source has one.

    Raises:
      ValueError: Another part; a number that leaves one part without records.
    """

    def __init__(self, source: ConversationSource, part: str, *, held_out: int | float, seed: int = 0) -> None:
        if part not in PARTS:
            raise ValueError(f"ConversationSubset.part={part!r} must be one of {', '.join(map(repr, PARTS))}.")
        numbers = record_numbers(source)
        records, first = np.unique(numbers, return_index=True)
        count = math.ceil(held_out * len(records) - _ROUNDING) if 0 < held_out < 1 else held_out
        if count != int(count) or not 0 < count < len(records):
            raise ValueError(
                f"ConversationSubset.held_out={held_out!r} of {len(records)} records leaves one part empty; "
                f"use a whole number from 1 to {len(records) - 1}, or a share between 0 and 1."
            )
        rank = np.argsort([_hash(seed, int(record)) for record in records], kind="stable")
        outside = np.sort(rank[: int(count)])
        self._source = source
        if part == "held_out":
            self._indices = np.sort(first[outside])
        else:
            self._indices = np.flatnonzero(~np.isin(numbers, records[outside]))
        self.name = f"{source.name}_{part}"
        self.record_numbers = numbers[self._indices]
        if own := getattr(source, "fingerprint", None):
            self.fingerprint = f"{own}/{part}/{held_out}/{seed}"

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Conversation:
        """One conversation of the part; raises as the source does."""
        return self._source[int(self._indices[index])]


@gin.register
class FirstConversations:
    """The first conversations of a source, for short runs.

    Args:
      source: All conversations.
      count: How many to take at most.

    Raises:
      ValueError: `count` is not positive.
    """

    def __init__(self, source: ConversationSource, count: int) -> None:
        if count < 1:
            raise ValueError(f"FirstConversations.count={count} must be positive.")
        self._source = source
        self._length = min(count, len(source))
        self.name = source.name
        self.record_numbers = record_numbers(source)[: self._length]
        if own := getattr(source, "fingerprint", None):
            self.fingerprint = f"{own}/first/{self._length}"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Conversation:
        """One conversation; raises as the source does."""
        if not 0 <= index < self._length:
            raise IndexError(f"conversation {index} of the first {self._length} of {self.name}")
        return self._source[index]


def record_numbers(source: ConversationSource) -> np.ndarray:
    """Which record each conversation is, (len,) int64; all different where the source does not say."""
    known: Iterable[int] | None = getattr(source, "record_numbers", None)
    return np.arange(len(source)) if known is None else np.asarray(known)


def _hash(seed: int, record: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{record}".encode(), digest_size=8).digest(), "big")
