"""Training samples with what their rollouts are scored in."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from recogdrive.data.samples import Sample, SceneSource, TrainingSamples
from recogdrive.pdm.cache import CacheError
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.rewards.reward import KNOWN
from recogdrive.pdm.rewards.scene_layout import Row, SceneLayout, rows_of
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.sources import PdmSceneSource

LISTED_IN_LOG = 100
_GIB = 2**30

UNUSABLE = (SceneError, CacheError)
"""What a record that cannot be had or scored raises."""


class Records:
    """The records of a split's scenes, by position.

    Args:
      scenes: The split.
      source: Makes or finds the record of a scene. Where it has `by_token`, no scene is read for it.
    """

    def __init__(self, scenes: SceneSource, source: PdmSceneSource) -> None:
        self.scenes = scenes
        self.source = source

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def tokens(self) -> Sequence[str]:
        """Token of every scene."""
        return self.scenes.tokens

    def __call__(self, index: int) -> PdmScene:
        """The record of scene `index`.

        Raises:
          SceneError: There is none.
          CacheError: The container cannot be read or is damaged there.
        """
        by_token = getattr(self.source, "by_token", None)
        return self.source(self.scenes[index]) if by_token is None else by_token(self.tokens[index])


class RewardedSamples:
    """Samples with `reward/known` and the layouts' entries of their scene's record.

    A sample whose record cannot be had or scored is not known: its entries are blank, and the reason is in the log.

    Args:
      samples: Of a split.
      records: Of the same split.
      layouts: Of the reward; with none, no record is read and every sample counts as known.
      sizes: By the layouts' prefixes, see `Survey`.
      keep_gib: Entries stay in memory once made until they weigh this much; about a mebibyte a real scene and layout.

    Raises:
      ValueError: A layout has no sizes.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        records: Records,
        layouts: Sequence[SceneLayout],
        sizes: Mapping[str, Any],
        *,
        keep_gib: float = 4.0,
    ) -> None:
        if missing := [layout.prefix for layout in layouts if layout.prefix not in sizes]:
            raise ValueError(f"There are no sizes for {', '.join(missing)}; survey with the layouts of the reward.")
        self.samples = samples
        self.records = records
        self.layouts = tuple(layouts)
        self.sizes = dict(sizes)
        self.keep_gib = keep_gib
        self._forget()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` of the split."""
        return self.samples[index] | self._row(int(index))

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes start with nothing kept: sending the rows would cost more than making them."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._made: dict[int, Row] = {}
        self._bytes = 0
        self._blank: Row | None = None

    def _row(self, index: int) -> Row:
        row = self._made.get(index)
        if row is None:
            row = self._make(index)
            # A blank row is there anyway.
            weight = sys.getsizeof(row) if not row[KNOWN] else sum(array.nbytes for array in row.values())
            if self._bytes + weight <= self.keep_gib * _GIB:
                self._made[index] = row
                self._bytes += weight
        return row

    def _make(self, index: int) -> Row:
        if not self.layouts:
            return {KNOWN: np.bool_(True)}
        try:
            return {KNOWN: np.bool_(True)} | rows_of(self.records(index), self.layouts, self.sizes)
        except UNUSABLE as error:
            logging.log_first_n(logging.WARNING, "no reward for sample %d: %s", LISTED_IN_LOG, index, error)
            if self._blank is None:
                self._blank = {}
                for layout in self.layouts:
                    self._blank |= layout.blank(self.sizes[layout.prefix])
            return {KNOWN: np.bool_(False)} | self._blank
