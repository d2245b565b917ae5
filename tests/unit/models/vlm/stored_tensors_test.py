"""Folders whose tensors do not fit the model, and damaged, missing or contradicting files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.layout import parameter_shapes
from recogdrive.models.vlm.stored_tensors import INDEX, SINGLE
from recogdrive.models.vlm.weights import load_weights, save_original, weights_fingerprint

TINY = VlmConfig(
    vision=VisionConfig(width=8, layers=3, heads=2, mlp_width=12, image_size=56),
    language=LanguageConfig(width=16, layers=2, heads=4, kv_heads=2, mlp_width=20, vocab_size=30),
    image_size=28,
)


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replaces tensors of a folder's only file, dots in names written as `__`; None takes one out."""
    content = load_file(folder / SINGLE)
    for name, tensor in tensors.items():
        content.pop(name.replace("__", "."), None)
        if tensor is not None:
            content[name.replace("__", ".")] = tensor
    save_file(content, folder / SINGLE)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in parameter_shapes(TINY).items()}


@pytest.fixture
def original(params, tmp_path) -> Path:
    save_original(tmp_path / "original", TINY, params)
    return tmp_path / "original"


def test_all_tensors_that_do_not_fit_are_listed(original):
    change(
        original,
        mlp1__0__bias=None,
        mlp1__1__weight=torch.ones(4, 4),
        mlp1__1__bias=torch.ones(16, dtype=torch.int64),
        optimizer__step=torch.ones(1),
        vision_model__encoder__layers__3__ls1=torch.ones(8),
        vision_tower__embeddings__cls_token=torch.ones(1, 1, 8),
        language_model__model__rotary_emb__inv_freq=torch.ones(2),
    )
    with pytest.raises(ValueError, match="6 tensor") as error:
        load_weights(original)
    text = str(error.value)
    assert "missing: model.multi_modal_projector.layer_norm.bias (32,)" in text
    assert f"wrong shape: mlp1.1.weight (4, 4) in {SINGLE}, expected (16, 32)" in text
    assert f"wrong type: mlp1.1.bias (16,) in {SINGLE} is I64, expected one of F32, F16, BF16" in text
    assert f"unknown: optimizer.step (1,) in {SINGLE}" in text
    assert f"unknown: vision_model.encoder.layers.3.ls1 (8,) in {SINGLE}" in text
    assert "twice: " in text
    assert "inv_freq" not in text


def test_a_configuration_of_another_size_does_not_fit(original):
    path = original / "config.json"
    entries = json.loads(path.read_text())
    entries["vision_config"]["num_hidden_layers"] = 2
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"unknown: vision_model.encoder.layers.2.attn.proj"):
        weights_fingerprint(original)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(params, tmp_path, value):
    broken = params | {"model.language_model.norm.weight": np.full(16, value, np.float32)}
    save_original(tmp_path / "x", TINY, broken)
    with pytest.raises(ValueError, match=rf"{SINGLE}: language_model.model.norm.weight holds NaN or infinity"):
        load_weights(tmp_path / "x")


@pytest.fixture
def sharded(params, tmp_path) -> Path:
    save_original(tmp_path / "sharded", TINY, params, max_shard_bytes=3000)
    return tmp_path / "sharded"


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"names {shard.name}, which .* lacks"):
        load_weights(sharded)


def test_a_truncated_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{shard.name} is truncated"):
        load_weights(sharded)


def test_an_index_that_disagrees_with_its_shards_names_both(sharded):
    index = json.loads((sharded / INDEX).read_text())
    where = index["weight_map"]
    shards = sorted(set(where.values()))
    moved = next(name for name in where if where[name] == shards[0])
    where[moved] = shards[1]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="and its shards disagree") as error:
        load_weights(sharded)
    assert f"{moved} is not in {shards[1]}" in str(error.value)
    assert f"{shards[0]} holds {moved}, which is not listed there" in str(error.value)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}', "[]"])
def test_a_damaged_index_is_named(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(ValueError, match=rf"{INDEX} is no index of shards"):
        load_weights(sharded)


@pytest.mark.parametrize("name", ["../other/model.safetensors", 3])
def test_an_index_may_not_name_files_elsewhere(sharded, name):
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="names files outside its folder"):
        load_weights(sharded)


def test_a_folder_without_weights_is_an_error(original):
    (original / SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no weights: neither {SINGLE} nor {INDEX}"):
        load_weights(original)


def test_a_file_without_tensors_lacks_all_of_them(original):
    save_file({}, original / SINGLE)
    with pytest.raises(ValueError, match=r"missing: model.vision_tower.embeddings.cls_token"):
        load_weights(original)
