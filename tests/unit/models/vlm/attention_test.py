import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.vlm import attention

SCALE = 0.25


@pytest.fixture(scope="module")
def tensors():
    random = np.random.default_rng(0)

    def normal(heads):
        return jnp.asarray(random.normal(size=(2, heads, 24, 16)), jnp.float32)

    segments = np.zeros((2, 24), np.int32)
    segments[0, :10], segments[0, 10:20] = 1, 2
    segments[1, 5:] = 1  # padded on the left
    return normal(4), normal(2), normal(2), jnp.asarray(segments)


def slow_attention(query, key, value, segments, causal):
    """One query at a time, with loops."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    segments, out = np.asarray(segments), np.zeros(query.shape)
    batch, heads, tokens, _ = query.shape
    for b, h, t in np.ndindex(batch, heads, tokens):
        seen = [s for s in range(tokens) if segments[b, s] == segments[b, t] != 0 and (s <= t or not causal)]
        if seen:
            weights = np.exp(key[b, h // 2, seen] @ query[b, h, t] * SCALE)
            out[b, h, t] = weights @ value[b, h // 2, seen] / weights.sum()
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("formula", [attention.plain, attention.fused])
def test_a_token_sees_its_own_segment_only_and_padding_gets_exactly_zero(tensors, formula, causal):
    query, key, value, segments = tensors
    found = formula(query, key, value, segments, segments, causal=causal, scale=SCALE)
    np.testing.assert_allclose(found, slow_attention(query, key, value, segments, causal), atol=1e-5)
    assert not np.asarray(found.swapaxes(1, 2))[np.asarray(segments) == 0].any()


@pytest.mark.parametrize("causal", [True, False])
def test_the_tpu_kernel_agrees_with_the_formula_in_outputs_and_gradients(tensors, causal):
    query, key, value, segments = tensors
    segments = segments if causal else None

    def outputs(formula, *own):
        def summed(q, k, v):
            out = formula(q, k, v, *own, causal=causal, scale=SCALE)
            return jnp.sin(out).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(summed, (0, 1, 2), has_aux=True))(query, key, value)
        return out, *gradients

    kernel = outputs(functools.partial(attention.splash, interpret=True), segments)
    formula = outputs(attention.plain, segments, segments)
    for found, expected in zip(kernel, formula, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fused_and_plain_agree_in_gradients(tensors):
    query, key, value, segments = tensors

    def gradients(name):
        def summed(q, k, v):
            return jnp.sin(attention.attend(q, k, v, segments, causal=True, scale=SCALE, attention=name)).sum()

        return jax.jit(jax.grad(summed, (0, 1, 2)))(query, key, value)

    for found, expected in zip(gradients("fused"), gradients("plain"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["fused", "plain", "splash"])
def test_a_query_of_its_own_sees_the_written_places_of_a_cache(tensors, name):
    query, key, value, segments = tensors
    last = segments[:, 23:]
    found = attention.attend(query[:, :, 23:], key, value, last, segments, causal=False, scale=SCALE, attention=name)
    expected = slow_attention(query, key, value, segments, causal=True)[:, :, 23:]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scores_and_softmax_are_float32_for_bfloat16_inputs(tensors):
    query, key, value, segments = tensors
    halves = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    exact = attention.plain(*(x.astype(jnp.float32) for x in halves), segments, segments, causal=True, scale=SCALE)
    for name in ("fused", "plain"):
        found = attention.attend(*halves, segments, causal=True, scale=SCALE, attention=name)
        assert found.dtype == jnp.bfloat16
        # The weights and the result are rounded to 8 bits, the scores are not.
        np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)


def test_an_unknown_implementation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'flash'.*'fused', 'plain', 'splash'"):
        attention.implementation_name("flash")


@pytest.mark.parametrize(
    ("tokens", "width", "dtype", "has_mask", "expected"),
    [
        (128, 64, jnp.bfloat16, True, True),
        (1025, 64, jnp.bfloat16, False, True),
        (1025, 64, jnp.bfloat16, True, False),
        (128, 64, jnp.float32, True, False),
        (128, 160, jnp.bfloat16, False, False),
        (128, 12, jnp.bfloat16, False, False),
    ],
)
def test_cudnn_is_asked_for_on_gpus_where_it_takes_the_shapes(monkeypatch, tokens, width, dtype, has_mask, expected):
    query = jax.ShapeDtypeStruct((1, 2, tokens, width), dtype)
    assert not attention._suits_cudnn(query, query, has_mask=has_mask)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert attention._suits_cudnn(query, query, has_mask=has_mask) == expected
