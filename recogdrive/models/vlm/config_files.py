"""The entries of `config.json` in either layout of InternVL checkpoints."""

from typing import Any

from recogdrive.data.vlm.tokenizer import VlmTokenizer
from recogdrive.models.vlm.config import VlmConfig

STORED_DTYPES = ("bfloat16", "float32")
_INTERNVL3_IMG_CONTEXT = 151_667
_LAYER_SCALE, _INIT_STD, _PROJECTOR_EPS = 0.1, 0.02, 1e-5


def original_config(config: VlmConfig, dtype: str, tokenizer: VlmTokenizer | None = None) -> dict[str, Any]:
    """Entries that the original code (`InternVLChatConfig`) reads.

    Args:
      config: Sizes.
      dtype: Of the stored tensors, one of `STORED_DTYPES`.
      tokenizer: Gives the ids of padding and of the end; without one they are not written.

    Raises:
      ValueError: The layout has no place for a setting.

    Source: upstream's `config.json`; tiling there is the published one, which training and prompts set for themselves.
    """
    _check(config, dtype, tokenizer)
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": config.vision.width,
        "image_size": config.vision.image_size,
        "initializer_factor": _LAYER_SCALE,
        "initializer_range": _INIT_STD,
        "intermediate_size": config.vision.mlp_width,
        "layer_norm_eps": config.vision.norm_eps,
        "norm_type": config.vision.norm,
        "num_attention_heads": config.vision.heads,
        "num_channels": 3,
        "num_hidden_layers": config.vision.layers,
        "patch_size": config.vision.patch_size,
        "qk_normalization": config.vision.qk_norm,
        "qkv_bias": config.vision.qkv_bias,
        "torch_dtype": dtype,
        "use_flash_attn": False,
    }
    code = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    code |= dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), "modeling_internvl_chat.InternVLChatModel")
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": code,
        "model_type": "internvl_chat",
        "downsample_ratio": config.downsample,
        "dynamic_image_size": True,
        "force_image_size": config.image_size,
        "llm_config": _language(config, tokenizer)
        | {
            "max_window_layers": 70,  # of no effect without a sliding window, but the original code compares it
            "sliding_window": config.language.max_positions,
            "torch_dtype": dtype,
            "use_cache": False,
        },
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": config.pixel_shuffle,
        "select_layer": -1,
        "template": config.template,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": vision,
    }


def transformers_config(
    config: VlmConfig, dtype: str, tokenizer: VlmTokenizer | None = None, img_context_id: int | None = None
) -> dict[str, Any]:
    """Entries that transformers' `InternVLConfig` reads; `force_image_size` and `template` are kept beside them.

    Args:
      config: Sizes.
      dtype: Of the stored tensors, one of `STORED_DTYPES`.
      tokenizer: Gives ids of tokens.
      img_context_id: Of the image token; None takes the tokenizer's, or InternVL3's without one.

    Raises:
      ValueError: The layout has no place for a setting, or the image token is not in the vocabulary.
    """
    _check(config, dtype, tokenizer)
    if config.pixel_shuffle != "v2":
        raise ValueError(
            f"pixel_shuffle={config.pixel_shuffle!r} does not exist in transformers' layout, which has 'v2'; write the "
            f"original layout"
        )
    if img_context_id is None:
        img_context_id = _INTERNVL3_IMG_CONTEXT if tokenizer is None else tokenizer.img_context_id
    if not 0 <= img_context_id < config.language.vocab_size:
        raise ValueError(
            f"img_context_id={img_context_id} is not among the {config.language.vocab_size} tokens; give the id or the "
            f"tokenizer"
        )
    vision = {
        "model_type": "internvl_vision",
        "architectures": ["InternVLVisionModel"],
        "attention_bias": config.vision.qkv_bias,
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": config.vision.width,
        "image_size": [config.vision.image_size] * 2,
        "initializer_range": _INIT_STD,
        "intermediate_size": config.vision.mlp_width,
        "layer_norm_eps": config.vision.norm_eps,
        "layer_scale_init_value": _LAYER_SCALE,
        "norm_type": config.vision.norm,
        "num_attention_heads": config.vision.heads,
        "num_channels": 3,
        "num_hidden_layers": config.vision.layers,
        "patch_size": [config.vision.patch_size] * 2,
        "projection_dropout": 0.0,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": config.vision.qk_norm,
    }
    language = _language(config, tokenizer) | {
        "rope_parameters": {"rope_theta": config.language.rope_theta, "rope_type": "default"},
        "use_cache": True,
    }
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": config.downsample,
        "dtype": dtype,
        "force_image_size": config.image_size,
        "image_seq_length": config.tokens_per_tile,
        "image_token_id": img_context_id,
        "projector_hidden_act": "gelu",
        "template": config.template,
        "text_config": language,
        "tie_word_embeddings": False,
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _language(config: VlmConfig, tokenizer: VlmTokenizer | None) -> dict[str, Any]:
    """Entries of Qwen2, the same in both layouts."""
    ids = {} if tokenizer is None else {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        **ids,
        "hidden_act": "silu",
        "hidden_size": config.language.width,
        "initializer_range": _INIT_STD,
        "intermediate_size": config.language.mlp_width,
        "max_position_embeddings": config.language.max_positions,
        "num_attention_heads": config.language.heads,
        "num_hidden_layers": config.language.layers,
        "num_key_value_heads": config.language.kv_heads,
        "rms_norm_eps": config.language.norm_eps,
        "rope_theta": config.language.rope_theta,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": config.language.vocab_size,
    }


def _check(config: VlmConfig, dtype: str, tokenizer: VlmTokenizer | None) -> None:
    if dtype not in STORED_DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(STORED_DTYPES)}")
    if config.projector_eps != _PROJECTOR_EPS:
        raise ValueError(
            f"projector_eps={config.projector_eps} has no entry in a checkpoint, whose readers take {_PROJECTOR_EPS}"
        )
    if tokenizer is not None and tokenizer.vocab_size > config.language.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model only {config.language.vocab_size} rows; "
            f"load the weights with vocab_size={tokenizer.vocab_size}"
        )
