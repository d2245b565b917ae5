"""The hidden-state cache on disk: ArrayRecord shards, what each holds, and a manifest.

A shard is written under another name and renamed when it is whole; a small JSON file beside it then says what is in
it. `manifest.json` comes last, so a folder has one only if everything in it is whole.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from recogdrive.data.hidden_cache.codec import Int8Error
from recogdrive.data.hidden_cache.record import VERSION, HiddenStates, Storage, encode_record
from recogdrive.version import __version__

MANIFEST = "manifest.json"
PLAN = "plan.json"
STATES_FOLDER = "hidden_states"
"""Where runs that write a container have it, within their folder."""
SAMPLES_PER_SHARD = 128
"""About 0.7 GB of InternVL3-2B's states."""
TEMPORARY = ".tmp"
# One record a chunk: reading one reads nothing else. The planes are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_SHOWN = 3

Fields = Mapping[str, Any]
"""What decides the values of a context, as JSON values: weights, prompt, preprocessing, dtype ..."""


class HiddenCacheError(ValueError):
    """A cache that cannot be read or written; the message says which file, why and what to do."""


def fingerprint_of(fields: Fields) -> str:
    """SHA-256 of fields: equal where all of them are."""
    return hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode()).hexdigest()


def differences(expected: Fields, found: Fields) -> list[str]:
    """The fields that differ, each with both values."""
    return [
        f"{name}: {found.get(name, 'nothing')!r} instead of {expected.get(name, 'nothing')!r}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"states-{number:05d}.array_record"


@dataclass(frozen=True)
class ShardEntry:
    """What is known of a finished shard.

    Attributes:
      file: Its name.
      plan: Fingerprint of the work it belongs to.
      tokens: Of its records, in order.
      bytes: Its size.
      sha256: Of its bytes.
      failed: Scenes that are missing: dictionaries with `token` and `reason`.
      int8_error: Largest and mean of its records' errors, see `Int8Error`; None where nothing is lost.
    """

    file: str
    plan: str
    tokens: tuple[str, ...]
    bytes: int
    sha256: str
    failed: tuple[Mapping[str, str], ...] = ()
    int8_error: Mapping[str, float] | None = None


class ShardWriter:
    """Writes one shard, record after record; whole or not at all.

    Args:
      folder: Of the container.
      number: Of the shard.
      storage: How states are kept.
      plan: Fingerprint of the work it belongs to.
    """

    def __init__(self, folder: Path, number: int, storage: Storage, plan: str) -> None:
        self._path = folder / shard_name(number)
        self._temporary = self._path.with_name(self._path.name + TEMPORARY)
        self._storage, self._plan = storage, plan
        self._tokens: list[str] = []
        self._failed: list[dict[str, str]] = []
        self._errors: list[Int8Error] = []
        self._writer = ArrayRecordWriter(os.fspath(self._temporary), _WRITER_OPTIONS)

    def add(self, states: HiddenStates) -> None:
        """Appends a scene; raises RecordError if it cannot be stored."""
        self.add_encoded(states.token, *encode_record(states, self._storage))

    def add_encoded(self, token: str, record: bytes, error: Int8Error | None) -> None:
        """Appends what `encode_record` made."""
        self._writer.write(record)
        self._tokens.append(token)
        if error is not None:
            self._errors.append(error)

    def record_failure(self, token: str, reason: str) -> None:
        """Notes a scene that is missing and why."""
        self._failed.append({"token": token, "reason": reason})

    def close(self) -> ShardEntry:
        """Completes the file and puts it in its place, then writes what is in it beside it."""
        self._writer.close()
        with self._temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            os.fsync(file.fileno())
        opened = open_records(self._temporary)
        if opened.num_records() != len(self._tokens):
            raise HiddenCacheError(
                f"{self._temporary} holds {opened.num_records()} records of {len(self._tokens)} that were written; "
                "the disk may be full"
            )
        self._temporary.replace(self._path)
        entry = ShardEntry(
            self._path.name, self._plan, tuple(self._tokens), size, digest, tuple(self._failed), self._error()
        )
        write_whole(_entry_path(self._path), json.dumps(asdict(entry), indent=1).encode())
        return entry

    def abandon(self) -> None:
        """Leaves nothing behind."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _error(self) -> dict[str, float] | None:
        if not self._errors:
            return None
        return {
            "max_relative": max(error.max_relative for error in self._errors),
            "mean_rms_relative": sum(error.rms_relative for error in self._errors) / len(self._errors),
        }


def open_records(path: Path) -> ArrayRecordReader:
    """A shard for reading single records; raises OSError or RuntimeError if that is no such file."""
    return ArrayRecordReader(os.fspath(path), _READER_OPTIONS)


def finished_entry(folder: Path, number: int, plan: str) -> ShardEntry | None:
    """What is in a shard of this plan; None if it is not there, not whole or of another plan."""
    path = folder / shard_name(number)
    try:
        values = json.loads(_entry_path(path).read_text(encoding="utf-8"))
        values["tokens"], values["failed"] = tuple(values["tokens"]), tuple(values["failed"])
        entry = ShardEntry(**values)
        whole = path.stat().st_size == entry.bytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if whole and entry.plan == plan else None


def claim(folder: Path, plan: Mapping[str, Any]) -> str:
    """Notes in a container's folder what is being made there; returns the plan's fingerprint.

    Raises:
      HiddenCacheError: Something else is being made there; every difference is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    plan = json.loads(json.dumps(plan))
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise HiddenCacheError(f"{path} is not readable ({error}); remove the folder and begin anew.") from error
        if changed := differences(_flat(earlier), _flat(plan)):
            raise HiddenCacheError(
                f"{folder} holds hidden states of another plan ({'; '.join(changed)}). Choose another --workdir, or "
                "remove the folder."
            )
    else:
        write_whole(path, json.dumps(plan, indent=1, sort_keys=True).encode())
    return fingerprint_of(plan)


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan with the fields of its context beside its own, so that differences are named one by one."""
    inner = plan.get("fields")
    return {**plan, **inner, "fields": None} if isinstance(inner, dict) else dict(plan)


def write_manifest(
    folder: Path,
    *,
    fields: Fields,
    shape: tuple[int, int],
    splits: Mapping[str, int],
    shards: Sequence[ShardEntry],
) -> dict[str, Any]:
    """Completes a container whose shards are written; returns the manifest.

    Args:
      folder: Of the container.
      fields: What decides the states' values.
      shape: (T, V).
      splits: Split -> scenes asked for.
      shards: In order.

    Raises:
      HiddenCacheError: A token is in two places.
    """
    tokens = [token for shard in shards for token in shard.tokens]
    if len(set(tokens)) != len(tokens):
        raise HiddenCacheError(f"{folder}: some tokens come more than once; scenes of a cache must differ.")
    errors = [(len(shard.tokens), shard.int8_error) for shard in shards if shard.int8_error is not None]
    manifest = {
        "format": VERSION,
        "creator": f"recogdrive {__version__}",
        "fields": dict(fields),
        "fingerprint": fingerprint_of(fields),
        "num_tokens": shape[0],
        "width": shape[1],
        "splits": dict(splits),
        "records": len(tokens),
        "bytes": sum(shard.bytes for shard in shards),
        "int8_error": _over_shards(errors) if errors else None,
        "failed": [failure for shard in shards for failure in shard.failed],
        "shards": [{"file": s.file, "records": len(s.tokens), "bytes": s.bytes, "sha256": s.sha256} for s in shards],
        "tokens": tokens,
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _over_shards(errors: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    errors = list(errors)
    mean = sum(count * error["mean_rms_relative"] for count, error in errors) / sum(count for count, _ in errors)
    return {"max_relative": max(error["max_relative"] for _, error in errors), "mean_rms_relative": mean}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a container of this version.

    Raises:
      HiddenCacheError: There is none, or one of another version; or shards are missing or of another size.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except FileNotFoundError:
        raise HiddenCacheError(
            f"There is no finished hidden-state cache at {folder}: {MANIFEST} is missing. Write one with an experiment "
            "such as debug_cache, continue the run that was writing it, or name another folder."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HiddenCacheError(
            f"{path} cannot be read ({error!r}). Remove it and run the cache stage again."
        ) from error
    if version != VERSION:
        raise HiddenCacheError(f"{folder} has format {version!r}, this version reads {VERSION}; write it anew.")
    problems = [text for shard in manifest["shards"] if (text := _wrong_size(folder, shard))]
    if sum(shard["records"] for shard in manifest["shards"]) != len(manifest["tokens"]):
        problems.append(f"{MANIFEST} lists {len(manifest['tokens'])} tokens for another number of records")
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + (" ..." if len(problems) > _SHOWN else "")
        raise HiddenCacheError(
            f"{folder} is damaged: {shown}. Remove these files and run the cache stage again; it makes only them anew."
        )
    return manifest


def _wrong_size(folder: Path, shard: Mapping[str, Any]) -> str | None:
    path = folder / shard["file"]
    try:
        size = path.stat().st_size
    except OSError:
        return f"{path.name} is missing"
    if size != shard["bytes"]:
        kind = "truncated" if size < shard["bytes"] else "longer than written"
        return f"{path.name} is {kind} ({size} of {shard['bytes']} bytes)"
    return None


def _entry_path(shard: Path) -> Path:
    return shard.with_suffix(".json")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, also after a crash."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
