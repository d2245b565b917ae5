"""How samples lie in the rows of batches: packed, or one in a row and padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import gin
import numpy as np
from jaxtyping import Int, Int64

from recogdrive.data.vlm.grouping import SampleOrder, Shuffled
from recogdrive.data.vlm.packing import OPEN_ROWS, pack_rows, require_fit


@dataclass(frozen=True)
class RowPlan:
    """The rows of an epoch.

    Attributes:
      samples: Positions in the tables of sizes, row after row.
      starts: Where in `samples` each row starts, then their number.
    """

    samples: Int64[np.ndarray, "n"]
    starts: Int64[np.ndarray, "rows+1"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Int64[np.ndarray, "k"]:
        """Samples of a row."""
        return self.samples[self.starts[row] : self.starts[row + 1]]


class RowLayout(Protocol):
    """Deals samples to rows and says how large rows are. Its `repr` tells layouts of different batches apart."""

    def fitted(self, tokens: Int[np.ndarray, "n"], tiles: Int[np.ndarray, "n"], max_seq_length: int) -> "RowLayout":
        """This layout with sizes that were left open filled in; raises ValueError where samples do not fit."""
        ...

    def plan(
        self,
        tokens: Int[np.ndarray, "n"],
        tiles: Int[np.ndarray, "n"],
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        lead: int,
    ) -> RowPlan:
        """The rows of an epoch, a function of the arguments; for those see `SampleOrder`."""
        ...

    def shape(self, tokens: int, tiles: int) -> tuple[int, int]:
        """Tokens and tile slots of the rows of a batch whose largest row has this many."""
        ...

    def largest(self, tokens: int, tiles: int) -> tuple[int, int]:
        """Tokens and tile slots of the largest rows there are; what is given where they depend on samples."""
        ...


@gin.register
class PackedRows:
    """As many samples in a row as fit: one shape for all batches, little padding.

    Args:
      row_tokens: Tokens of a row; samples longer than half of it leave gaps that only short ones can fill.
      row_tiles: Tile slots of a row.
      open_rows: Rows filled at the same time while planning.

    Raises:
      ValueError: A number that is not positive.
    """

    def __init__(self, row_tokens: int = 12_288, row_tiles: int = 48, open_rows: int = OPEN_ROWS) -> None:
        for name, value in (("row_tokens", row_tokens), ("row_tiles", row_tiles), ("open_rows", open_rows)):
            if value < 1:
                raise ValueError(f"PackedRows.{name}={value} must be positive.")
        self.row_tokens = row_tokens
        self.row_tiles = row_tiles
        self._open_rows = open_rows

    def __repr__(self) -> str:
        return f"PackedRows({self.row_tokens}, {self.row_tiles}, {self._open_rows})"

    def fitted(self, tokens: Int[np.ndarray, "n"], tiles: Int[np.ndarray, "n"], max_seq_length: int) -> "PackedRows":
        """Itself; raises ValueError where a sample fits no row."""
        require_fit(tokens, tiles, self.row_tokens, self.row_tiles)
        return self

    def plan(
        self,
        tokens: Int[np.ndarray, "n"],
        tiles: Int[np.ndarray, "n"],
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        lead: int,
    ) -> RowPlan:
        """Shuffled samples, packed; `batch_size` and `lead` do not matter."""
        samples, starts = pack_rows(
            tokens,
            tiles,
            row_tokens=self.row_tokens,
            row_tiles=self.row_tiles,
            seed=seed,
            epoch=epoch,
            open_rows=self._open_rows,
        )
        return RowPlan(samples, starts)

    def shape(self, tokens: int, tiles: int) -> tuple[int, int]:
        """Always the same."""
        return self.row_tokens, self.row_tiles

    def largest(self, tokens: int, tiles: int) -> tuple[int, int]:
        """As all rows."""
        return self.row_tokens, self.row_tiles


@gin.register
class PaddedRows:
    """One sample in a row, padded to the smallest size that fits all rows of a global batch.

    Every pair of sizes that occurs compiles a step, so there should be few.

    Args:
      buckets: Lengths of rows; none stands for the greatest length of samples, one shape for all batches.
      tile_buckets: Numbers of tile slots; none stands for the most that a sample has.
      order: Which samples come after which; `Shuffled` by default. Buckets save padding with `LengthBucketed`.

    Raises:
      ValueError: A size that is not positive.
    """

    def __init__(
        self, buckets: Sequence[int] = (), tile_buckets: Sequence[int] = (), order: SampleOrder | None = None
    ) -> None:
        for name, sizes in (("buckets", buckets), ("tile_buckets", tile_buckets)):
            if any(size < 1 for size in sizes):
                raise ValueError(f"PaddedRows.{name}={tuple(sizes)} must be positive.")
        self.buckets = tuple(sorted(set(buckets)))
        self.tile_buckets = tuple(sorted(set(tile_buckets)))
        self.order = order or Shuffled()

    def __repr__(self) -> str:
        return f"PaddedRows({self.buckets}, {self.tile_buckets}, {self.order!r})"

    def fitted(self, tokens: Int[np.ndarray, "n"], tiles: Int[np.ndarray, "n"], max_seq_length: int) -> "PaddedRows":
        """The layout with sizes for these samples; raises ValueError where one is larger than the largest."""
        buckets = self.buckets or (max_seq_length,)
        tile_buckets = self.tile_buckets or (int(np.max(tiles, initial=1)),)
        for name, sizes, limits in (("buckets", tokens, buckets), ("tile_buckets", tiles, tile_buckets)):
            if over := int(np.count_nonzero(sizes > limits[-1])):
                raise ValueError(
                    f"{over} samples are larger than the largest of {name}={limits}, the largest has "
                    f"{int(np.max(sizes))}; add a size of at least that."
                )
        return PaddedRows(buckets, tile_buckets, self.order)

    def plan(
        self,
        tokens: Int[np.ndarray, "n"],
        tiles: Int[np.ndarray, "n"],
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        lead: int,
    ) -> RowPlan:
        """Samples in the order of `order`."""
        samples = self.order.order(tokens, batch_size=batch_size, seed=seed, epoch=epoch, lead=lead)
        return RowPlan(samples, np.arange(len(samples) + 1))

    def shape(self, tokens: int, tiles: int) -> tuple[int, int]:
        """The smallest sizes that fit; where sizes are still open, what is asked for.

        Raises:
          ValueError: None is large enough.
        """
        return _smallest(self.buckets, tokens), _smallest(self.tile_buckets, tiles)

    def largest(self, tokens: int, tiles: int) -> tuple[int, int]:
        """The last of the sizes; where they are still open, what is given."""
        return (self.buckets or (tokens,))[-1], (self.tile_buckets or (tiles,))[-1]


def _smallest(sizes: Sequence[int], needed: int) -> int:
    if not sizes:
        return max(1, needed)
    if needed > sizes[-1]:
        raise ValueError(f"{needed} is more than the largest of the sizes {tuple(sizes)}; add one of at least that.")
    return next(size for size in sizes if size >= needed)
