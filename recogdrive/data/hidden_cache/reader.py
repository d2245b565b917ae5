"""Reads hidden states: as context of a scene, and as training samples without building scenes."""

import collections
import functools
import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader

from recogdrive.data.hidden_cache.container import (
    STATES_FOLDER,
    Fields,
    HiddenCacheError,
    differences,
    open_records,
    read_manifest,
)
from recogdrive.data.hidden_cache.record import HiddenStates, RecordError, decode_record
from recogdrive.data.samples import Sample, SceneSource
from recogdrive.data.types import Context, Scene

_OPEN_SHARDS = 256
_SHOWN = 3
_REMEDY = "Remove the file and run the cache stage again; it makes only this shard anew."


class HiddenStateContainer:
    """A finished container, by token.

    Safe to read from threads. Pickled or forked, it opens its files anew: readers share their place in a file.

    Args:
      folder: The container.

    Attributes:
      manifest: What `manifest.json` says.
      tokens: Of all records, in order.
      fingerprint: Of `fields`.
      fields: What decides the states' values.
      num_tokens: T.
      width: V.

    Raises:
      HiddenCacheError: It cannot be read; see `read_manifest`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.tokens: tuple[str, ...] = tuple(self.manifest["tokens"])
        self.fields: Fields = self.manifest["fields"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.num_tokens: int = self.manifest["num_tokens"]
        self.width: int = self.manifest["width"]
        self._index = {token: i for i, token in enumerate(self.tokens)}
        self._ends = np.cumsum([0, *(shard["records"] for shard in self.manifest["shards"])])
        self._forget()

    def __repr__(self) -> str:
        return f"HiddenStateContainer({str(self.folder)!r}, {len(self)} scenes, {self.fingerprint[:12]})"

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._index

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["folder"])

    def read(self, token: str, out: np.ndarray | None = None) -> HiddenStates:
        """The states of a scene.

        Args:
          token: Of the scene.
          out: (T, V) bfloat16 memory to write them into; new memory unless given.

        Raises:
          HiddenCacheError: The container does not hold the scene, or its file is damaged; both are named.
        """
        position = self._index.get(token)
        if position is None:
            raise HiddenCacheError(self._why_missing(token))
        number = int(np.searchsorted(self._ends, position, side="right")) - 1
        name = self.manifest["shards"][number]["file"]
        try:
            # Riegeli, which lies under ArrayRecord, keeps a hash of every record and raises if it does not match.
            states = decode_record(self._open(number).read([position - int(self._ends[number])])[0], out)
            if states.token != token:
                raise RecordError(f"the record is that of scene {states.token}")
            if states.tokens.shape != (self.num_tokens, self.width):
                raise RecordError(f"the states have shape {states.tokens.shape}")
        except (RecordError, RuntimeError, OSError, IndexError) as error:
            raise HiddenCacheError(
                f"Scene {token} in {self.folder / name} cannot be read: {str(error).splitlines()[0]}. {_REMEDY}"
            ) from error
        return states

    def verify(self) -> None:
        """Reads every byte once; raises HiddenCacheError naming each shard that is not what was written."""
        wrong = []
        for shard in self.manifest["shards"]:
            with (self.folder / shard["file"]).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                    wrong.append(shard["file"])
        if wrong:
            raise HiddenCacheError(f"{self.folder} is damaged: {', '.join(wrong)} differ from what was written.")

    def _why_missing(self, token: str) -> str:
        reason = next((f" It failed: {f['reason']}" for f in self.manifest["failed"] if f["token"] == token), "")
        return (
            f"Scene {token} is not in the hidden-state cache {self.folder}, which holds {len(self)} scenes of "
            f"{', '.join(self.manifest['splits'])}.{reason} Cache the split it belongs to."
        )

    def _open(self, number: int) -> ArrayRecordReader:
        """A shard's reader; those that were unused for longest are closed when too many are open."""
        with self._lock:
            if self._process != os.getpid():
                self._forget()
            reader = self._readers.pop(number, None)
            if reader is None:
                shard = self.manifest["shards"][number]
                reader = open_records(self.folder / shard["file"])
                # A damaged or cut-off index reads as an emptier file.
                if reader.num_records() != shard["records"]:
                    raise RecordError(f"it holds {reader.num_records()} records instead of {shard['records']}")
                while len(self._readers) >= _OPEN_SHARDS:
                    self._readers.popitem(last=False)  # Whoever reads from it still holds it.
            self._readers[number] = reader
            return reader

    def _forget(self) -> None:
        self._readers: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()
        self._lock = threading.RLock()
        self._process = os.getpid()


@gin.register
class HiddenStateCache:
    """Context tokens from a container of hidden states.

    The container is opened when it is needed, so that an experiment can be described where there is none; until then
    its shape is what is given here.

    Args:
      path: Folder of a container, or of the run that wrote it.
      num_tokens: T that is expected; None takes what is there.
      width: V that is expected; likewise.
      expect: Fields that the container must have, or its whole fingerprint; None takes any.

    Raises:
      ValueError: No folder is named.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        num_tokens: int | None = None,
        width: int | None = None,
        expect: Mapping[str, Any] | str | None = None,
    ) -> None:
        if not path:
            raise ValueError("No hidden-state cache is named: set HIDDEN_CACHE to the folder of one.")
        self._path = Path(path)
        self._num_tokens, self._width = num_tokens, width
        self._expect = expect

    @functools.cached_property
    def container(self) -> HiddenStateContainer:
        """The container.

        Raises:
          HiddenCacheError: There is none that can be read, or not the one that is expected; names what differs.
        """
        folder = self._path / STATES_FOLDER
        container = HiddenStateContainer(folder if folder.is_dir() else self._path)
        problems = [
            f"{name}: {found} instead of {expected}"
            for name, expected, found in [
                ("tokens of a scene (CONTEXT_TOKENS)", self._num_tokens, container.num_tokens),
                ("width (CONTEXT_WIDTH)", self._width, container.width),
            ]
            if expected is not None and expected != found
        ]
        if isinstance(self._expect, str):
            if container.fingerprint != self._expect:
                problems.append(f"fingerprint: {container.fingerprint} instead of {self._expect}")
        elif self._expect is not None:
            known = {name: value for name, value in container.fields.items() if name in self._expect}
            problems += differences(self._expect, known)
        if problems:
            raise HiddenCacheError(f"{container.folder} holds other hidden states than expected: {'; '.join(problems)}")
        logging.info("context: %r", container)
        return container

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.container.num_tokens if self._num_tokens is None else self._num_tokens

    @property
    def width(self) -> int:
        """V."""
        return self.container.width if self._width is None else self._width

    @property
    def dtype(self) -> str:
        """Of the context tokens."""
        return "bfloat16"

    @property
    def fingerprint(self) -> str:
        """Of what decides the states' values."""
        return self.container.fingerprint

    @property
    def fields(self) -> Fields:
        """What decides the states' values."""
        return self.container.fields

    def __call__(self, scene: Scene) -> Context:
        """The states of a scene; raises HiddenCacheError if the container does not hold it."""
        states = self.container.read(scene.token)
        return Context(states.tokens, states.mask)

    def samples(self, source: SceneSource) -> "HiddenStateSamples":
        """Training samples of a split, straight from the records."""
        return HiddenStateSamples(self, source)


class HiddenStateSamples:
    """Random-access samples of a split as `planner_sample` makes them, read without building scenes.

    Every sample is read anew: at 8.6 MB and more, few fit into memory.

    Args:
      cache: Where states, history, status and driven trajectory are.
      source: Says which scenes, and in which order.

    Raises:
      HiddenCacheError: Scenes are not in the cache; says how many and which.
    """

    def __init__(self, cache: HiddenStateCache, source: SceneSource) -> None:
        self._cache = cache
        self._tokens = tuple(source.tokens)
        container = cache.container
        if missing := [token for token in self._tokens if token not in container]:
            raise HiddenCacheError(
                f"{len(missing)} of {len(self._tokens)} scenes of {source.name} are not in the hidden-state cache "
                f"{container.folder}, e.g. {', '.join(missing[:_SHOWN])}. Cache this split, or leave them out of it "
                "(scene filter)."
            )

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> Sample:
        """One sample; raises HiddenCacheError if it cannot be read or its scene has no driven trajectory."""
        states = self._cache.container.read(self._tokens[index])
        if states.target is None:
            raise HiddenCacheError(
                f"Scene {states.token} of log {states.log_name} has no driven trajectory in the cache "
                f"{self._cache.container.folder}; imitation needs one."
            )
        return {
            "context": states.tokens,
            "context_mask": states.mask,
            "history_trajectory": states.history,
            "status_feature": states.status,
            "trajectory": states.target,
            "index": np.int32(index),
        }
