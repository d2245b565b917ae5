"""Weights of folders: both layouts, shards, dtypes, added rows, fingerprints, memory, and folders that do not fit."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration

from recogdrive.data.vlm.tokenizer import VlmTokenizer, train_tokenizer
from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.config_files import transformers_config
from recogdrive.models.vlm.layout import EMBEDDING, HEAD, parameter_shapes
from recogdrive.models.vlm.weights import (
    load_weights,
    params_fingerprint,
    save_original,
    save_transformers,
    weights_fingerprint,
)

TINY = VlmConfig(
    vision=VisionConfig(width=8, layers=3, heads=2, mlp_width=12, image_size=56),
    language=LanguageConfig(width=16, layers=2, heads=4, kv_heads=2, mlp_width=20, vocab_size=30),
    image_size=28,
)
QKV = "vision_model.encoder.layers.1.attn.qkv.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def random_params(config: VlmConfig, dtype=ml_dtypes.bfloat16, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that bfloat16 holds."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(config)
    return {name: rng.normal(size=shape).astype(ml_dtypes.bfloat16).astype(dtype) for name, shape in shapes.items()}


def save_hf(folder, config, params, tokenizer=None, **kwargs) -> None:
    save_transformers(folder, config, params, tokenizer, img_context_id=3, **kwargs)


BOTH = pytest.mark.parametrize("save", [save_original, save_hf], ids=["original", "transformers"])


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
    return random_params(TINY, np.float32)


@pytest.fixture
def original(params, tmp_path) -> Path:
    save_original(tmp_path / "original", TINY, params)
    return tmp_path / "original"


@BOTH
@pytest.mark.parametrize("max_shard_bytes", [5e9, 3000, 1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_come_back_bit_for_bit(params, tmp_path, save, max_shard_bytes, dtype):
    save(tmp_path / "x", TINY, params, dtype=dtype, max_shard_bytes=max_shard_bytes)
    loaded = load_weights(tmp_path / "x")
    assert loaded.config == TINY
    assert list(loaded.params) == list(parameter_shapes(TINY))
    for name, array in loaded.params.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, params[name])
    assert loaded.fingerprint == weights_fingerprint(tmp_path / "x") == params_fingerprint(params)


def test_a_file_holds_no_more_bytes_than_asked_for(params, tmp_path):
    save_original(tmp_path / "x", TINY, params, max_shard_bytes=9500)
    files = sorted((tmp_path / "x").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    sizes = [sum(t.numel() * 2 for t in load_file(file).values()) for file in files]
    assert max(sizes) <= 9500
    assert json.loads((tmp_path / "x" / INDEX).read_text())["metadata"]["total_size"] == sum(sizes)


def test_a_folder_that_transformers_wrote_is_read(tmp_path):
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(InternVLConfig(**transformers_config(TINY, "float32", img_context_id=3)))
    model.save_pretrained(tmp_path / "x", max_shard_size="10KB")
    assert len(list((tmp_path / "x").glob("*.safetensors"))) > 1
    loaded = load_weights(tmp_path / "x")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert loaded.config == TINY
    for name, array in loaded.params.items():
        rows = [array] if "*" not in name else array
        for layer, row in enumerate(rows):
            np.testing.assert_array_equal(row, state[name.replace("*", str(layer))])


def test_names_of_transformers_parameters_are_read_too(params, tmp_path):
    save_hf(tmp_path / "x", TINY, params)
    renamed = {}
    for name, tensor in load_file(tmp_path / "x" / SINGLE).items():
        ours = name.replace("language_model.lm_head", "lm_head").replace("language_model.model", "model.language_model")
        renamed[f"model.{ours}" if ours.startswith(("vision_tower", "multi_modal")) else ours] = tensor
    save_file(renamed, tmp_path / "x" / SINGLE)
    assert load_weights(tmp_path / "x").fingerprint == params_fingerprint(params)


def test_stored_dtypes_are_kept_on_request(params, original):
    assert {array.dtype for array in load_weights(original, dtype="stored").params.values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }
    change(original, **{QKV.replace(".", "__"): load_file(original / SINGLE)[QKV].half()})
    mixed = load_weights(original, dtype="stored").params
    assert mixed["model.vision_tower.encoder.layer.*.attention.k_proj.weight"].dtype == np.float32
    assert mixed["model.vision_tower.encoder.layer.*.lambda_1"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16", ml_dtypes.bfloat16])
def test_weights_are_rounded_to_bfloat16_on_request(tmp_path, dtype):
    params = {name: np.full(shape, 1.003, np.float32) for name, shape in parameter_shapes(TINY).items()}
    save_original(tmp_path / "x", TINY, params, dtype="float32")
    for array in load_weights(tmp_path / "x", dtype=dtype).params.values():
        assert array.dtype == ml_dtypes.bfloat16
        assert (array.astype(np.float32) == 1.0).all()


def test_a_dtype_that_loses_range_is_refused(original):
    with pytest.raises(ValueError, match="dtype=float16 must be float32, bfloat16 or 'stored'"):
        load_weights(original, dtype=np.float16)


def test_added_rows_are_the_heads_mean_and_draws_of_the_seed(params, original):
    first, again, other = (load_weights(original, vocab_size=2030, seed=seed) for seed in (1, 1, 2))
    assert first.config.language.vocab_size == 2030
    np.testing.assert_array_equal(first.params[EMBEDDING][:30], params[EMBEDDING])
    np.testing.assert_array_equal(first.params[HEAD][:30], params[HEAD])
    mean = params[HEAD].astype(np.float64).mean(0).astype(np.float32)
    np.testing.assert_array_equal(first.params[HEAD][30:], np.broadcast_to(mean, (2000, 16)))
    drawn = first.params[EMBEDDING][30:]
    assert abs(drawn.std() - 0.02) < 0.001
    assert abs(drawn.mean()) < 0.001
    assert first.fingerprint == again.fingerprint == params_fingerprint(first.params)
    assert len({first.fingerprint, other.fingerprint, weights_fingerprint(original)}) == 3


def test_as_many_rows_as_stored_add_nothing(original):
    assert load_weights(original, vocab_size=30).fingerprint == weights_fingerprint(original)


def test_fewer_rows_than_stored_are_refused(original):
    with pytest.raises(ValueError, match=r"vocab_size=29 is less than the 30 rows stored .* use 30 or more"):
        load_weights(original, vocab_size=29)


def test_one_changed_value_changes_the_fingerprint(params, original):
    prints = {params_fingerprint(params)}
    for name in parameter_shapes(TINY):
        changed = dict(params) | {name: params[name].copy()}
        changed[name].reshape(-1)[-1] += 1
        prints.add(params_fingerprint(changed))
    assert len(prints) == 1 + len(params)


def test_swapped_layers_change_the_fingerprint(params):
    name = "model.language_model.layers.*.mlp.up_proj.weight"
    assert params_fingerprint(params | {name: params[name][::-1]}) != params_fingerprint(params)


def test_the_fingerprint_is_of_values_not_of_their_dtype(params):
    narrow = {name: jnp.asarray(array, jnp.bfloat16) for name, array in params.items()}
    assert params_fingerprint(narrow) == params_fingerprint(params)


def test_jax_arrays_are_written_like_others(params, original, tmp_path):
    save_original(tmp_path / "x", TINY, {name: jnp.asarray(array) for name, array in params.items()})
    assert (tmp_path / "x" / SINGLE).read_bytes() == (original / SINGLE).read_bytes()


@pytest.mark.parametrize(
    ("flags", "tied"),
    [({"tie_word_embeddings": True}, True), ({"tie_word_embeddings": False}, False)],
)
def test_without_a_head_the_embedding_is_the_head_where_they_are_tied(params, tmp_path, flags, tied):
    save_hf(tmp_path / "x", TINY, params)
    change(tmp_path / "x", language_model__lm_head__weight=None)
    path = tmp_path / "x" / "config.json"
    entries = json.loads(path.read_text())
    entries["text_config"].pop("tie_word_embeddings")
    path.write_text(json.dumps(entries | flags))
    if tied:
        loaded = load_weights(tmp_path / "x")
        np.testing.assert_array_equal(loaded.params[HEAD], params[EMBEDDING])
        assert loaded.fingerprint == params_fingerprint(params | {HEAD: params[EMBEDDING]})
    else:
        with pytest.raises(ValueError, match=r"missing: lm_head.weight \(30, 16\)"):
            load_weights(tmp_path / "x")


def test_a_stored_head_counts_also_where_the_flag_says_tied(params, tmp_path):
    save_hf(tmp_path / "x", TINY, params)
    path = tmp_path / "x" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    np.testing.assert_array_equal(load_weights(tmp_path / "x").params[HEAD], params[HEAD])


@pytest.fixture
def sharded(params, tmp_path) -> Path:
    save_original(tmp_path / "sharded", TINY, params, max_shard_bytes=3000)
    return tmp_path / "sharded"


@BOTH
def test_a_folder_that_holds_something_is_not_touched(params, tmp_path, save):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already; remove it, write elsewhere, or say overwrite=True"):
        save(tmp_path, TINY, params)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_overwriting_leaves_nothing_of_the_old_folder(params, sharded):
    save_original(sharded, TINY, params, overwrite=True)
    assert sorted(path.name for path in sharded.iterdir()) == ["config.json", SINGLE]
    assert [path.name for path in sharded.parent.iterdir()] == ["sharded"]


def test_a_failed_write_leaves_no_folder_and_keeps_the_old_one(params, original, tmp_path):
    class Unreadable:
        shape = (30, 16)

        def __array__(self, *_args):
            raise OSError("gone")

    for folder in (original, tmp_path / "new"):
        with pytest.raises(OSError, match="gone"):
            save_original(folder, TINY, params | {HEAD: Unreadable()}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]
    assert weights_fingerprint(original) == params_fingerprint(params)


@BOTH
def test_weights_that_are_not_the_models_are_not_written(params, tmp_path, save):
    wrong = {name: array for name, array in params.items() if name != HEAD} | {"extra": np.ones(1)}
    with pytest.raises(ValueError, match=r"missing: lm_head.weight \(30, 16\)\n  unknown: extra"):
        save(tmp_path / "x", TINY, wrong)
    assert not list(tmp_path.iterdir())


def test_weights_with_lora_beside_them_are_not_written(params, tmp_path):
    name = "model.language_model.layers.*.self_attn.q_proj.lora_a"
    with pytest.raises(ValueError, match="merge them into the weights first"):
        save_original(tmp_path / "x", TINY, params | {name: np.ones((2, 4, 16))})


@BOTH
def test_a_tokenizer_is_written_beside_the_weights(tmp_path, save):
    tokenizer = train_tokenizer(["text"], vocab_size=800)
    config = dataclasses.replace(
        TINY, language=dataclasses.replace(TINY.language, vocab_size=tokenizer.vocab_size, width=8, heads=2)
    )
    save(tmp_path / "x", config, random_params(config), tokenizer)
    assert VlmTokenizer.from_folder(tmp_path / "x").fingerprint == tokenizer.fingerprint
    entries = json.loads((tmp_path / "x" / "config.json").read_text())
    language = entries.get("llm_config") or entries["text_config"]
    assert (language["eos_token_id"], language["pad_token_id"]) == (tokenizer.eos_id, tokenizer.pad_id)


@BOTH
def test_a_tokenizer_with_more_tokens_than_rows_is_not_written(params, tmp_path, save):
    tokenizer = train_tokenizer(["text"], vocab_size=800)
    with pytest.raises(ValueError, match=rf"{tokenizer.vocab_size} tokens, but the model only 30 rows"):
        save(tmp_path / "x", TINY, params, tokenizer)


def test_the_image_token_of_transformers_layout_is_the_tokenizers(tmp_path):
    tokenizer = train_tokenizer(["text"], vocab_size=800)
    config = dataclasses.replace(TINY, language=dataclasses.replace(TINY.language, vocab_size=900))
    save_transformers(tmp_path / "x", config, random_params(config), tokenizer)
    entries = json.loads((tmp_path / "x" / "config.json").read_text())
    assert entries["image_token_id"] == tokenizer.img_context_id
    assert entries["image_seq_length"] == config.tokens_per_tile == 1


def test_loading_and_writing_hold_no_second_copy(tmp_path, monkeypatch):
    for module in ("safetensors_file", "weights"):
        monkeypatch.setattr(f"recogdrive.models.vlm.{module}.PIECE", 1 << 14)
    config = VlmConfig(
        vision=VisionConfig(width=64, layers=2, heads=2, mlp_width=64, image_size=56),
        language=LanguageConfig(width=256, layers=4, heads=4, kv_heads=2, mlp_width=512, vocab_size=4000),
    )
    params = random_params(config, np.float32)
    whole = sum(array.nbytes for array in params.values())
    largest = max(array.nbytes for array in params.values())
    allowance = 1 << 20  # buffers, headers, names: far less than the largest tensor
    assert allowance < largest < whole / 3

    tracemalloc.start()
    try:
        save_original(tmp_path / "x", config, params, max_shard_bytes=1e6)
        assert tracemalloc.get_traced_memory()[1] < allowance
        tracemalloc.reset_peak()
        loaded = load_weights(tmp_path / "x", vocab_size=4010)
        added = 2 * 10 * 256 * 4
        assert tracemalloc.get_traced_memory()[1] < whole + added + allowance
        del loaded
        tracemalloc.reset_peak()
        assert weights_fingerprint(tmp_path / "x") == params_fingerprint(params)
        assert tracemalloc.get_traced_memory()[1] < allowance
    finally:
        tracemalloc.stop()
