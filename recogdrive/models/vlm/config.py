"""Sizes of an InternVL model, and reading them from a checkpoint's `config.json` in either layout."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gin


@gin.register
@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower, by default InternViT-300M at 448 pixels.

    Attributes:
      width: Channels of a patch.
      layers: Transformer layers.
      heads: Attention heads.
      mlp_width: Hidden width of the MLPs.
      image_size: Side in pixels that the position table is made for; other tiles resize it.
      patch_size: Side of a patch in pixels.
      qkv_bias: Whether queries, keys and values have a bias.
      qk_norm: Whether queries and keys pass an RMSNorm over the full width (6B-style towers).
      norm: "layer_norm" or "rms_norm".
      norm_eps: Added under the root of the norms.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    image_size: int = 448
    patch_size: int = 14
    qkv_bias: bool = True
    qk_norm: bool = False
    norm: str = "layer_norm"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_counts(self, ("width", "layers", "heads", "mlp_width", "image_size", "patch_size"))
        if self.width % self.heads:
            raise ValueError(f"VisionConfig.width={self.width} must be a multiple of heads={self.heads}.")
        if self.norm not in ("layer_norm", "rms_norm"):
            raise ValueError(f"VisionConfig.norm={self.norm!r} must be 'layer_norm' or 'rms_norm'.")


@gin.register
@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of the Qwen2.5 language model, by default that of InternVL3-2B.

    Attributes:
      width: Channels of a token.
      layers: Transformer layers.
      heads: Query heads.
      kv_heads: Key and value heads.
      mlp_width: Hidden width of the MLPs.
      vocab_size: Rows of embedding and head.
      rope_theta: Base of the rotary code.
      norm_eps: Added under the root of the norms.
      max_positions: Longest sequence the weights were made for.
    """

    width: int = 1536
    layers: int = 28
    heads: int = 12
    kv_heads: int = 2
    mlp_width: int = 8960
    vocab_size: int = 151_674
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    max_positions: int = 32_768

    def __post_init__(self) -> None:
        _check_counts(self, ("width", "layers", "heads", "kv_heads", "mlp_width", "vocab_size", "max_positions"))
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"LanguageConfig.width={self.width} must be an even number times heads={self.heads}.")
        if self.heads % self.kv_heads:
            raise ValueError(f"LanguageConfig.heads={self.heads} must be a multiple of kv_heads={self.kv_heads}.")

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads


@gin.register
@dataclass(frozen=True)
class VlmConfig:
    """Sizes of the whole model; the defaults are InternVL3-2B.

    Attributes:
      vision: The tower.
      language: The language model.
      image_size: Side of a tile in pixels; None is the tower's own.
      downsample: Factor by which the patch grid shrinks per side on the way to the language model.
      pixel_shuffle: "v2", row-major order of the vectors of a tile, or "v1", its transpose.
      projector_eps: Under the root of the projector's LayerNorm.
      template: Name of the chat template.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    image_size: int | None = None
    downsample: float = 0.5
    pixel_shuffle: str = "v2"
    projector_eps: float = 1e-5
    template: str = "internvl2_5"

    def __post_init__(self) -> None:
        if self.downsample != 0.5:
            raise ValueError(f"VlmConfig.downsample={self.downsample} is not supported; InternVL3 uses 0.5.")
        if self.pixel_shuffle not in ("v1", "v2"):
            raise ValueError(f"VlmConfig.pixel_shuffle={self.pixel_shuffle!r} must be 'v1' or 'v2'.")
        if self.tile_size % (2 * self.vision.patch_size):
            unit = 2 * self.vision.patch_size
            nearest = max(unit, round(self.tile_size / unit) * unit)
            raise ValueError(f"VlmConfig.image_size={self.tile_size} must be a multiple of {unit}, e.g. {nearest}.")

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.vision.image_size if self.image_size is None else self.image_size

    @property
    def tokens_per_tile(self) -> int:
        """Vectors a tile becomes: 256 at 448 pixels."""
        return (self.tile_size // self.vision.patch_size // 2) ** 2


@gin.register
def internvl3_2b(vocab_size: int = 151_674, image_size: int = 448) -> VlmConfig:
    """InternVL3-2B: InternViT-300M and Qwen2.5-1.5B; 151,682 rows once ReCogDrive's eight tokens are added."""
    return VlmConfig(language=LanguageConfig(vocab_size=vocab_size), image_size=image_size)


@gin.register
def internvl3_8b(vocab_size: int = 151_674, image_size: int = 448) -> VlmConfig:
    """InternVL3-8B: InternViT-300M and Qwen2.5-7B."""
    language = LanguageConfig(width=3584, layers=28, heads=28, kv_heads=4, mlp_width=18_944, vocab_size=vocab_size)
    return VlmConfig(language=language, image_size=image_size)


def read_config(folder: Path) -> VlmConfig:
    """Sizes from `config.json` of a checkpoint, in the original layout (`internvl_chat`) or transformers' (`internvl`).

    Raises:
      OSError: There is no such file.
      ValueError: It is not JSON, not of an InternVL model with Qwen2, lacks an entry, or asks for something that is not
        supported; names the file and the entry.
    """
    path, entries = _read_entries(folder)
    kind = entries.get("model_type")
    if kind not in ("internvl_chat", "internvl"):
        raise ValueError(f"{path} describes a model of type {kind!r}; expected 'internvl_chat' or 'internvl'.")
    try:
        return _from_original(entries) if kind == "internvl_chat" else _from_transformers(entries)
    except KeyError as error:
        raise ValueError(f"{path} lacks the entry {error}, which an InternVL model has.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def is_tied(folder: Path) -> bool:
    """Whether a checkpoint without a head of its own uses the embedding for it, by the flags in its `config.json`.

    transformers' layout ties if no flag is there.
    """
    _, entries = _read_entries(folder)
    parts = [entries, entries.get("llm_config"), entries.get("text_config")]
    flags = [part["tie_word_embeddings"] for part in parts if isinstance(part, dict) and "tie_word_embeddings" in part]
    return any(flags) if flags else entries.get("model_type") == "internvl"


def _read_entries(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "config.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} holds a {type(entries).__name__}, not the entries of a model.")
    return path, entries


def _require(entries: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses entries with another value than the only one that is supported; absent ones have that value."""
    for name, value in wanted.items():
        found = entries.get(name)
        if found is not None and found != value:
            raise ValueError(f"{name}={found!r} is not supported; InternVL3 has {value!r}.")


def _from_original(entries: Mapping[str, Any]) -> VlmConfig:
    vision, language = entries["vision_config"], entries["llm_config"]
    _require(entries, {"select_layer": -1})
    _require(vision, {"hidden_act": "gelu", "num_channels": 3})
    return VlmConfig(
        vision=VisionConfig(
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            mlp_width=vision["intermediate_size"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            qkv_bias=vision["qkv_bias"],
            qk_norm=vision["qk_normalization"],
            norm=vision["norm_type"],
            norm_eps=vision.get("layer_norm_eps", 1e-6),
        ),
        language=_language(language),
        image_size=entries.get("force_image_size"),
        downsample=entries.get("downsample_ratio", 0.5),
        pixel_shuffle=entries.get("ps_version", "v1"),
        template=entries.get("template", "internvl2_5"),
    )


def _from_transformers(entries: Mapping[str, Any]) -> VlmConfig:
    vision, language = entries["vision_config"], entries["text_config"]
    _require(
        entries,
        {"projector_hidden_act": "gelu", "vision_feature_layer": -1, "vision_feature_select_strategy": "default"},
    )
    _require(vision, {"hidden_act": "gelu", "num_channels": 3, "use_absolute_position_embeddings": True})

    def side(value: int | list[int]) -> int:
        sides = [value] if isinstance(value, int) else value
        if len(set(sides)) != 1:
            raise ValueError(f"only square images and patches are supported, found {value}.")
        return sides[0]

    return VlmConfig(
        vision=VisionConfig(
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            mlp_width=vision["intermediate_size"],
            image_size=side(vision["image_size"]),
            patch_size=side(vision["patch_size"]),
            qkv_bias=vision.get("attention_bias", False),
            qk_norm=vision.get("use_qk_norm", False),
            norm=vision.get("norm_type", "layer_norm"),
            norm_eps=vision.get("layer_norm_eps", 1e-6),
        ),
        language=_language(language),
        # No entries of transformers, which keeps them: what `save_transformers` wrote of the original layout.
        image_size=entries.get("force_image_size"),
        template=entries.get("template", "internvl2_5"),
        downsample=entries.get("downsample_ratio", 0.5),
        pixel_shuffle="v2",
    )


def _language(entries: Mapping[str, Any]) -> LanguageConfig:
    if entries["model_type"] != "qwen2":
        raise ValueError(f"the language model is of type {entries['model_type']!r}; only 'qwen2' is supported.")
    _require(entries, {"hidden_act": "silu", "use_sliding_window": False})
    rope = entries.get("rope_parameters") or entries
    scaling = entries.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    # "dynamic" changes nothing up to `max_position_embeddings` tokens, and longer sequences are never made.
    if kind not in ("default", "dynamic"):
        raise ValueError(f"the rotary code is scaled by {kind!r}; only 'default' and 'dynamic' are supported.")
    return LanguageConfig(
        width=entries["hidden_size"],
        layers=entries["num_hidden_layers"],
        heads=entries["num_attention_heads"],
        kv_heads=entries["num_key_value_heads"],
        mlp_width=entries["intermediate_size"],
        vocab_size=entries["vocab_size"],
        rope_theta=rope.get("rope_theta", 1e6),
        norm_eps=entries.get("rms_norm_eps", 1e-6),
        max_positions=entries.get("max_position_embeddings", 32_768),
    )


def _check_counts(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{type(config).__name__}.{name}={value!r} must be a positive whole number.")
