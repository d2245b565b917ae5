"""Sizes that hold the records of a whole split, and which of them cannot be used, before a run begins."""

import functools
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from absl import logging

from recogdrive.pdm.map_index import build_map_index
from recogdrive.pdm.rewards.samples import LISTED_IN_LOG, UNUSABLE, Records
from recogdrive.pdm.rewards.scene_layout import SceneLayout
from recogdrive.pdm.rewards.workers import begin, begin_arguments, run_task
from recogdrive.pdm.validation import validate

_RECORDS_PER_TASK = 8
_PROGRESS_S = 10

_Sizes = dict[str, Any]
_Measured = tuple[_Sizes, dict[int, str]]


@dataclass(frozen=True)
class Survey:
    """What was found of a split's records.

    Attributes:
      sizes: Prefix of each layout -> sizes that hold every usable record, rounded up a little.
      failures: Token of every record that cannot be had or scored, in the split's order -> why.
      num_records: How many were looked at.
    """

    sizes: Mapping[str, Any]
    failures: Mapping[str, str]
    num_records: int

    def to_json(self, layouts: Sequence[SceneLayout]) -> dict[str, Any]:
        """As JSON values, for the next run in the same folder."""
        sizes = {layout.prefix: layout.to_json(self.sizes[layout.prefix]) for layout in layouts}
        return {"sizes": sizes, "failures": dict(self.failures), "num_records": self.num_records}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], layouts: Sequence[SceneLayout]) -> "Survey":
        """What `to_json` wrote.

        Raises:
          ValueError: It was made for other layouts or is damaged.
        """
        try:
            sizes = {layout.prefix: layout.from_json(value["sizes"][layout.prefix]) for layout in layouts}
            return cls(sizes, dict(value["failures"]), int(value["num_records"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"The stored survey does not fit this run's reward ({error!r}); delete it to survey anew."
            ) from error


def survey(records: Records, count: int, layouts: Sequence[SceneLayout], num_workers: int = 0) -> Survey:
    """Looks at the first `count` records once; the same whatever the number of workers.

    Args:
      records: Of a split.
      count: How many; usually all.
      layouts: Of the reward. With none, there is nothing to find and no record is read.
      num_workers: Processes; 0 works in this one.

    Raises:
      ValueError: Nothing to look at, no usable record, or a process was ended from outside.
    """
    if not 0 < count <= len(records):
        raise ValueError(f"count={count} must be between 1 and the {len(records)} records of the split.")
    if not layouts:
        return Survey({}, {}, count)
    positions = [range(start, min(start + _RECORDS_PER_TASK, count)) for start in range(0, count, _RECORDS_PER_TASK)]
    measure = functools.partial(_measure, records, tuple(layouts))
    sizes: _Sizes = {}
    reasons: dict[int, str] = {}
    for done, (found, wrong) in enumerate(_results(measure, positions, num_workers)):
        sizes = _union(sizes, found)
        reasons |= wrong
        logging.log_every_n_seconds(logging.INFO, "surveyed %d of %d records", _PROGRESS_S, positions[done].stop, count)
    for index, reason in reasons.items():
        logging.log_first_n(logging.WARNING, "no reward for sample %d: %s", LISTED_IN_LOG, index, reason)
    if not sizes:
        raise ValueError(f"None of {count} records can be scored, so there is nothing to learn from: {reasons[0]}")
    failures = {records.tokens[index]: reason for index, reason in reasons.items()}
    return Survey({layout.prefix: layout.rounded(sizes[layout.prefix]) for layout in layouts}, failures, count)


def _results(
    measure: functools.partial[_Measured], positions: Sequence[range], num_workers: int
) -> Iterator[_Measured]:
    """What is found at positions, in their order."""
    if num_workers == 0:
        yield from map(measure, positions)
        return
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), begin, begin_arguments(measure))
    with pool:
        try:
            yield from pool.map(run_task, positions)
        except BrokenProcessPool as error:
            raise ValueError(
                "A process that surveys records was ended from outside, as happens where memory runs out; use fewer "
                "of them, e.g. NUM_WORKERS=0."
            ) from error


def _measure(records: Records, layouts: Sequence[SceneLayout], positions: range) -> _Measured:
    """Sizes that hold the usable ones of some records, and why the others are not."""
    sizes: _Sizes = {}
    reasons = {}
    for index in positions:
        try:
            record = records(index)
            validate(record)
            map_index = build_map_index(record)
            sizes = _union(sizes, {layout.prefix: layout.measure(record, map_index) for layout in layouts})
        except UNUSABLE as error:
            reasons[index] = str(error)
    return sizes, reasons


def _union(one: _Sizes, other: _Sizes) -> _Sizes:
    return {**other, **{prefix: sizes.union(other.get(prefix, sizes)) for prefix, sizes in one.items()}}
