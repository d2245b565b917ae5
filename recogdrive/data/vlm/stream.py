"""Samples of a vision-language model -> an endless, sharded and resumable stream of batches, on Grain."""

import json
from typing import Any

import gin
import grain
import numpy as np
from absl import logging

from recogdrive.data.batching import ResumableBatches, rows_of_process
from recogdrive.data.vlm.conversations import Cause, ConversationError
from recogdrive.data.vlm.layouts import RowLayout
from recogdrive.data.vlm.plan import RunPlan
from recogdrive.data.vlm.rows import Row, make_row, require_reduction
from recogdrive.data.vlm.samples import VlmSample, VlmSamples
from recogdrive.data.vlm.survey import Fault, Survey, check_budget, require_budget

Batch = dict[str, np.ndarray]
_FAULTS = "faults"
"""Entry of a row in which reading threads and processes tell what they had to leave out: JSON as bytes."""
_ROWS = 1 << 62
"""Rows of a run as Grain sees it: more than there is time for, few enough for its arithmetic."""


@gin.register
class VlmBatchStream(ResumableBatches):
    """Endless stream of batches for fine-tuning, the same for the same seed on any number of processes and workers.

    Every epoch shows every usable sample once, in rows that are planned anew, and batches run on across the border of
    epochs. Batch k of the run holds the same rows however often the run was interrupted: the stream's whole state is
    the number of the next batch. Process p yields the p-th part of each global batch.

    A sample whose image turns out to be damaged only now ends the run, unless `max_skipped` allows it to be left out;
    then its place is padding, and it is counted and logged with file and line.

    Args:
      samples: Where samples come from.
      survey: Their sizes, see `take_survey`.
      layout: Deals samples to rows.
      batch_size: Rows of a global batch.
      seed: Of the order.
      loss_reduction: Weight of labels by the number n of them in a sample: "token" 1, "sample" 1/n, "square" 1/sqrt(n).
      max_skipped: As for `take_survey`; counts the survey's faults too.
      num_threads: Reading threads of each process.
      num_workers: Worker processes that decode images; 0 reads in threads of this process.
      prefetch: Batches made ahead.
      process_index: Which part of each global batch this process yields.
      process_count: How many parts there are.

    Attributes:
      batch_size: Rows of a global batch.
      samples_per_epoch: Rows of the first epoch; with packing those after it have about as many.
      faults: Samples left out so far that the survey took for usable.

    Raises:
      ValueError: A batch size that is not positive or does not divide over the processes; samples that do not fit the
        layout; a reduction that does not exist.
    """

    def __init__(
        self,
        samples: VlmSamples,
        survey: Survey,
        layout: RowLayout,
        *,
        batch_size: int,
        seed: int,
        loss_reduction: str = "token",
        max_skipped: int | float = 0,
        num_threads: int = 2,
        num_workers: int = 0,
        prefetch: int = 2,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        rows = rows_of_process(batch_size, process_count)
        require_reduction(loss_reduction)
        require_budget(max_skipped)
        self.plan = RunPlan(survey, layout, batch_size=batch_size, seed=seed, max_seq_length=samples.max_seq_length)
        self.samples_per_epoch = len(self.plan.epoch(0))
        self.faults: list[Fault] = []
        self._samples = samples
        self._survey = survey
        self._max_skipped = max_skipped
        of_process = _ProcessRows(samples, self.plan, loss_reduction, process_index * rows, rows)
        super().__init__(
            grain.MapDataset.source(of_process).batch(rows, batch_fn=_stack),
            batch_size,
            {
                "seed": seed,
                "layout": repr(self.plan.layout),
                "samples": len(self.plan.indices),
                "sizes": survey.fingerprint,
            },
            num_threads=num_threads,
            num_workers=num_workers,
            prefetch=prefetch,
        )

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          ValueError: More samples were unusable than may be.
        """
        batch = super().__next__()
        self._count(batch.pop(_FAULTS))
        return batch

    def efficiency(self) -> dict[str, float]:
        """What the batches of the first epoch hold, see `RunPlan.efficiency`."""
        return self.plan.efficiency()

    def _count(self, encoded: np.ndarray) -> None:
        """Takes note of samples that were left out; ends the run if they are too many."""
        known = {fault.origin for fault in self.faults}
        for entry in json.loads(encoded.tobytes() or b"[]"):
            fault = Fault(**entry | {"cause": Cause(entry["cause"])})
            if fault.origin not in known:
                known.add(fault.origin)
                self.faults.append(fault)
                logging.warning("left out: %s (%s)", fault, fault.cause)
        if self.faults:
            check_budget(
                [*self._survey.faults, *self.faults],
                self._survey.num_records,
                self._max_skipped,
                self._samples.conversations.name,
            )


class _ProcessRows:
    """The rows of a run that one process yields, by number."""

    def __init__(self, samples: VlmSamples, plan: RunPlan, loss_reduction: str, first: int, rows: int) -> None:
        self._samples = samples
        self._plan = plan
        self._loss_reduction = loss_reduction
        self._first = first
        self._rows = rows

    def __len__(self) -> int:
        return _ROWS

    def __getitem__(self, index: int) -> Row:
        batch, row = divmod(int(index), self._rows)
        epoch, chosen = self._plan.row(batch * self._plan.batch_size + self._first + row)
        num_tokens, num_tiles = self._plan.batch_shape(batch)
        made, faults = read_samples(self._samples, self._plan, chosen, epoch)
        row = _row(self._samples, made, num_tokens, num_tiles, self._loss_reduction)
        return row | {_FAULTS: faults}


def read_samples(
    samples: VlmSamples, plan: RunPlan, chosen: np.ndarray, epoch: int
) -> tuple[list[VlmSample], list[dict[str, Any]]]:
    """Samples of a row, and the faults of those that cannot be had any more.

    Args:
      samples: Where they come from.
      plan: Knows their sizes.
      chosen: Positions among the usable samples.
      epoch: Decides the augmentation.

    Raises:
      ValueError: A sample has another size than the survey found.
    """
    made, faults = [], []
    for position in chosen.tolist():
        index = int(plan.indices[position])
        try:
            sample = samples.sample(index, epoch)
        except ConversationError as error:
            faults.append({"index": index, "cause": str(error.cause), "origin": error.origin, "reason": error.reason})
            continue
        found = (len(sample.input_ids), len(sample.tiles))
        surveyed = (int(plan.tokens[position]), int(plan.tiles[position]))
        if found != surveyed:
            raise ValueError(
                f"{samples.conversations[index].origin}: {found[0]} tokens and {found[1]} tiles, but {surveyed[0]} and "
                f"{surveyed[1]} when it was measured: the data has changed. Remove survey-*.npz and start again."
            )
        made.append(sample)
    return made, faults


def _stack(rows: list[Row]) -> Batch:
    faults = json.dumps([fault for row in rows for fault in row[_FAULTS]]).encode()
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != _FAULTS}
    return batch | {_FAULTS: np.frombuffer(faults, np.uint8)}


class BatchesOnce:
    """Every usable sample once, as for the loss on held-out conversations; the last batch ends with rows of padding.

    Batches are made when they are asked for: with images they are too large to be kept.

    Args:
      samples: Where samples come from.
      survey: Their sizes.
      layout: Deals samples to rows; the seed is fixed, so that batch k is always the same.
      batch_size: Rows of a global batch, a multiple of `process_count`.
      loss_reduction: As for `VlmBatchStream`.
      process_index: Which part of each global batch is wanted.
      process_count: How many parts there are.

    Raises:
      ValueError: Samples that do not fit the layout.
    """

    def __init__(
        self,
        samples: VlmSamples,
        survey: Survey,
        layout: RowLayout,
        *,
        batch_size: int,
        loss_reduction: str = "token",
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        require_reduction(loss_reduction)
        self._plan = RunPlan(survey, layout, batch_size=batch_size, seed=0, max_seq_length=samples.max_seq_length)
        self._rows = self._plan.epoch(0)
        self._samples = samples
        self._loss_reduction = loss_reduction
        part = batch_size // process_count
        self._own = slice(process_index * part, (process_index + 1) * part)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._plan.batch_size)

    def __getitem__(self, index: int) -> Batch:
        """One batch.

        Raises:
          IndexError: There is no such batch.
          ValueError: A sample was usable when it was measured and is no more; names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        first, nothing = index * self._plan.batch_size, np.zeros(0, np.int64)
        numbers = range(first, first + self._plan.batch_size)
        chosen = [self._rows[row] if row < len(self._rows) else nothing for row in numbers]
        num_tokens, num_tiles = self._plan.shape_of(chosen)
        made = []
        for row in chosen[self._own]:
            of_row, faults = read_samples(self._samples, self._plan, row, epoch=0)
            if faults:
                raise ValueError(f"{faults[0]['origin']}: {faults[0]['reason']} ({faults[0]['cause']})")
            made.append(_row(self._samples, of_row, num_tokens, num_tiles, self._loss_reduction))
        return {name: np.stack([row[name] for row in made]) for name in made[0]}


def _row(samples: VlmSamples, made: list[VlmSample], num_tokens: int, num_tiles: int, loss_reduction: str) -> Row:
    return make_row(
        made,
        num_tokens=num_tokens,
        num_tiles=num_tiles,
        tile_size=samples.tiling.image_size,
        pad_id=samples.tokenizer.pad_id,
        loss_reduction=loss_reduction,
    )
