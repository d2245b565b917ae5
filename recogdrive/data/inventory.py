"""What lies under the data roots, by folders and files alone: logs, sensor data, maps, scene filters."""

import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recogdrive.data.maps import MAP_INDEX, map_path
from recogdrive.data.scene_filter import SceneFilter, TrainTestSplit, read_log_split

LOGS_FOLDER, SENSORS_FOLDER = "navsim_logs", "sensor_blobs"
_FILTER_DEPTH = 2
"""Levels of folders below the data root that are searched for YAML files."""
_SQLITE_MAGIC = b"SQLite format 3\0"
_SQLITE_HEADER_BYTES = 100


@dataclass(frozen=True)
class LogFolder:
    """A folder of logs.

    Attributes:
      split: Its name.
      logs: Number of `*.pkl` files.
      bytes: Their size.
      problem: Why it cannot be listed; else empty.
    """

    split: str
    logs: int = 0
    bytes: int = 0
    problem: str = ""


@dataclass(frozen=True)
class SensorFolder:
    """A folder of sensor data.

    Attributes:
      split: Its name.
      logs: Folders of logs in it.
      sensors: Sensor (`CAM_F0` ..., `MergedPointCloud`) -> folders of logs that have it.
      problem: Why it cannot be listed; else empty.
    """

    split: str
    logs: int
    sensors: dict[str, int]
    problem: str = ""


@dataclass(frozen=True)
class MapFile:
    """The map of a city that the map index names.

    Attributes:
      city: Its name.
      version: As the index has it; empty where the file was not found.
      bytes: Size of the file.
      problem: Why it cannot be used; else empty.
    """

    city: str
    version: str = ""
    bytes: int = 0
    problem: str = ""


@dataclass(frozen=True)
class FilterFile:
    """A YAML file of NAVSIM's configuration.

    Attributes:
      path: Relative to the data root where it lies there.
      kind: "scene filter", "log split" or "train_test_split".
      content: What it selects, in words.
    """

    path: str
    kind: str
    content: str


@dataclass(frozen=True)
class Inventory:
    """Everything that was found.

    Attributes:
      data_root: Folder that was looked into.
      maps_root: Folder of the map index.
      logs: Folders of logs.
      sensors: Folders of sensor data.
      maps: Cities of the map index.
      filters: YAML files, in the data root down to two levels of folders, and beside the working folder's own files.
      problems: What could not be looked at, or is not there at all.
    """

    data_root: str
    maps_root: str
    logs: tuple[LogFolder, ...]
    sensors: tuple[SensorFolder, ...]
    maps: tuple[MapFile, ...]
    filters: tuple[FilterFile, ...]
    problems: tuple[str, ...]


def take_inventory(data_root: Path, maps_root: Path) -> Inventory:
    """Lists what is there; opens no log, no image and of a map the first bytes. Nothing that is missing raises."""
    problems: list[str] = []
    logs = tuple(_log_folder(Path(entry)) for entry in _folders(data_root / LOGS_FOLDER, problems))
    sensors = tuple(_sensor_folder(Path(entry)) for entry in _folders(data_root / SENSORS_FOLDER, problems))
    return Inventory(
        data_root=str(data_root),
        maps_root=str(maps_root),
        logs=logs,
        sensors=sensors,
        maps=_maps(maps_root, problems),
        filters=tuple(_filters(data_root)),
        problems=tuple(problems),
    )


def in_words(error: Exception) -> str:
    """A failure's message; of the system's own what it says about the file: "permission denied: /data/x"."""
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.strerror.lower()}: {error.filename}"
    return str(error)


def _folders(parent: Path, problems: list[str]) -> list[os.DirEntry[str]]:
    """Folders in a folder, sorted by name; why there are none goes to `problems`."""
    try:
        found = _entries(parent, folders=True)
    except FileNotFoundError:
        problems.append(f"no folder {parent}")
        return []
    except OSError as error:
        problems.append(in_words(error))
        return []
    if not found:
        problems.append(f"{parent} is empty")
    return found


def _entries(folder: Path, *, folders: bool) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        chosen = [entry for entry in entries if entry.is_dir() == folders and not entry.name.startswith(".")]
    return sorted(chosen, key=lambda entry: entry.name)


def _log_folder(folder: Path) -> LogFolder:
    try:
        logs = [entry for entry in _entries(folder, folders=False) if entry.name.endswith(".pkl")]
        return LogFolder(folder.name, len(logs), sum(entry.stat().st_size for entry in logs))
    except OSError as error:
        return LogFolder(folder.name, problem=in_words(error))


def _sensor_folder(folder: Path) -> SensorFolder:
    sensors: Counter[str] = Counter()
    logs = 0
    try:
        for log in _entries(folder, folders=True):
            logs += 1
            sensors.update(sensor.name for sensor in _entries(Path(log), folders=True))
    except OSError as error:
        return SensorFolder(folder.name, logs, dict(sorted(sensors.items())), in_words(error))
    return SensorFolder(folder.name, logs, dict(sorted(sensors.items())))


def _maps(maps_root: Path, problems: list[str]) -> tuple[MapFile, ...]:
    index = maps_root / MAP_INDEX
    try:
        cities = sorted(json.loads(index.read_text(encoding="utf-8")))
    except FileNotFoundError:
        problems.append(f"no map index {index}")
        return ()
    except OSError as error:
        problems.append(in_words(error))
        return ()
    except (ValueError, TypeError) as error:
        problems.append(f"{index} is no map index: {error}")
        return ()
    return tuple(_map(maps_root, city) for city in cities)


def _map(maps_root: Path, city: str) -> MapFile:
    try:
        path = map_path(maps_root, city)
        return MapFile(city, path.parent.name, path.stat().st_size, map_problem(path))
    except (ValueError, OSError) as error:
        return MapFile(city, problem=in_words(error))


def map_problem(path: Path) -> str:
    """What is wrong with a GeoPackage at first sight: no SQLite file, or shorter than its header says. Else empty.

    Raises:
      OSError: It cannot be read.

    Source: SQLite's file format, "The Database Header".
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_SQLITE_HEADER_BYTES)
    if len(header) < _SQLITE_HEADER_BYTES or not header.startswith(_SQLITE_MAGIC):
        return f"{path} is no GeoPackage ({size:,} bytes); download it again"
    page_bytes, changes, pages, valid_for = struct.unpack(">16xH6xII60xI4x", header[:_SQLITE_HEADER_BYTES])
    # The size in pages counts only where whoever changed the file last kept it; a page of 65,536 bytes is written as 1.
    whole = (65536 if page_bytes == 1 else page_bytes) * pages
    if changes == valid_for and size < whole:
        return f"{path} ends after {size:,} of {whole:,} bytes; download it again"
    return ""


def _filters(data_root: Path) -> Iterator[FilterFile]:
    """YAML files that select scenes or logs; others are none of NAVSIM's and are left out."""
    known: set[Path] = set()
    for path in [*_yaml_files(data_root, _FILTER_DEPTH), *_yaml_files(Path(), 0)]:
        if path.resolve() in known:
            continue
        known.add(path.resolve())
        shown = str(path.relative_to(data_root) if path.is_relative_to(data_root) else path)
        kind_and_content = _filter_content(path)
        if kind_and_content is not None:
            yield FilterFile(shown, *kind_and_content)


def _yaml_files(folder: Path, depth: int) -> Iterator[Path]:
    """YAML files in a folder and `depth` levels of folders below, without those of logs and sensor data."""
    try:
        files = _entries(folder, folders=False)
        folders = _entries(folder, folders=True) if depth else []
    except OSError:  # A folder that may not be opened holds no filter that could be used.
        return
    yield from (Path(entry) for entry in files if entry.name.endswith(".yaml"))
    for entry in folders:
        if entry.name not in (LOGS_FOLDER, SENSORS_FOLDER):
            yield from _yaml_files(Path(entry), depth - 1)


def _filter_content(path: Path) -> tuple[str, str] | None:
    """Kind of a file and what it selects; None where it is something else."""
    try:
        scene_filter = SceneFilter.from_yaml(path)
    except (ValueError, OSError):
        pass
    else:
        return "scene filter", describe_filter(scene_filter)
    try:
        parts = read_log_split(path)
    except (ValueError, OSError):
        pass
    else:
        return "log split", ", ".join(f"{part} {len(logs):,}" for part, logs in parts.items())
    try:
        split = TrainTestSplit.from_yaml(path)
    except (ValueError, OSError):
        return None
    return "train_test_split", f"{split.scene_filter.name} on folder {split.data_split}"


def describe_filter(scene_filter: SceneFilter) -> str:
    """What a filter selects, in words."""
    logs = "all logs" if scene_filter.log_names is None else f"{len(scene_filter.log_names):,} logs"
    if scene_filter.tokens is not None:
        return f"{logs}, {len(set(scene_filter.tokens)):,} tokens"
    interval = scene_filter.frame_interval
    return f"{logs}, a scene every {f'{interval} frames' if interval > 1 else 'frame'}"
