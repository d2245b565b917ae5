"""Memory of a training step, against sizes worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from recogdrive.training.abstract_step import StepShapes
from recogdrive.training.loop import Trainer
from recogdrive.training.memory import training_memory
from recogdrive.training.sharding import DataParallel


class Linear:
    """1,000 weights."""

    def init(self, key):
        return {"w": jax.random.normal(key, (10, 100))}

    def loss(self, params, batch, key):
        return jnp.mean((batch["x"] @ params["w"]) ** 2), {}


BATCH = {"x": jax.ShapeDtypeStruct((8, 10), jnp.float32)}


def memory(batch=BATCH, kept=None, **kwargs):
    trainer = Trainer(steps=1, sharding=DataParallel(num_devices=1), prefetch=2, **kwargs)
    return training_memory(StepShapes(trainer, Linear(), batch, kept=kept))


def test_weights_optimiser_and_batches_are_counted_by_their_sizes():
    needed = memory()
    assert needed["weights"] == 4000
    assert 2 * 4000 <= needed["optimizer"] <= 2 * 4000 + 64  # Two moments and a few counters.
    assert needed["batch"] == 8 * 10 * 4 * 3
    assert "moving average" not in needed


def test_a_moving_average_weighs_as_much_as_the_weights():
    assert memory(ema_decay=0.9)["moving average"] == 4000


def test_kept_weights_are_counted_apart_from_those_that_train():
    needed = memory(kept={"anchor": jax.ShapeDtypeStruct((50,), jnp.float32)})
    assert (needed["weights"], needed["kept weights"]) == (4000, 200)


def test_a_larger_batch_needs_more_during_the_step():
    small = memory()["step"]
    large = memory({"x": jax.ShapeDtypeStruct((8000, 10), jnp.float32)})["step"]
    assert large > small + 1_000_000


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="accumulation"):
        memory(accumulation_steps=3)
