"""The size of every sample and what is wrong with the others, before a run begins."""

import collections
import csv
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging
from jaxtyping import Int32, Int64

from recogdrive.cores import usable_cores
from recogdrive.data.vlm.conversations import Cause, ConversationError
from recogdrive.data.vlm.held_out import record_numbers
from recogdrive.data.vlm.samples import SampleSize, VlmSamples

_SHOWN = 5
"""Faults of each cause that a message quotes."""
_RECORDS_PER_TASK = 256
_ROUNDING = 1e-9
"""Of a share times a number: 0.29 of 100 are 29."""
_VERSION = 1
"""Of the stored form; another one is measured anew."""


@dataclass(frozen=True)
class Fault:
    """A sample that cannot be used.

    Attributes:
      index: Of the sample; of its first repetition, if there are several.
      cause: What it is counted under.
      origin: "file:line" or a scene.
      reason: What is wrong.
    """

    index: int
    cause: Cause
    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


class Executor(Protocol):
    """What spreads the work, such as `recogdrive.stages.executors.ProcessPool`."""

    def run(self, make_work: Callable[[], Callable[[Any], Any]], tasks: Sequence[Any]) -> Iterator[Any]:
        """Results in any order."""
        ...


@dataclass(frozen=True)
class Survey:
    """Sizes of all samples of a source.

    Attributes:
      tokens: Of each sample, 0 where it is unusable.
      tiles: Likewise.
      supervised: Likewise.
      faults: The unusable records, by index.
      num_records: Records behind the samples, repetitions not counted.
    """

    tokens: Int32[np.ndarray, "samples"]
    tiles: Int32[np.ndarray, "samples"]
    supervised: Int32[np.ndarray, "samples"]
    faults: tuple[Fault, ...]
    num_records: int

    @property
    def usable(self) -> Int64[np.ndarray, "usable"]:
        """Indices of samples to train on."""
        return np.flatnonzero(self.supervised > 0)

    def counts(self) -> Mapping[str, int]:
        """Faults by cause."""
        return dict(sorted(collections.Counter(str(fault.cause) for fault in self.faults).items()))

    def summary(self) -> str:
        """One line about samples, tokens and faults."""
        usable = self.usable
        text = (
            f"{len(usable)} of {len(self.tokens)} samples usable, {int(self.tokens[usable].sum())} tokens "
            f"({int(self.supervised[usable].sum())} supervised), {int(self.tiles[usable].sum())} tiles"
        )
        faults = ", ".join(f"{cause}: {count}" for cause, count in self.counts().items())
        return f"{text}; unusable records: {faults or 'none'}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sizes."""
        content = b"".join(np.ascontiguousarray(a).tobytes() for a in (self.tokens, self.tiles, self.supervised))
        return hashlib.sha256(content).hexdigest()


def take_survey(
    samples: VlmSamples,
    *,
    decode_images: bool = False,
    max_skipped: int | float = 0,
    folder: str | Path | None = None,
    executor: Executor | None = None,
) -> Survey:
    """Measures every record once; a result in `folder` that still holds is read instead.

    Args:
      samples: What to measure.
      decode_images: Whether to decode all images, to find damage behind their headers.
      max_skipped: How many records may be unusable; a fraction below 1 is their share.
      folder: Where the result is kept for the next run, beside `faults.csv`, which lists all faults.
      executor: Spreads the work over processes; by default threads of this process.

    Raises:
      ValueError: More records are unusable than may be, or no sample is left; quotes faults of every cause.
    """
    require_budget(max_skipped)
    fingerprint = samples.fingerprint
    stored = None
    if folder is not None and fingerprint is not None:
        key = hashlib.sha256(f"{_VERSION}/{fingerprint}/{decode_images}".encode()).hexdigest()
        stored = Path(folder) / f"survey-{key[:32]}.npz"
    survey = _load(stored, len(samples)) if stored is not None else None
    if survey is None:
        survey = _measure_all(samples, decode_images, executor)
        if stored is not None:
            _save(survey, stored)
    report = None
    if folder is not None and survey.faults:
        report = Path(folder) / "faults.csv"
        write_faults(survey.faults, report)
    logging.info("%s: %s", samples.conversations.name, survey.summary())
    for fault in survey.faults:
        logging.log_first_n(logging.WARNING, "unusable: %s (%s)", 100, fault, fault.cause)
    check_budget(survey.faults, survey.num_records, max_skipped, samples.conversations.name, report)
    if len(survey.usable) == 0:
        raise ValueError(f"{samples.conversations.name} has no usable sample: {survey.summary()}.")
    return survey


def require_budget(max_skipped: int | float) -> None:
    """Refuses a budget that is neither a number of records nor a share of them.

    Raises:
      ValueError: Names the value.
    """
    whole = isinstance(max_skipped, int) and not isinstance(max_skipped, bool) and max_skipped >= 0
    if not whole and not (isinstance(max_skipped, float) and 0 <= max_skipped < 1):
        raise ValueError(
            f"max_skipped={max_skipped!r} must be a number of records (0, 1, 2, ...) or their share, below 1 (0.01)."
        )


def check_budget(
    faults: Sequence[Fault], num_records: int, max_skipped: int | float, name: str, report: Path | None = None
) -> None:
    """Raises ValueError where there are more faults than may be skipped; quotes the first of every cause."""
    allowed = math.floor(max_skipped * num_records + _ROUNDING) if isinstance(max_skipped, float) else max_skipped
    if len(faults) <= allowed:
        return
    lines = [
        f"{len(faults)} of {num_records} records of {name} are unusable, max_skipped={max_skipped} allows {allowed}."
    ]
    by_cause: dict[str, list[Fault]] = {}
    for fault in faults:
        by_cause.setdefault(fault.cause, []).append(fault)
    for cause, those in sorted(by_cause.items()):
        lines.append(f"{cause}: {len(those)}")
        lines += [f"  {fault}" for fault in those[:_SHOWN]]
        lines += [f"  and {len(those) - _SHOWN} more"] if len(those) > _SHOWN else []
    where = f" All are listed in {report}." if report else ""
    raise ValueError("\n".join([*lines, f"Repair or remove them, or raise max_skipped.{where}"]))


def write_faults(faults: Sequence[Fault], path: Path) -> None:
    """Writes faults as CSV: index, cause, origin, reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, ["index", "cause", "origin", "reason"])
        writer.writeheader()
        writer.writerows(asdict(fault) for fault in faults)
    temporary.replace(path)


def _measure_all(samples: VlmSamples, decode: bool, executor: Executor | None) -> Survey:
    _, first, record = np.unique(record_numbers(samples.conversations), return_index=True, return_inverse=True)
    tasks = [(start, first[start : start + _RECORDS_PER_TASK]) for start in range(0, len(first), _RECORDS_PER_TASK)]
    make_work = partial(partial, _measure_some, samples, decode)
    sizes = np.zeros((len(first), 3), np.int32)
    faults: list[Fault] = []
    results = executor.run(make_work, tasks) if executor else _in_threads(make_work(), tasks)
    for done, (start, measured, wrong) in enumerate(results, start=1):
        sizes[start : start + len(measured)] = measured
        faults += wrong
        measured_so_far = min(done * _RECORDS_PER_TASK, len(first))
        logging.log_every_n_seconds(logging.INFO, "measured %d of %d records", 10, measured_so_far, len(first))
    tokens, tiles, supervised = sizes[record.reshape(-1)].T
    return Survey(
        np.ascontiguousarray(tokens),
        np.ascontiguousarray(tiles),
        np.ascontiguousarray(supervised),
        tuple(sorted(faults, key=lambda fault: fault.index)),
        len(first),
    )


def _in_threads(work: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor(len(usable_cores())) as pool:
        yield from pool.map(work, tasks)


def _measure_some(
    samples: VlmSamples, decode: bool, task: tuple[int, np.ndarray]
) -> tuple[int, np.ndarray, list[Fault]]:
    """Sizes of some records, zero for those with a fault, and the faults."""
    start, indices = task
    sizes = np.zeros((len(indices), 3), np.int32)
    faults = []
    for row, index in enumerate(map(int, indices)):
        try:
            size = samples.measure(index, decode)
            _require_supervised(size, samples, index)
            sizes[row] = size.tokens, size.tiles, size.supervised
        except ConversationError as error:
            faults.append(Fault(index, error.cause, error.origin, error.reason))
    return start, sizes, faults


def _require_supervised(size: SampleSize, samples: VlmSamples, index: int) -> None:
    if size.supervised == 0:
        raise ConversationError(
            Cause.NO_SUPERVISED_TOKENS,
            samples.conversations[index].origin,
            f"no answer within the first {size.tokens} tokens (max_seq_length={samples.max_seq_length})",
        )


def _save(survey: Survey, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            tokens=survey.tokens,
            tiles=survey.tiles,
            supervised=survey.supervised,
            num_records=survey.num_records,
            faults=np.frombuffer(json.dumps([asdict(fault) for fault in survey.faults]).encode(), np.uint8),
        )
    temporary.replace(path)


def _load(path: Path, length: int) -> Survey | None:
    """A kept result; None where there is none or it cannot be used."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as stored:
            faults = [Fault(**f | {"cause": Cause(f["cause"])}) for f in json.loads(stored["faults"].tobytes())]
            survey = Survey(
                stored["tokens"], stored["tiles"], stored["supervised"], tuple(faults), int(stored["num_records"])
            )
        if len(survey.tokens) != length:
            raise ValueError(f"it is about {len(survey.tokens)} samples, not {length}")
    except Exception as error:  # Whatever a damaged archive leads numpy to.
        logging.warning("%s is measured anew: the kept result cannot be used (%s)", path, error)
        return None
    return survey
