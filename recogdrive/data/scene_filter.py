"""Which scenes of which logs make up a split: NAVSIM's scene filters and log splits, from its official YAML files."""

from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import gin
import yaml

from recogdrive.suggestions import did_you_mean

EXPECTED_SCENES = MappingProxyType(
    {
        "navtrain": 103_288,
        "navtrain/train_logs": 85_109,
        "navtrain/val_logs": 18_179,
        "navtest": 12_146,
        "navmini": 396,
        "warmup_test_e2e": 563,
        "private_test_e2e": 2_000,
    }
)
"""Scenes that the complete official data gives, by filter name, or filter name and part of the log split.

Source: token lists of NAVSIM v1.1; the two parts of navtrain from ReCogDrive issue #10 (the second is the rest).
"""

LOG_SPLIT_PARTS = ("train_logs", "val_logs", "test_logs")
_IGNORED_KEYS = ("_target_", "_convert_")
# The C loader reads the 103,288 tokens of navtrain in a second instead of half a minute.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@gin.register
@dataclass(frozen=True)
class SceneFilter:
    """Selects windows of log frames as scenes.

    Attributes:
      num_history_frames: Frames up to and including the current one.
      num_future_frames: Frames after it.
      frame_interval: Frames between the starts of windows; None for windows that do not overlap.
      has_route: Whether a scene needs a route at its current frame.
      max_scenes: Stop after this many.
      log_names: Logs to read; None for all.
      tokens: Tokens of the current frames to keep; None for all.
      name: What to call it in reports; the key of `EXPECTED_SCENES` for official filters.

    Raises:
      ValueError: A field is out of range or holds something else than its type.

    Source: NAVSIM `SceneFilter`.
    """

    num_history_frames: int = 4
    num_future_frames: int = 10
    frame_interval: int | None = None
    has_route: bool = True
    max_scenes: int | None = None
    log_names: tuple[str, ...] | None = None
    tokens: tuple[str, ...] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        _check_count("num_history_frames", self.num_history_frames, 1)
        _check_count("num_future_frames", self.num_future_frames, 0)
        if self.frame_interval is None:
            object.__setattr__(self, "frame_interval", self.num_frames)
        _check_count("frame_interval", self.frame_interval, 1)
        if self.max_scenes is not None:
            _check_count("max_scenes", self.max_scenes, 1)
        if not isinstance(self.has_route, bool):
            raise ValueError(f"SceneFilter.has_route={self.has_route!r} is not true or false.")
        for field in ("log_names", "tokens"):
            object.__setattr__(self, field, _string_tuple(f"SceneFilter.{field}", getattr(self, field)))

    @property
    def num_frames(self) -> int:
        """Frames of a window."""
        return self.num_history_frames + self.num_future_frames

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Reads a filter from NAVSIM's YAML form; its name is the file's.

        Raises:
          FileNotFoundError: There is no such file; names the nearest one in the folder.
          ValueError: It is not a mapping, or has a field that a filter does not have or a value out of range.
        """
        path = Path(path)
        content = _read_mapping(path)
        known = [field.name for field in fields(cls) if field.name != "name"]
        chosen = {key: value for key, value in content.items() if key not in _IGNORED_KEYS}
        for key in chosen:
            if key not in known:
                raise ValueError(
                    f"{path} has the field {key!r}, unknown to a scene filter.{did_you_mean(str(key), known)}"
                )
        try:
            return cls(**chosen, name=path.stem)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class TrainTestSplit:
    """A scene filter with the split folder it is for.

    Attributes:
      data_split: Folder under `navsim_logs` and `sensor_blobs`.
      scene_filter: What to take of it.
    """

    data_split: str
    scene_filter: SceneFilter

    @classmethod
    def from_yaml(cls, path: str | Path, filters_dir: str | Path | None = None) -> Self:
        """Reads NAVSIM's `train_test_split` form: `data_split`, and the filter's name under `defaults`.

        Args:
          path: YAML file.
          filters_dir: Folder with the filters; by default `scene_filter` beside the file, as NAVSIM has it.

        Raises:
          FileNotFoundError: The file or the filter it names does not exist.
          ValueError: One of the two entries is missing.
        """
        path = Path(path)
        content = _read_mapping(path)
        defaults = content.get("defaults")
        named = [
            entry["scene_filter"]
            for entry in (defaults if isinstance(defaults, list) else [])
            if isinstance(entry, dict) and isinstance(entry.get("scene_filter"), str)
        ]
        if len(named) != 1 or not isinstance(content.get("data_split"), str):
            raise ValueError(
                f"{path} is no train_test_split: it needs `data_split: FOLDER` and "
                f"`defaults: [{{scene_filter: NAME}}]`, but has {content!r}."
            )
        folder = path.parent / "scene_filter" if filters_dir is None else Path(filters_dir)
        return cls(content["data_split"], SceneFilter.from_yaml(folder / f"{named[0]}.yaml"))


def read_log_split(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Reads the official split of logs: `train_logs`, `val_logs` and `test_logs`, each a list of log names.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: One of the three is missing or is no list of names, or there is another key.
    """
    path = Path(path)
    content = _read_mapping(path)
    if sorted(content) != sorted(LOG_SPLIT_PARTS):
        raise ValueError(f"{path} has the keys {list(content)}; a log split has {list(LOG_SPLIT_PARTS)}.")
    return {part: _string_tuple(f"{path}: {part}", content[part]) or () for part in LOG_SPLIT_PARTS}


def _check_count(field: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"SceneFilter.{field}={value!r} must be a whole number of at least {least}.")


def _string_tuple(what: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise ValueError(f"{what} must be a list of names, not {value!r}.")
    for entry in value:
        if not isinstance(entry, str):
            raise ValueError(f"{what} holds {entry!r}, which is no string; put it in quotes.")
    return tuple(value)


def _read_mapping(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise FileNotFoundError(f"No YAML file at {path}.{did_you_mean(path.name, there)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of `key: value` lines.")
    return content
