"""The container of scenes to score in: a folder of Arrow shards with a manifest.

`manifest.json` says which layout the shards have, who wrote them from what, and the size and SHA-256 of each. It is
written last, so a folder has one only if everything in it is whole. Rows are laid out in `cache_format`.
"""

import collections
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grain
import numpy as np
import pyarrow as pa
from absl import logging

from recogdrive.pdm import cache_format
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.machine import machine_stamp
from recogdrive.pdm.map_table import Polygons
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.shard import TEMPORARY, Shard, ShardWriter, open_shard, write_whole
from recogdrive.version import __version__

MANIFEST = "manifest.json"
SCENES_PER_SHARD = 256
TABLES_IN_MEMORY = 128
"""Shards whose polygons a process keeps, about a megabyte each."""
SCENES_FOLDER = "scenes"
"""Where runs that write a container have it, within their folder."""

T = TypeVar("T")


class CacheError(ValueError):
    """A container that cannot be read or written; the message says which file, why and what to do."""


def fingerprint(origin: Mapping[str, Any], tokens: Sequence[str]) -> str:
    """SHA-256 of where scenes come from and of their tokens in order: equal for containers of the same scenes."""
    text = json.dumps({"origin": dict(origin), "tokens": list(tokens)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class PdmCacheWriter:
    """Writes scenes to a new container, shard by shard; a context manager.

    Every file appears whole under its name or not at all, the manifest last. Leaving the context with an exception
    leaves no container behind, only shards that the next writer removes.

    Args:
      folder: Where to; created if needed. It must not hold a container yet.
      origin: What the scenes were made from, as JSON values (source, seed, split, ...).
      scenes_per_shard: Upper bound, at least 1.

    Attributes:
      tokens: Of the scenes stored so far.
      failed: Scenes refused or never made: dictionaries with `token` and `reason`.

    Raises:
      CacheError: The folder holds a container already.
      ValueError: `scenes_per_shard` is less than 1.
    """

    def __init__(
        self, folder: str | Path, *, origin: Mapping[str, Any], scenes_per_shard: int = SCENES_PER_SHARD
    ) -> None:
        if scenes_per_shard < 1:
            raise ValueError(f"scenes_per_shard={scenes_per_shard} must be at least 1, e.g. {SCENES_PER_SHARD}")
        self.folder = Path(folder)
        if (self.folder / MANIFEST).exists():
            raise CacheError(f"{self.folder} holds a container already; remove it or write to another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.folder.glob("scenes-*.arrow"), *self.folder.glob(f"*{TEMPORARY}")):
            leftover.unlink()
        self.tokens: list[str] = []
        self.failed: list[dict[str, str]] = []
        self._origin = json.loads(json.dumps(dict(origin)))
        self._scenes_per_shard = scenes_per_shard
        self._known: set[str] = set()
        self._shard = ShardWriter()
        self._shards: list[dict[str, Any]] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def add(self, scene: PdmScene, map_vertices: np.ndarray | None = None) -> bool:
        """Stores a scene; one that cannot be stored is recorded as failed instead. Returns whether it was stored.

        A scene fails if it does not validate, if its token is in the container already, or if its arrays have other
        dtypes than those of the first scene (so that nothing is ever converted).

        Args:
          scene: The scene.
          map_vertices: Global coordinates of its map, which scenes then share; see `MadeScene`.
        """
        if self._closed:
            raise CacheError(f"{self.folder} is complete; write more scenes to another container")
        try:
            if scene.token in self._known:
                raise SceneError(f"scene {scene.token} is in the container already; tokens must differ")
            warnings = self._shard.add(scene, map_vertices)
        except SceneError as error:
            self.record_failure(scene.token, str(error))
            return False
        for warning in warnings:
            logging.warning("scene %s: %s", scene.token, warning)
        self._known.add(scene.token)
        self.tokens.append(scene.token)
        if len(self._shard) == self._scenes_per_shard:
            self._write_shard()
        return True

    def record_failure(self, token: str, reason: str) -> None:
        """Notes a scene that is missing from the container and why."""
        logging.warning("not in the container: %s", reason)
        self.failed.append({"token": str(token), "reason": reason})

    def close(self) -> None:
        """Writes what is left and the manifest; a second call does nothing."""
        if self._closed:
            return
        if len(self._shard):
            self._write_shard()
        write_manifest(
            self.folder,
            origin=self._origin,
            tokens=self.tokens,
            shards=self._shards,
            failed=self.failed,
            dtypes=self._shard.dtypes,
            machines=[machine_stamp()],
        )
        self._closed = True

    def _write_shard(self) -> None:
        path = self.folder / shard_name(len(self._shards))
        self._shards.append(self._shard.write(path, {"machine": machine_stamp()}))
        self._shard = ShardWriter(self._shard.dtypes)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"scenes-{number:05d}.arrow"


def write_manifest(
    folder: Path,
    *,
    origin: Mapping[str, Any],
    tokens: Sequence[str],
    shards: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, str]],
    dtypes: Mapping[str, str],
    machines: Sequence[Mapping[str, str]],
) -> None:
    """Completes a container whose shards are written.

    Args:
      folder: Where they are.
      origin: What the scenes were made from.
      tokens: Of all scenes, in order.
      shards: Entry of every shard, in order (`ShardWriter.write`, `Shard.entry`).
      failed: Scenes that are missing: dictionaries with `token` and `reason`.
      dtypes: Array -> dtype in all shards.
      machines: Stamps of what computed them (`machine_stamp`).
    """
    manifest = {
        "format": cache_format.VERSION,
        "creator": f"recogdrive {__version__}",
        "pyarrow": pa.__version__,
        "machines": list(machines),
        "origin": dict(origin),
        "fingerprint": fingerprint(origin, tokens),
        "dtypes": dict(dtypes),
        "num_scenes": len(tokens),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": list(shards),
        "failed": list(failed),
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


class PdmCache:
    """A container as a random-access sequence of scenes.

    Shards are mapped into memory when first needed. Scenes are whole copies, checked against their checksum. Safe to
    read from threads; pickled, it takes its folder along and no data, so it can be handed to worker processes.

    Args:
      folder: The container.

    Attributes:
      manifest: What `manifest.json` says.
      failed: Scenes that are not in the container, dictionaries with `token` and `reason`.
      fingerprint: Of the origin and the tokens.

    Raises:
      CacheError: No manifest (never written to its end), one of another version or damaged, a shard that is missing or
        not as long as it was written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.failed: list[dict[str, str]] = self.manifest["failed"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self._shards: list[dict[str, Any]] = self.manifest["shards"]
        self._ends = np.cumsum([0, *(shard["scenes"] for shard in self._shards)])
        if problems := [text for shard in self._shards if (text := self._wrong_size(shard))]:
            raise CacheError(f"{self.folder} is damaged: {'; '.join(problems)}. Write it anew.")
        self._opened: dict[int, Shard] = {}
        self._reset_tables()
        self._index: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        kept = {key: value for key, value in self.__dict__.items() if key not in ("_tables", "_lock")}
        return {**kept, "_opened": {}, "_index": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset_tables()

    def __repr__(self) -> str:
        return f"PdmCache({str(self.folder)!r}, {len(self)} scenes, {self.fingerprint[:12]})"

    def __len__(self) -> int:
        return self.manifest["num_scenes"]

    @property
    def tokens(self) -> tuple[str, ...]:
        """Token of every scene, in order."""
        return tuple(self._positions())

    def __getitem__(self, index: int) -> PdmScene:
        """Scene `index` (negative: from the end).

        Raises:
          IndexError: There is no such scene.
          CacheError: The shard cannot be read or the scene in it is damaged.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {self.folder}, which holds {len(self)} scenes")
        index = int(index) % len(self)
        shard = int(np.searchsorted(self._ends, index, side="right")) - 1
        row = index - int(self._ends[shard])
        opened = self._open(shard)
        try:
            return cache_format.decode(opened.columns, row, self.manifest["dtypes"], self._tables_of(shard))
        except (ValueError, LookupError, OSError, pa.ArrowException) as error:
            name = self._shards[shard]["file"]
            raise CacheError(
                f"scene {index} in {self.folder / name} (row {row}) is damaged: {error}. Write the container anew."
            ) from error

    def by_token(self, token: str) -> PdmScene:
        """The scene with this token; raises SceneError if the container does not hold it."""
        position = self._positions().get(token)
        if position is None:
            reason = next((f" It failed when written: {f['reason']}" for f in self.failed if f["token"] == token), "")
            raise SceneError(
                f"scene {token} is not in the container {self.folder}, which holds {len(self)} scenes and lists "
                f"{len(self.failed)} failed ones.{reason}"
            )
        return self[position]

    def verify(self) -> None:
        """Reads everything once; raises CacheError naming each shard that is not what was written."""
        problems = []
        for shard in self._shards:
            problem = self._wrong_size(shard)
            if not problem and _sha256(self.folder / shard["file"]) != shard["sha256"]:
                problem = f"{shard['file']} differs from what was written (SHA-256 does not match)"
            problems += [problem] if problem else []
        if not problems and fingerprint(self.manifest["origin"], self.tokens) != self.fingerprint:
            problems.append("the tokens or the origin are not those of the fingerprint")
        if problems:
            raise CacheError(f"{self.folder} is damaged: {'; '.join(problems)}. Write it anew.")

    def _wrong_size(self, shard: Mapping[str, Any]) -> str | None:
        path = self.folder / shard["file"]
        if not path.is_file():
            return f"{path.name} is missing"
        size = path.stat().st_size
        if size != shard["bytes"]:
            kind = "truncated" if size < shard["bytes"] else "longer than written"
            return f"{path.name} is {kind} ({size} of {shard['bytes']} bytes)"
        return None

    def _positions(self) -> dict[str, int]:
        if self._index is None:
            tokens = [t for shard in range(len(self._shards)) for t in self._open(shard).columns["token"].to_pylist()]
            self._index = {token: position for position, token in enumerate(tokens)}
        return self._index

    def _open(self, shard: int) -> Shard:
        """A shard, mapped into memory."""
        if shard not in self._opened:
            path = self.folder / self._shards[shard]["file"]
            try:
                opened = open_shard(path)
            except (OSError, ValueError) as error:
                raise CacheError(f"{path} cannot be read ({error}). Write the container anew.") from error
            if opened.num_scenes != self._shards[shard]["scenes"]:
                raise CacheError(f"{path} does not hold what {MANIFEST} says. Write the container anew.")
            self._opened[shard] = opened
        return self._opened[shard]

    def _tables_of(self, shard: int) -> Mapping[bool, Polygons]:
        """Shared polygons of a shard; those that were unused for longest are forgotten and read again when needed."""
        with self._lock:
            tables = self._tables.pop(shard, None)
            if tables is None:
                tables = self._open(shard).read_tables()
                while len(self._tables) >= TABLES_IN_MEMORY:
                    self._tables.popitem(last=False)
            self._tables[shard] = tables
            return tables

    def _reset_tables(self) -> None:
        self._tables: collections.OrderedDict[int, Mapping[bool, Polygons]] = collections.OrderedDict()
        self._lock = threading.Lock()


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a container of this version."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except FileNotFoundError:
        raise CacheError(
            f"{folder} holds no container: {MANIFEST} is missing, or writing never came to its end"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path} cannot be read ({error!r}). Write the container anew.") from error
    if version != cache_format.VERSION:
        newer = isinstance(version, int) and version > cache_format.VERSION
        remedy = "read it with a newer version of recogdrive" if newer else "write it anew with this version"
        raise CacheError(f"{folder} has format {version!r}, this version reads {cache_format.VERSION}; {remedy}")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pdm_stream(
    scenes: Sequence[PdmScene] | PdmCache,
    batch_size: int,
    *,
    collate: Callable[[Sequence[PdmScene]], T],
    seed: int | None,
    num_epochs: int | None = None,
    num_threads: int = 1,
    prefetch: int = 2,
) -> grain.IterDataset[T]:
    """Batches of scenes, the same for the same seed; its iterators have `get_state` and `set_state`.

    Scenes are shuffled anew in every epoch. Batches run on across the border of epochs; only the very last one can have
    fewer than `batch_size` scenes.

    Args:
      scenes: A container or any random-access sequence.
      batch_size: Scenes of a batch.
      collate: Makes a batch of a list of scenes.
      seed: Of the order; None keeps the order of `scenes`.
      num_epochs: How often every scene comes; None for ever.
      num_threads: Reading threads.
      prefetch: Batches made ahead.

    Raises:
      ValueError: No scenes, or a batch size below 1.
    """
    if len(scenes) == 0:
        raise ValueError(f"{scenes!r} holds no scenes to make batches of")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    dataset = grain.MapDataset.source(scenes)
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    batches = dataset.repeat(num_epochs).batch(batch_size, batch_fn=collate)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads, max(prefetch, num_threads)))
