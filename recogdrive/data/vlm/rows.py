"""Samples -> one row of a batch, of a given shape."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from recogdrive.data.vlm.chat import IGNORED
from recogdrive.data.vlm.samples import VlmSample

PADDING_SEGMENT = 0
PADDING_POSITION = 1
"""Position of padding tokens, as in the reference's samples; nothing reads it."""
LOSS_REDUCTIONS = ("token", "sample", "square")

Row = dict[str, np.ndarray]


def token_weights(labels: Int32[np.ndarray, "T"], reduction: str) -> Float32[np.ndarray, "T"]:
    """Weight of every token of one sample as a label, 0 where it has none.

    Args:
      labels: Of one sample, n of them supervised.
      reduction: "token" weighs every label 1, "sample" 1/n, "square" 1/sqrt(n).

    Raises:
      ValueError: Another reduction.

    Source: upstream packed mode of InternVL, `loss_reduction`.
    """
    require_reduction(reduction)
    supervised = labels != IGNORED
    count = np.count_nonzero(supervised)
    power = {"token": 0.0, "sample": 1.0, "square": 0.5}[reduction]
    return np.where(supervised, max(1, count) ** -power, 0).astype(np.float32)


def require_reduction(reduction: str) -> None:
    """Raises ValueError for a `loss_reduction` that does not exist."""
    if reduction not in LOSS_REDUCTIONS:
        raise ValueError(f"loss_reduction={reduction!r} must be one of {', '.join(map(repr, LOSS_REDUCTIONS))}.")


def make_row(
    samples: Sequence[VlmSample],
    *,
    num_tokens: int,
    num_tiles: int,
    tile_size: int,
    pad_id: int,
    loss_reduction: str = "token",
) -> Row:
    """Samples one after the other, then padding: the entries of a batch (docs/vlm.md) without its axis.

    Every sample is a segment of its own, 1, 2, ... with positions from 0; its tiles follow those of the one before.

    Args:
      samples: What the row holds; none makes a row of padding.
      num_tokens: Tokens of the row.
      num_tiles: Tile slots of the row.
      tile_size: Side of a tile in pixels.
      pad_id: Token id of padding.
      loss_reduction: See `token_weights`.

    Raises:
      ValueError: The samples do not fit.
    """
    used = sum(len(sample.input_ids) for sample in samples)
    used_tiles = sum(len(sample.tiles) for sample in samples)
    if used > num_tokens or used_tiles > num_tiles:
        raise ValueError(
            f"{used} tokens and {used_tiles} tiles do not fit a row of {num_tokens} tokens and {num_tiles} tiles."
        )
    row = {
        "input_ids": np.full(num_tokens, pad_id, np.int32),
        "segment_ids": np.full(num_tokens, PADDING_SEGMENT, np.int32),
        "position_ids": np.full(num_tokens, PADDING_POSITION, np.int32),
        "labels": np.full(num_tokens, IGNORED, np.int32),
        "loss_weight": np.zeros(num_tokens, np.float32),
        "tiles": np.zeros((num_tiles, tile_size, tile_size, 3), np.uint8),
        "num_tiles": np.int32(used_tiles),
    }
    start, first_tile = 0, 0
    for segment, sample in enumerate(samples, start=1):
        end = start + len(sample.input_ids)
        row["input_ids"][start:end] = sample.input_ids
        row["segment_ids"][start:end] = segment
        row["position_ids"][start:end] = np.arange(end - start)
        row["labels"][start:end] = sample.labels
        row["loss_weight"][start:end] = token_weights(sample.labels, loss_reduction)
        row["tiles"][first_tile : first_tile + len(sample.tiles)] = sample.tiles
        start, first_tile = end, first_tile + len(sample.tiles)
    return row
