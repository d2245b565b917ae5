"""Makes shards of hidden states: the part of the cache stage between its plan and its manifest."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from recogdrive.data.hidden_cache.container import ShardEntry, ShardWriter
from recogdrive.data.hidden_cache.record import HiddenStates, RecordError, Storage, encode_record
from recogdrive.data.hidden_cache.rows import FailedRow, RowMaker, SceneList, SceneRow, rows_ahead
from recogdrive.models.bridge import Params

_ROWS = "rows"
_SHOWN = 5


class ShardTask(NamedTuple):
    """One shard of the work: its number, first scene and one past the last."""

    number: int
    start: int
    stop: int


class ShardPlace(NamedTuple):
    """Where shards go: the container's folder, and the fingerprint of the plan they belong to."""

    folder: Path
    plan: str


class ShardMaker:
    """Makes shard after shard: rows made ahead by threads, encoded by the device, compressed and written.

    Args:
      scenes: All scenes of the cache.
      prompts: Makes rows for the VLM.
      encode: Rows -> states, for batches of `rows`; see `on_devices`.
      place: Where shards go.
      storage: How states are kept.
      rows: Scenes of a batch.
      num_threads: Threads that make rows and compress states.
      failed: Scenes that failed in shards finished before.
      failure_budget: Scenes that may fail.
    """

    def __init__(
        self,
        scenes: SceneList,
        prompts: RowMaker,
        encode: Callable[[Mapping[str, np.ndarray]], Array],
        place: ShardPlace,
        storage: Storage,
        *,
        rows: int,
        num_threads: int,
        failed: Sequence[Mapping[str, str]],
        failure_budget: int,
    ) -> None:
        self._scenes, self._prompts, self._encode = scenes, prompts, encode
        self._place, self._storage = place, storage
        self._rows, self._num_threads = rows, num_threads
        self._failed, self._failure_budget = list(failed), failure_budget

    def run(self, tasks: Sequence[ShardTask]) -> int:
        """Makes the shards; returns how many scenes that were.

        Raises:
          ValueError: More scenes fail than may; the shard they are in is not written, and so is tried again.
        """
        total = sum(task.stop - task.start for task in tasks)
        done, begun = 0, time.perf_counter()
        positions = [position for task in tasks for position in range(task.start, task.stop)]
        with ThreadPoolExecutor(self._num_threads) as pool:
            rows = rows_ahead(self._scenes, positions, self._prompts, pool, 2 * self._rows + self._num_threads)
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
        writer = ShardWriter(self._place.folder, task.number, self._storage, self._place.plan)
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
        encode = functools.partial(_record, storage=self._storage)
        for row, record in zip(rows, pool.map(encode, rows, states), strict=False):
            if isinstance(record, FailedRow):
                self._fail(writer, record)
            else:
                writer.add_encoded(row.token, *record)

    def _fail(self, writer: ShardWriter, failed: FailedRow) -> None:
        """Notes a scene that is missing. Beyond the budget the shard is not written, and so is tried again."""
        writer.record_failure(failed.token, failed.reason)
        self._failed.append(failed._asdict())
        require_budget(self._failed[::-1], self._failure_budget)


def _record(row: SceneRow, states: np.ndarray, storage: Storage) -> Any:
    """The record of a scene, or why there is none."""
    if not np.isfinite(states.astype(np.float32)).all():
        return FailedRow(row.token, f"Scene {row.token} of log {row.log_name}: its hidden states are not finite")
    found = HiddenStates(row.token, row.log_name, states, row.length, row.history, row.status, row.target)
    try:
        return encode_record(found, storage)
    except RecordError as error:
        return FailedRow(row.token, str(error))


def on_devices(
    encode: Callable[[Params, Mapping[str, Array]], Array], params: Params, rows: int
) -> Callable[[Mapping[str, np.ndarray]], Array]:
    """The encoder with its weights, compiled once for batches of so many rows, split over this process's devices.

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


def require_budget(failed: Sequence[Mapping[str, str]], budget: int) -> None:
    """Raises ValueError, naming the first, if more scenes failed than may."""
    if len(failed) > budget:
        shown = "; ".join(f"{failure['token']}: {failure['reason']}" for failure in failed[:_SHOWN])
        raise ValueError(
            f"{len(failed)} scenes could not be cached, {budget} may fail (CacheHiddenStates.failure_budget): {shown}. "
            "Repair them and run the same command again, or raise it."
        )
