"""Hidden states between ReCogDrive's own layout and ours, without loss in either direction."""

import json
from collections.abc import Mapping
from pathlib import Path

import gin
import tqdm
from absl import logging

from recogdrive.data.hidden_cache.container import (
    SAMPLES_PER_SHARD,
    STATES_FOLDER,
    TEMPORARY,
    ShardWriter,
    claim,
    fingerprint_of,
    finished_entry,
    write_manifest,
)
from recogdrive.data.hidden_cache.official import OfficialHiddenStates, write_official
from recogdrive.data.hidden_cache.reader import HiddenStateCache
from recogdrive.data.hidden_cache.record import Storage
from recogdrive.run_folder import RunFolder
from recogdrive.stages.base import Description

OFFICIAL_FOLDER = "official"
"""Within the run folder of an export."""


@gin.register
class ImportHiddenStates:
    """Converts a cache in ReCogDrive's layout to a container. Can be stopped and continued; nothing in it is run.

    Args:
      official: The cache.
      weights: What the states were made with, in words: part of the container's fingerprint, since the files do not
        say.
      samples_per_shard: Scenes of a file.

    Raises:
      ValueError: Nothing is said of the weights.
    """

    def __init__(
        self, official: OfficialHiddenStates, weights: str, *, samples_per_shard: int = SAMPLES_PER_SHARD
    ) -> None:
        if not weights or samples_per_shard < 1:
            raise ValueError(
                f"ImportHiddenStates.weights={weights!r} must name what the states were made with, and "
                f"samples_per_shard={samples_per_shard} be positive."
            )
        self._official, self._weights, self._samples_per_shard = official, weights, samples_per_shard

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Writes the container.

        Raises:
          HiddenCacheError: A file of the cache is missing or cannot be used, or the folder holds another conversion.
        """
        del parent
        entries, size = self._official.entries(), self._samples_per_shard
        shape = self._official.num_tokens, self._official.width
        fields = {"weights": self._weights, "origin": "official cache", "storage": str(Storage.BFLOAT16)}
        states = folder.path / STATES_FOLDER
        plan = claim(states, {"fields": fields, "shape": shape, "samples_per_shard": size, "entries": entries})
        for leftover in states.glob(f"*{TEMPORARY}"):
            leftover.unlink()
        folder.update(context=fields, fingerprint=fingerprint_of(fields))
        shards = []
        for number, start in enumerate(tqdm.trange(0, len(entries), size, unit="shard", desc="hidden states")):
            entry = finished_entry(states, number, plan)
            if entry is None:
                entry = self._shard(ShardWriter(states, number, Storage.BFLOAT16, plan), entries[start : start + size])
            shards.append(entry)
        manifest = write_manifest(states, fields=fields, shape=shape, splits={"official": len(entries)}, shards=shards)
        return {"scenes": manifest["records"], "bytes_per_scene": manifest["bytes"] / manifest["records"]}

    def describe(self) -> Description:
        """What is there to convert."""
        try:
            found = f"{len(self._official.entries()):,} scenes in {self._official.path}"
        except (OSError, ValueError) as error:
            found = f"not available: {error}"
        return Description(data={"official cache": found})

    def _shard(self, writer: ShardWriter, entries: list[tuple[str, str]]):
        try:
            for log_name, token in entries:
                writer.add(self._official.read(log_name, token))
            return writer.close()
        except BaseException:
            writer.abandon()
            raise


@gin.register
class ExportHiddenStates:
    """Writes a container in ReCogDrive's layout, for the original code, to `official/` in the run folder.

    Args:
      cache: The container.
    """

    def __init__(self, cache: HiddenStateCache) -> None:
        self._cache = cache

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Writes two files a scene; scenes without driven trajectory are refused.

        Raises:
          HiddenCacheError: The container cannot be read, or a scene has no driven trajectory.
        """
        del parent
        container, target = self._cache.container, folder.path / OFFICIAL_FOLDER
        folder.update(context=json.loads(json.dumps(container.fields)), fingerprint=container.fingerprint)
        for token in tqdm.tqdm(container.tokens, unit="scene", desc="export"):
            write_official(container.read(token), target)
        logging.info("%d scenes for the original code in %s", len(container), target)
        return {"scenes": len(container)}

    def describe(self) -> Description:
        """What is there to export."""
        try:
            found = f"{len(self._cache.container):,} scenes"
        except (OSError, ValueError) as error:
            found = f"not available: {error}"
        return Description(data={"hidden states": found})
