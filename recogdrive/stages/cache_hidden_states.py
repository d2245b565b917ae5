"""Writes the hidden-state cache: the VLM's states of every scene of the splits."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import gin
import jax
from absl import logging
from jaxtyping import Array, BFloat16

from recogdrive.data.hidden_cache import container
from recogdrive.data.hidden_cache.container import (
    SAMPLES_PER_SHARD,
    STATES_FOLDER,
    TEMPORARY,
    Fields,
    claim,
    finished_entry,
    write_manifest,
    write_whole,
)
from recogdrive.data.hidden_cache.record import Storage
from recogdrive.data.hidden_cache.rows import SceneList
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.vlm.scene_prompts import ScenePrompts
from recogdrive.hosts import member
from recogdrive.models.bridge import Params
from recogdrive.run_folder import RunFolder
from recogdrive.stages.base import Description
from recogdrive.stages.hidden_cache_plan import CachePlan
from recogdrive.stages.hidden_shards import ShardMaker, ShardPlace, ShardTask, on_devices, require_budget

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
      expected_scenes: What the plan counts with where the splits are not at hand.

    Raises:
      ValueError: A number out of range, or an unknown storage.
    """

    runs_on_several_processes = True

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
        expected_scenes: int | None = None,
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
        self._assumed_tflops, self._expected_scenes = assumed_tflops, expected_scenes

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
        maker = ShardMaker(
            scenes,
            prompts,
            on_devices(self._encoder.encode, params, self._batch_size),
            ShardPlace(states, plan),
            self._storage,
            rows=self._batch_size,
            num_threads=self._num_threads,
            failed=[failure for entry in entries.values() for failure in entry.failed],
            failure_budget=self._failure_budget,
        )
        made = maker.run(pending)
        wall_s = time.perf_counter() - begun
        member.wait_for_all()
        summary = self._complete(states, plan, fields, splits, scenes) if jax.process_index() == 0 else {}
        member.wait_for_all()
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
            count = self._expected_scenes
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
        member.wait_for_all()
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
        require_budget([failure for entry in entries for failure in entry.failed], self._failure_budget)
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
