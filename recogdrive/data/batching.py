"""Samples -> an endless, shuffled, sharded and resumable stream of batches, on Grain."""

from collections.abc import Mapping
from typing import Any, Protocol, Self

import gin
import grain
import numpy as np
from absl import flags

from recogdrive.data.samples import Batch, Sample, stack_samples


class SampleSource(Protocol):
    """Random access to samples."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """One sample."""
        ...


class ResumableBatches:
    """The batches of a Grain dataset, from any of them on: the whole state is the number of the next batch.

    Args:
      batches: Random access to batches, without end.
      batch_size: Rows of a global batch.
      identity: What the order depends on, JSON-serialisable; a state with another one is refused.
      num_threads: Reading threads of each process.
      num_workers: Worker processes; 0 reads in threads of this process. Only decoding images is worth their start-up.
      prefetch: Batches made ahead.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        batch_size: int,
        identity: Mapping[str, Any],
        *,
        num_threads: int,
        num_workers: int,
        prefetch: int,
    ) -> None:
        self.batch_size = batch_size
        self._batches = batches
        self._identity = {"batch_size": batch_size, **identity}
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._next_batch = 0
        self._iterator: grain.DatasetIterator | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = iter(self._pipeline())
        batch = next(self._iterator)
        self._next_batch += 1
        return batch

    def _pipeline(self) -> grain.IterDataset:
        """The pipeline from the next batch on. Cutting the dataset there makes resuming independent of workers."""
        rest = self._batches.slice(slice(self._next_batch, None))
        if self._num_workers == 0:
            return rest.to_iter_dataset(grain.ReadOptions(self._num_threads, max(self._prefetch, self._num_threads)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which a plain Python program never parses.
        return rest.to_iter_dataset(grain.ReadOptions(self._num_threads, self._num_threads)).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=self._prefetch)
        )

    def get_state(self) -> dict[str, Any]:
        """Describes the next batch; JSON-serialisable, the same on every process."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken.

        Raises:
          ValueError: The state belongs to another order: another batch size, seed, or other samples.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(
                    f"The checkpoint was trained with {name}={state[name]}, this run has {name}={value}: the order of "
                    f"samples would change. Resume with {name}={state[name]}, or start in a new --workdir."
                )
        self.close()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Ends worker processes and reading threads; the stream starts them again when it is next read."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def rows_of_process(batch_size: int, process_count: int) -> int:
    """Rows of a global batch that each process yields.

    Raises:
      ValueError: The batch size is not positive or does not divide; names the nearest that does.
    """
    if batch_size <= 0 or batch_size % process_count:
        nearest = max(1, round(batch_size / process_count)) * process_count
        raise ValueError(
            f"batch_size={batch_size} does not divide over {process_count} processes; use a positive multiple of "
            f"{process_count} (e.g. {nearest})."
        )
    return batch_size // process_count


@gin.register
class BatchStream(ResumableBatches):
    """Endless stream of training batches, the same for the same seed on any number of processes and workers.

    The samples are shuffled anew in every epoch and batches run on across the border of epochs, so every sample is seen
    once an epoch and all batches have one shape. Batch k of the run holds the same samples however often the run was
    interrupted: the stream's whole state is the number of the next batch.

    Args:
      samples: Where samples come from.
      batch_size: Rows of a global batch; process p yields the p-th of its equal parts.
      seed: Of the order.
      num_threads: Reading threads of each process.
      num_workers: Worker processes; 0 reads in threads of this process. Only decoding images is worth their start-up.
      prefetch: Batches made ahead.
      process_index: Which part of each global batch this process yields.
      process_count: How many parts there are.

    Raises:
      ValueError: No samples; a batch size that is not positive or does not divide over the processes.
    """

    def __init__(
        self,
        samples: SampleSource,
        *,
        batch_size: int,
        seed: int,
        num_threads: int = 1,
        num_workers: int = 0,
        prefetch: int = 2,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        if len(samples) == 0:
            raise ValueError("The training split holds no samples; check its scene filter.")
        rows = rows_of_process(batch_size, process_count)
        self.samples_per_epoch = len(samples)
        order = grain.MapDataset.source(samples).shuffle(seed=seed).repeat()
        super().__init__(
            grain.MapDataset.source(_ProcessRows(order, batch_size, process_index * rows, rows)).batch(
                rows, batch_fn=stack_samples
            ),
            batch_size,
            {"seed": seed, "samples": len(samples)},
            num_threads=num_threads,
            num_workers=num_workers,
            prefetch=prefetch,
        )


class _ProcessRows:
    """The samples of one process, by number: of every global batch the same rows, as they lie on its devices."""

    def __init__(self, order: grain.MapDataset, batch_size: int, first: int, rows: int) -> None:
        self._order = order
        self._batch_size = batch_size
        self._first = first
        self._rows = rows

    def __len__(self) -> int:
        return len(self._order) // self._batch_size * self._rows

    def __getitem__(self, index: int) -> Sample:
        batch, row = divmod(int(index), self._rows)
        return self._order[batch * self._batch_size + self._first + row]


def order_of(stream: BatchStream, num_batches: int) -> np.ndarray:
    """Sample indices of the next batches, (num_batches, rows); consumes them."""
    return np.stack([next(stream)["index"] for _ in range(num_batches)])
