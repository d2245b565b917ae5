"""Names and shapes of InternVL's weights: ours, and those of the two kinds of checkpoints.

Ours are the parameter names of transformers' `InternVLForConditionalGeneration`, with all layers of a stack in one
array under the name with `*` in place of the layer's number. A tensor of a file is told by its layer name, the same
with the number.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from recogdrive.models.vlm.config import VlmConfig

EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"

_TOWER, _PROJECTOR, _LANGUAGE = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model."
_TRANSFORMERS = {
    "language_model.model.": _LANGUAGE,
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": _TOWER,
    "multi_modal_projector.": _PROJECTOR,
}
"""Start of a name in files of transformers' layout -> of ours. Published ones are so, and transformers 5 still writes
them; source: the entry "llava" of its `conversion_mapping.py`. Names that are ours already are read as they are."""
_ORIGINAL = {
    "language_model.model.": _LANGUAGE,
    "language_model.lm_head.": "lm_head.",
    "vision_model.embeddings.class_embedding": f"{_TOWER}embeddings.cls_token",
    "vision_model.embeddings.position_embedding": f"{_TOWER}embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding.": f"{_TOWER}embeddings.patch_embeddings.projection.",
    "mlp1.0.": f"{_PROJECTOR}layer_norm.",
    "mlp1.1.": f"{_PROJECTOR}linear_1.",
    "mlp1.3.": f"{_PROJECTOR}linear_2.",
}
"""Start of a name in files of the original layout -> of ours. Source: golden `key_mapping.json`."""
_ORIGINAL_LAYER = {
    "attn.q_norm.": "attention.q_norm.",
    "attn.k_norm.": "attention.k_norm.",
    "attn.proj.": "attention.projection_layer.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "mlp.": "mlp.",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
}
"""The same within a layer of the tower; queries, keys and values, fused there, apart."""
_ORIGINAL_TOWER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
_OUR_TOWER = re.compile(r"model\.vision_tower\.encoder\.layer\.(\d+)\.(.+)")
_FUSED = re.compile(r"attention\.[qkv]_proj\.(weight|bias)")
_BUFFERS = re.compile(r".*\.rotary_emb\.inv_freq")
_LAYER = re.compile(r"(model\.vision_tower\.encoder\.layer\.|model\.language_model\.layers\.)(\d+)\.")


def parameter_shapes(config: VlmConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every array of weights under our names, layers stacked along the first axis."""
    return {
        **_tower_shapes(config),
        **_projector_shapes(config),
        **_language_shapes(config),
    }


def layer_shapes(config: VlmConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor under its layer name."""
    return {
        name: shape[1:] if "*" in stacked else shape
        for stacked, shape in parameter_shapes(config).items()
        for name in layer_names(stacked, shape[0])
    }


def _tower_shapes(config: VlmConfig) -> dict[str, tuple[int, ...]]:
    vision = config.vision
    width, patch, positions = vision.width, vision.patch_size, 1 + (vision.image_size // vision.patch_size) ** 2
    norm = ("weight", "bias") if vision.norm == "layer_norm" else ("weight",)
    layer: dict[str, tuple[int, ...]] = {"lambda_1": (width,), "lambda_2": (width,)}
    for part in "qkv":
        layer[f"attention.{part}_proj.weight"] = (width, width)
        if vision.qkv_bias:
            layer[f"attention.{part}_proj.bias"] = (width,)
        if vision.qk_norm and part != "v":
            layer[f"attention.{part}_norm.weight"] = (width,)
    layer |= _linear("attention.projection_layer", width, width)
    layer |= _linear("mlp.fc1", vision.mlp_width, width) | _linear("mlp.fc2", width, vision.mlp_width)
    layer |= {f"layernorm_{where}.{kind}": (width,) for where in ("before", "after") for kind in norm}
    return {
        f"{_TOWER}embeddings.cls_token": (1, 1, width),
        f"{_TOWER}embeddings.position_embeddings": (1, positions, width),
        f"{_TOWER}embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        f"{_TOWER}embeddings.patch_embeddings.projection.bias": (width,),
        **{f"{_TOWER}encoder.layer.*.{name}": (vision.layers, *shape) for name, shape in layer.items()},
    }


def _projector_shapes(config: VlmConfig) -> dict[str, tuple[int, ...]]:
    entering, width = config.vision.width * round(1 / config.downsample) ** 2, config.language.width
    return {
        f"{_PROJECTOR}layer_norm.weight": (entering,),
        f"{_PROJECTOR}layer_norm.bias": (entering,),
        **_linear(f"{_PROJECTOR}linear_1", width, entering),
        **_linear(f"{_PROJECTOR}linear_2", width, width),
    }


def _language_shapes(config: VlmConfig) -> dict[str, tuple[int, ...]]:
    language = config.language
    width, key_width = language.width, language.kv_heads * language.head_dim
    layer = {
        **_linear("self_attn.q_proj", width, width),
        **_linear("self_attn.k_proj", key_width, width),
        **_linear("self_attn.v_proj", key_width, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (language.mlp_width, width),
        "mlp.up_proj.weight": (language.mlp_width, width),
        "mlp.down_proj.weight": (width, language.mlp_width),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    return {
        EMBEDDING: (language.vocab_size, width),
        **{f"{_LANGUAGE}layers.*.{name}": (language.layers, *shape) for name, shape in layer.items()},
        f"{_LANGUAGE}norm.weight": (width,),
        HEAD: (language.vocab_size, width),
    }


def _linear(name: str, out: int, entering: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, entering), f"{name}.bias": (out,)}


def stacked_name(layer_name: str) -> tuple[str, int | None]:
    """Our name of a layer name, and the layer's number, None where there are no layers."""
    match = _LAYER.match(layer_name)
    if match is None or match[2] == "*":
        return layer_name, None
    return f"{match[1]}*.{layer_name[match.end() :]}", int(match[2])


def layer_names(name: str, layers: int) -> list[str]:
    """Layer names of one of our names; the name itself where it has no `*`."""
    return [name.replace("*", str(layer)) for layer in range(layers)] if "*" in name else [name]


def layer_names_of_file(name: str) -> tuple[str, ...] | None:
    """Layer names of a tensor in a checkpoint of either layout, in the order of its rows.

    More than one for the original tower's fused queries, keys and values; none for tables that follow from the sizes
    (rotary frequencies in old files); None for a name that no such checkpoint has.
    """
    if _BUFFERS.fullmatch(name):
        return ()
    tower = _ORIGINAL_TOWER.fullmatch(name)
    if tower:
        layer, rest = f"{_TOWER}encoder.layer.{tower[1]}.", tower[2]
        if rest.startswith("attn.qkv."):
            return tuple(f"{layer}attention.{part}_proj.{rest.removeprefix('attn.qkv.')}" for part in "qkv")
        renamed = _replace_start(rest, _ORIGINAL_LAYER)
        return None if renamed is None else (layer + renamed,)
    renamed = _replace_start(name, _ORIGINAL) or _replace_start(name, _TRANSFORMERS)
    if renamed is None and name.startswith(("model.", "lm_head.")):
        return (name,)
    return None if renamed is None else (renamed,)


def _replace_start(name: str, starts: Mapping[str, str]) -> str | None:
    """The name with its start replaced; None where it starts otherwise."""
    for start, replacement in starts.items():
        if name.startswith(start):
            return replacement + name.removeprefix(start)
    return None


class FileTensor(NamedTuple):
    """A tensor of a file to write: its name there and the layer names whose rows it holds."""

    name: str
    layer_names: tuple[str, ...]


def original_tensors(config: VlmConfig) -> list[FileTensor]:
    """Tensors of a checkpoint in the original layout."""
    return list(_file_tensors(config, _original_name))


def transformers_tensors(config: VlmConfig) -> list[FileTensor]:
    """Tensors of a checkpoint in transformers' layout."""
    return list(_file_tensors(config, _transformers_name))


def _file_tensors(config: VlmConfig, rename: Callable[[str], str]) -> Iterator[FileTensor]:
    """Groups layer names by their name in the file: q, k and v, which come in that order, may share one."""
    grouped: dict[str, list[str]] = {}
    for stacked, shape in parameter_shapes(config).items():
        for layer_name in layer_names(stacked, shape[0]):
            grouped.setdefault(rename(layer_name), []).append(layer_name)
    return (FileTensor(name, tuple(names)) for name, names in grouped.items())


def _transformers_name(layer_name: str) -> str:
    return _required(_replace_start(layer_name, _reversed(_TRANSFORMERS)), layer_name)


def _original_name(layer_name: str) -> str:
    tower = _OUR_TOWER.fullmatch(layer_name)
    if tower is None:
        return _required(_replace_start(layer_name, _reversed(_ORIGINAL)), layer_name)
    fused = _FUSED.fullmatch(tower[2])
    rest = f"attn.qkv.{fused[1]}" if fused else _replace_start(tower[2], _reversed(_ORIGINAL_LAYER))
    return f"vision_model.encoder.layers.{tower[1]}.{_required(rest, layer_name)}"


def _reversed(starts: Mapping[str, str]) -> dict[str, str]:
    return {replacement: start for start, replacement in starts.items()}


def _required(renamed: str | None, layer_name: str) -> str:
    assert renamed is not None, f"{layer_name} has no name in this layout"
    return renamed
