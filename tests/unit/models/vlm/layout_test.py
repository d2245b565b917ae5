"""Names and shapes of weights: against transformers' own model, and from file to us and back."""

import dataclasses

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig, internvl3_2b, internvl3_8b
from recogdrive.models.vlm.config_files import transformers_config
from recogdrive.models.vlm.layout import (
    layer_names,
    layer_names_of_file,
    layer_shapes,
    original_tensors,
    parameter_shapes,
    stacked_name,
    transformers_tensors,
)

TINY = VlmConfig(
    vision=VisionConfig(width=8, layers=3, heads=2, mlp_width=12, image_size=56),
    language=LanguageConfig(width=16, layers=2, heads=4, kv_heads=2, mlp_width=20, vocab_size=30),
)
QK_NORM = dataclasses.replace(
    TINY, vision=dataclasses.replace(TINY.vision, qk_norm=True, qkv_bias=False, norm="rms_norm")
)


@pytest.mark.parametrize("config", [TINY, QK_NORM], ids=["300M kind", "6B kind"])
def test_names_and_shapes_are_those_of_transformers_model(config):
    entries = transformers_config(config, "float32", img_context_id=1)
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig(**entries))
    assert layer_shapes(config) == {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_the_published_sizes_have_the_published_number_of_parameters():
    def count(config: VlmConfig) -> int:
        return sum(torch.Size(shape).numel() for shape in parameter_shapes(config).values())

    assert count(internvl3_2b()) == 2_088_957_440
    assert count(internvl3_8b()) == 7_944_373_760


def test_layers_are_stacked_under_a_star():
    name = "model.vision_tower.encoder.layer.*.attention.q_proj.weight"
    assert parameter_shapes(TINY)[name] == (3, 8, 8)
    assert layer_names(name, 2) == [name.replace("*", "0"), name.replace("*", "1")]
    assert stacked_name(name.replace("*", "12")) == (name, 12)
    assert stacked_name("lm_head.weight") == ("lm_head.weight", None)
    assert layer_names("lm_head.weight", 30) == ["lm_head.weight"]


@pytest.mark.parametrize("config", [TINY, QK_NORM], ids=["300M kind", "6B kind"])
@pytest.mark.parametrize("tensors", [original_tensors, transformers_tensors])
def test_every_name_of_a_file_leads_back_to_ours(config, tensors):
    listed = tensors(config)
    for name, names in listed:
        assert layer_names_of_file(name) == names
    assert sorted(name for _, names in listed for name in names) == sorted(layer_shapes(config))


def test_the_towers_queries_keys_and_values_are_one_tensor_of_the_original_layout():
    layer = "model.vision_tower.encoder.layer.2.attention."
    assert dict(original_tensors(TINY))["vision_model.encoder.layers.2.attn.qkv.bias"] == (
        f"{layer}q_proj.bias",
        f"{layer}k_proj.bias",
        f"{layer}v_proj.bias",
    )


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("language_model.model.layers.1.mlp.up_proj.weight", "model.language_model.layers.1.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("vision_tower.encoder.layer.0.lambda_1", "model.vision_tower.encoder.layer.0.lambda_1"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("model.vision_tower.embeddings.cls_token", "model.vision_tower.embeddings.cls_token"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_published_names_of_transformers_layout_and_its_parameter_names_are_read(published, ours):
    assert layer_names_of_file(published) == (ours,)


def test_tables_that_follow_from_the_sizes_are_passed_over():
    assert layer_names_of_file("language_model.model.layers.0.self_attn.rotary_emb.inv_freq") == ()


@pytest.mark.parametrize("name", ["vision_model.encoder.layers.0.attn.other", "optimizer.state", "mlp1.2.weight"])
def test_a_name_of_no_layout_is_none(name):
    assert layer_names_of_file(name) is None
