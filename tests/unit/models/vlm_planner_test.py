"""VLM and planner in one program: the same as a planner on hidden states that were made before."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models import vlm_planner
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.models.vlm import encoder
from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.encoder import HiddenStateEncoder
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.loading import VlmWeights
from recogdrive.models.vlm_planner import OnlinePlanner

CONFIG = VlmConfig(
    vision=VisionConfig(width=8, layers=1, heads=1, mlp_width=8, image_size=56, patch_size=14),
    language=LanguageConfig(width=16, layers=1, heads=2, kv_heads=1, mlp_width=32, vocab_size=40),
)
IMG = 7
ROWS, TOKENS = 2, 12
SIZES = {"heads": 1, "head_dim": 8, "layers": 2, "output_dim": 8, "hidden_dim": 16, "denoising_steps": 2}


@pytest.fixture(scope="module")
def vlm():
    return InternVL(CONFIG, img_context_id=IMG, attention="plain", remat="none")


@pytest.fixture(scope="module")
def vlm_params(vlm):
    return jax.jit(vlm.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def planner():
    return DiffusionPlanner(CONFIG.language.width, **SIZES)


@pytest.fixture(scope="module")
def params(planner):
    return planner.init(jax.random.key(1))


@pytest.fixture
def make_online(monkeypatch, vlm, vlm_params, planner):
    """Builds the online planner with the VLM's weights as those of its folder."""
    for module in (vlm_planner, encoder):
        monkeypatch.setattr(module, "load_vlm", lambda *arguments: VlmWeights(dict(vlm_params), "known"))
    return partial(OnlinePlanner, HiddenStateEncoder(vlm), planner, "weights")


@pytest.fixture(scope="module")
def batch():
    """Two left-padded prompts with one tile each, of 4 vectors; the first has two tokens less."""
    rng = np.random.default_rng(0)
    ids = rng.integers(8, 40, size=(ROWS, TOKENS)).astype(np.int32)
    ids[:, 4:8] = IMG
    segments = np.ones((ROWS, TOKENS), np.int32)
    segments[0, :2] = 0
    return {
        "input_ids": ids,
        "segment_ids": segments,
        "position_ids": np.where(segments > 0, np.cumsum(segments, axis=1) - 1, 1).astype(np.int32),
        "tiles": rng.integers(0, 256, size=(ROWS, 1, 56, 56, 3)).astype(np.uint8),
        "num_tiles": np.ones(ROWS, np.int32),
        "history_trajectory": rng.normal(size=(ROWS, 4, 3)).astype(np.float32),
        "status_feature": rng.normal(size=(ROWS, 8)).astype(np.float32),
        "trajectory": rng.normal(size=(ROWS, 8, 3)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def hidden(vlm, vlm_params, batch):
    """Hidden states as a cache would have them."""
    return np.asarray(jax.jit(HiddenStateEncoder(vlm).encode)(vlm_params, batch))


def test_a_plan_equals_that_of_the_planner_on_hidden_states_made_before(make_online, hidden, planner, params, batch):
    online = make_online()
    cached = {**batch, "context": hidden, "context_mask": batch["segment_ids"] > 0}
    keys = jax.random.split(jax.random.key(2), ROWS)

    planned = jax.jit(online.plan)({**online.frozen(), **params}, batch, keys)

    assert hidden.dtype == jnp.bfloat16 and hidden.shape == (ROWS, TOKENS, 16)
    np.testing.assert_array_equal(planned, jax.jit(planner.plan)(params, cached, keys))


def test_hidden_states_of_the_one_program_are_those_made_before_bit_for_bit(make_online, hidden, batch):
    class Reading:
        name, context_width = "reading", 16

        def plan(self, params, batch, keys):
            return batch["context"], batch["context_mask"]

    online = make_online()
    online.planner = Reading()

    context, mask = jax.jit(online.plan)(online.frozen(), batch, None)

    np.testing.assert_array_equal(context, hidden)
    np.testing.assert_array_equal(mask, batch["segment_ids"] > 0)


def test_a_frozen_vlm_is_not_among_what_trains_and_its_names_are_prefixed(make_online, vlm_params, planner, params):
    online = make_online()

    assert [row.name for row in online.parameter_table()] == [row.name for row in planner.parameter_table()]
    assert set(jax.eval_shape(online.init, jax.random.key(0))) == set(params)
    assert set(online.frozen()) == {f"vlm.{name}" for name in vlm_params}
    assert {n: s.shape for n, s in online.frozen_shapes().items()} == {n: p.shape for n, p in online.frozen().items()}
    assert online.complete(params) is params and online.identity() == {"vlm": "known"}


def test_a_vlm_that_trains_is_among_the_weights_and_starts_from_its_folder(make_online, vlm_params, params):
    online = make_online(train_vlm=True)

    whole = online.complete(params)

    assert set(whole) == set(jax.eval_shape(online.init, jax.random.key(0)))
    assert set(whole) == {row.name for row in online.parameter_table()}
    np.testing.assert_array_equal(whole["vlm.lm_head.weight"], vlm_params["lm_head.weight"])
    assert online.frozen() == {} and online.frozen_shapes() == {} and online.identity() == {}
    own, vlm = online.split(whole)
    assert set(own) == set(params) and set(vlm) == set(vlm_params)


def test_gradients_reach_a_trained_vlm_down_to_its_first_layer(make_online, batch):
    class Averaging:
        def loss(self, params, batch, key):
            return jnp.square(batch["context"].astype(jnp.float32).mean(axis=1)).mean(), {}

    online = make_online(train_vlm=True)
    online.planner = Averaging()

    found = jax.jit(jax.grad(lambda p: online.loss(p, batch, jax.random.key(3))[0]))(online.complete({}))

    for name in (
        "vlm.model.vision_tower.embeddings.patch_embeddings.projection.weight",
        "vlm.model.language_model.layers.*.self_attn.q_proj.weight",
    ):
        assert np.abs(found[name]).max() > 0, name


def test_a_planner_of_another_width_is_refused(vlm):
    with pytest.raises(ValueError, match="width 24, the VLM makes 16; set CONTEXT_WIDTH=16"):
        OnlinePlanner(HiddenStateEncoder(vlm), DiffusionPlanner(24, **SIZES), "weights")
