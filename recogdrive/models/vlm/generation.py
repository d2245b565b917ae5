"""Greedy decoding with a cache of keys and values of static size."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array, Float, Int

from recogdrive.models import bridge
from recogdrive.models.bridge import Params
from recogdrive.models.vlm import layers
from recogdrive.models.vlm.layers import part

if TYPE_CHECKING:
    from recogdrive.models.vlm.internvl import InternVL


class _State(NamedTuple):
    """What decoding carries from token to token."""

    step: Array  # tokens written so far
    token: Array  # (B,) chosen, not yet written
    done: Array  # (B,)
    tokens: Array  # (B, M)
    lengths: Array  # (B,)
    keys: Array  # (L, B, K, T + M, d)
    values: Array
    segments: Array  # (B, T + M) segment of each place in the cache, 0 where nothing is written


class _Recorder:
    """In place of transformers' cache while the prompt runs: keeps what the layer computes and hands it back."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, _layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the attention module."""
        return bridge.call_jax(self._keep, keys, values)

    def _keep(self, keys: Array, values: Array) -> tuple[Array, Array]:
        self.keys, self.values = keys, values
        return keys, values


class _Writer:
    """In place of transformers' cache while one token runs: writes it into the stacked buffers.

    Attributes:
      keys, values: (L, B, K, S, d); the buffers with the token in them once the layer has run.
    """

    def __init__(self, keys: Array, values: Array, layer: Array, slot: Array):
        self.keys, self.values, self._layer, self._slot = keys, values, layer, slot

    def update(self, keys: torch.Tensor, values: torch.Tensor, _layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the attention module, which then attends to all places of the layer's buffers."""
        return bridge.call_jax(self._write, keys, values)

    def _write(self, keys: Array, values: Array) -> tuple[Array, Array]:
        start = (self._layer, 0, 0, self._slot, 0)
        self.keys = jax.lax.dynamic_update_slice(self.keys, keys[None], start)
        self.values = jax.lax.dynamic_update_slice(self.values, values[None], start)
        return self.keys[self._layer], self.values[self._layer]


def generate(
    model: "InternVL", params: Params, batch: Mapping[str, Any], max_new_tokens: int, stop_ids: Sequence[int]
) -> tuple[Int[Array, "B M"], Int[Array, "B"]]:
    """Continues prompts by the likeliest token each time; pure and jittable with fixed `max_new_tokens` and `stop_ids`.

    Args:
      model: The model.
      params: Weights.
      batch: A batch of `InternVL.hidden_states` with prompts padded on the left, one segment to a row. Rows of padding
        alone get no token.
      max_new_tokens: M, at most so many tokens; ends earlier once every row has stopped.
      stop_ids: Tokens that end a row.

    Returns:
      The tokens, filled up with the first stop id, and how many of a row come before its stop.

    Raises:
      ValueError: `max_new_tokens` is not positive, or there is no stop id.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be positive.")
    if not stop_ids:
        raise ValueError("stop_ids is empty; name the token that ends an answer, e.g. that of <|im_end|>.")
    model.check(batch)
    stops = jnp.asarray(stop_ids, jnp.int32)
    segments = jnp.asarray(batch["segment_ids"])
    rows, prompt = segments.shape
    own_segment, position = segments[:, -1], jnp.asarray(batch["position_ids"])[:, -1]
    params = model.cast(params)

    with model.precision():
        hidden, keys, values = _prefill(model, params, batch)
        first = jnp.argmax(model.logits(params, hidden[:, -1]), axis=-1).astype(jnp.int32)
        room = ((0, 0), (0, 0), (0, 0), (0, max_new_tokens), (0, 0))
        start = _State(
            step=jnp.int32(0),
            token=first,
            done=(own_segment == 0) | jnp.isin(first, stops),
            tokens=jnp.full((rows, max_new_tokens), stops[0]),
            lengths=jnp.zeros(rows, jnp.int32),
            keys=jnp.pad(keys, room),
            values=jnp.pad(values, room),
            segments=jnp.pad(segments, ((0, 0), (0, max_new_tokens))),
        )

        def proceed(state: _State) -> Array:
            return (state.step < max_new_tokens) & ~state.done.all()

        def write(state: _State) -> _State:
            written = jnp.where(state.done, stops[0], state.token)
            tokens = jax.lax.dynamic_update_slice(state.tokens, written[:, None], (0, state.step))
            slot = prompt + state.step
            segments = jax.lax.dynamic_update_slice(state.segments, own_segment[:, None], (0, slot))
            hidden, keys, values = _decode(
                model, params, written, position + 1 + state.step, own_segment, segments, state.keys, state.values, slot
            )
            token = jnp.argmax(model.logits(params, hidden), axis=-1).astype(jnp.int32)
            done = state.done | jnp.isin(token, stops)
            lengths = state.lengths + ~state.done
            return _State(state.step + 1, token, done, tokens, lengths, keys, values, segments)

        end = jax.lax.while_loop(proceed, write, start)
    return end.tokens, end.lengths


def _prefill(model: "InternVL", params: Params, batch: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    """Final hidden states (B, T, D) of the prompts, and the keys and values (L, B, K, T, d) of all layers."""
    segments = jnp.asarray(batch["segment_ids"])
    rotary = model.rotary(batch["position_ids"])

    def layer(hidden: Array, weights: Params) -> tuple[Array, tuple[Array, Array]]:
        cache = _Recorder()
        hidden = model.parts.decoder_layer(
            weights,
            "forward",
            hidden,
            position_embeddings=rotary,
            segment_ids=segments,
            past_key_values=cache,
        )
        return hidden, (cache.keys, cache.values)

    hidden, (keys, values) = jax.lax.scan(layer, model.embed(params, batch), part(params, layers.DECODER_LAYERS))
    return model.final_norm(params, hidden), keys, values


def _decode(
    model: "InternVL",
    params: Params,
    token: Int[Array, "B"],
    position: Int[Array, "B"],
    segment: Int[Array, "B"],
    key_segments: Int[Array, "B S"],
    keys: Array,
    values: Array,
    slot: Array,
) -> tuple[Float[Array, "B D"], Array, Array]:
    """Final hidden state of one token a row, and the buffers with its keys and values at `slot`."""
    embedded = model.embed_tokens(params, token[:, None])
    rotary = model.rotary(position[:, None])
    stacked = part(params, layers.DECODER_LAYERS)

    def layer(carry: tuple[Array, Array, Array], inputs: tuple[Params, Array]) -> tuple[tuple, None]:
        hidden, keys, values = carry
        weights, index = inputs
        cache = _Writer(keys, values, index, slot)
        hidden = model.parts.decoder_layer(
            weights,
            "forward",
            hidden,
            position_embeddings=rotary,
            segment_ids=segment[:, None],
            key_segment_ids=key_segments,
            past_key_values=cache,
        )
        return (hidden, cache.keys, cache.values), None

    indices = jnp.arange(keys.shape[0])
    (hidden, keys, values), _ = jax.lax.scan(layer, (embedded, keys, values), (stacked, indices))
    return model.final_norm(params, hidden)[:, 0], keys, values
