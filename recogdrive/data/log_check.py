"""What logs give for the splits that want scenes of them, and what is wrong with them."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recogdrive.data.navsim import TIME_TOLERANCE_S
from recogdrive.data.navsim_log import LogFrame, parse_windows, read_log
from recogdrive.data.scene_filter import SceneFilter
from recogdrive.data.types import FRAME_INTERVAL_S, HISTORY_FRAMES
from recogdrive.data.windows import filter_windows

NAMED = 5
"""How many of the images that are missing in a log are named."""
_POOL_FROM_LOGS = 32
"""With fewer logs, starting processes takes longer than reading."""


@dataclass(frozen=True)
class ScenesWanted:
    """What a split wants of a log.

    Attributes:
      scene_filter: Windows and route; its tokens are given apart.
      tokens: Tokens to keep; None for all.
      sensor_root: Folder that image paths are relative to.
      cameras: Cameras (`cam_f0` ...) whose images have to be there.
      history_images: Whether those of the history frames have to be there too, not of the current one alone.
      three_way_commands: See `command_one_hot`.
    """

    scene_filter: SceneFilter
    tokens: frozenset[str] | None
    sensor_root: Path
    cameras: tuple[str, ...]
    history_images: bool
    three_way_commands: str


@dataclass(frozen=True)
class LogFindings:
    """What a log gives for one split.

    Attributes:
      log: Its name.
      damage: Why it cannot be used; else empty, and otherwise nothing else is known.
      frames: Frames it has.
      tokens: Scenes.
      gaps: Scenes whose frames are not 0.5 s apart.
      cities: Maps that the scenes need.
      images: Camera -> images that have to be there.
      missing: Camera -> how many of them are not.
      empty: Camera -> how many are there without content.
      named: The first that are missing or empty.
    """

    log: str
    damage: str = ""
    frames: int = 0
    tokens: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    cities: frozenset[str] = frozenset()
    images: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    empty: Mapping[str, int] = field(default_factory=dict)
    named: tuple[str, ...] = ()


def check_logs(
    paths: Sequence[Path], takers: Sequence[tuple[int, ...]], wanted: Sequence[ScenesWanted], workers: int
) -> Iterator[list[LogFindings]]:
    """Findings of every log in order, one a taker; a process holds one log at a time.

    Args:
      paths: The logs.
      takers: Positions in `wanted` of the splits that take scenes of each log.
      wanted: What the splits want.
      workers: Processes.

    Raises:
      ValueError: A process was ended from outside.
    """
    job = functools.partial(_check_for, wanted)
    if workers == 1 or len(paths) < _POOL_FROM_LOGS:
        yield from map(job, paths, takers)
        return
    # Fresh processes: a fork of one that has begun to use JAX may hang.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_set_job, initargs=(job,)
    )
    with pool:
        try:
            yield from pool.map(_run_job, paths, takers, chunksize=4)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise ValueError(
                "A process that reads logs was ended from outside, as happens where memory runs out; use fewer, e.g. "
                "WORKERS=1."
            ) from error


_job: functools.partial[list[LogFindings]] | None = None
"""What a process of the pool does: sent to it once, since a split's list of tokens has megabytes."""


def _set_job(job: functools.partial[list[LogFindings]]) -> None:
    global _job
    _job = job


def _run_job(path: Path, takers: tuple[int, ...]) -> list[LogFindings]:
    return _job(path, takers)


def _check_for(wanted: Sequence[ScenesWanted], path: Path, takers: tuple[int, ...]) -> list[LogFindings]:
    return check_log(path, [wanted[i] for i in takers])


def check_log(path: Path, wanted: Sequence[ScenesWanted]) -> list[LogFindings]:
    """Reads a log once and checks every number of the scenes that each of the splits takes of it."""
    try:
        raw = read_log(path)
    except (ValueError, OSError) as error:
        return [LogFindings(path.stem, damage=str(error))] * len(wanted)
    found = []
    for split in wanted:
        try:
            found.append(_check(raw, path.stem, split))
        except ValueError as error:
            found.append(LogFindings(path.stem, damage=str(error), frames=len(raw)))
    return found


def _check(raw: Sequence[Mapping[str, Any]], log: str, split: ScenesWanted) -> LogFindings:
    length = split.scene_filter.num_frames
    # A limit on how many scenes to use is none on how many there should be.
    starts = filter_windows(raw, dataclasses.replace(split.scene_filter, max_scenes=None), split.tokens)
    frames = parse_windows(raw, log, list(starts.values()), length, split.three_way_commands)
    windows = {token: [frames[start + i] for i in range(length)] for token, start in starts.items()}
    if split.scene_filter.num_future_frames and any(frame.detections is None for frame in frames.values()):
        raise ValueError(f"Log {log}: frames have no annotations (anns), as in the private test")
    first = 0 if split.history_images else HISTORY_FRAMES - 1
    shown = {start + i for start in starts.values() for i in range(first, HISTORY_FRAMES)}
    images, missing, empty, named = _check_images((frames[position] for position in sorted(shown)), split)
    return LogFindings(
        log,
        frames=len(raw),
        tokens=tuple(windows),
        gaps=tuple(token for token, window in windows.items() if _has_gap(window)),
        cities=frozenset(window[HISTORY_FRAMES - 1].map_name for window in windows.values()),
        images=images,
        missing=missing,
        empty=empty,
        named=named,
    )


def _has_gap(window: Sequence[LogFrame]) -> bool:
    steps_s = np.diff([frame.timestamp_us for frame in window]) / 1e6
    return bool(np.any(np.abs(steps_s - FRAME_INTERVAL_S) > TIME_TOLERANCE_S))


def _check_images(
    frames: Iterable[LogFrame], split: ScenesWanted
) -> tuple[Counter[str], Counter[str], Counter[str], tuple[str, ...]]:
    """Camera -> images wanted, missing and empty, and the first of the latter two by name."""
    images: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    named: list[str] = []
    for frame in frames:
        for camera in split.cameras:
            images[camera] += 1
            if camera not in frame.cameras:
                missing[camera] += 1
                named.append(f"{camera} of token {frame.token}, which the log does not list")
                continue
            path = split.sensor_root / frame.cameras[camera]
            # One question to the disk an image: whole splits have a million of them.
            size = _size(path)
            if not size:
                (missing if size is None else empty)[camera] += 1
                named.append(str(path))
    return images, missing, empty, tuple(named[:NAMED])


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none that can be reached."""
    try:
        return path.stat().st_size
    except OSError:
        return None
