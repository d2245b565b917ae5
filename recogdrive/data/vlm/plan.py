"""Which samples every row of a run holds, epoch after epoch, and the shape of every batch."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recogdrive.data.vlm.layouts import RowLayout, RowPlan
from recogdrive.data.vlm.survey import Survey

_PLANS_KEPT = 2
"""Epochs whose plan is in memory: batches run on across the border of two."""
_SHAPES_KEPT = 256
"""Batches whose shape is remembered while their rows are read."""


class RunPlan:
    """The endless sequence of rows of a run; a pure function of its arguments, in every process the same.

    An epoch has as many rows as its packing gives, so where an epoch starts is known once those before are planned:
    going on in epoch e plans e + 1 epochs, some seconds each for a million samples.

    Args:
      survey: Sizes of the samples.
      layout: Deals them to rows.
      batch_size: Rows of a global batch.
      seed: Of the order.
      max_seq_length: Of the samples.

    Attributes:
      indices: Of the usable samples.
      layout: With the sizes of rows filled in.

    Raises:
      ValueError: Samples that do not fit the layout.
    """

    def __init__(self, survey: Survey, layout: RowLayout, *, batch_size: int, seed: int, max_seq_length: int) -> None:
        self.indices = survey.usable
        self.tokens = survey.tokens[self.indices]
        self.tiles = survey.tiles[self.indices]
        self._supervised = survey.supervised[self.indices]
        self.layout = layout.fitted(self.tokens, self.tiles, max_seq_length)
        self.batch_size = batch_size
        self._seed = seed
        self._starts = [0]
        self._reset()

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_plans", "_shapes", "_lock")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._plans: dict[int, RowPlan] = {}
        self._shapes: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def epoch(self, epoch: int) -> RowPlan:
        """Rows of an epoch."""
        with self._lock:
            return self._epoch(epoch)

    def _epoch(self, epoch: int) -> RowPlan:
        while epoch >= len(self._starts):
            self._epoch(len(self._starts) - 1)
        plan = self._plans.get(epoch)
        if plan is None:
            plan = self.layout.plan(
                self.tokens,
                self.tiles,
                batch_size=self.batch_size,
                seed=self._seed,
                epoch=epoch,
                lead=self._starts[epoch] % self.batch_size,
            )
            self._plans[epoch] = plan
            while len(self._plans) > _PLANS_KEPT:
                del self._plans[max(self._plans, key=lambda kept: abs(kept - epoch))]
            if epoch == len(self._starts) - 1:
                self._starts.append(self._starts[-1] + len(plan))
        return plan

    def row(self, number: int) -> tuple[int, np.ndarray]:
        """Epoch of row `number` of the run, and its samples as positions among the usable ones."""
        with self._lock:
            while number >= self._starts[-1]:
                self._epoch(len(self._starts) - 1)
            epoch = int(np.searchsorted(self._starts, number, side="right")) - 1
            return epoch, self._epoch(epoch)[number - self._starts[epoch]]

    def batch_shape(self, batch: int) -> tuple[int, int]:
        """Tokens and tile slots of the rows of global batch `batch`."""
        shape = self._shapes.get(batch)
        if shape is None:
            rows = [self.row(batch * self.batch_size + row)[1] for row in range(self.batch_size)]
            shape = self.shape_of(rows)
            if len(self._shapes) >= _SHAPES_KEPT:
                self._shapes.clear()
            self._shapes[batch] = shape
        return shape

    def shape_of(self, rows: Sequence[np.ndarray]) -> tuple[int, int]:
        """Tokens and tile slots of a batch of these rows, given by their samples."""
        return self.layout.shape(
            max(int(self.tokens[row].sum()) for row in rows), max(int(self.tiles[row].sum()) for row in rows)
        )

    def efficiency(self) -> dict[str, float]:
        """What the batches of the first epoch hold.

        `packing_efficiency` is the share of token positions that hold a sample's token and `padding_waste` the rest,
        likewise `tile_efficiency` of tile slots; `shapes` counts the different shapes, each of which compiles a step.
        """
        plan = self.epoch(0)
        tokens = np.add.reduceat(self.tokens[plan.samples], plan.starts[:-1])
        tiles = np.add.reduceat(self.tiles[plan.samples], plan.starts[:-1])
        firsts = np.arange(0, len(plan), self.batch_size)
        largest = zip(np.maximum.reduceat(tokens, firsts), np.maximum.reduceat(tiles, firsts), strict=True)
        shapes = np.array([self.layout.shape(int(t), int(n)) for t, n in largest])
        rows = np.diff([*firsts, len(plan)])
        positions, slots = (rows[:, None] * shapes).sum(0)
        batches = len(plan) / self.batch_size
        filled = float(tokens.sum() / positions)
        return {
            "samples": float(len(self.tokens)),
            "rows": float(len(plan)),
            "samples_per_row": len(self.tokens) / len(plan),
            "packing_efficiency": filled,
            "padding_waste": 1 - filled,
            "tile_efficiency": float(tiles.sum() / slots),
            "tokens_per_batch": float(tokens.sum() / batches),
            "supervised_tokens_per_batch": float(self._supervised.sum() / batches),
            "tiles_per_batch": float(tiles.sum() / batches),
            "shapes": float(len(np.unique(shapes, axis=0))),
        }
