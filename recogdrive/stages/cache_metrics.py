"""Writes the container of scenes that trajectories are scored in."""

import csv
import functools
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gin
from absl import logging
from tqdm import tqdm

from recogdrive.pdm import cache_format
from recogdrive.pdm.cache import MANIFEST, SCENES_FOLDER, SCENES_PER_SHARD, shard_name, write_manifest
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.machine import check_linear_algebra, machine_stamp
from recogdrive.pdm.making import FailedScene, SceneMaker
from recogdrive.pdm.shard import TEMPORARY, ShardWriter, open_shard, write_whole
from recogdrive.run_folder import RunFolder
from recogdrive.stages.base import Description
from recogdrive.stages.executors import Executor

PLAN = "plan.json"
SUMMARY = "cache_metrics.json"
FAILED = "failed.csv"
OFFICIAL_BYTES = 291_000
"""Bytes of a scene in the official metric cache, measured on navsim_mini."""
_SHOWN = 5


@dataclass(frozen=True)
class ShardTask:
    """One shard of the work.

    Attributes:
      number: Of the shard.
      start: First scene.
      stop: One past the last scene.
    """

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class ShardReport:
    """What came of a shard.

    Attributes:
      task: The work.
      stored: Scenes in it.
      failed: Scenes that could not be made.
      seconds: Part of the work -> time it took.
    """

    task: ShardTask
    stored: int
    failed: int
    seconds: Mapping[str, float] = field(default_factory=dict)


class ShardMaker:
    """Makes shards, one a call, and writes each whole or not at all.

    Args:
      maker: Makes the scenes.
      folder: Of the container.
      plan: Fingerprint of the work as a whole, kept in every shard.
    """

    def __init__(self, maker: SceneMaker, folder: Path, plan: str) -> None:
        check_linear_algebra()
        self._maker, self._folder, self._plan = maker, folder, plan

    def __call__(self, task: ShardTask) -> ShardReport:
        """Makes a shard's scenes; those that fail are recorded in it with their reason."""
        writer = ShardWriter()
        seconds: dict[str, float] = {}
        writing = 0.0
        for made in self._maker.make(range(task.start, task.stop)):
            if isinstance(made, FailedScene):
                writer.record_failure(made.token, made.reason)
                continue
            for part, value in made.seconds.items():
                seconds[part] = seconds.get(part, 0.0) + value
            begun = time.perf_counter()
            try:
                for warning in writer.add(made.scene, made.map_vertices):
                    logging.warning("scene %s: %s", made.scene.token, warning)
            except SceneError as error:
                writer.record_failure(made.scene.token, str(error))
            writing += time.perf_counter() - begun
        begun = time.perf_counter()
        writer.write(self._folder / shard_name(task.number), {"plan": self._plan, "machine": machine_stamp()})
        seconds["writing"] = writing + time.perf_counter() - begun
        return ShardReport(task, len(writer), len(writer.failed), seconds)


@gin.register
class CacheMetrics:
    """Makes a scene to score in of every scene of a split, in shards, several at once.

    A run that was stopped, however, is continued by the same command: finished shards are kept as they are, and the
    container has the same bytes as if it had not been stopped.

    Args:
      maker: Makes the scenes.
      executor: Where shards are made.
      scenes_per_shard: Scenes of a shard, at least 1.
      expected_scenes: What the split should hold; by default what is known of the official splits.

    Raises:
      ValueError: `scenes_per_shard` is less than 1.
    """

    def __init__(
        self,
        maker: SceneMaker,
        executor: Executor,
        *,
        scenes_per_shard: int = SCENES_PER_SHARD,
        expected_scenes: int | None = None,
    ) -> None:
        if scenes_per_shard < 1:
            raise ValueError(f"CacheMetrics.scenes_per_shard={scenes_per_shard} must be at least 1.")
        self._maker = maker
        self._executor = executor
        self._scenes_per_shard = scenes_per_shard
        self._expected = expected_scenes

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Makes what is missing of the container in `folder.path / "scenes"`, then completes it.

        Raises:
          MachineError: This machine's linear algebra is wrong.
          ValueError: The folder holds another container's shards, or no scene at all can be made.
          WorkerError: A worker died.
        """
        check_linear_algebra()
        scenes = folder.path / SCENES_FOLDER
        origin = json.loads(json.dumps(dict(self._maker.describe())))
        tasks = self._tasks()
        plan = _claim(scenes, self._plan(origin))
        pending = [task for task in tasks if not _is_finished(scenes / shard_name(task.number), plan)]
        folder.update(data={"scenes": self._found()}, machine=machine_stamp())
        logging.info(
            "%s: %d scenes in %d shards, %d of them finished before", self._maker.name, len(self._maker.tokens),
            len(tasks), len(tasks) - len(pending),
        )  # fmt: skip
        begun = time.perf_counter()
        reports = self._make(scenes, plan, pending)
        wall_s = time.perf_counter() - begun
        summary = self._complete(scenes, origin, tasks) | {"wall_s": wall_s, "seconds": _total_seconds(reports)}
        write_whole(folder.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        if not summary["stored"]:
            failures = json.loads((scenes / MANIFEST).read_text())["failed"]
            raise ValueError(f"None of the {summary['in_split']} scenes could be made, e.g. {failures[0]['reason']}")
        return {name: summary[name] for name in ("in_split", "stored", "failed", "bytes_per_scene")}

    def describe(self) -> Description:
        """The split, and the disk its container needs."""
        return Description(data={"scenes": self._found()})

    def _found(self) -> str:
        try:
            count = len(self._maker.tokens)
        except (OSError, ValueError) as error:
            return f"not available: {str(error).splitlines()[0]}"  # Gin adds lines on where it was called.
        return f"{count:,} scenes of {self._maker.name}"

    def _tasks(self) -> list[ShardTask]:
        count, size = len(self._maker.tokens), self._scenes_per_shard
        if not count:
            raise ValueError(f"{self._maker.name} holds no scenes; check its data root and scene filter.")
        return [ShardTask(i, start, min(start + size, count)) for i, start in enumerate(range(0, count, size))]

    def _plan(self, origin: Mapping[str, object]) -> dict[str, object]:
        """What decides a container's bytes."""
        tokens = hashlib.sha256("\n".join(self._maker.tokens).encode()).hexdigest()
        return {
            "format": cache_format.VERSION,
            "origin": origin,
            "scenes": len(self._maker.tokens),
            "tokens_sha256": tokens,
            "scenes_per_shard": self._scenes_per_shard,
        }

    def _make(self, scenes: Path, plan: str, pending: Sequence[ShardTask]) -> list[ShardReport]:
        make_work: Callable[[], ShardMaker] = functools.partial(ShardMaker, self._maker, scenes, plan)
        reports = []
        with tqdm(total=sum(t.stop - t.start for t in pending), unit="scene", desc=self._maker.name) as bar:
            for report in self._executor.run(make_work, pending):
                reports.append(report)
                bar.update(report.stored + report.failed)
                bar.set_postfix(failed=sum(r.failed for r in reports))
        return reports

    def _complete(self, scenes: Path, origin: Mapping[str, object], tasks: Iterable[ShardTask]) -> dict[str, object]:
        """Writes manifest and list of failures from the finished shards, and says what is there and what is not."""
        entries, tokens, failed = [], [], []
        dtypes: dict[str, str] = {}
        machines: dict[str, Mapping[str, str]] = {}
        for task in tasks:
            shard = open_shard(scenes / shard_name(task.number))
            entries.append(shard.entry())
            tokens += shard.columns["token"].to_pylist()
            failed += shard.facts["failed"]
            dtypes |= shard.facts["dtypes"]
            machines[json.dumps(shard.facts["machine"])] = shard.facts["machine"]
        write_manifest(
            scenes,
            origin=origin,
            tokens=tokens,
            shards=entries,
            failed=failed,
            dtypes=dtypes,
            machines=list(machines.values()),
        )
        _write_failures(scenes.parent / FAILED, failed)
        total = sum(entry["bytes"] for entry in entries)
        summary: dict[str, object] = {
            "split": self._maker.name,
            "expected": self._expected or self._maker.expected_scenes,
            "in_split": len(self._maker.tokens),
            "stored": len(tokens),
            "failed": len(failed),
            "bytes": total,
            "bytes_per_scene": total / max(1, len(tokens)),
            "container": os.fspath(scenes),
        }
        _say(summary, failed)
        return summary


def _claim(scenes: Path, plan: Mapping[str, object]) -> str:
    """Notes in the container's folder what is being made there; returns its fingerprint.

    Raises:
      ValueError: Something else is being made there.
    """
    scenes.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plan, indent=1, sort_keys=True)
    path = scenes / PLAN
    if path.exists():
        earlier = json.loads(path.read_text())
        if changed := [name for name in plan if earlier.get(name) != plan[name]]:
            what = "; ".join(f"{name} was {earlier.get(name)!r} and is {plan[name]!r}" for name in changed)
            raise ValueError(
                f"{scenes} holds scenes of another plan ({what}). Choose another --workdir, or remove the folder."
            )
    else:
        write_whole(path, text.encode())
    for leftover in scenes.glob(f"*{TEMPORARY}"):
        leftover.unlink()
    return hashlib.sha256(text.encode()).hexdigest()


def _is_finished(path: Path, plan: str) -> bool:
    """Whether a shard of this plan is there and whole."""
    if not path.exists():
        return False
    try:
        shard = open_shard(path)
        shard.read_tables()
        finished = shard.facts.get("plan") == plan
    except (ValueError, OSError) as error:
        logging.warning("%s is made again: %s", path, error)
        return False
    if not finished:
        logging.warning("%s is made again: it belongs to another plan", path)
    return finished


def _total_seconds(reports: Iterable[ShardReport]) -> dict[str, float]:
    total: dict[str, float] = {}
    for report in reports:
        for part, value in report.seconds.items():
            total[part] = total.get(part, 0.0) + value
    return total


def _write_failures(path: Path, failed: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["token", "reason"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(failed)
    write_whole(path, text.getvalue().encode())


def _say(summary: Mapping[str, object], failed: Sequence[Mapping[str, str]]) -> None:
    """Counts, in words; as errors wherever the container holds less than it should."""
    expected, stored = summary["expected"], summary["stored"]
    logging.info(
        "%s: %s scenes in the split (%s), %s stored, %s failed; %.0f bytes a scene, %.2f of the official cache's",
        summary["split"], f"{summary['in_split']:,}", "expected number unknown" if expected is None else
        f"{expected:,} expected", f"{stored:,}", f"{summary['failed']:,}", summary["bytes_per_scene"],
        summary["bytes_per_scene"] / OFFICIAL_BYTES,
    )  # fmt: skip
    if failed:
        shown = "; ".join(f"{failure['token']}: {failure['reason']}" for failure in failed[:_SHOWN])
        logging.error("%d scenes could not be made (all in %s): %s", len(failed), FAILED, shown)
    if expected is not None and stored != expected:
        logging.error(
            "%s IS NOT COMPLETE: %s of %s scenes. Scores on it are not comparable with published ones; check the "
            "download with --experiment=data_check.", summary["split"], f"{stored:,}", f"{expected:,}",
        )  # fmt: skip
