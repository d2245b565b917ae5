"""The seal of a checkpoint: size and checksum of each of its files, written before the checkpoint takes its name."""

import hashlib
import json
import os
from pathlib import Path

MANIFEST = "manifest.json"

_UNSEALED = frozenset({MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"})
"""Files at the top of a checkpoint that Orbax touches after sealing; nothing in them is needed to restore."""

_CHUNK_BYTES = 1 << 22


def _digest(path: Path, *, sync: bool) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _sealed_files(folder: Path) -> list[Path]:
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if str(path) not in _UNSEALED]


def write_durably(path: Path, text: str) -> None:
    """Writes a file so that after a crash it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def seal(folder: Path) -> None:
    """Flushes every file of a finished checkpoint to disk and writes the manifest that `problems` checks against."""
    files = {
        str(path): {"bytes": (folder / path).stat().st_size, "blake2b": _digest(folder / path, sync=True)}
        for path in _sealed_files(folder)
    }
    write_durably(folder / MANIFEST, json.dumps({"files": files}, indent=1, sort_keys=True))


def problems(folder: Path) -> list[str]:
    """Why a checkpoint cannot be used, one sentence part for each fault; empty for a sound one."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return [f"its {MANIFEST} is missing, so the save was never completed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"its {MANIFEST} cannot be read ({error})"]
    found = []
    for name, sealed in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != sealed["bytes"]:
                kind = "truncated" if size < sealed["bytes"] else "longer than saved"
                found.append(f"{name} is {kind} ({size} of {sealed['bytes']} bytes)")
            elif _digest(path, sync=False) != sealed["blake2b"]:
                found.append(f"{name} differs from what was saved (its checksum does not match)")
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read ({error})")
    return found
