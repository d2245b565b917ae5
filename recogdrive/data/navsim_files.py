"""Where NAVSIM data lies on disk, and plain words about whatever part of it is not there."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import logging

from recogdrive.data.scene_filter import SceneFilter, read_log_split
from recogdrive.suggestions import did_you_mean

DATA_VARIABLE = "OPENSCENE_DATA_ROOT"
MAPS_VARIABLE = "NUPLAN_MAPS_ROOT"
_SHOWN = 5


def find_data_root(data_root: str | None) -> Path:
    """The data root: the argument, else the variable OPENSCENE_DATA_ROOT.

    Raises:
      ValueError: Neither is given.
      FileNotFoundError: The folder does not exist; names the nearest one above it that does.
    """
    source = "data_root" if data_root else DATA_VARIABLE
    given = data_root or os.environ.get(DATA_VARIABLE)
    if not given:
        raise ValueError(
            f"No data root: set the variable {DATA_VARIABLE}, or DATA_ROOT in the configuration, to the folder that "
            "holds navsim_logs and sensor_blobs."
        )
    root = Path(given).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"Data root {root} (from {source}) does not exist; the nearest folder that does is {_existing(root)}."
        )
    return root


def find_maps_root(maps_root: str | None, data_root: Path) -> Path:
    """The map folder: the argument, else the variable NUPLAN_MAPS_ROOT, else `maps` in the data root."""
    return Path(maps_root or os.environ.get(MAPS_VARIABLE) or data_root / "maps").expanduser()


def find_split(data_root: Path, split: str) -> Path:
    """Folder of a split's logs.

    Raises:
      FileNotFoundError: It does not exist; names the splits that do.
      ValueError: It has no logs.
    """
    folder = data_root / "navsim_logs" / split
    if not folder.is_dir():
        parent = data_root / "navsim_logs"
        if not parent.is_dir():
            there = sorted(p.name for p in data_root.iterdir())
            raise FileNotFoundError(
                f"Data root {data_root} has no folder navsim_logs (it has: {shown(there) or 'nothing'}); "
                f"check {DATA_VARIABLE} or data_root."
            )
        there = sorted(p.name for p in parent.iterdir() if p.is_dir())
        raise FileNotFoundError(f"No split {split!r} in {parent}.{did_you_mean(split, there)}")
    if not any(folder.glob("*.pkl")):
        raise ValueError(f"Split {split!r} is empty: {folder} has no *.pkl logs. Complete the download.")
    return folder


def find_filter(scene_filter: SceneFilter | str | None, data_root: Path) -> SceneFilter:
    """A filter as it is, or from a YAML file relative to the working folder, else to the data root.

    Raises:
      FileNotFoundError: There is no such file in either.
      ValueError: The file holds no scene filter.
      TypeError: The argument is something else.
    """
    if scene_filter is None:
        return SceneFilter()
    if isinstance(scene_filter, SceneFilter):
        return scene_filter
    if not isinstance(scene_filter, str | Path):
        raise TypeError(f"scene_filter={scene_filter!r} is neither a SceneFilter nor the path of a YAML file.")
    return SceneFilter.from_yaml(find_yaml(scene_filter, data_root))


def find_yaml(path: str | Path, data_root: Path) -> Path:
    """A file of NAVSIM's configuration: relative to the working folder, else to the data root; need not exist."""
    path = Path(path).expanduser()
    return data_root / path if not path.is_file() and (data_root / path).parent.is_dir() else path


def choose_logs(
    folder: Path,
    scene_filter: SceneFilter,
    log_names: Sequence[str] | None = None,
    log_split: str | Path | None = None,
    log_split_part: str = "train_logs",
    on_missing: str = "error",
) -> tuple[tuple[str, ...], int]:
    """Names of the logs to read, sorted, and how many more were asked for but are not there.

    Args:
      folder: Folder of the split's logs.
      scene_filter: Its `log_names`, or all logs.
      log_names: Only these of them.
      log_split: YAML file whose part `log_split_part` is intersected with them.
      log_split_part: train_logs, val_logs or test_logs.
      on_missing: "error", or "skip" with a warning.

    Raises:
      FileNotFoundError: A log that was named is not there.
      ValueError: `log_names` has a log the filter does not have, or no log is left.
    """
    there = {path.stem for path in folder.glob("*.pkl")}
    wanted = None if scene_filter.log_names is None else set(scene_filter.log_names)
    if log_names is not None:
        for log in sorted(set(log_names) - wanted) if wanted is not None else ():
            raise ValueError(f"log_names has {log!r}, no log of the scene filter.{did_you_mean(log, sorted(wanted))}")
        wanted = set(log_names)
    if log_split is not None:
        wanted = (there if wanted is None else wanted) & set(read_log_split(log_split)[log_split_part])
    missing = sorted((wanted or set()) - there)
    if missing:
        message = f"{len(missing)} of the {len(wanted)} logs asked for are not in {folder}: {shown(missing)}."
        if on_missing == "error":
            raise FileNotFoundError(
                f"{message}{did_you_mean(missing[0], sorted(there))} Complete the download, or leave them out with "
                'on_missing_log="skip".'
            )
        logging.warning("%s They are left out.", message)
    chosen = sorted(there if wanted is None else wanted & there)
    if not chosen:
        raise ValueError(
            f"The scene filter {scene_filter.name!r} matches none of the {len(there)} logs in {folder}"
            f"{'' if log_split is None else f' together with {log_split_part} of {log_split}'}."
        )
    return tuple(chosen), len(missing)


def shown(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _existing(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.is_dir())
