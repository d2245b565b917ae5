"""Several samples in a row: which go together, planned for a whole epoch from their sizes."""

import bisect

import numpy as np
from jaxtyping import Int, Int64

OPEN_ROWS = 256
"""Rows that are filled at the same time: more leave less padding and take longer to plan."""


def pack_rows(
    tokens: Int[np.ndarray, "n"],
    tiles: Int[np.ndarray, "n"],
    *,
    row_tokens: int,
    row_tiles: int,
    seed: int,
    epoch: int = 0,
    open_rows: int = OPEN_ROWS,
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "rows+1"]]:
    """Deals shuffled samples to rows; each goes to the fullest open row that still takes it.

    If none does, a new row is opened, and the fullest closed once too many are open. The rows are shuffled at the end,
    so that those left half empty come anywhere in the epoch.

    Args:
      tokens: Length of every sample.
      tiles: Number of its tiles.
      row_tokens: Greatest number of tokens of a row.
      row_tiles: Greatest number of tiles of a row.
      seed: Of both orders.
      epoch: Every epoch has other rows.
      open_rows: Rows that are open at the same time.

    Returns:
      The samples, row after row, and where in them each row starts, then their number.

    Raises:
      ValueError: A sample fits no row; names it and its size.
    """
    require_fit(tokens, tiles, row_tokens, row_tiles)
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(tokens))
    rows = _best_fit(order.tolist(), tokens, tiles, row_tokens, row_tiles, open_rows)
    mixed = [rows[i] for i in generator.permutation(len(rows)).tolist()]
    starts = np.cumsum([0, *map(len, mixed)])
    return np.fromiter((sample for row in mixed for sample in row), np.int64, len(order)), starts


def require_fit(tokens: Int[np.ndarray, "n"], tiles: Int[np.ndarray, "n"], row_tokens: int, row_tiles: int) -> None:
    """Refuses samples that are larger than a row.

    Raises:
      ValueError: Names how many there are, and the largest.
    """
    for what, sizes, limit in (("tokens", tokens, row_tokens), ("tiles", tiles, row_tiles)):
        if len(sizes) and (over := int(np.count_nonzero(sizes > limit))):
            largest = int(np.argmax(sizes))
            raise ValueError(
                f"{over} samples have more than row_{what}={limit} {what}, sample {largest} has {int(sizes[largest])}; "
                f"raise row_{what} to at least that, or lower max_seq_length or the limit of tiles."
            )


def _best_fit(
    order: list[int],
    tokens: Int[np.ndarray, "n"],
    tiles: Int[np.ndarray, "n"],
    row_tokens: int,
    row_tiles: int,
    open_rows: int,
) -> list[list[int]]:
    """Rows of samples, in the order in which they were closed."""
    tokens_of, tiles_of = tokens.tolist(), tiles.tolist()
    least = min((tokens_of[sample] for sample in order), default=0)
    closed: list[list[int]] = []
    # The rows that are open, by rising room for tokens; the number breaks ties, so that no list is compared.
    rooms: list[int] = []
    contents: list[tuple[int, list[int]]] = []
    for sample in order:
        need, need_tiles = tokens_of[sample], tiles_of[sample]
        at = bisect.bisect_left(rooms, need)
        while at < len(rooms) and contents[at][0] < need_tiles:
            at += 1
        if at < len(rooms):
            room, (tile_room, row) = rooms.pop(at), contents.pop(at)
        else:
            room, tile_room, row = row_tokens, row_tiles, []
        row.append(sample)
        room -= need
        if room < least:
            closed.append(row)
            continue
        at = bisect.bisect_left(rooms, room)
        rooms.insert(at, room)
        contents.insert(at, (tile_room - need_tiles, row))
        if len(rooms) > open_rows:
            rooms.pop(0)
            closed.append(contents.pop(0)[1])
    return closed + [row for _, row in contents]
