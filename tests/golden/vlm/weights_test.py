"""Stored checkpoints of the reference: every name, both layouts, and the logits that follow from written folders."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import InternVLForConditionalGeneration

from recogdrive.data.vlm.tokenizer import DRIVING_TOKENS, VlmTokenizer
from recogdrive.models.vlm.config import read_config
from recogdrive.models.vlm.layout import layer_names_of_file, original_tensors, stacked_name
from recogdrive.models.vlm.weights import (
    LoadedVlm,
    load_weights,
    params_fingerprint,
    save_original,
    save_transformers,
    weights_fingerprint,
)

LOGITS_ATOL = 1e-4
"""Of the golden README, for float32."""


@pytest.fixture(scope="module")
def checkpoints(golden_dir) -> dict[Path, LoadedVlm]:
    folders = sorted(path.parent for path in (golden_dir / "vlm").glob("*/model.safetensors"))
    assert folders, "no stored checkpoint"
    return {folder: load_weights(folder) for folder in folders}


@pytest.fixture(scope="module")
def key_mapping(golden_dir) -> dict:
    return json.loads((golden_dir / "vlm" / "key_mapping.json").read_text())


def ruled(name: str, rules: list[dict]) -> tuple[str, ...]:
    """Names that the stored rules give."""
    for rule in rules:
        match = re.fullmatch(rule["pattern"], name)
        if match:
            return tuple(match.expand(target) for target in rule.get("targets", [rule.get("target")]))
    raise AssertionError(f"no rule for {name}")


def test_names_are_those_of_the_stored_rules_and_tables(checkpoints, key_mapping):
    for folder in checkpoints:
        table = key_mapping["tables"].get(folder.name, {})
        for name in load_file(folder / "model.safetensors"):
            assert layer_names_of_file(name) == ruled(name, key_mapping["rules"])
            assert name not in table or layer_names_of_file(name) == tuple(table[name])


def test_a_written_original_checkpoint_has_the_stored_names_and_values(checkpoints, tmp_path):
    for folder, loaded in checkpoints.items():
        save_original(tmp_path / folder.name, loaded.config, loaded.params, dtype="float32")
        stored, written = (load_file(where / "model.safetensors") for where in (folder, tmp_path / folder.name))
        assert stored.keys() == written.keys()
        assert all(np.array_equal(stored[name], written[name]) for name in stored)


def test_stacked_arrays_hold_the_stored_values(checkpoints):
    for folder, loaded in checkpoints.items():
        stored = load_file(folder / "model.safetensors")
        for name, layer_names in original_tensors(loaded.config):
            parts = []
            for ours, layer in map(stacked_name, layer_names):
                parts.append(loaded.params[ours] if layer is None else loaded.params[ours][layer])
            np.testing.assert_array_equal(np.concatenate(parts), stored[name])


def test_a_written_configuration_has_every_stored_entry(checkpoints, tmp_path):
    for folder, loaded in checkpoints.items():
        save_original(tmp_path / folder.name, loaded.config, loaded.params, dtype="float32")
        stored, written = (json.loads((at / "config.json").read_text()) for at in (folder, tmp_path / folder.name))
        for part in ("vision_config", "llm_config"):
            own = stored.pop(part)
            # Ids of tokens come from a tokenizer, and none is stored.
            own = {name: value for name, value in own.items() if name not in ("bos_token_id", "eos_token_id")}
            assert own.items() <= written.pop(part).items()
        assert stored.items() <= written.items()


def test_both_layouts_and_any_sharding_are_one_fingerprint(checkpoints, tmp_path):
    for folder, loaded in checkpoints.items():
        own = tmp_path / folder.name
        save_original(own / "original", loaded.config, loaded.params, dtype="float32", max_shard_bytes=60_000)
        save_transformers(own / "hf", loaded.config, loaded.params, img_context_id=1, dtype="float32")
        for written in (own / "original", own / "hf"):
            again = load_weights(written)
            assert again.config == loaded.config == read_config(folder)
            assert again.fingerprint == loaded.fingerprint == weights_fingerprint(written)
            assert all(np.array_equal(again.params[name], loaded.params[name]) for name in loaded.params)
        assert params_fingerprint(loaded.params) == weights_fingerprint(folder)
    assert len({loaded.fingerprint for loaded in checkpoints.values()}) == len(checkpoints)


def img_context(folder: Path) -> int:
    """The image token of a checkpoint's batches: of its own list of tokens, or of a neighbour's that shares them."""
    own = folder / "token_ids.json"
    path = own if own.exists() else sorted(folder.parent.glob("*/token_ids.json"))[0]
    return json.loads(path.read_text())["img_context"]


def test_transformers_computes_the_stored_logits_from_a_written_folder(checkpoints, tmp_path):
    compared = 0
    for folder, loaded in checkpoints.items():
        written = tmp_path / folder.name
        token = img_context(folder)
        save_transformers(
            written, loaded.config, loaded.params, img_context_id=token, dtype="float32", max_shard_bytes=100_000
        )
        model, report = InternVLForConditionalGeneration.from_pretrained(
            written, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
        )
        assert not any(report.values()), report
        for path in sorted(folder.glob("batch_*.npz")):
            batch = np.load(path)
            with torch.no_grad():
                logits = model.eval()(
                    pixel_values=torch.from_numpy(batch["pixel_values"][batch["image_flags"] == 1]),
                    input_ids=torch.from_numpy(batch["input_ids"]).long(),
                    attention_mask=torch.from_numpy(batch["attention_mask"]).long(),
                    position_ids=torch.from_numpy(batch["position_ids"]).long(),
                ).logits.numpy()
            real = batch["attention_mask"] == 1
            np.testing.assert_allclose(logits[real], batch["logits"][real], rtol=0, atol=LOGITS_ATOL)
            compared += 1
    assert compared


def test_stored_prompts_come_back_from_their_text(golden_dir, shared_dir):
    tokenizer = VlmTokenizer.from_folder(shared_dir / "data" / "tokenizer")
    prompts = np.load(golden_dir / "vlm" / "cache_prompts.npz")
    cases = [name.removesuffix("/input_ids") for name in prompts.files if name.endswith("/input_ids")]
    assert cases
    for case in cases:
        ids = prompts[f"{case}/input_ids"][prompts[f"{case}/attention_mask"] == 1].tolist()
        assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_driving_tokens_are_the_stored_ones(golden_dir):
    prompts = json.loads((golden_dir / "vlm" / "prompts.json").read_text())
    assert list(DRIVING_TOKENS) == prompts["added_tokens"]
