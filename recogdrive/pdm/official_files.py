"""Which scenes an official metric cache holds, and where.

Source: specification of the data, section 6.3; NAVSIM `MetricCacheLoader`.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from absl import logging

FILE_NAME = "metric_cache.pkl"
METADATA = "metadata"
_HEADER = "file_name"
_DEPTH = 4
"""Log, kind of scenario, token and file."""
_MAX_CSV_BYTES = 2**28
"""The lists of 103,288 scenes have about 20 MB."""
_SHOWN = 200


class OfficialFile(NamedTuple):
    """Where a scene lies.

    Attributes:
      log_name: Its log.
      scenario_type: What its log's scenario is called, "unknown" throughout NAVSIM.
      token: Its token.
    """

    log_name: str
    scenario_type: str
    token: str

    def under(self, root: Path) -> Path:
        """The file in a cache folder."""
        return root.joinpath(*self, FILE_NAME)


def list_files(root: Path) -> list[OfficialFile]:
    """All scenes of a cache folder, sorted by log and token.

    The lists in `metadata/*.csv` name absolute paths on the machine that wrote them; what counts is their end, which is
    looked up under `root`. Several machines may have written lists, and the same scene may be listed repeatedly.
    Without lists, the scenes are the files `<log>/<type>/<token>/metric_cache.pkl`.

    Args:
      root: The cache folder.

    Raises:
      FileNotFoundError: There is no such folder, no scene in it, or none of the listed files.
      ValueError: A list has another header, a line that is no path of a cache file or leads out of the folder, or a
        token comes from two places; names list, line and value.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}: give the folder of an official metric cache.")
    lists = sorted((root / METADATA).glob("*.csv"))
    found = [file for path in lists for file in _read_list(path)] if lists else list(_scan(root))
    files = sorted(set(found))
    if not files:
        raise FileNotFoundError(
            f"{root} holds no official metric cache: neither {METADATA}/*.csv lists a scene, nor is there any "
            f"<log>/<type>/<token>/{FILE_NAME}."
        )
    if len(found) > len(files):
        logging.info("%s: %d of %d lines repeat a scene", root / METADATA, len(found) - len(files), len(found))
    _refuse_repeated_tokens(root, files)
    if lists and not any(_exists(file.under(root)) for file in files):
        raise FileNotFoundError(
            f"{root / METADATA} lists {len(files)} scenes, but none of their files is there, e.g. "
            f"{files[0].under(root)}. Give the folder that holds both {METADATA} and the folders of the logs."
        )
    return files


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _scan(root: Path) -> Iterator[OfficialFile]:
    for path in root.glob(f"*/*/*/{FILE_NAME}"):
        yield OfficialFile(*path.parent.relative_to(root).parts)


def _read_list(path: Path) -> Iterable[OfficialFile]:
    """Scenes of one list."""
    with path.open("rb") as file:
        content = file.read(_MAX_CSV_BYTES + 1)
    if len(content) > _MAX_CSV_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_CSV_BYTES} bytes; it is no list of a metric cache.")
    try:
        rows = list(csv.reader(content.decode("utf-8-sig").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no list of a metric cache: {error}. Download it again.") from error
    if not rows or rows[0] != [_HEADER]:
        header = rows[0] if rows else []
        raise ValueError(f"{path} starts with {_short(header)} instead of {_HEADER}; it is no list of a metric cache.")
    return [_file_of(row, f"{path}, row {number}") for number, row in enumerate(rows[1:], start=2) if row]


def _file_of(row: list[str], where: str) -> OfficialFile:
    """The scene that a path names, written on whatever system."""
    if len(row) != 1:
        raise ValueError(f"{where}: {len(row)} columns instead of one path: {_short(row)}. Correct or remove the row.")
    # On Windows both kinds of slashes part a path.
    path = PureWindowsPath(row[0])
    parts = path.parts[1:] if path.anchor else path.parts
    if len(parts) < _DEPTH or parts[-1] != FILE_NAME:
        raise ValueError(
            f"{where}: {_short(row[0])} does not end with <log>/<type>/<token>/{FILE_NAME}. Correct or remove the row."
        )
    place = parts[-_DEPTH:-1]
    if not all(part.isprintable() and part.strip() == part and part.strip(".") and len(part) < 256 for part in place):
        raise ValueError(
            f"{where}: {_short(row[0])} names no folder, or one outside of the cache. Correct or remove the row."
        )
    return OfficialFile(*place)


def _refuse_repeated_tokens(root: Path, files: list[OfficialFile]) -> None:
    known: dict[str, OfficialFile] = {}
    for file in files:
        other = known.setdefault(file.token, file)
        if other != file:
            raise ValueError(
                f"Token {_short(file.token)} comes twice, from {other.under(root)} and {file.under(root)}: tokens must "
                f"differ. Remove one of the files and its rows in {METADATA}/*.csv."
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
