"""Writes the hidden-state cache: the VLM's states of every scene of the splits."""

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gin
import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, BFloat16

from recogdrive.data.hidden_cache import container
from recogdrive.data.hidden_cache.container import (
    SAMPLES_PER_SHARD,
    STATES_FOLDER,
    TEMPORARY,
    Fields,
    ShardEntry,
    ShardWriter,
    claim,
    finished_entry,
    write_manifest,
    write_whole,
)
from recogdrive.data.hidden_cache.record import HiddenStates, RecordError, Storage, encode_record
from recogdrive.data.hidden_cache.rows import FailedRow, SceneList, SceneRow, rows_ahead
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.vlm.scene_prompts import ScenePrompts
from recogdrive.models.bridge import Params
from recogdrive.run_folder import RunFolder
from recogdrive.stages.base import Description
from recogdrive.stages.hidden_cache_plan import CachePlan

SUMMARY = "cache_hidden_states.json"
_ROWS = "rows"
_SHOWN = 5


class SceneEncoder(Protocol):
    """Makes hidden states, as `HiddenStateEncoder` does.

    Attributes:
      width: V.
      rows_at_once: Rows of one pass.
    """

    width: int
    rows_at_once: int

    def context_fields(self, weights: str, prompts: ScenePrompts, storage: Storage) -> Fields:
        """Everything that decides the states."""
        ...

    def load(self, folder: Path) -> tuple[Params, str]:
        """Weights and their fingerprint."""
        ...

    def check(self, prompts: ScenePrompts) -> None:
        """Refuses prompts that are not for this model."""
        ...

    def flops(self, num_tokens: int, tiles: int) -> float:
        """Operations of a row."""
        ...

    def encode(self, params: Params, batch: Mapping[str, Array]) -> BFloat16[Array, "B T V"]:
        """States of a batch."""
        ...


class ShardTask(NamedTuple):
    """One shard of the work: its number, first scene and one past the last."""

    number: int
    start: int
    stop: int


class ShardPlace(NamedTuple):
    """Where shards go: the container's folder, and the fingerprint of the plan they belong to."""

    folder: Path
    plan: str


@gin.register
class CacheHiddenStates:
    """Encodes every scene of the training and the evaluated splits, in shards; each is written whole or not at all.

    A run that was stopped, however, is continued by the same command: finished shards are kept, and the container has
    the same bytes as if it had not been stopped. Of several processes each makes its part of the shards.

    Args:
      splits: Scenes; one that is in two splits is stored once.
      prompts: Makes the inputs; without a tokenizer of its own it takes that of the weights.
      encoder: The VLM.
      storage: "bfloat16", exact, or "int8", rounded a channel.
      samples_per_shard: Scenes of a file, which is what a stopped run loses at most.
      batch_size: Scenes of a call of the encoder, on all devices of a process together.
      failure_budget: Scenes that may fail, such as for a missing picture. Beyond that the run stops.
      num_threads: Threads that make prompts and compress states.
      assumed_tflops: What the plan assumes a device to do, in 1e12 operations a second.

    Raises:
      ValueError: A number out of range, or an unknown storage.
    """

    def __init__(
        self,
        splits: PlanningSplits,
        prompts: ScenePrompts,
        encoder: SceneEncoder,
        *,
        storage: str = Storage.BFLOAT16,
        samples_per_shard: int = SAMPLES_PER_SHARD,
        batch_size: int = 8,
        failure_budget: int = 0,
        num_threads: int = 8,
        assumed_tflops: float = 100.0,
    ) -> None:
        if storage not in tuple(Storage):
            raise ValueError(f"CacheHiddenStates.storage={storage!r} must be one of {', '.join(Storage)}.")
        counts = {"samples_per_shard": samples_per_shard, "batch_size": batch_size, "num_threads": num_threads}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"CacheHiddenStates.{name}={value} must be at least 1.")
        if failure_budget < 0 or not assumed_tflops > 0:
            raise ValueError(
                f"CacheHiddenStates.failure_budget={failure_budget} must not be negative and "
                f"assumed_tflops={assumed_tflops} must be positive."
            )
        self._splits, self._prompts, self._encoder = splits, prompts, encoder
        self._storage = Storage(storage)
        self._samples_per_shard, self._batch_size = samples_per_shard, batch_size
        self._failure_budget, self._num_threads = failure_budget, num_threads
        self._assumed_tflops = assumed_tflops

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Makes what is missing of the container in `folder.path / "hidden_states"`, then completes it.

        Raises:
          ValueError: No weights, or weights of another model; the folder holds another container's shards; more scenes
            fail than may.
          HiddenCacheError: The folder holds hidden states of another plan.
        """
        if parent is None:
            raise ValueError("Hidden states need weights: set PARENT to a folder of VLM weights or to a vlm_sft run.")
        prompts = self._prompts.with_tokenizer_of(parent)
        self._encoder.check(prompts)
        splits = self._splits.open_all()
        scenes = SceneList(splits)
        for line in self._plan(len(scenes), folder.path).lines():
            logging.info("%s", line)
        params, weights = self._encoder.load(parent)
        fields = json.loads(json.dumps(self._encoder.context_fields(weights, prompts, self._storage)))
        states = folder.path / STATES_FOLDER
        plan = self._claim(states, fields, scenes)
        folder.update(data=self._splits.describe(), context=fields, fingerprint=container.fingerprint_of(fields))
        own = self._tasks(len(scenes))[jax.process_index() :: jax.process_count()]
        entries = {t.number: entry for t in own if (entry := finished_entry(states, t.number, plan)) is not None}
        pending = [task for task in own if task.number not in entries]
        logging.info("%d shards of this process, %d of them finished before", len(own), len(entries))
        begun = time.perf_counter()
        failed = [failure for entry in entries.values() for failure in entry.failed]
        work = _Work(self, prompts, params, scenes, ShardPlace(states, plan), failed)
        made = work.run(pending)
        wall_s = time.perf_counter() - begun
        _wait_for_all("hidden states written")
        summary = self._complete(states, plan, fields, splits, scenes) if jax.process_index() == 0 else {}
        _wait_for_all("hidden states complete")
        if not summary:
            return {}
        summary |= {"wall_s": wall_s, "scenes_made": made}
        write_whole(folder.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        return {name: summary[name] for name in ("scenes", "stored", "failed", "bytes_per_scene")}

    def describe(self) -> Description:
        """The splits, and what the cache will take of disk and time; writes nothing."""
        try:
            count = len(SceneList(self._splits.open_all()))
        except (OSError, ValueError):
            count = None
        return Description(data=self._splits.describe(), notes=self._plan(count, Path.cwd()).lines())

    def _plan(self, scenes: int | None, folder: Path) -> CachePlan:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        return CachePlan(
            scenes=scenes,
            num_tokens=self._prompts.num_tokens,
            width=self._encoder.width,
            storage=self._storage,
            free_bytes=shutil.disk_usage(existing).free,
            flops=self._encoder.flops(self._prompts.num_tokens, self._prompts.tiles_per_scene),
            assumed_tflops=self._assumed_tflops,
            devices=jax.device_count(),
        )

    def _claim(self, states: Path, fields: Fields, scenes: SceneList) -> str:
        """Notes in the folder what decides the container's bytes; removes what a killed run left half written."""
        plan = {
            "format": container.VERSION,
            "fields": fields,
            "scenes": len(scenes),
            "tokens_sha256": hashlib.sha256("\n".join(scenes.tokens).encode()).hexdigest(),
            "samples_per_shard": self._samples_per_shard,
            "rows_at_once": self._encoder.rows_at_once,
            # Another kind of device rounds otherwise.
            "device": jax.devices()[0].device_kind,
        }
        if jax.process_index() == 0:
            claim(states, plan)
            for leftover in states.glob(f"*{TEMPORARY}"):
                leftover.unlink()
        _wait_for_all("hidden states claimed")
        return claim(states, plan)

    def _tasks(self, count: int) -> list[ShardTask]:
        size = self._samples_per_shard
        return [ShardTask(i, start, min(start + size, count)) for i, start in enumerate(range(0, count, size))]

    def _complete(
        self, states: Path, plan: str, fields: Fields, splits: Mapping[str, Any], scenes: SceneList
    ) -> dict[str, Any]:
        """Writes the manifest from the finished shards; says what is there and what is not."""
        entries = []
        for task in self._tasks(len(scenes)):
            entry = finished_entry(states, task.number, plan)
            if entry is None:
                raise ValueError(
                    f"{states / container.shard_name(task.number)} is not there although every process is done; do all "
                    "processes write to the same file system?"
                )
            entries.append(entry)
        self._require_budget([failure for entry in entries for failure in entry.failed])
        manifest = write_manifest(
            states,
            fields=fields,
            shape=(self._prompts.num_tokens, self._encoder.width),
            splits={name: len(source) for name, source in splits.items()},
            shards=entries,
        )
        stored, failed = manifest["records"], manifest["failed"]
        if failed:
            shown = "; ".join(f"{failure['token']}: {failure['reason']}" for failure in failed[:_SHOWN])
            logging.error("%d scenes are missing (all in %s): %s", len(failed), container.MANIFEST, shown)
        bytes_per_scene = manifest["bytes"] / max(1, stored)
        logging.info("%d scenes stored, %.0f bytes a scene, %d failed", stored, bytes_per_scene, len(failed))
        return {
            "scenes": len(scenes),
            "stored": stored,
            "failed": len(failed),
            "bytes": manifest["bytes"],
            "bytes_per_scene": bytes_per_scene,
            "int8_error": manifest["int8_error"],
            "fingerprint": manifest["fingerprint"],
            "container": str(states),
        }

    def _require_budget(self, failed: Sequence[Mapping[str, str]]) -> None:
        if len(failed) > self._failure_budget:
            shown = "; ".join(f"{failure['token']}: {failure['reason']}" for failure in failed[:_SHOWN])
            raise ValueError(
                f"{len(failed)} scenes could not be cached, {self._failure_budget} may fail "
                f"(CacheHiddenStates.failure_budget): {shown}. Repair them and run the same command again, or raise it."
            )


class _Work:
    """Shard after shard: rows made ahead by threads, encoded by the device, compressed and written."""

    def __init__(
        self,
        stage: CacheHiddenStates,
        prompts: ScenePrompts,
        params: Params,
        scenes: SceneList,
        place: ShardPlace,
        failed: Sequence[Mapping[str, str]],
    ) -> None:
        self._stage, self._prompts, self._scenes, self._place = stage, prompts, scenes, place
        self._failed = list(failed)
        self._rows = stage._batch_size
        self._encode = _on_devices(stage._encoder.encode, params, self._rows)

    def run(self, tasks: Sequence[ShardTask]) -> int:
        """Makes the shards; returns how many scenes that were."""
        total = sum(task.stop - task.start for task in tasks)
        done, begun = 0, time.perf_counter()
        positions = [position for task in tasks for position in range(task.start, task.stop)]
        with ThreadPoolExecutor(self._stage._num_threads) as pool:
            rows = rows_ahead(self._scenes, positions, self._prompts, pool, 2 * self._rows + self._stage._num_threads)
            for task in tasks:
                entry = self._shard(task, rows, pool)
                done += task.stop - task.start
                rate = done / (time.perf_counter() - begun)
                logging.info(
                    "%s: %d scenes, %d bytes; %d of %d scenes, %.2f a second, %.2f hours left",
                    *(entry.file, len(entry.tokens), entry.bytes, done, total, rate, (total - done) / rate / 3600),
                )
        return total

    def _shard(self, task: ShardTask, rows: Iterator[SceneRow | FailedRow], pool: Executor) -> ShardEntry:
        writer = ShardWriter(self._place.folder, task.number, self._stage._storage, self._place.plan)
        try:
            ready: list[SceneRow] = []
            waiting: tuple[list[SceneRow], Array] | None = None
            for _ in range(task.start, task.stop):
                row = next(rows)
                if isinstance(row, FailedRow):
                    self._fail(writer, row)
                    continue
                ready.append(row)
                if len(ready) == self._rows:
                    # The device works on this batch while the one before it is compressed.
                    waiting, ready = self._next(writer, waiting, ready, pool), []
            if ready:
                waiting = self._next(writer, waiting, ready, pool)
            self._write(writer, waiting, pool)
            return writer.close()
        except BaseException:
            writer.abandon()
            raise

    def _next(
        self, writer: ShardWriter, waiting: tuple[list[SceneRow], Array] | None, ready: list[SceneRow], pool: Executor
    ) -> tuple[list[SceneRow], Array]:
        filled = ready + [ready[-1]] * (self._rows - len(ready))
        states = self._encode({name: np.stack([row.inputs[name] for row in filled]) for name in ready[0].inputs})
        self._write(writer, waiting, pool)
        return ready, states

    def _write(self, writer: ShardWriter, batch: tuple[list[SceneRow], Array] | None, pool: Executor) -> None:
        if batch is None:
            return
        rows, states = batch[0], np.asarray(batch[1])
        encode = functools.partial(_record, storage=self._stage._storage)
        for row, record in zip(rows, pool.map(encode, rows, states), strict=False):
            if isinstance(record, FailedRow):
                self._fail(writer, record)
            else:
                writer.add_encoded(row.token, *record)

    def _fail(self, writer: ShardWriter, failed: FailedRow) -> None:
        """Notes a scene that is missing. Beyond the budget the shard is not written, and so is tried again."""
        writer.record_failure(failed.token, failed.reason)
        self._failed.append(failed._asdict())
        self._stage._require_budget(self._failed[::-1])


def _record(row: SceneRow, states: np.ndarray, storage: Storage) -> Any:
    """The record of a scene, or why there is none."""
    if not np.isfinite(states.astype(np.float32)).all():
        return FailedRow(row.token, f"Scene {row.token} of log {row.log_name}: its hidden states are not finite")
    found = HiddenStates(row.token, row.log_name, states, row.length, row.history, row.status, row.target)
    try:
        return encode_record(found, storage)
    except RecordError as error:
        return FailedRow(row.token, str(error))


def _on_devices(
    encode: Callable[[Params, Mapping[str, Array]], Array], params: Params, rows: int
) -> Callable[[Mapping[str, np.ndarray]], Array]:
    """The encoder, compiled once for batches of so many rows, which are split over this process's devices.

    Raises:
      ValueError: The rows do not divide over the devices.
    """
    devices = jax.local_devices()
    if rows % len(devices):
        raise ValueError(
            f"CacheHiddenStates.batch_size={rows} does not divide over {len(devices)} devices; use a multiple of it."
        )
    mesh = Mesh(np.asarray(devices), (_ROWS,))
    everywhere, split = PartitionSpec(), PartitionSpec(_ROWS)
    program = encode
    if len(devices) > 1:
        program = jax.shard_map(encode, mesh=mesh, in_specs=(everywhere, split), out_specs=split, check_vma=False)
    program = jax.jit(program)
    placed = jax.device_put(params, NamedSharding(mesh, everywhere))
    return lambda batch: program(placed, jax.device_put(dict(batch), NamedSharding(mesh, split)))


def _wait_for_all(what: str) -> None:
    """Until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)
