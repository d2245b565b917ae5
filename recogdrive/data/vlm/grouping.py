"""Orders of samples within an epoch: shuffled, balanced by length, or of like length together."""

import heapq
from collections.abc import Sequence
from typing import Protocol

import gin
import numpy as np
from jaxtyping import Int, Int64


class SampleOrder(Protocol):
    """A permutation of samples for every epoch; depends on nothing but its arguments."""

    def order(
        self, lengths: Int[np.ndarray, "n"], *, batch_size: int, seed: int, epoch: int, lead: int
    ) -> Int64[np.ndarray, "n"]:
        """Positions in `lengths`, in the order of their use.

        Args:
          lengths: Of the samples, in tokens.
          batch_size: Rows of a global batch.
          seed: Of the order.
          epoch: From 0.
          lead: Rows that the first batch of this epoch has already, from the one before.
        """
        ...


@gin.register
class Shuffled:
    """A random order."""

    def __repr__(self) -> str:
        return "Shuffled()"

    def order(
        self, lengths: Int[np.ndarray, "n"], *, batch_size: int, seed: int, epoch: int, lead: int
    ) -> Int64[np.ndarray, "n"]:
        """A permutation; the lengths do not matter."""
        return np.random.default_rng((seed, epoch)).permutation(len(lengths))


@gin.register
class LengthGrouped:
    """The reference's `group_by_length`: groups of nearly equal total length, not of like samples.

    It balances the work of devices that take a group each. Samples of one length do not come together, so padded
    batches waste as much as in a random order; `LengthBucketed` is for those.

    Args:
      group_size: Samples of a group: rows of one device in one micro-step (B).
      num_groups: Groups that are balanced against each other: devices times accumulation steps (W).

    Raises:
      ValueError: A number that is not positive.
    """

    def __init__(self, group_size: int, num_groups: int) -> None:
        if group_size < 1 or num_groups < 1:
            raise ValueError(f"LengthGrouped: group_size={group_size} and num_groups={num_groups} must be positive.")
        self.group_size = group_size
        self.num_groups = num_groups

    def __repr__(self) -> str:
        return f"LengthGrouped({self.group_size}, {self.num_groups})"

    def order(
        self, lengths: Int[np.ndarray, "n"], *, batch_size: int, seed: int, epoch: int, lead: int
    ) -> Int64[np.ndarray, "n"]:
        """See `grouped_order`; `batch_size` and `lead` do not matter."""
        return grouped_order(lengths, self.group_size, self.num_groups, seed=seed, epoch=epoch)


def grouped_order(
    lengths: Int[np.ndarray, "n"], group_size: int, num_groups: int, *, seed: int, epoch: int = 0
) -> Int64[np.ndarray, "n"]:
    """A random order cut into megabatches, each of `num_groups` groups of nearly equal total length.

    Args:
      lengths: Of the samples.
      group_size: Samples of a group.
      num_groups: Groups of a megabatch.
      seed: Of the order.
      epoch: Every epoch has another order.

    Source: the contract in golden/vlm/README.md; upstream `LengthGroupedSampler` of InternVL (from LLaVA).
    """
    shuffled = np.random.default_rng((seed, epoch)).permutation(len(lengths))
    size = group_size * num_groups
    order: list[int] = []
    for start in range(0, len(shuffled), size):
        part = shuffled[start : start + size]
        descending = part[np.argsort(-np.asarray(lengths)[part], kind="stable")].tolist()
        for group in split_evenly(descending, lengths, num_groups):
            order += group
    return np.asarray(order, np.int64)


def split_evenly(descending: Sequence[int], lengths: Sequence[int], num_groups: int) -> list[list[int]]:
    """Deals samples to groups of equal number, each sample to the shortest group that still takes one.

    Where the samples do not divide over the groups, the groups are strided slices instead.

    Args:
      descending: Samples by falling length.
      lengths: Of all samples, by index.
      num_groups: How many groups.
    """
    if len(descending) % num_groups:
        return [list(descending[start::num_groups]) for start in range(num_groups)]
    room = len(descending) // num_groups
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    shortest_first = [(0, number) for number in range(num_groups)]
    for sample in descending:
        total, number = heapq.heappop(shortest_first)
        groups[number].append(sample)
        if len(groups[number]) < room:
            heapq.heappush(shortest_first, (total + int(lengths[sample]), number))
    return groups


@gin.register
class LengthBucketed:
    """Batches of samples of like length: what padding to the longest of a batch needs.

    A window of shuffled samples is sorted and cut into batches, whose order is shuffled again.

    Args:
      window: Batches that are sorted together. More waste less padding and mix less.

    Raises:
      ValueError: `window` is not positive.
    """

    def __init__(self, window: int = 64) -> None:
        if window < 1:
            raise ValueError(f"LengthBucketed.window={window} must be positive, e.g. 64.")
        self.window = window

    def __repr__(self) -> str:
        return f"LengthBucketed({self.window})"

    def order(
        self, lengths: Int[np.ndarray, "n"], *, batch_size: int, seed: int, epoch: int, lead: int
    ) -> Int64[np.ndarray, "n"]:
        """Whole batches of like length, between random samples that end the last epoch's batch and begin the next's."""
        generator = np.random.default_rng((seed, epoch))
        shuffled = generator.permutation(len(lengths))
        first = min(-lead % batch_size, len(shuffled))
        whole = (len(shuffled) - first) // batch_size
        middle = shuffled[first : first + whole * batch_size]
        batches = []
        for start in range(0, len(middle), self.window * batch_size):
            part = middle[start : start + self.window * batch_size]
            ascending = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
            batches.append(ascending.reshape(-1, batch_size))
        mixed = generator.permutation(np.concatenate(batches)).reshape(-1) if batches else middle
        return np.concatenate([shuffled[:first], mixed, shuffled[first + len(middle) :]])
