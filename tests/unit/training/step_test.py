import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.training.optim import AdamW, Constant
from recogdrive.training.sharding import DataParallel
from recogdrive.training.state import create_state
from recogdrive.training.step import make_train_step


@pytest.fixture
def build(linear, stream):
    """(objective=..., **options) -> (train_step, state, batch)."""

    def make(objective=None, ema_decay=None, kept=None, **options):
        objective = objective or linear()
        sharding = DataParallel(1)
        transformation, learning_rate = AdamW(Constant(0.01)).build(8, 64)
        state = create_state(
            objective.init(jax.random.key(0)),
            transformation,
            jax.random.key(1),
            with_ema=ema_decay is not None,
            kept=kept,
        )
        state = sharding.put_state(state)
        placement = sharding.state_sharding(state)
        step = make_train_step(
            objective, transformation, learning_rate, sharding, placement, ema_decay=ema_decay, **options
        )
        return step, state, sharding.put_batch(next(stream()), 8)

    return make


def test_two_consecutive_steps_see_different_noise_and_a_replayed_step_the_same(build):
    def noises():
        step, state, batch = build()
        seen = []
        for _ in range(2):
            state, metrics = step(state, batch)
            seen.append(float(metrics["noise_mean"]))
        return seen

    first = noises()
    assert first[0] != first[1]
    assert noises() == first


@pytest.mark.parametrize("accumulation_steps", [2, 4])
def test_accumulated_gradients_equal_those_of_the_full_batch(build, linear, accumulation_steps):
    full, state, batch = build(linear(noise=0.0))
    expected, expected_metrics = full(state, batch)
    accumulated, state, batch = build(linear(noise=0.0), accumulation_steps=accumulation_steps)
    got, metrics = accumulated(state, batch)
    for name in ("loss", "grad_norm"):
        assert float(metrics[name]) == pytest.approx(float(expected_metrics[name]), rel=1e-6)
    for name, value in expected.opt_state[1][0].mu.items():  # The first moment is the clipped gradient times 0.1.
        np.testing.assert_allclose(got.opt_state[1][0].mu[name], value, rtol=2e-6)


def test_every_microbatch_draws_noise_of_its_own(build, linear):
    class Spread(linear):
        def loss(self, params, batch, key):
            draw = jax.random.normal(key)
            return jnp.mean(params["bias"] ** 2), {"draw": draw, "draw_squared": draw**2}

    step, state, batch = build(Spread(), accumulation_steps=4)
    _, metrics = step(state, batch)
    # Were all draws equal, the mean of squares would be the square of the mean.
    assert float(metrics["draw_squared"]) > float(metrics["draw"]) ** 2 + 1e-3


def test_a_microbatch_holds_every_ath_row(build, linear):
    class FirstRow(linear):
        def loss(self, params, batch, key):
            return jnp.mean(params["bias"] ** 2), {"rows": jnp.sum(batch["y"][:, 0] * 0 + batch["row"])}

    step, state, batch = build(FirstRow(), accumulation_steps=2)
    batch["row"] = jnp.arange(8.0)
    _, metrics = step(state, batch)
    assert float(metrics["rows"]) == (0 + 2 + 4 + 6 + 1 + 3 + 5 + 7) / 2


def test_the_average_follows_the_updated_weights(build):
    step, state, batch = build(ema_decay=0.9)
    before = {name: np.asarray(value) for name, value in state.ema.items()}
    state, _ = step(state, batch)
    for name, value in before.items():
        np.testing.assert_allclose(state.ema[name], value + 0.1 * (state.params[name] - value), rtol=1e-6)


def test_the_state_is_donated_and_the_batch_is_not(build):
    step, state, batch = build(ema_decay=0.9)
    leaves = jax.tree.leaves(state)
    step(state, batch)
    assert all(leaf.is_deleted() for leaf in leaves)
    assert not any(leaf.is_deleted() for leaf in batch.values())


def test_the_step_is_compiled_once(build):
    step, state, batch = build(ema_decay=0.9, accumulation_steps=2)
    for _ in range(3):
        state, _ = step(state, batch)
    assert step._cache_size() == 1


def test_reported_are_loss_gradient_norm_before_clipping_and_the_rate_used(build, linear):
    class Steep(linear):
        def loss(self, params, batch, key):
            return 30.0 * params["bias"].sum(), {}

    step, state, batch = build(Steep())
    state, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(30.0)
    assert float(metrics["grad_norm"]) == pytest.approx(30.0 * 2**0.5)
    assert float(metrics["lr"]) == pytest.approx(0.01)
    assert int(state.step) == 1


def test_an_objective_that_reports_a_reserved_name_is_refused(build, linear):
    class Clash(linear):
        def loss(self, params, batch, key):
            return params["bias"].sum(), {"lr": jnp.zeros(())}

    step, state, batch = build(Clash())
    with pytest.raises(ValueError, match=r"\['lr'\]"):
        step(state, batch)


def test_a_decay_of_one_is_refused(build):
    with pytest.raises(ValueError, match="ema_decay=1.0"):
        build(ema_decay=1.0)


def test_frozen_weights_reach_the_loss_and_neither_the_state_nor_the_gradient(build, linear):
    class Frozen(linear):
        def init(self, key):
            return {"bias": jnp.zeros(self.outputs)}

    step, state, batch = build(Frozen(noise=0.0))
    after = {}
    for scale in (0.0, 1.0):
        before = jax.tree.map(jnp.copy, state)
        after[scale], metrics = step(before, batch, {"weight": jnp.full((3, 2), scale)})
        residual = scale * np.asarray(batch["x"]).sum(axis=1, keepdims=True) - np.asarray(batch["y"])
        assert float(metrics["loss"]) == pytest.approx(np.mean(residual**2), rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(residual.mean(axis=0)), rel=1e-5)
    assert set(after[0.0].params) == {"bias"}


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_kept_weights_reach_the_loss_and_stay_bit_for_bit_in_their_own_memory(build, linear, accumulation_steps):
    class Anchored(linear):
        def loss(self, params, batch, key):
            distance = sum(jnp.sum((params[name] - params[f"reference.{name}"]) ** 2) for name in ("weight", "bias"))
            return distance, {}

    given = {"reference.weight": jnp.full((3, 2), 0.1), "reference.bias": jnp.arange(2.0)}
    step, state, batch = build(Anchored(), ema_decay=0.9, kept=given, accumulation_steps=accumulation_steps)
    distance = sum(np.sum((np.asarray(state.params[n]) - given[f"reference.{n}"]) ** 2) for n in state.params)
    memory = {name: value.unsafe_buffer_pointer() for name, value in state.kept.items()}
    for expected in (distance, None):
        state, metrics = step(state, batch)
        assert expected is None or float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert set(state.params) == {"weight", "bias"}
    assert {name: value.unsafe_buffer_pointer() for name, value in state.kept.items()} == memory
    for name, value in given.items():
        np.testing.assert_array_equal(state.kept[name], value)
    assert step._cache_size() == 1


def test_what_a_model_masks_keeps_its_value_though_weight_decay_is_on(build, linear):
    class Masked(linear):
        def update_mask(self, name):
            return jnp.array([[0.0], [1.0], [1.0]]) if name == "weight" else None

    step, state, batch = build(Masked(noise=0.0))
    start = np.asarray(state.params["weight"])
    for _ in range(3):
        state, _ = step(state, batch)
    moved = np.asarray(state.params["weight"]) != start
    assert not moved[0].any() and moved[1:].all()
