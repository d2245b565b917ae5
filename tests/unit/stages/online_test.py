"""Online mode through the stages, with a tiny VLM: evaluation equals that of cached states, training with and without
the VLM."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from recogdrive.composition import Composition
from recogdrive.data.context import SceneTokens
from recogdrive.data.hidden_cache.reader import HiddenStateCache
from recogdrive.data.samples import planner_sample
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.vlm.cameras import TownCamera
from recogdrive.data.vlm.driving_prompt import DrivingPrompt
from recogdrive.data.vlm.scene_prompts import ScenePrompts
from recogdrive.data.vlm.tiling import Tiling
from recogdrive.data.vlm.tokenizer import VlmTokenizer, train_tokenizer
from recogdrive.data.vlm.vlm_inputs import VlmInputs
from recogdrive.experiment import ConfigurationError, find_experiment
from recogdrive.models.planner.official_checkpoint import OfficialLayout, load_official, official_layout
from recogdrive.models.planner.planner import ParameterRow
from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.encoder import HiddenStateEncoder
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.weights import load_weights, save_original
from recogdrive.models.vlm_planner import OnlinePlanner
from recogdrive.run_folder import RunFolder
from recogdrive.stages import imitation as stage_imitation
from recogdrive.stages.cache_hidden_states import CacheHiddenStates
from recogdrive.stages.evaluate import Evaluate
from recogdrive.stages.imitation import Imitation
from recogdrive.stages.open_loop import OpenLoop
from recogdrive.training.checkpoint import load_params
from recogdrive.training.loop import Trainer
from recogdrive.training.optim import AdamW, Constant

WIDTH = 16


class Averaging:
    """A planner that costs nothing to compile: a linear map of the mean context token."""

    name, context_width = "planner", WIDTH

    def parameter_table(self):
        return [ParameterRow("map", (WIDTH, 24), "float32", 24 * WIDTH)]

    def init(self, key):
        return {"map": jax.random.normal(key, (WIDTH, 24))}

    def plan(self, params, batch, keys):
        return (batch["context"].astype(jnp.float32).mean(axis=1) @ params["map"]).reshape(-1, 8, 3)

    def loss(self, params, batch, key):
        return jnp.square(self.plan(params, batch, None) - batch["trajectory"]).mean(), {}


@official_layout.register
def _(model: Averaging) -> OfficialLayout:
    return OfficialLayout("agent.averaging.", {"map": None})


PLANNER = Averaging()
PROMPT = DrivingPrompt("town")


def town(seed):
    return lambda: SyntheticTown(num_scenes=3, seed=seed, name=f"town_{seed}")


SPLITS = PlanningSplits(train=town(1), evaluate=[("val", town(2))])


def open_folder(path):
    return RunFolder(path, Composition(find_experiment("debug_il"), "A = 1\n"), None)


def evaluation():
    return OpenLoop(baselines=[], batch_size=2, pictures=0)


@pytest.fixture(scope="module")
def tokenizer():
    scenes = town(1)()
    texts = [turn.text for i in range(3) for turn in PROMPT.prompt(scenes[i])] + [PROMPT.answer(scenes[0])]
    return train_tokenizer(texts, vocab_size=700)


@pytest.fixture(scope="module")
def vlm(tokenizer):
    config = VlmConfig(
        vision=VisionConfig(width=8, layers=1, heads=1, mlp_width=8, image_size=56, patch_size=14),
        language=LanguageConfig(
            width=WIDTH, layers=1, heads=2, kv_heads=1, mlp_width=16, vocab_size=tokenizer.vocab_size
        ),
    )
    return InternVL(config, img_context_id=tokenizer.img_context_id, attention="plain", remat="none")


@pytest.fixture(scope="module")
def weights(vlm, tokenizer, tmp_path_factory):
    """Folder of the VLM's weights."""
    path = tmp_path_factory.mktemp("vlm") / "weights"
    save_original(path, vlm.config, jax.jit(vlm.init)(jax.random.key(0)), tokenizer, dtype="float32")
    return path


@pytest.fixture(scope="module")
def prompts(vlm):
    tiling = Tiling(image_size=56, dynamic=False)
    camera = TownCamera(width=64, height=36)
    return ScenePrompts(PROMPT, camera, tiling, None, tokens_per_tile=4, num_tokens=128, tiles_per_scene=1)


@pytest.fixture(scope="module")
def context(prompts, weights):
    return VlmInputs(prompts, WIDTH, weights)


@pytest.fixture(scope="module")
def encoder(vlm):
    return HiddenStateEncoder(vlm)


@pytest.fixture(scope="module")
def cache(prompts, encoder, weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "cache"
    CacheHiddenStates(SPLITS, prompts, encoder, batch_size=2).run(open_folder(path), weights)
    return HiddenStateCache(path)


def imitation(planner, context, learning_rate=0.01):
    trainer = Trainer(2, optimizer=AdamW(Constant(learning_rate), weight_decay=0.0, clip_norm=None))
    return Imitation(planner, SPLITS, context, trainer, evaluation(), batch_size=2)


@pytest.fixture(scope="module")
def cached_run(cache, tmp_path_factory):
    """A planner trained on cached states, and its figures."""
    path = tmp_path_factory.mktemp("runs") / "cached"
    return path, imitation(PLANNER, cache).run(open_folder(path), None)


def test_states_equal_those_of_the_cache_bit_for_bit(cache, context, encoder, weights):
    scenes = [town(2)()[i] for i in range(3)]

    rows = [context(scene).entries() for scene in scenes]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    states = jax.jit(encoder.encode)(encoder.load(weights).params, batch)

    for scene, state in zip(scenes, np.asarray(states), strict=True):
        assert cache(scene).tokens.dtype == state.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(cache(scene).tokens, state)


def test_evaluation_online_gives_the_figures_of_the_run_on_the_cache(context, encoder, weights, cached_run, tmp_path):
    path, figures = cached_run
    online = OnlinePlanner(encoder, PLANNER, weights)

    found = Evaluate(online, SPLITS, context, evaluation()).run(open_folder(tmp_path), path / "export" / "planner.ckpt")

    assert found == figures


def test_other_prompts_than_the_planner_was_trained_on_are_refused(prompts, encoder, weights, cached_run, tmp_path):
    tiling, camera = Tiling(image_size=56, dynamic=False), TownCamera(width=64, height=40)
    other = ScenePrompts(PROMPT, camera, tiling, None, tokens_per_tile=4, num_tokens=128, tiles_per_scene=1)
    stage = Evaluate(OnlinePlanner(encoder, PLANNER, weights), SPLITS, VlmInputs(other, WIDTH, weights), evaluation())

    with pytest.raises(ConfigurationError, match=r"was trained on the context .*\(camera: "):
        stage.run(open_folder(tmp_path), cached_run[0])


def test_training_beside_a_frozen_vlm_is_training_on_the_cache(context, encoder, weights, cached_run, tmp_path):
    planner = OnlinePlanner(encoder, PLANNER, weights)

    imitation(planner, context).run(open_folder(tmp_path), None)

    trained, expected = load_params(tmp_path, which="latest"), load_params(cached_run[0], which="latest")
    assert set(trained) == {row.name for row in PLANNER.parameter_table()}
    np.testing.assert_allclose(trained["map"], expected["map"], atol=1e-5)
    assert not (tmp_path / "export" / "original").exists()


def test_a_vlm_that_trains_changes_is_saved_and_is_exported(context, encoder, vlm, weights, cached_run, tmp_path):
    planner = OnlinePlanner(encoder, PLANNER, weights, train_vlm=True)
    start = load_weights(weights).params

    figures = imitation(planner, context, 0.05).run(open_folder(tmp_path), cached_run[0])

    trained = load_params(tmp_path, which="latest")
    name = "model.language_model.layers.*.self_attn.q_proj.weight"
    assert set(trained) == {row.name for row in planner.parameter_table()}
    assert np.abs(np.asarray(trained[f"vlm.{name}"]) - start[name]).max() > 0.01
    exported = load_weights(tmp_path / "export" / "original").params
    np.testing.assert_allclose(exported[name], trained[f"vlm.{name}"], rtol=0.01)
    assert VlmTokenizer.from_folder(tmp_path / "export" / "original").img_context_id == vlm.img_context_id
    assert set(load_official(tmp_path / "export" / "planner.ckpt", PLANNER)) < set(trained)
    assert np.isfinite(figures["planner/ade"])


def test_planner_and_context_of_different_kinds_are_refused(context, encoder, weights):
    with pytest.raises(ConfigurationError, match="include gin/option/online.gin for both, or for neither"):
        Evaluate(PLANNER, SPLITS, context, evaluation())
    online = OnlinePlanner(encoder, PLANNER, weights)
    with pytest.raises(ConfigurationError, match="SceneTokens and OnlinePlanner do not fit"):
        Evaluate(online, SPLITS, SceneTokens(), evaluation())


def test_the_description_knows_all_shapes_without_any_weights(context, encoder, vlm, monkeypatch):
    described = []
    monkeypatch.setattr(stage_imitation, "training_memory", lambda shapes: described.append(shapes) or {})
    online = OnlinePlanner(encoder, PLANNER, None)

    imitation(online, context).describe()

    (shapes,) = described
    batch = shapes.batch
    assert shapes.objective is online and len(shapes.frozen) == len(vlm.parameter_table())
    sample = planner_sample(town(1)()[0], context, 0)
    assert {n: (s.shape[1:], s.dtype) for n, s in batch.items()} == {n: (v.shape, v.dtype) for n, v in sample.items()}
    with pytest.raises(ValueError, match="set VLM_WEIGHTS"):
        online.frozen()
