"""The cache stage with a real, tiny VLM: what is cached is what the VLM says of each scene alone."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from recogdrive.data.hidden_cache.reader import HiddenStateCache
from recogdrive.data.vlm.cameras import TownCamera
from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.data.vlm.scene_prompts import ScenePrompts
from recogdrive.data.vlm.tiling import Tiling
from recogdrive.data.vlm.tokenizer import train_tokenizer
from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.encoder import HiddenStateEncoder
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.weights import save_original, save_transformers
from recogdrive.stages.cache_hidden_states import CacheHiddenStates

_spec = importlib.util.spec_from_file_location("hidden_cache_work", Path(__file__).with_name("hidden_cache_work.py"))
work = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(work)

TOKENS = 96


@pytest.fixture(scope="module")
def tokenizer():
    prompt, town = DrivingPrompt("town"), work.town(1, 5)()
    return train_tokenizer([turn.text for scene in town for turn in prompt.prompt(scene)], vocab_size=800)


@pytest.fixture(scope="module")
def vlm(tokenizer):
    config = VlmConfig(
        vision=VisionConfig(width=16, layers=1, heads=2, mlp_width=32, image_size=28, patch_size=14),
        language=LanguageConfig(width=16, layers=1, heads=2, kv_heads=1, mlp_width=32, vocab_size=tokenizer.vocab_size),
    )
    return InternVL(config, img_context_id=tokenizer.img_context_id, attention="plain")


@pytest.fixture(scope="module")
def weights(vlm, tokenizer, tmp_path_factory):
    """The same weights as a folder in the original layout and as a run that exported transformers' layout."""
    top = tmp_path_factory.mktemp("weights")
    params = {name: np.asarray(value) for name, value in vlm.init(jax.random.key(3)).items()}
    save_original(top / "original", vlm.config, params, tokenizer)
    save_transformers(top / "run" / "export" / "transformers", vlm.config, params, tokenizer)
    return top


def prompts(**changes):
    given = {"tokens_per_tile": 1, "num_tokens": TOKENS, "tiles_per_scene": 1}
    camera, tiling = TownCamera(width=64, height=32), Tiling(image_size=28, dynamic=False)
    return ScenePrompts(DrivingPrompt("town"), camera, tiling, None, **{**given, **changes})


@pytest.fixture(scope="module")
def cached(vlm, weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    stage = CacheHiddenStates(work.splits(3, 1), prompts(), HiddenStateEncoder(vlm), samples_per_shard=4, batch_size=3)
    stage.run(work.Folder(path), weights / "original")
    return HiddenStateCache(path)


def test_cached_states_are_the_vlms_of_each_scene_alone_bit_for_bit(vlm, weights, cached):
    encoder, made = HiddenStateEncoder(vlm), prompts().with_tokenizer_of(weights / "original")
    params, _ = encoder.load(weights / "original")
    encode = jax.jit(encoder.encode)
    scenes = [scene for source in work.splits(3, 1).open_all().values() for scene in source]
    for scene in scenes:
        row = made.inputs(scene)
        expected = encode(params, {name: value[None] for name, value in row.items()})[0]
        context = cached(scene)
        np.testing.assert_array_equal(context.tokens.view(np.uint16), np.asarray(expected).view(np.uint16))
        np.testing.assert_array_equal(context.mask, row["segment_ids"] == 1)
    assert len({cached(scene).tokens.tobytes() for scene in scenes}) == len(scenes)


def test_the_fingerprint_does_not_depend_on_the_layout_of_the_weights(vlm, weights, cached):
    encoder, made = HiddenStateEncoder(vlm), prompts().with_tokenizer_of(weights / "run")
    assert encoder.context_fields(encoder.load(weights / "run")[1], made) == cached.fields


def test_weights_of_another_model_are_refused(vlm, weights, tmp_path):
    other = InternVL(VlmConfig(vision=vlm.config.vision, language=LanguageConfig(
        width=32, layers=1, heads=2, kv_heads=1, mlp_width=32, vocab_size=vlm.config.language.vocab_size
    )), img_context_id=vlm.img_context_id)  # fmt: skip
    stage = CacheHiddenStates(work.splits(3, 1), prompts(), HiddenStateEncoder(other))
    with pytest.raises(ValueError, match="another VLM than the configured one"):
        stage.run(work.Folder(tmp_path), weights / "original")


def test_prompts_for_another_model_are_refused_with_every_misfit(vlm, weights, tmp_path):
    wrong = prompts(tokens_per_tile=4)
    wrong.tiling = Tiling(image_size=56, dynamic=False)
    stage = CacheHiddenStates(work.splits(3, 1), wrong, HiddenStateEncoder(vlm))
    with pytest.raises(ValueError, match=r"image_size is 56, the model has 28; .*tokens_per_tile is 4"):
        stage.run(work.Folder(tmp_path), weights / "original")


def test_a_type_of_weights_that_is_not_offered_is_refused(vlm):
    with pytest.raises(ValueError, match="weights_dtype='float16'"):
        HiddenStateEncoder(vlm, weights_dtype="float16")
