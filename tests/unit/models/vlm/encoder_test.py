"""The VLM as a maker of context tokens: states do not depend on the batch they are made in."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig, internvl3_2b
from recogdrive.models.vlm.encoder import HiddenStateEncoder, forward_flops
from recogdrive.models.vlm.internvl import InternVL

CONFIG = VlmConfig(
    vision=VisionConfig(width=16, layers=1, heads=2, mlp_width=32, image_size=28, patch_size=14),
    language=LanguageConfig(width=24, layers=1, heads=2, kv_heads=1, mlp_width=48, vocab_size=64),
)
TOKENS, SLOTS, IMAGE = 20, 3, 63


def make_batch(rows, seed=0):
    """Left-padded rows of other lengths and numbers of tiles."""
    rng = np.random.default_rng(seed)
    batch = {
        "input_ids": rng.integers(0, 60, (rows, TOKENS), dtype=np.int32),
        "segment_ids": np.zeros((rows, TOKENS), np.int32),
        "position_ids": np.ones((rows, TOKENS), np.int32),
        "tiles": rng.integers(0, 256, (rows, SLOTS, 28, 28, 3), dtype=np.uint8),
        "num_tiles": np.array([1 + i % SLOTS for i in range(rows)], np.int32),
    }
    for i in range(rows):
        first = 1 + i % 4
        batch["segment_ids"][i, first:] = 1
        batch["position_ids"][i, first:] = np.arange(TOKENS - first)
        batch["input_ids"][i, first : first + batch["num_tiles"][i]] = IMAGE
    return batch


@lru_cache
def program(dtype):
    vlm = InternVL(CONFIG, img_context_id=IMAGE, compute_dtype=dtype, attention="plain")
    encoder = HiddenStateEncoder(vlm)
    return jax.jit(encoder.encode), vlm.init(jax.random.key(1))


def encode(batch, dtype="float32"):
    run, params = program(dtype)
    states = run(params, batch)
    assert states.dtype == jnp.bfloat16
    return np.asarray(states).view(np.uint16)


def part(batch, rows):
    return {name: value[np.asarray(rows)] for name, value in batch.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_same_bits_alone_elsewhere_and_in_another_batch(dtype):
    batch = make_batch(3)
    together = encode(batch, dtype)
    assert together.shape == (3, TOKENS, 24)
    for row in range(3):
        np.testing.assert_array_equal(encode(part(batch, [row]), dtype)[0], together[row])
    turned = [2, 0, 1]
    np.testing.assert_array_equal(encode(part(batch, turned), dtype), together[turned])
    others = make_batch(3, seed=7)
    for name, value in others.items():
        value[1] = batch[name][0]
    np.testing.assert_array_equal(encode(others, dtype)[1], together[0])


class CountingVlm:
    """Gives every token its id plus a hundred times the number of rows it is computed with."""

    context_width = 1

    def hidden_states(self, params, batch):
        ids = batch["input_ids"].astype(jnp.float32)
        return (ids + 100 * ids.shape[0])[..., None]


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_rows_go_through_in_groups_of_one_size_and_come_back_in_order(rows):
    batch = make_batch(rows)
    states = HiddenStateEncoder(CountingVlm(), rows_at_once=2).encode({}, batch)
    assert states.dtype == jnp.bfloat16
    expected = (batch["input_ids"] + 200.0).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(states)[..., 0], expected)


def test_states_are_the_models_rounded_to_bfloat16():
    batch = make_batch(3)
    vlm = InternVL(CONFIG, img_context_id=IMAGE, compute_dtype="float32", attention="plain")
    expected = np.asarray(jax.jit(vlm.hidden_states)(program("float32")[1], batch))
    states = encode(batch).view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_allclose(states, expected, rtol=2**-7, atol=1e-5)


def test_rows_of_padding_are_one_vector_in_all_scenes():
    batch = make_batch(3)
    padding = batch["segment_ids"] == 0
    batch["input_ids"][padding] = 62
    for dtype in ("float32", "bfloat16"):
        rows = encode(batch, dtype)[padding]
        assert len(rows) == 6 and (rows == rows[0]).all()


def test_fields_name_what_decides_the_states():
    vlm = InternVL(CONFIG, img_context_id=IMAGE, attention="plain")
    assert HiddenStateEncoder(vlm).fields == {
        "compute_dtype": "bfloat16",
        "attention": "plain",
        "layer": "last, after the final norm",
    }


def test_rows_at_once_must_be_positive():
    with pytest.raises(ValueError, match="rows_at_once=0"):
        HiddenStateEncoder(InternVL(CONFIG, img_context_id=IMAGE), 0)


def test_the_2b_model_takes_some_14_tflop_a_scene():
    # Specification, B3: about 13 TFLOP without the products of queries and keys.
    assert 13e12 < forward_flops(internvl3_2b(), 2800, 9) < 15e12
