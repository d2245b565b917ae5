"""From the pixels of tiles to the vectors that stand in for them in the prompt, apart from the tower's layers."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]."""

_CUBIC = -0.75
"""Slope of the bicubic kernel. Source: torch's `interpolate`."""


def normalize_pixels(tiles: Shaped[Array, "n S S 3"]) -> Float[Array, "n S S 3"]:
    """Pixels as the tower takes them, float32: uint8 RGB normalised by ImageNet's mean and deviation.

    Tiles in float32 are taken as normalised already.

    Raises:
      ValueError: Tiles of another dtype.
    """
    if tiles.dtype == jnp.float32:
        return tiles
    if tiles.dtype != jnp.uint8:
        raise ValueError(f"tiles are {tiles.dtype}; give uint8 RGB, or float32 that is normalised already.")
    return (tiles.astype(jnp.float32) / 255 - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)


def resize_position_table(table: Float[Array, "1 P W"], side: int) -> Float[Array, "1 Q W"]:
    """Resizes the position code of a square patch grid, bicubically and in float32; the class token keeps its own.

    Args:
      table: The class token's row, then those of the patches, row by row.
      side: Patches along a side of the new grid.

    Source: upstream `InternVisionEmbeddings._get_pos_embed`, with torch's bicubic kernel, borders repeated.
    """
    stored = round((table.shape[1] - 1) ** 0.5)
    if stored == side:
        return table
    weights = jnp.asarray(_bicubic(stored, side))
    patches = table[0, 1:].astype(jnp.float32).reshape(stored, stored, -1)
    with jax.default_matmul_precision("highest"):
        patches = jnp.einsum("is,jt,stw->ijw", weights, weights, patches)
    return jnp.concatenate([table[:, :1], patches.reshape(1, side * side, -1).astype(table.dtype)], axis=1)


def class_token_last(hidden: Float[Array, "n T W"], multiple: int) -> Float[Array, "n R W"]:
    """Patches first, so that they begin where a TPU's blocks of rows do, then the class token, then zeros.

    Args:
      hidden: The class token, then patches.
      multiple: R is the next multiple of it.
    """
    filling = -hidden.shape[1] % multiple
    return jnp.pad(jnp.concatenate([hidden[:, 1:], hidden[:, :1]], axis=1), ((0, 0), (0, filling), (0, 0)))


def pixel_unshuffle(grid: Float[Array, "n H W C"], version: str = "v2") -> Float[Array, "n h w 4C"]:
    """Joins 2 x 2 patches to one vector: row, then column within the block, then channel.

    Args:
      grid: Patch features of even sides.
      version: "v2", or "v1", which swaps rows and columns of the result.

    Source: upstream `InternVLChatModel.pixel_shuffle`.
    """
    n, height, width, channels = grid.shape
    blocks = grid.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    vectors = blocks.reshape(n, height // 2, width // 2, 4 * channels)
    return vectors.swapaxes(1, 2) if version == "v1" else vectors


def drop_path_rates(layers: int, last: float) -> np.ndarray:
    """(layers,) float32 probability that a branch is left out: 0 in the first layer, `last` in the last, linear."""
    return np.linspace(0, last, layers, dtype=np.float32)


def drop_path_factors(key: Key[Array, ""], rate: Float[Array, ""], tiles: int) -> Float[Array, "2 n 1 1"]:
    """Factors of the attention and the MLP branch of a layer for each tile: 0, or 1 / (1 - rate)."""
    kept = jax.random.bernoulli(key, 1 - rate, (2, tiles, 1, 1))
    return jnp.where(kept, 1 / (1 - rate), 0.0)


def merge_vectors(
    embedded: Float[Array, "B T D"],
    vectors: Float[Array, "B M D"],
    replaced: Bool[Array, "B T"],
    counts: Int[Array, "B"],
) -> Float[Array, "B T D"]:
    """Puts image vectors in place of the tokens that hold their places.

    Args:
      embedded: Token embeddings.
      vectors: Image vectors of a row in reading order, real ones first.
      replaced: Places; the j-th of a row takes vector j of that row.
      counts: Real vectors of each row; a place beyond them keeps its embedding.
    """
    order = jnp.cumsum(replaced, axis=1) - 1
    taken = jnp.take_along_axis(vectors, jnp.clip(order, 0, vectors.shape[1] - 1)[..., None], axis=1)
    return jnp.where((replaced & (order < counts[:, None]))[..., None], taken.astype(embedded.dtype), embedded)


def _bicubic(stored: int, side: int) -> np.ndarray:
    """(side, stored) float32 weights along one axis; pixel centres are at half positions (align_corners off)."""
    centre = (np.arange(side) + 0.5) * stored / side - 0.5
    weights = np.zeros((side, stored))
    for offset in range(-1, 3):
        at = np.floor(centre).astype(int) + offset
        distance = np.abs(centre - at)
        inner = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        outer = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        value = np.where(distance <= 1, inner, np.where(distance < 2, outer, 0))
        np.add.at(weights, (np.arange(side), np.clip(at, 0, stored - 1)), value)
    return weights.astype(np.float32)
