"""The kernel in Pallas's interpreter against the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.vlm.tile_attention import attend_within_tiles, interleave

HEADS, WIDTH = 2, 128


def formula(projections, biases, tokens):
    def by_head(x):
        return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)

    query, key, value = (by_head(x + bias) for x, bias in zip(projections, biases, strict=True))
    scores = jnp.einsum("nhtd,nhsd->nhts", query, key, precision="highest") * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(jnp.arange(scores.shape[-1]) < tokens, scores, -1e30), axis=-1)
    out = jnp.einsum("nhts,nhsd->nhtd", weights, value, precision="highest")
    return out.swapaxes(1, 2).reshape(projections[0].shape)


def kernel(projections, biases, tokens):
    together = interleave(*(jnp.moveaxis(x, -1, 0) for x in projections))
    run = functools.partial(attend_within_tiles, heads=HEADS, tokens=tokens, interpret=True)
    return run(jnp.moveaxis(together, 0, -1), interleave(*biases))


@pytest.mark.parametrize(("rows", "tokens", "tiles"), [(48, 41, 2), (1040, 1025, 1)])
def test_outputs_and_gradients_are_those_of_the_formula_whatever_fills_a_tile_up(rows, tokens, tiles):
    keys = jax.random.split(jax.random.key(0), 7)
    projections = tuple(2 * jax.random.normal(key, (tiles, rows, WIDTH)) for key in keys[:3])
    biases = tuple(jax.random.normal(key, (WIDTH,)) for key in keys[3:6])
    wanted = jax.random.normal(keys[6], (tiles, rows, WIDTH)).at[:, tokens:].set(0)  # Nobody looks at the filling.

    @functools.partial(jax.jit, static_argnums=0)
    def pulled(function):
        out, pull = jax.vjp(functools.partial(function, tokens=tokens), projections, biases)
        return out, pull(wanted)

    (expected, gradients), (found, own_gradients) = pulled(formula), pulled(kernel)
    np.testing.assert_allclose(found[:, :tokens], expected[:, :tokens], atol=3e-5)
    for ours, theirs in zip(jax.tree.leaves(own_gradients), jax.tree.leaves(gradients), strict=True):
        # The gradient of the keys' bias is 0 but for rounding, so errors are measured by the values'.
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(np.abs(wanted).sum(axis=1).max()))


def test_sizes_that_fill_no_block_are_refused():
    with pytest.raises(ValueError, match="41 of 41 tokens with 2 heads on 384 columns do not suit the kernel"):
        attend_within_tiles(jnp.zeros((1, 41, 384)), jnp.zeros(384), heads=2, tokens=41)
