"""Next-token cross entropy of the supervised tokens, computed in chunks: the full logits never exist."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

IGNORED = -100
"""Label of a token that is not supervised."""


class Targets(NamedTuple):
    """What each position of a row predicts.

    Attributes:
      labels: (B, T) token that position t predicts, that of position t + 1.
      weights: (B, T) float32 weight of the prediction; 0 where there is none.
      supervised: (B, T) whether position t predicts a supervised token.
    """

    labels: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    supervised: Array


class RowSums(NamedTuple):
    """Sums over the supervised tokens of each row.

    Attributes:
      loss: (B,) weight times cross entropy.
      weight: (B,) weights.
      right: (B,) float32 number of tokens that are the likeliest.
      supervised: (B,) float32 number of tokens.
    """

    loss: Float[Array, "B"]
    weight: Float[Array, "B"]
    right: Float[Array, "B"]
    supervised: Float[Array, "B"]


def next_token_targets(
    labels: Int[Array, "B T"], segment_ids: Int[Array, "B T"], loss_weight: Float[Array, "B T"] | None = None
) -> Targets:
    """Shifts labels by one: position t predicts token t + 1 of its own segment.

    Args:
      labels: Label of each token itself, `IGNORED` where it is not supervised.
      segment_ids: Segment of each token, 0 for padding. The first token of a segment is predicted by nobody.
      loss_weight: Weight of each token as a label; None is 1.
    """
    last = jnp.zeros_like(segment_ids[:, :1])
    following = jnp.concatenate([segment_ids[:, 1:], last], axis=1)
    shifted = jnp.concatenate([labels[:, 1:], last + IGNORED], axis=1)
    supervised = (shifted != IGNORED) & (following == segment_ids) & (segment_ids > 0)
    weights = supervised.astype(jnp.float32)
    if loss_weight is not None:
        weights = weights * jnp.concatenate([loss_weight[:, 1:], jnp.zeros_like(loss_weight[:, :1])], axis=1)
    return Targets(jnp.where(supervised, shifted, 0), weights, supervised)


def cross_entropy(
    hidden: Float[Array, "B T D"], head: Float[Array, "V D"], targets: Targets, chunk: int
) -> tuple[Float[Array, "B"], Int[Array, "B"]]:
    """Sums of weighted cross entropies, and of right guesses, over the supervised tokens of each row.

    Supervised positions of a row are moved to its front and worked through `chunk` at a time, as many chunks as the row
    with the most of them fills; forward and backward both. Products are in the dtype of `hidden`, summed in float32.

    Args:
      hidden: Final hidden states.
      head: Output head, float32; its gradient is summed in float32 over chunks.
      targets: From `next_token_targets`.
      chunk: Positions of a row whose logits exist at a time.
    """
    tokens = hidden.shape[1]
    chunk = min(chunk, tokens)
    after = -tokens % chunk
    # Stable, so that the order of the supervised ones is kept.
    order = jnp.argsort(~targets.supervised, axis=1, stable=True).astype(jnp.int32)
    compact = Targets(*(jnp.pad(jnp.take_along_axis(x, order, axis=1), ((0, 0), (0, after))) for x in targets))
    order = jnp.pad(order, ((0, 0), (0, after)), constant_values=tokens)  # Out of reach: reads 0, writes nothing.
    return _chunked(hidden, head, order, compact, chunk)


def reduce_loss(sums: Float[Array, "B"], weights: Float[Array, "B"], rows_per_group: int | None) -> Float[Array, ""]:
    """The loss from each row's weighted sum and sum of weights.

    Args:
      sums: Sums of weight times cross entropy.
      weights: Sums of weights.
      rows_per_group: Rows whose tokens share a mean; groups then count alike, and one without weight counts as 0. None
        is one mean over all tokens.

    Source: upstream takes the mean of a device's micro-batch, and then that of devices and micro-batches.
    """
    if rows_per_group is None:
        rows_per_group = sums.shape[0]
    if sums.shape[0] % rows_per_group:
        raise ValueError(
            f"{sums.shape[0]} rows do not divide into groups of rows_per_group={rows_per_group}; "
            f"choose a batch that is a multiple of it."
        )
    sums, weights = (x.reshape(-1, rows_per_group).sum(axis=1) for x in (sums, weights))
    return jnp.mean(jnp.where(weights > 0, sums / jnp.where(weights > 0, weights, 1), 0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(hidden: Array, head: Array, order: Array, targets: Targets, chunk: int) -> tuple[Array, Array]:
    def add(index: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        at, own = _slice(order, targets, index, chunk)
        loss, right = _chunk_sums(_gather(hidden, at), head, own)
        return totals[0] + loss, totals[1] + right

    rows = hidden.shape[0]
    zeros = jnp.zeros(rows, jnp.float32), jnp.zeros(rows, jnp.int32)
    return jax.lax.fori_loop(0, _used_chunks(targets, chunk), add, zeros)


def _forward(hidden: Array, head: Array, order: Array, targets: Targets, chunk: int) -> tuple:
    return _chunked(hidden, head, order, targets, chunk), (hidden, head, order, targets)


def _backward(chunk: int, kept: tuple, cotangents: tuple[Array, Array]) -> tuple:
    hidden, head, order, targets = kept
    rows = jnp.arange(hidden.shape[0])[:, None]

    def add(index: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        at, own = _slice(order, targets, index, chunk)
        of_hidden, of_head = _chunk_gradients(_gather(hidden, at), head, own, cotangents[0])
        return totals[0].at[rows, at].add(of_hidden, mode="drop"), totals[1] + of_head

    zeros = jnp.zeros_like(hidden), jnp.zeros(head.shape, jnp.float32)
    of_hidden, of_head = jax.lax.fori_loop(0, _used_chunks(targets, chunk), add, zeros)
    return of_hidden, of_head.astype(head.dtype), None, None


_chunked.defvjp(_forward, _backward)


def _chunk_sums(hidden: Float[Array, "B C D"], head: Array, targets: Targets) -> tuple[Array, Array]:
    logits = _product("bcd,vd->bcv", hidden, head.astype(hidden.dtype))
    label = jnp.take_along_axis(logits, targets.labels[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - label
    right = (jnp.argmax(logits, axis=-1) == targets.labels) & targets.supervised
    return (losses * targets.weights).sum(axis=1), right.sum(axis=1, dtype=jnp.int32)


def _chunk_gradients(
    hidden: Float[Array, "B C D"], head: Array, targets: Targets, cotangent: Float[Array, "B"]
) -> tuple[Array, Array]:
    """Of `_chunk_sums` with regard to its hidden states and, in float32, the head."""
    compute_head = head.astype(hidden.dtype)
    probabilities = jax.nn.softmax(_product("bcd,vd->bcv", hidden, compute_head), axis=-1)
    rows, places = (x[:, :, None] for x in jnp.indices(targets.labels.shape))
    error = probabilities.at[rows, places, targets.labels[..., None]].add(-1)
    error = (error * (targets.weights * cotangent[:, None])[..., None]).astype(hidden.dtype)
    of_hidden = _product("bcv,vd->bcd", error, compute_head).astype(hidden.dtype)
    return of_hidden, _product("bcv,bcd->vd", error, hidden)


def _product(equation: str, left: Array, right: Array) -> Array:
    """Summed in float32; float32 operands are not rounded on accelerators either."""
    # Said here because the backward pass is traced outside of any precision context of the forward pass.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)


def _slice(order: Array, targets: Targets, index: Array, chunk: int) -> tuple[Array, Targets]:
    def cut(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1)

    return cut(order), Targets(*map(cut, targets))


def _gather(hidden: Array, at: Array) -> Array:
    return jnp.take_along_axis(hidden, at[..., None], axis=1, mode="fill", fill_value=0)


def _used_chunks(targets: Targets, chunk: int) -> Array:
    most = targets.supervised.sum(axis=1).max()
    return (most + chunk - 1) // chunk
