"""Sizes of models: checks, and reading and writing `config.json` of both layouts."""

import dataclasses
import json

import pytest

from recogdrive.models.vlm.config import (
    LanguageConfig,
    VisionConfig,
    VlmConfig,
    internvl3_2b,
    internvl3_8b,
    is_tied,
    read_config,
)
from recogdrive.models.vlm.config_files import original_config, transformers_config

BASE = VlmConfig(image_size=224, template="internvl2_5")
BIG_TOWER = dataclasses.replace(BASE, vision=VisionConfig(qk_norm=True, qkv_bias=False, norm="rms_norm"))
BOTH = pytest.mark.parametrize("entries_of", [original_config, transformers_config], ids=["original", "transformers"])


def write(folder, entries) -> None:
    (folder / "config.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))


@BOTH
@pytest.mark.parametrize("config", [BASE, BIG_TOWER, internvl3_2b(), internvl3_8b(151_682)], ids=str)
def test_sizes_come_back_from_written_entries(tmp_path, config, entries_of):
    write(tmp_path, entries_of(config, "bfloat16"))
    assert read_config(tmp_path) == config


def test_a_tile_of_448_pixels_is_256_vectors():
    assert internvl3_2b().tokens_per_tile == 256
    assert BASE.tokens_per_tile == 64


def test_the_order_of_vectors_is_read_from_the_original_layout(tmp_path):
    config = dataclasses.replace(BASE, pixel_shuffle="v1")
    write(tmp_path, original_config(config, "float32"))
    assert read_config(tmp_path) == config
    with pytest.raises(ValueError, match="pixel_shuffle='v1' does not exist in transformers' layout"):
        transformers_config(config, "float32")


def test_numbers_for_square_sizes_and_older_rope_entries_are_read(tmp_path):
    entries = transformers_config(BASE, "float32")
    entries["vision_config"] |= {"image_size": 448, "patch_size": 14}
    entries["text_config"] |= {"rope_parameters": None, "rope_theta": 5e5}
    write(tmp_path, entries)
    found = read_config(tmp_path)
    assert (found.vision.image_size, found.vision.patch_size, found.language.rope_theta) == (448, 14, 5e5)


@pytest.mark.parametrize("scaling", [{"rope_type": "dynamic", "type": "dynamic", "factor": 2.0}, {"type": "dynamic"}])
def test_a_rotary_scaling_that_acts_on_longer_sequences_only_is_accepted(tmp_path, scaling):
    entries = original_config(BASE, "float32")
    entries["llm_config"]["rope_scaling"] = scaling
    write(tmp_path, entries)
    assert read_config(tmp_path) == BASE


@BOTH
def test_another_rotary_scaling_is_refused(tmp_path, entries_of):
    entries = entries_of(BASE, "float32")
    entries["llm_config" if "llm_config" in entries else "text_config"]["rope_scaling"] = {"rope_type": "yarn"}
    write(tmp_path, entries)
    with pytest.raises(ValueError, match=r"config\.json: the rotary code is scaled by 'yarn'"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("entries_of", "part", "name", "value"),
    [
        (original_config, None, "select_layer", -4),
        (original_config, "vision_config", "hidden_act", "relu"),
        (original_config, "llm_config", "use_sliding_window", True),
        (transformers_config, None, "vision_feature_layer", -2),
        (transformers_config, None, "projector_hidden_act", "relu"),
        (transformers_config, None, "vision_feature_select_strategy", "full"),
        (transformers_config, "vision_config", "num_channels", 1),
        (transformers_config, "text_config", "hidden_act", "gelu"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(tmp_path, entries_of, part, name, value):
    entries = entries_of(BASE, "float32")
    (entries[part] if part else entries)[name] = value
    write(tmp_path, entries)
    with pytest.raises(ValueError, match=rf"config\.json: {name}={value!r} is not supported"):
        read_config(tmp_path)


def test_a_picture_that_is_not_square_is_refused(tmp_path):
    entries = transformers_config(BASE, "float32")
    entries["vision_config"]["image_size"] = [448, 224]
    write(tmp_path, entries)
    with pytest.raises(ValueError, match=r"only square images and patches are supported, found \[448, 224\]"):
        read_config(tmp_path)


@BOTH
def test_a_missing_entry_is_named(tmp_path, entries_of):
    entries = entries_of(BASE, "float32")
    del entries["vision_config"]["hidden_size"]
    write(tmp_path, entries)
    with pytest.raises(ValueError, match=r"config\.json lacks the entry 'hidden_size'"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", r"config\.json is not JSON"),
        ("[1]", r"config\.json holds a list"),
        ("{}", r"of type None; expected 'internvl_chat' or 'internvl'"),
        ('{"model_type": "llava"}', r"of type 'llava'"),
        ('{"model_type": "internvl_chat", "vision_config": 3, "llm_config": {}}', r"config\.json"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, text, reason):
    write(tmp_path, text)
    with pytest.raises(ValueError, match=reason):
        read_config(tmp_path)


def test_another_language_model_is_refused(tmp_path):
    entries = original_config(BASE, "float32")
    entries["llm_config"]["model_type"] = "internlm2"
    write(tmp_path, entries)
    with pytest.raises(ValueError, match="the language model is of type 'internlm2'; only 'qwen2' is supported"):
        read_config(tmp_path)


def test_a_folder_without_configuration_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("entries", "tied"),
    [
        ({"model_type": "internvl"}, True),
        ({"model_type": "internvl_chat"}, False),
        ({"model_type": "internvl", "text_config": {"tie_word_embeddings": False}}, False),
        ({"model_type": "internvl_chat", "llm_config": {"tie_word_embeddings": True}}, True),
        ({"model_type": "internvl", "tie_word_embeddings": True, "text_config": {}}, True),
    ],
)
def test_flags_say_whether_a_missing_head_is_the_embedding(tmp_path, entries, tied):
    write(tmp_path, entries)
    assert is_tied(tmp_path) is tied


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: VisionConfig(width=10, heads=4), "VisionConfig.width=10 must be a multiple of heads=4"),
        (lambda: VisionConfig(layers=0), "VisionConfig.layers=0 must be a positive whole number"),
        (lambda: VisionConfig(norm="batch"), "VisionConfig.norm='batch'"),
        (lambda: LanguageConfig(width=12, heads=4), "must be an even number times heads=4"),
        (lambda: LanguageConfig(heads=12, kv_heads=5), "must be a multiple of kv_heads=5"),
        (lambda: VlmConfig(downsample=0.25), "VlmConfig.downsample=0.25 is not supported"),
        (lambda: VlmConfig(pixel_shuffle="v3"), "VlmConfig.pixel_shuffle='v3'"),
        (lambda: VlmConfig(image_size=450), "VlmConfig.image_size=450 must be a multiple of 28, e.g. 448"),
        (lambda: original_config(BASE, "float16"), "dtype='float16' must be one of bfloat16, float32"),
        (lambda: original_config(dataclasses.replace(BASE, projector_eps=1e-3), "float32"), "projector_eps=0.001 has"),
        (lambda: transformers_config(BASE, "float32", img_context_id=200_000), "img_context_id=200000 is not among"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()
