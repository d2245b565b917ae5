"""Next-token cross entropy of the supervised tokens, computed in chunks: the full logits never exist."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from recogdrive.models import partition
from recogdrive.models.vlm.vocabulary import VocabularyPart, split

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
    Under a mesh that splits weights each device has a part of the vocabulary, see `VocabularyPart`; under one that does
    not, each has its own rows, and the head's gradient is summed over devices once.

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
    return _sums(hidden, head, order, targets, chunk)[:2]


def _sums(hidden: Array, head: Array, order: Array, targets: Targets, chunk: int) -> tuple[Array, Array, Array]:
    """What `_chunked` returns, and of each position the logarithm of its sum of exponentials."""

    def run(hidden: Array, head: Array, order: Array, targets: Targets) -> tuple[Array, Array, Array]:
        vocabulary = VocabularyPart(size)
        targets_of_all = jax.tree.map(vocabulary.of_all_rows, targets)

        def add(index: Array, totals: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            states = vocabulary.of_all_rows(_gather(hidden, _slice(order, index, chunk)))
            own = _slice(targets_of_all, index, chunk)
            loss, right, log_total = _chunk_sums(states, head, own, vocabulary)
            logs = jax.lax.dynamic_update_slice_in_dim(totals[2], log_total, index * chunk, axis=1)
            return totals[0] + loss, totals[1] + right, logs

        shape = targets_of_all.labels.shape
        zeros = jnp.zeros(shape[0], jnp.float32), jnp.zeros(shape[0], jnp.int32), jnp.zeros(shape, jnp.float32)
        totals = jax.lax.fori_loop(0, _used_chunks(targets_of_all, chunk), add, zeros)
        return jax.tree.map(lambda x: vocabulary.own_rows(x, hidden.shape[0]), totals)

    rows, size = hidden.shape[0], head.shape[0]
    head, spec = split(head.astype(hidden.dtype), rows)
    return partition.own_rows(run, rows, (None, spec, None, None))(hidden, head, order, targets)


def _forward(hidden: Array, head: Array, order: Array, targets: Targets, chunk: int) -> tuple:
    *sums, log_totals = _sums(hidden, head, order, targets, chunk)
    return tuple(sums), (hidden, head, order, targets, log_totals)


def _backward(chunk: int, kept: tuple, cotangents: tuple[Array, Array]) -> tuple:
    def run(
        hidden: Array, head: Array, order: Array, targets: Targets, log_totals: Array, cotangent: Array
    ) -> tuple[Array, Array]:
        vocabulary = VocabularyPart(size)
        of_all = jax.tree.map(vocabulary.of_all_rows, (targets, log_totals))
        cotangent = vocabulary.of_all_rows(cotangent)
        rows = jnp.arange(hidden.shape[0])[:, None]

        def add(index: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
            at = _slice(order, index, chunk)
            states = vocabulary.of_all_rows(_gather(hidden, at))
            own = _slice(of_all, index, chunk)
            of_states, of_head = _chunk_gradients(states, head, *own, cotangent, vocabulary)
            of_states = vocabulary.sum_to_own_rows(of_states).astype(hidden.dtype)
            return totals[0].at[rows, at].add(of_states, mode="drop"), totals[1] + of_head

        zeros = jnp.zeros_like(hidden), jnp.zeros(head.shape, jnp.float32)
        of_hidden, of_head = jax.lax.fori_loop(0, _used_chunks(of_all[0], chunk), add, zeros)
        return of_hidden, partition.sum_over_rows(of_head, parted=vocabulary.is_split)

    hidden, head, order, targets, log_totals = kept
    rows, size = hidden.shape[0], head.shape[0]
    filled, spec = split(head.astype(hidden.dtype), rows)
    run = partition.own_rows(run, rows, (None, spec, None, None, None, None), out_specs=(None, spec))
    of_hidden, of_head = run(hidden, filled, order, targets, log_totals, cotangents[0])
    return of_hidden, of_head[:size].astype(head.dtype), None, None


_chunked.defvjp(_forward, _backward)


def _chunk_sums(
    hidden: Float[Array, "B C D"], head: Array, targets: Targets, vocabulary: VocabularyPart
) -> tuple[Array, Array, Float[Array, "B C"]]:
    logits = vocabulary.masked(_product("bcd,vd->bcv", hidden, head))
    largest = vocabulary.max(logits.max(axis=-1))
    log_total = largest + jnp.log(vocabulary.sum(jnp.exp(logits - largest[..., None]).sum(axis=-1)))
    place, here = vocabulary.find(targets.labels, logits.shape[-1])
    label = jnp.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
    losses = log_total - vocabulary.sum(jnp.where(here, label, 0))
    right = (vocabulary.likeliest(logits, largest) == targets.labels) & targets.supervised
    return (losses * targets.weights).sum(axis=1), right.sum(axis=1, dtype=jnp.int32), log_total


def _chunk_gradients(
    hidden: Float[Array, "B C D"],
    head: Array,
    targets: Targets,
    log_total: Float[Array, "B C"],
    cotangent: Float[Array, "B"],
    vocabulary: VocabularyPart,
) -> tuple[Array, Array]:
    """Of `_chunk_sums` with regard to its hidden states and to the head, both float32; the former of this part only."""
    logits = vocabulary.masked(_product("bcd,vd->bcv", hidden, head))
    probabilities = jnp.exp(logits - log_total[..., None])
    place, here = vocabulary.find(targets.labels, logits.shape[-1])
    rows, places = (x[:, :, None] for x in jnp.indices(targets.labels.shape))
    error = probabilities.at[rows, places, place[..., None]].add(-here[..., None].astype(jnp.float32))
    error = (error * (targets.weights * cotangent[:, None])[..., None]).astype(hidden.dtype)
    return _product("bcv,vd->bcd", error, head), _product("bcv,bcd->vd", error, hidden)


def _product(equation: str, left: Array, right: Array) -> Array:
    """Summed in float32; float32 operands are not rounded on accelerators either."""
    # Said here because the backward pass is traced outside of any precision context of the forward pass.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)


def _slice(tree: PyTree[Array], index: Array, chunk: int) -> PyTree[Array]:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1), tree)


def _gather(hidden: Array, at: Array) -> Array:
    return jnp.take_along_axis(hidden, at[..., None], axis=1, mode="fill", fill_value=0)


def _used_chunks(targets: Targets, chunk: int) -> Array:
    most = targets.supervised.sum(axis=1).max()
    return (most + chunk - 1) // chunk
