"""InternVL3: vision tower, projector and language model of transformers, composed under JAX."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from recogdrive.models import partition
from recogdrive.models.bridge import Params
from recogdrive.models.planner.planner import ParameterRow
from recogdrive.models.vlm import generation, initialization, layers, loss, tile_attention, vision
from recogdrive.models.vlm.attention import by_kernel
from recogdrive.models.vlm.config import VlmConfig
from recogdrive.models.vlm.layers import Parts, part
from recogdrive.models.vlm.lora import Lora, dropout_key
from recogdrive.models.vlm.loss import RowSums

Batch = Mapping[str, Any]


@gin.register
class InternVL:
    """A vision-language model of the InternVL3 family.

    Holds no weights: parameters are a flat dict under transformers' names, in which those of the layers of a stack are
    one array with a leading axis of layers and `*` in place of the index.

    Args:
      config: Sizes.
      img_context_id: Token that holds the place of an image vector.
      attention: "fused" (a Pallas kernel on TPU, JAX's fused attention elsewhere), "plain", or "splash", the kernel
        also where the machine that compiles has no TPU.
      remat: What a layer keeps for the backward pass: "full" its input, "dots" results of matrix products too, "none"
        everything.
      compute_dtype: "bfloat16" for products of bfloat16 copies of the weights, softmax, norms' statistics and loss in
        float32; or "float32".
      drop_path_rate: Stochastic depth of the tower's last layer in training; it rises linearly from 0 in the first.
      loss_chunk: Supervised positions of a row whose logits exist at a time.
      loss_mean: "group" is the mean over groups of rows of the mean over a group's tokens, as upstream averages
        micro-batches of its devices; "global" is one mean over all tokens.
      rows_per_group: Rows of a group: those of one device's micro-batch.
      lora: Adapters on the linear layers.

    Raises:
      ValueError: an argument is out of range.

    Source: upstream `InternVLChatModel`.
    """

    name = "vlm"
    """What tables and reports call it."""

    def __init__(
        self,
        config: VlmConfig,
        *,
        img_context_id: int,
        attention: str = "fused",
        remat: str = "full",
        compute_dtype: str = "bfloat16",
        drop_path_rate: float = 0.0,
        loss_chunk: int = 256,
        loss_mean: str = "group",
        rows_per_group: int = 1,
        lora: Lora | None = None,
    ):
        if not 0 <= img_context_id < config.language.vocab_size:
            raise ValueError(f"img_context_id={img_context_id} must be in [0, {config.language.vocab_size}).")
        if remat not in layers.REMAT:
            raise ValueError(f"remat={remat!r} must be one of {', '.join(map(repr, layers.REMAT))}.")
        if compute_dtype not in ("bfloat16", "float32"):
            raise ValueError(f"compute_dtype={compute_dtype!r} must be 'float32' or 'bfloat16'.")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={drop_path_rate} must be in [0, 1).")
        if loss_mean not in ("group", "global"):
            raise ValueError(f"loss_mean={loss_mean!r} must be 'group' or 'global'.")
        for argument, value in (("loss_chunk", loss_chunk), ("rows_per_group", rows_per_group)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{argument}={value!r} must be a positive whole number.")
        self.config, self.img_context_id, self.lora = config, img_context_id, lora
        self.attention = attention
        self.remat, self.drop_path_rate, self.loss_chunk = remat, drop_path_rate, loss_chunk
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.rows_per_group = rows_per_group if loss_mean == "group" else None
        self.context_width = config.language.width
        self.parts = Parts(config, attention, lora)

    def parameter_table(self) -> list[ParameterRow]:
        """Every parameter; allocates nothing."""
        return [ParameterRow(name, s, "float32", int(np.prod(s))) for name, s in self.parts.shapes.items()]

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws initial weights in float32; see `initialization.draw`."""
        return initialization.draw(self.parts.shapes, key)

    def image_features(self, params: Params, tiles: Array, key: Key[Array, ""] | None = None) -> Float[Array, "n P D"]:
        """The vectors of tiles, P = `config.tokens_per_tile` each, in compute dtype.

        Args:
          params: Weights.
          tiles: (n, S, S, 3) uint8 RGB, or float32 that is normalised already.
          key: Of stochastic depth and adapters' dropout in training; None otherwise.
        """
        with self.precision():
            return self._image_features(self.cast(params), tiles, key)

    def hidden_states(self, params: Params, batch: Batch, key: Key[Array, ""] | None = None) -> Float[Array, "B T D"]:
        """Hidden states behind the language model's final norm, in compute dtype.

        Args:
          params: Weights.
          batch: Entries `input_ids`, `segment_ids`, `position_ids`, `tiles` and `num_tiles`; see docs/architecture.md.
          key: Of stochastic depth and adapters' dropout in training; None otherwise.
        """
        self.check(batch)
        with self.precision():
            params = self.cast(params)
            image_key, text_key = (None, None) if key is None else jax.random.split(key)
            hidden = self.embed(params, batch, image_key)

            def layer(weights: Params, hidden: Array, _: None, own_key: Array | None, rows: tuple) -> Array:
                rotary, segments = rows
                with dropout_key(own_key):
                    return self.parts.decoder_layer(
                        weights, "forward", hidden, position_embeddings=rotary, segment_ids=segments
                    )

            hidden = layers.scan_layers(
                layer,
                part(params, layers.DECODER_LAYERS),
                hidden,
                remat=self.remat,
                prefix=layers.DECODER_LAYERS,
                key=text_key,
                rows=(self.rotary(batch["position_ids"]), jnp.asarray(batch["segment_ids"])),
            )
            return self.final_norm(params, hidden)

    def logits(self, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states."""
        precision = jax.lax.Precision.HIGHEST if self.compute_dtype == jnp.float32 else None
        head = params[layers.HEAD].astype(self.compute_dtype)
        hidden = hidden.astype(self.compute_dtype)
        return jnp.einsum("...d,vd->...v", hidden, head, precision=precision, preferred_element_type=jnp.float32)

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Next-token cross entropy of the supervised tokens.

        Args:
          params: Weights.
          batch: Entries of `hidden_states` and `labels`; `loss_weight` where tokens do not count alike.
          key: Of stochastic depth and adapters' dropout in training; None otherwise.

        Returns:
          The loss, and `accuracy` (share of supervised tokens that are the likeliest), `supervised_tokens`.
        """
        rows = self.loss_rows(params, batch, key)
        supervised = rows.supervised.sum()
        metrics = {"accuracy": rows.right.sum() / jnp.maximum(supervised, 1), "supervised_tokens": supervised}
        return loss.reduce_loss(rows.loss, rows.weight, self.rows_per_group), metrics

    def loss_rows(self, params: Params, batch: Batch, key: Key[Array, ""] | None = None) -> RowSums:
        """What `loss` is made of: sums over the supervised tokens of each row; arguments as there."""
        if "labels" not in batch:
            raise ValueError(f"the batch has no 'labels', which the loss needs; it has {', '.join(sorted(batch))}.")
        hidden = self.hidden_states(params, batch, key)
        targets = loss.next_token_targets(
            *(jnp.asarray(batch[name]) for name in ("labels", "segment_ids")), batch.get("loss_weight")
        )
        sums, right = loss.cross_entropy(hidden, params[layers.HEAD], targets, self.loss_chunk)
        supervised = targets.supervised.sum(axis=1).astype(jnp.float32)
        return RowSums(sums, targets.weights.sum(axis=1), right.astype(jnp.float32), supervised)

    def generate(
        self, params: Params, batch: Batch, max_new_tokens: int, stop_ids: Sequence[int]
    ) -> tuple[Int[Array, "B M"], Int[Array, "B"]]:
        """Continues prompts greedily; see `generation.generate`."""
        return generation.generate(self, params, batch, max_new_tokens, stop_ids)

    def embed(self, params: Params, batch: Batch, key: Key[Array, ""] | None = None) -> Float[Array, "B T D"]:
        """Input of the first decoder layer, from weights in compute dtype."""
        ids = jnp.asarray(batch["input_ids"])
        embedded = self.embed_tokens(params, ids)
        tiles = jnp.asarray(batch["tiles"])
        rows, slots = tiles.shape[:2]
        if rows * slots == 0:
            return embedded
        vectors = self._image_features(params, tiles.reshape(rows * slots, *tiles.shape[2:]), key)
        vectors = vectors.reshape(rows, -1, vectors.shape[-1])
        counts = jnp.asarray(batch["num_tiles"]) * self.config.tokens_per_tile
        return vision.merge_vectors(embedded, vectors, ids == self.img_context_id, counts)

    def embed_tokens(self, params: Params, input_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeddings of tokens in compute dtype; the table's gradient is summed in its own dtype."""
        table = params[layers.TOKEN_EMBEDDING]
        spec = partition.weight_spec(layers.TOKEN_EMBEDDING, table.shape, partition.mesh_axes())
        return partition.look_up(table, input_ids, spec, self.compute_dtype)

    def rotary(self, position_ids: Int[Array, "B T"]) -> tuple[Array, Array]:
        """Cosine and sine (B, T, head) of the rotary code, computed in float32, given in compute dtype."""
        like = jnp.zeros((), self.compute_dtype)
        return self.parts.rotary({}, "forward", like, jnp.asarray(position_ids))

    def final_norm(self, params: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The language model's last norm."""
        return self.parts.norm(part(params, layers.FINAL_NORM), "forward", hidden)

    def check(self, batch: Batch) -> None:
        """Refuses a batch with missing or misshapen entries.

        Raises:
          ValueError: Names the entry and the shape it should have.
        """
        side = self.config.tile_size
        names = ("input_ids", "segment_ids", "position_ids", "tiles", "num_tiles")
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(f"the batch lacks {', '.join(missing)}; it has {', '.join(sorted(batch))}.")
        rows, tokens = np.shape(batch["input_ids"])
        slots = np.shape(batch["tiles"])[1]
        expected: dict[str, tuple[int, ...]] = dict.fromkeys(names[:3], (rows, tokens))
        expected |= {"tiles": (rows, slots, side, side, 3), "num_tiles": (rows,)}
        for name, shape in expected.items():
            if np.shape(batch[name]) != shape:
                raise ValueError(f"batch[{name!r}] is {np.shape(batch[name])}, expected {shape}.")

    def _image_features(self, params: Params, tiles: Array, key: Array | None) -> Array:
        config = self.config
        count, grid = tiles.shape[0], config.tile_size // config.vision.patch_size
        pixels = vision.normalize_pixels(tiles).transpose(0, 3, 1, 2)  # n 3 S S
        hidden = self.parts.embeddings(part(params, layers.EMBEDDINGS), "forward", pixels)
        rates = jnp.asarray(vision.drop_path_rates(config.vision.layers, self.drop_path_rate))
        within_tiles = by_kernel(self.attention) and tile_attention.suits(config.vision.width, config.vision.heads)
        tokens = None
        if within_tiles and not config.vision.qk_norm:
            tokens = hidden.shape[1]
            hidden = vision.class_token_last(hidden, tile_attention.ROWS)

        def layer(weights: Params, hidden: Array, rate: Array, own_key: Array | None, _: None) -> Array:
            factors: Any = (None, None)
            if own_key is not None and self.drop_path_rate > 0:
                # Drawn inside the layer from its key: recomputation in the backward pass draws the same.
                factors = vision.drop_path_factors(jax.random.fold_in(own_key, 0), rate, count).astype(hidden.dtype)
                own = hidden.shape[0]  # Of this device; drawn for all, so that their number does not change the draw.
                factors = jax.lax.dynamic_slice_in_dim(factors, partition.first_row(own), own, axis=1)
            with dropout_key(None if own_key is None else jax.random.fold_in(own_key, 1)):
                return self.parts.vision_layer(weights, "forward", hidden, factors[0], factors[1], tokens)

        hidden = layers.scan_layers(
            layer,
            part(params, layers.VISION_LAYERS),
            hidden,
            remat=self.remat,
            prefix=layers.VISION_LAYERS,
            per_layer=rates,
            key=key,
        )
        patches = hidden[:, 1:] if tokens is None else hidden[:, : tokens - 1]
        features = patches.reshape(count, grid, grid, -1)
        vectors = vision.pixel_unshuffle(features, config.pixel_shuffle)
        vectors = vectors.reshape(count, config.tokens_per_tile, -1)
        return self.parts.projector(part(params, layers.PROJECTOR), "forward", vectors)

    def cast(self, params: Params) -> Params:
        """Weights in compute dtype, the position table at the grid of a tile; embedding and head stay as they are."""
        grid = self.config.tile_size // self.config.vision.patch_size
        table = vision.resize_position_table(jnp.asarray(params[layers.POSITION_TABLE]), grid)
        params = {**params, layers.POSITION_TABLE: table}
        kept = (layers.HEAD, layers.TOKEN_EMBEDDING)
        return {n: p if n in kept else jnp.asarray(p).astype(self.compute_dtype) for n, p in params.items()}

    def precision(self) -> contextlib.AbstractContextManager:
        """Within it, float32 means float32, on accelerators too."""
        if self.compute_dtype == jnp.float32:
            return jax.default_matmul_precision("highest")
        return contextlib.nullcontext()
