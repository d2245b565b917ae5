import functools

import jax
import numpy as np
import pytest

from recogdrive.models.vlm import initialization

SHAPES = {
    "a.patch_embeddings.projection.weight": (40, 3, 14, 14),
    "a.embeddings.cls_token": (1, 1, 8),
    "a.embeddings.position_embeddings": (1, 5, 8),
    "a.layer.*.lambda_1": (2, 8),
    "a.layer.*.layernorm_before.weight": (2, 8),
    "a.layer.*.layernorm_before.bias": (2, 8),
    "a.layer.*.attention.q_norm.weight": (2, 8),
    "a.layer.*.mlp.fc1.weight": (2, 100, 50),
    "a.layer.*.mlp.fc1.bias": (2, 100),
    "embed_tokens.weight": (300, 40),
}


@pytest.fixture(scope="module")
def drawn(compiled):
    run = compiled(functools.partial(initialization.draw, SHAPES), jax.random.key(0))
    return [{name: np.asarray(value) for name, value in run(jax.random.key(key)).items()} for key in (0, 1)]


def test_weights_are_distributed_as_transformers_draws_them(drawn):
    params = drawn[0]
    assert {name: value.shape for name, value in params.items()} == SHAPES
    for name in ("a.patch_embeddings.projection.weight", "a.layer.*.mlp.fc1.weight", "embed_tokens.weight"):
        np.testing.assert_allclose(params[name].std(), 0.02, rtol=0.03)
        np.testing.assert_allclose(params[name].mean(), 0, atol=1e-3)
    for name, value in params.items():
        if name.endswith(("bias", "cls_token", "position_embeddings")):
            assert not value.any(), name
        if "norm" in name and name.endswith("weight"):
            assert (value == 1).all(), name
    assert np.allclose(params["a.layer.*.lambda_1"], 0.1)


def test_large_and_small_tensors_are_drawn_alike(monkeypatch, compiled):
    monkeypatch.setattr(initialization, "_LARGE", 11_000)
    run = compiled(functools.partial(initialization.draw, SHAPES), jax.random.key(0))
    params = run(jax.random.key(0))
    flat = [
        np.asarray(value).ravel() for name, value in params.items() if np.asarray(value).std() > 0 and "*" not in name
    ]
    assert len(flat) == 2
    for value in flat:
        np.testing.assert_allclose(value.std(), 0.02, rtol=0.03)
    assert not np.array_equal(flat[0][:100], flat[1][:100])


def test_layers_and_keys_differ(drawn):
    first, second = drawn
    name = "a.layer.*.mlp.fc1.weight"
    assert not np.array_equal(first[name], second[name])
    assert not np.array_equal(first[name][0], first[name][1])
