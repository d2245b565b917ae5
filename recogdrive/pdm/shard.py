"""One file of the container: rows of scenes, the polygons they share, what failed, and on what it was made."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from recogdrive.pdm import cache_format
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.map_table import PolygonPool, Polygons
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.validation import validate

TEMPORARY = ".tmp"

_FACTS = b"recogdrive"
_TABLES = {True: b"recogdrive.polygons_global", False: b"recogdrive.polygons_local"}


class Shard(NamedTuple):
    """An open shard.

    Attributes:
      path: Its file.
      columns: Name -> column, mapped into memory.
      facts: What was written beside them: `failed`, `dtypes`, `machine` and whatever the writer added.
    """

    path: Path
    columns: Mapping[str, pa.Array]
    facts: Mapping[str, Any]

    @property
    def num_scenes(self) -> int:
        """Rows."""
        return len(self.columns["token"])

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return _entry(self.path, self.num_scenes, self.path.read_bytes())

    def read_tables(self) -> dict[bool, Polygons]:
        """The shared polygons: global ones under True, those in the coordinates of one scene under False.

        Raises:
          ValueError, OSError: They are damaged.
        """
        _, metadata = _read(self.path)
        return {is_global: Polygons.from_bytes(metadata[key]) for is_global, key in _TABLES.items() if key in metadata}


class ShardWriter:
    """Collects scenes of one shard.

    Args:
      dtypes: Array -> dtype that scenes must have; by default those of the first ones.

    Attributes:
      tokens: Of the scenes collected.
      failed: Scenes that are not among them: dictionaries with `token` and `reason`.
      dtypes: As above, as far as known.
    """

    def __init__(self, dtypes: Mapping[str, str] | None = None) -> None:
        self.tokens: list[str] = []
        self.failed: list[dict[str, str]] = []
        self.dtypes: dict[str, str] = dict(dtypes or {})
        self._rows: list[cache_format.Row] = []
        self._pools: dict[bool, PolygonPool] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, scene: PdmScene, map_vertices: np.ndarray | None = None) -> tuple[str, ...]:
        """Adds a scene; returns what is unusual about it.

        Args:
          scene: The scene.
          map_vertices: (V, 2) float64 global coordinates of its vertices, where they have any; see `MadeScene`.

        Raises:
          SceneError: It does not validate, has other dtypes than those before it, or its vertices are not those of its
            map.
        """
        warnings = validate(scene)
        dtypes = cache_format.dtypes_of(scene)
        for name, dtype in dtypes.items():
            if self.dtypes.get(name, dtype) != dtype:
                raise SceneError(
                    f"scene {scene.token}: {name} is {dtype} but the container holds {self.dtypes[name]}; convert it, "
                    "or write it to another container"
                )
        is_global = map_vertices is not None
        if is_global:
            _check_map(scene, map_vertices)
        self.dtypes |= dtypes
        vertices = map_vertices if is_global else scene.vertices
        pool = self._pools.setdefault(is_global, PolygonPool(vertices.dtype))
        polygons = Polygons(vertices, scene.ring_offsets, scene.polygon_offsets, scene.polygon_layers)
        self._rows.append(cache_format.encode(scene, pool.add(polygons), is_global))
        self.tokens.append(scene.token)
        return warnings

    def record_failure(self, token: str, reason: str) -> None:
        """Notes a scene that is missing and why."""
        self.failed.append({"token": str(token), "reason": reason})

    def write(self, path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the file, whole or not at all; returns its entry for the manifest.

        Args:
          path: Where to.
          facts: Further JSON values to keep with it, such as the machine's stamp.
        """
        known = {"format": cache_format.VERSION, "failed": self.failed, "dtypes": self.dtypes, **facts}
        metadata = {_FACTS: json.dumps(known).encode()}
        metadata |= {_TABLES[is_global]: pool.table().to_bytes() for is_global, pool in self._pools.items()}
        schema = cache_format.SCHEMA
        rows = {name: [row[name] for row in self._rows] for name in schema.names}
        batch = pa.RecordBatch.from_pydict(rows, schema=schema)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            # Beside the batch, since a file has its schema twice.
            writer.write_batch(batch, custom_metadata=metadata)
        content = sink.getvalue()
        write_whole(path, content)
        return _entry(path, len(self), content)


def _check_map(scene: PdmScene, map_vertices: np.ndarray) -> None:
    """Whether a scene's vertices follow from global ones, bit for bit."""
    if scene.origin[2] != 0:
        raise SceneError(f"scene {scene.token}: its local frame is rotated by {scene.origin[2]} rad, its map is global")
    made = cache_format.local_vertices(map_vertices, scene.origin, scene.vertices.dtype)
    if made.shape != scene.vertices.shape or made.tobytes() != scene.vertices.tobytes():
        raise SceneError(f"scene {scene.token}: its vertices are not those of its map less its origin")


def open_shard(path: Path) -> Shard:
    """Maps a shard into memory.

    Raises:
      ValueError, OSError: It cannot be read, or does not hold what a shard holds.
    """
    batch, metadata = _read(path)
    try:
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    if batch.schema != cache_format.SCHEMA:
        raise ValueError("it has other columns than this version writes")
    if _FACTS not in metadata:
        raise ValueError("it holds no facts about itself")
    return Shard(path, dict(zip(batch.schema.names, batch.columns, strict=True)), json.loads(metadata[_FACTS]))


def _read(path: Path) -> tuple[pa.RecordBatch, dict[bytes, bytes]]:
    """Rows of a shard, mapped into memory, and what stands beside them."""
    try:
        with pa.memory_map(str(path)) as file:
            read = pa.ipc.open_file(file).get_batch_with_custom_metadata(0)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    return read.batch, dict(read.custom_metadata or {})


def _entry(path: Path, scenes: int, content: bytes | pa.Buffer) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"file": path.name, "scenes": scenes, "bytes": memoryview(content).nbytes, "sha256": digest}


def write_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """Writes a file so that it is there whole or not at all, also after a crash."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
