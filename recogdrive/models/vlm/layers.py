"""The parts of transformers' InternVL that run under JAX, and the scan that runs a stack of equal layers.

A stack keeps each parameter of its layers as one array with a leading axis of layers, so that a layer is compiled once
however many there are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key
from torch import nn
from transformers.models.internvl.configuration_internvl import InternVLConfig, InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import (
    InternVLMultiModalProjector,
    InternVLVisionEmbeddings,
)
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2MLP,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)

from recogdrive.models import bridge, partition
from recogdrive.models.bridge import Params
from recogdrive.models.vlm.attention import implementation_name
from recogdrive.models.vlm.config import VlmConfig
from recogdrive.models.vlm.lora import LANGUAGE_LINEARS, VISION_LINEARS, Lora, add_adapters
from recogdrive.models.vlm.vision_layer import STATISTICS, LayerNorm, VisionLayer, computed_apart, gradient_apart

EMBEDDINGS = "model.vision_tower.embeddings."
VISION_LAYERS = "model.vision_tower.encoder.layer.*."
PROJECTOR = "model.multi_modal_projector."
DECODER_LAYERS = "model.language_model.layers.*."
FINAL_NORM = "model.language_model.norm."
TOKEN_EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
"""Parameter names, and how those of each part begin; `*` stands for the layer, which is the leading axis."""

POSITION_TABLE = EMBEDDINGS + "position_embeddings"

REMAT = {
    "full": jax.checkpoint_policies.save_only_these_names(STATISTICS),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(STATISTICS),
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ),
    "none": None,
}
"""What a layer keeps for the backward pass: its input and norms' statistics, results of matrix products, everything."""


class GatedMlp(Qwen2MLP):
    """transformers' gated MLP, its activations computed before the down-projection rather than within it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., width)."""
        gate, up = (bridge.call_jax(gradient_apart, linear(x)) for linear in (self.gate_proj, self.up_proj))
        activated = self.act_fn(gate) * up
        return self.down_proj(bridge.call_jax(computed_apart, activated))


class Parts:
    """The torch modules of one InternVL, each a function of its parameters; holds no weights.

    Args:
      config: Sizes.
      attention: One of `attention.IMPLEMENTATIONS`.
      lora: Adapters, or None.

    Attributes:
      embeddings, vision_layer, projector, decoder_layer, norm, rotary: Bridged modules; `embeddings` expects a position
        table of the grid of a tile.
      shapes: Parameter name -> shape, every parameter of the model in the order of the data flow.
    """

    def __init__(self, config: VlmConfig, attention: str, lora: Lora | None = None):
        sizes = _transformers_config(config, attention)
        with torch.device("meta"):  # Weights live in JAX; the modules only say what to compute with them.
            embeddings = InternVLVisionEmbeddings(sizes.vision_config).eval()
            vision_layer = VisionLayer(sizes.vision_config).eval()
            projector = InternVLMultiModalProjector(sizes).eval()
            decoder_layer = Qwen2DecoderLayer(sizes.text_config, 0).eval()
            decoder_layer.mlp = GatedMlp(sizes.text_config).eval()
            norm = Qwen2RMSNorm(config.language.width, eps=config.language.norm_eps).eval()
            _upcast_layer_norms(vision_layer)
            projector.layer_norm.eps = config.projector_eps
            _upcast_layer_norms(projector)
            if lora is not None and lora.on_language_model:
                add_adapters(decoder_layer, LANGUAGE_LINEARS, lora)
            if lora is not None and lora.on_tower:
                add_adapters(vision_layer, VISION_LINEARS, lora)
        self.embeddings, self.vision_layer = bridge.functional(embeddings), bridge.functional(vision_layer)
        self.projector, self.decoder_layer = bridge.functional(projector), bridge.functional(decoder_layer)
        self.norm = bridge.functional(norm)
        self.rotary = bridge.functional(Qwen2RotaryEmbedding(sizes.text_config).eval())  # Its frequencies are values.

        vision, language = config.vision, config.language
        stored_grid = vision.image_size // vision.patch_size
        self.shapes = {
            **_shapes(EMBEDDINGS, embeddings),
            **_shapes(VISION_LAYERS, vision_layer, vision.layers),
            **_shapes(PROJECTOR, projector),
            TOKEN_EMBEDDING: (language.vocab_size, language.width),
            **_shapes(DECODER_LAYERS, decoder_layer, language.layers),
            **_shapes(FINAL_NORM, norm),
            HEAD: (language.vocab_size, language.width),
        }
        self.shapes[POSITION_TABLE] = (1, 1 + stored_grid**2, vision.width)


def part(params: Mapping[str, Array], prefix: str) -> Params:
    """The parameters of one part under the names its module knows."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def scan_layers(
    layer: Callable[[Params, Float[Array, "B ..."], Any, Key[Array, ""] | None, Any], Float[Array, "B ..."]],
    stacked: Params,
    hidden: Float[Array, "B ..."],
    *,
    remat: str,
    prefix: str = "",
    per_layer: Any = None,
    key: Key[Array, ""] | None = None,
    rows: Any = None,
) -> Float[Array, "B ..."]:
    """Runs a stack of layers one after the other, compiled once.

    Under a mesh each device runs its own rows: a layer's weights are gathered when it needs them, again in the backward
    pass, and their gradients are summed straight into the pieces that devices keep.

    Args:
      layer: Maps a layer's parameters, the hidden states, its slice of `per_layer`, its key and `rows` to new hidden
        states; rows must not know of each other.
      stacked: Parameters with a leading axis of layers.
      hidden: Input of the first layer.
      remat: One of `REMAT`.
      prefix: What the names of the parameters begin with in the whole model.
      per_layer: Pytree of arrays with a leading axis of layers, or None.
      key: Each layer gets it folded with its index; None where nothing is drawn.
      rows: Pytree of arrays with rows in front that every layer needs, or None.
    """
    axes = partition.mesh_axes() if partition.row_axes(hidden.shape[0]) else {}
    specs = {
        name: partition.by_hand_only(partition.weight_spec(prefix + name, value.shape, axes))
        for name, value in stacked.items()
    }
    of_layer = {name: PartitionSpec(*spec[1:]) for name, spec in specs.items()}
    count = next(iter(stacked.values())).shape[0]
    policy = REMAT[remat]

    def run(stacked: Params, hidden: Array, per_layer: Any, key: Array | None, rows: Any) -> Array:
        def body(hidden: Array, inputs: tuple[Params, Any, Array]) -> tuple[Array, None]:
            pieces, own, index = inputs
            weights = {name: partition.gather_weight(piece, of_layer[name]) for name, piece in pieces.items()}
            own_key = None if key is None else jax.random.fold_in(key, index)
            return layer(weights, hidden, own, own_key, rows), None

        if policy is not None:
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)  # A scan needs no guard against merging.
        return jax.lax.scan(body, hidden, (stacked, per_layer, jnp.arange(count)))[0]

    whole = PartitionSpec()
    run = partition.own_rows(run, hidden.shape[0], (specs, None, whole, whole, None))
    return run(stacked, hidden, per_layer, key, rows)


def _transformers_config(config: VlmConfig, attention: str) -> InternVLConfig:
    vision, language = config.vision, config.language
    sizes = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.width,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            intermediate_size=vision.mlp_width,
            image_size=[config.tile_size, config.tile_size],
            patch_size=[vision.patch_size, vision.patch_size],
            attention_bias=vision.qkv_bias,
            use_qk_norm=vision.qk_norm,
            norm_type=vision.norm,
            layer_norm_eps=vision.norm_eps,
        ),
        text_config=Qwen2Config(
            vocab_size=language.vocab_size,
            hidden_size=language.width,
            intermediate_size=language.mlp_width,
            num_hidden_layers=language.layers,
            num_attention_heads=language.heads,
            num_key_value_heads=language.kv_heads,
            max_position_embeddings=language.max_positions,
            rms_norm_eps=language.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
            tie_word_embeddings=False,
        ),
        downsample_ratio=config.downsample,
    )
    for part_config in (sizes.vision_config, sizes.text_config):
        part_config._attn_implementation = implementation_name(attention)
    return sizes


def _upcast_layer_norms(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if type(child) is nn.LayerNorm:
            setattr(module, name, LayerNorm(child.normalized_shape, eps=child.eps))


def _shapes(prefix: str, module: nn.Module, layers: int | None = None) -> dict[str, tuple[int, ...]]:
    lead = () if layers is None else (layers,)
    return {prefix + name: lead + tuple(parameter.shape) for name, parameter in module.named_parameters()}
