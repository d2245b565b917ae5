import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.vlm import internvl, vision_layer
from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.lora import Lora
from recogdrive.models.vlm.vision_layer import attend_within_tiles, computed_apart, gelu, gradient_apart, normalize

X = jnp.linspace(-6, 6, 41)
WIDE = VlmConfig(
    vision=VisionConfig(width=128, layers=1, heads=2, mlp_width=48, image_size=28),
    language=LanguageConfig(width=32, layers=1, heads=4, kv_heads=2, mlp_width=40, vocab_size=64),
)


def test_gelu_and_its_gradient_are_the_exact_ones():
    def exact(x):
        return jax.nn.gelu(x, approximate=False)

    np.testing.assert_allclose(gelu(X), exact(X), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(X), jax.vmap(jax.grad(exact))(X), atol=1e-6)


def test_a_norm_far_from_zero_and_its_gradients_are_those_of_the_formula():
    def formula(x, weight, bias):
        offset = x - x.mean(axis=-1, keepdims=True)
        return offset / jnp.sqrt((offset**2).mean(axis=-1, keepdims=True) + 1e-6) * weight + bias

    keys = jax.random.split(jax.random.key(0), 4)
    x, wanted = 100 + jax.random.normal(keys[0], (2, 5, 24)), jax.random.normal(keys[1], (2, 5, 24))
    weight, bias = (jax.random.normal(key, (24,)) for key in keys[2:])

    @functools.partial(jax.jit, static_argnums=0)
    def pulled(function, *arguments):
        out, pull = jax.vjp(function, *arguments)
        return out, pull(wanted)

    expected, gradients = pulled(formula, x, weight, bias)
    found, own_gradients = pulled(functools.partial(normalize, epsilon=1e-6), x, weight, bias)
    np.testing.assert_allclose(found, expected, atol=2e-4)  # float32 at 100.
    for ours, theirs in zip(own_gradients, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("apart", [computed_apart, gradient_apart])
def test_what_is_computed_apart_is_the_same(apart):
    value, gradient = jax.jit(jax.value_and_grad(lambda x: (apart(x) ** 2).sum()))(X)
    np.testing.assert_allclose(value, (X**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * X, rtol=1e-6)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, part="tower")])
def test_the_tower_with_the_kernel_gives_the_vectors_and_gradients_of_the_plain_one(
    tiny_vlm, lively, monkeypatch, lora
):
    monkeypatch.setattr(internvl, "by_kernel", lambda attention: attention == "splash")
    monkeypatch.setattr(vision_layer, "attend_within_tiles", functools.partial(attend_within_tiles, interpret=True))
    tiles = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3)), jnp.uint8)
    found = {}
    for attention in ("plain", "splash"):
        model = tiny_vlm(config=WIDE, attention=attention, lora=lora)

        def loss(params, model=model):
            vectors = model.image_features(params, tiles)
            return jnp.sin(vectors).sum(), vectors

        found[attention] = jax.jit(jax.value_and_grad(loss, has_aux=True))(lively(model))
    ((_, expected), gradients), ((_, vectors), own_gradients) = found["plain"], found["splash"]
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    largest = max(float(jnp.abs(g).max()) for g in gradients.values())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(own_gradients[name], gradient, atol=2e-5 * largest, err_msg=name)
