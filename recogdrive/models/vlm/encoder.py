"""The VLM as a maker of context tokens: the same states for a scene alone, in any batch, cached or online."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16

from recogdrive.data.hidden_cache.record import Storage
from recogdrive.data.vlm.scene_prompts import ScenePrompts
from recogdrive.models.bridge import Params
from recogdrive.models.vlm.config import VlmConfig
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.loading import VlmWeights, load_vlm

INPUTS = ("input_ids", "segment_ids", "position_ids", "tiles", "num_tiles")
"""Entries of a batch that hidden states are made of."""


@gin.register
class HiddenStateEncoder:
    """Makes hidden states a few rows at a time, so that they depend on no other row of the batch.

    A compiled matrix product may sum in another order for another number of rows. Here the compiled body always sees
    `rows_at_once` rows, whatever the batch, so a scene's states are the same bits wherever it stands.

    Args:
      vlm: The model.
      rows_at_once: Rows of one pass. Another number rounds otherwise: for equal bits, cache and online mode must agree.

      weights_dtype: Of weights on the device, "float32" or "bfloat16", which takes half the memory.

    Attributes:
      vlm: The model.
      rows_at_once: Rows of one pass.
      width: V, of the states.

    Raises:
      ValueError: `rows_at_once` is not positive, or the type another.
    """

    def __init__(self, vlm: InternVL, rows_at_once: int = 1, weights_dtype: str = "float32") -> None:
        if weights_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"HiddenStateEncoder.weights_dtype={weights_dtype!r} must be 'float32' or 'bfloat16'.")
        if not isinstance(rows_at_once, int) or isinstance(rows_at_once, bool) or rows_at_once < 1:
            raise ValueError(f"HiddenStateEncoder.rows_at_once={rows_at_once!r} must be a positive whole number.")
        self.vlm = vlm
        self.rows_at_once = rows_at_once
        self.width = vlm.context_width
        self._weights_dtype = jnp.dtype(weights_dtype)

    @property
    def fields(self) -> dict[str, Any]:
        """What decides the states besides weights and inputs, roundings apart; JSON values."""
        return {
            "compute_dtype": str(self.vlm.compute_dtype),
            "attention": self.vlm.attention,
            "layer": "last, after the final norm",
        }

    def context_fields(
        self, weights: str, prompts: ScenePrompts, storage: Storage = Storage.BFLOAT16
    ) -> dict[str, Any]:
        """Everything that decides a scene's context: equal for a cache and the online mode that makes the same.

        Args:
          weights: Fingerprint of the VLM's weights.
          prompts: Makes the inputs.
          storage: How states are kept.
        """
        return {"weights": weights, **self.fields, **prompts.fields, "storage": str(storage)}

    def load(self, folder: str | Path | None) -> VlmWeights:
        """Weights for `encode`, in memory of the host, and their fingerprint.

        Args:
          folder: Checkpoint in either layout, or a run that exported one.

        Raises:
          OSError: Nothing is there.
          ValueError: It cannot be used, or holds another model; every misfit is named.
        """
        return load_vlm(self.vlm, folder, self._weights_dtype)

    def check(self, prompts: ScenePrompts) -> None:
        """Refuses prompts that are not for this model; names every value that does not fit.

        Raises:
          ValueError: Size or vectors of tiles, or the tokenizer, are not the model's.
        """
        config, tokenizer = self.vlm.config, prompts.tokenizer
        found = {
            "Tiling.image_size": (prompts.tiling.image_size, config.tile_size),
            "ScenePrompts.tokens_per_tile": (prompts.tokens_per_tile, config.tokens_per_tile),
            "the tokenizer's id of <IMG_CONTEXT>": (tokenizer.img_context_id, self.vlm.img_context_id),
        }
        wrong = [f"{name} is {ours}, the model has {its}" for name, (ours, its) in found.items() if ours != its]
        if tokenizer.vocab_size > config.language.vocab_size:
            wrong.append(f"{tokenizer!r} for a model of {config.language.vocab_size}")
        if wrong:
            raise ValueError(f"The prompts do not fit the VLM: {'; '.join(wrong)}.")

    def flops(self, num_tokens: int, tiles: int) -> float:
        """Operations of a row, see `forward_flops`."""
        return forward_flops(self.vlm.config, num_tokens, tiles)

    def encode(self, params: Params, batch: Mapping[str, Array]) -> BFloat16[Array, "B T V"]:
        """Hidden states after the final norm of every position, padding included; pure and jittable.

        Args:
          params: The VLM's weights.
          batch: The entries `INPUTS`; others are not looked at. Rows that `rows_at_once` does not divide are filled up.
        """
        inputs = {name: jnp.asarray(batch[name]) for name in INPUTS}
        rows = inputs["input_ids"].shape[0]
        filling = -rows % self.rows_at_once
        if filling:
            inputs = {name: jnp.concatenate([x, jnp.repeat(x[-1:], filling, axis=0)]) for name, x in inputs.items()}
        groups = {name: x.reshape(-1, self.rows_at_once, *x.shape[1:]) for name, x in inputs.items()}
        states = jax.lax.map(functools.partial(self._group, params), groups)
        return states.reshape(-1, *states.shape[2:])[:rows]

    def _group(self, params: Params, inputs: Mapping[str, Array]) -> BFloat16[Array, "R T V"]:
        # A loop of one pass is unrolled into what surrounds it; the barriers keep the compiler from fusing the two.
        params, inputs = jax.lax.optimization_barrier((params, inputs))
        return jax.lax.optimization_barrier(self.vlm.hidden_states(params, inputs).astype(jnp.bfloat16))


def forward_flops(config: VlmConfig, num_tokens: int, tiles: int) -> float:
    """Operations that hidden states of one row take: two a multiply and add, norms and the like left out.

    Args:
      config: Sizes of the model.
      num_tokens: T; padding is computed too.
      tiles: Tile slots of the row, empty ones included.
    """
    vision, language = config.vision, config.language
    patches = (config.tile_size // vision.patch_size) ** 2 + 1
    layer = 4 * vision.width**2 + 2 * vision.width * vision.mlp_width
    tower = vision.layers * (2 * patches * layer + 4 * patches**2 * vision.width)
    embedding = 2 * (patches - 1) * 3 * vision.patch_size**2 * vision.width
    projector = 2 * config.tokens_per_tile * (4 * vision.width * language.width + language.width**2)
    attention = 2 * language.width**2 + 2 * language.width * language.kv_heads * language.head_dim
    dense = attention + 3 * language.width * language.mlp_width
    # A causal kernel leaves out half of the products of queries and keys.
    decoder = language.layers * (2 * num_tokens * dense + 2 * num_tokens**2 * language.width)
    return float(tiles * (tower + embedding + projector) + decoder)


def head_flops(config: VlmConfig, num_tokens: int) -> float:
    """Operations of the logits of so many tokens, counted like `forward_flops`."""
    return 2.0 * num_tokens * config.language.width * config.language.vocab_size
