"""Mixtures of conversation files, described by InternVL's meta files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
import numpy as np

from recogdrive.data.vlm.conversations import Conversation, parse_conversation
from recogdrive.data.vlm.line_file import LineFile
from recogdrive.suggestions import did_you_mean

_REQUIRED = ("root", "annotation")
_KNOWN = (*_REQUIRED, "data_augment", "repeat_time", "length", "max_dynamic_patch")


@dataclass(frozen=True)
class DataSet:
    """One entry of a meta file.

    Attributes:
      name: Its key.
      root: Folder of relative image paths.
      annotation: JSONL file of records.
      augment: Whether tiles go through JPEG in training.
      repeat_time: Below 1 the share of lines that count, from the first on; else how often the lines are repeated.
      max_tiles: Limit of tiles of a record; None leaves it to the tiling.
    """

    name: str
    root: Path
    annotation: Path
    augment: bool
    repeat_time: float
    max_tiles: int | None

    def lines_used(self, num_lines: int) -> int:
        """How many lines count, from the first on."""
        return int(num_lines * self.repeat_time) if self.repeat_time < 1 else num_lines

    @property
    def repeats(self) -> int:
        """How often each of them is shown in an epoch."""
        return max(1, int(self.repeat_time))


def read_meta(path: str | Path, base_folder: str | Path = "") -> tuple[DataSet, ...]:
    """Reads a meta file: an object of data sets by name, in the order of its keys.

    Args:
      path: JSON.
      base_folder: Where relative `root` and `annotation` start.

    Raises:
      ValueError: Not such a file; names the data set, the key and the value.

    Source: upstream `internvl_chat_finetune.py`, `build_datasets`.
    """
    try:
        meta = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a meta file: {error}") from error
    if not isinstance(meta, dict) or not meta:
        raise ValueError(f"{path} is not a meta file: expected an object of data sets by name.")
    return tuple(_data_set(f"{path}: data set {name!r}", name, entry, base_folder) for name, entry in meta.items())


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the key {repeated[0]!r} is there twice.")
    return dict(pairs)


def _data_set(where: str, name: str, entry: Any, base_folder: str | Path) -> DataSet:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r}, expected an object.")
    for key in entry:
        if key not in _KNOWN:
            raise ValueError(f"{where}: the key {key!r} is not known.{did_you_mean(key, _KNOWN)}")
    for key in _REQUIRED:
        if not isinstance(entry.get(key), str):
            raise ValueError(f"{where}: {key} is {entry.get(key)!r}, expected a path.")
    if not entry["annotation"].endswith("jsonl"):
        raise ValueError(f"{where}: annotation={entry['annotation']!r} must end in jsonl (one record a line).")
    augment, repeat, limit = (entry.get("data_augment", False), entry.get("repeat_time", 1), entry.get(_KNOWN[-1]))
    if not isinstance(augment, bool):
        raise ValueError(f"{where}: data_augment={augment!r} must be true or false.")
    if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 < repeat < float("inf"):
        raise ValueError(f"{where}: repeat_time={repeat!r} must be a positive number.")
    if repeat > 1 and repeat != int(repeat):
        raise ValueError(
            f"{where}: repeat_time={repeat!r} must be a whole number where it is above 1, e.g. {int(repeat)} or "
            f"{int(repeat) + 1}."
        )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"{where}: max_dynamic_patch={limit!r} must be a positive whole number.")
    return DataSet(
        name=name,
        root=Path(base_folder) / entry["root"],
        annotation=Path(base_folder) / entry["annotation"],
        augment=augment,
        repeat_time=repeat,
        max_tiles=limit,
    )


@gin.register
class ConversationMixture:
    """The conversations of a meta file: its data sets one after the other, repeated as they say.

    Lines are read when asked for; in memory are their places in the files, 8 bytes a line. Worker processes open the
    files for themselves. `length` of the meta file is ignored, as in the reference.

    Args:
      meta_path: The meta file; None, which stands for a setting that was not made, is refused.
      base_folder: Where its relative paths start; by default the working folder, as in the reference.
      use_data_resampling: Refused: the reference accepts the option and does nothing with it.

    Attributes:
      name: Of the meta file.
      data_sets: Its entries.
      sizes: Conversations of each, by name.
      record_numbers: (len,) int64; equal for repetitions of one record.
      fingerprint: Of everything that makes the conversations, except the images.

    Raises:
      ValueError: A meta file that does not hold together, an annotation file that cannot be read, a data set without
        conversations.
    """

    def __init__(
        self, meta_path: str | Path | None, *, base_folder: str | Path = "", use_data_resampling: bool = False
    ) -> None:
        if meta_path is None:
            raise ValueError("there is no meta file to read conversations from; set META to the path of one.")
        if use_data_resampling:
            raise ValueError(
                "use_data_resampling=True is not built: the reference accepts it without any effect. Set repeat_time "
                f"of the data sets in {meta_path} instead."
            )
        self.name = Path(meta_path).stem
        self.data_sets = read_meta(meta_path, base_folder)
        self._files = [LineFile(data_set.annotation) for data_set in self.data_sets]
        self._used = [d.lines_used(len(file)) for d, file in zip(self.data_sets, self._files, strict=True)]
        for data_set, file, used in zip(self.data_sets, self._files, self._used, strict=True):
            if used == 0:
                raise ValueError(
                    f"{meta_path}: data set {data_set.name!r} has no conversations: {data_set.annotation} has "
                    f"{len(file)} lines and repeat_time is {data_set.repeat_time}."
                )
        lengths = [used * d.repeats for used, d in zip(self._used, self.data_sets, strict=True)]
        self.sizes: Mapping[str, int] = {d.name: n for d, n in zip(self.data_sets, lengths, strict=True)}
        self._ends = np.cumsum(lengths)
        parts = [
            np.tile(np.arange(first, first + used, dtype=np.int64), d.repeats)
            for first, used, d in zip(np.cumsum([0, *self._used]), self._used, self.data_sets, strict=False)
        ]
        self.record_numbers = np.concatenate(parts)
        content = [
            [d.name, str(d.root), d.augment, d.repeat_time, d.max_tiles, file.fingerprint]
            for d, file in zip(self.data_sets, self._files, strict=True)
        ]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Conversation:
        """One conversation.

        Raises:
          IndexError: There is no such conversation.
          ConversationError: Its record is unusable; names file and line.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} of {self.name}, which has {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        data_set, line = self.data_sets[part], (index - start) % self._used[part]
        return parse_conversation(
            self._files[part][line],
            origin=f"{data_set.annotation}:{line + 1}",
            root=data_set.root,
            max_tiles=data_set.max_tiles,
            augment=data_set.augment,
        )
