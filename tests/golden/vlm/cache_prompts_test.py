"""Rows for hidden-state caching against the tokens that upstream caches."""

import dataclasses
import json
import types

import numpy as np
import pytest
from PIL import Image

from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.data.vlm.scene_prompts import ScenePrompts
from recogdrive.data.vlm.tiling import Tiling
from recogdrive.data.vlm.tokenizer import VlmTokenizer


@dataclasses.dataclass
class Photograph:
    """A picture in the size of nuPlan's cameras."""

    name = "grey"
    fingerprint = "grey"

    def picture(self, scene):
        return self

    def size(self):
        return 1920, 1080

    def open(self):
        return Image.new("RGB", self.size(), (90, 90, 90))


@pytest.fixture(scope="module")
def tokenizer(shared_dir):
    return VlmTokenizer.from_folder(shared_dir / "data" / "tokenizer")


def scene_of(example):
    """A scene as far as a prompt reads it."""
    ego = types.SimpleNamespace(
        poses=np.array(example["history"]), command=np.array([example["driving_command_one_hot"]] * 4, np.float32)
    )
    return types.SimpleNamespace(token="0" * 16, log_name="golden", ego=ego)


def test_rows_equal_upstreams_tokens_mask_and_positions(golden_dir, tokenizer):
    folder = golden_dir / "vlm"
    cases = json.loads((folder / "cache_prompts.json").read_text())["cases"]
    examples = json.loads((folder / "prompts.json").read_text())["examples"]
    assert cases
    with np.load(folder / "cache_prompts.npz") as expected:
        for case in cases:
            # Upstream cuts pictures into up to 12 tiles; its TPU port takes one of the whole picture.
            tiling = Tiling(dynamic=case["tiles"] > 1)
            ids = expected[f"{case['key']}/input_ids"]
            prompts = ScenePrompts(
                DrivingPrompt("inference"), Photograph(), tiling, tokenizer, num_tokens=len(ids), tiles_per_scene=9
            )
            row = prompts.inputs(scene_of(examples[case["example"]]))
            np.testing.assert_array_equal(row["input_ids"], ids)
            np.testing.assert_array_equal(row["segment_ids"], expected[f"{case['key']}/attention_mask"])
            np.testing.assert_array_equal(row["position_ids"], expected[f"{case['key']}/position_ids"])
            assert row["segment_ids"].sum() == case["real_tokens"]
            assert row["num_tiles"] == case["tiles"]
