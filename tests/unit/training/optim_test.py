import json
import math

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.training.optim import AdamW, Constant, StepCosine, WarmupCosine, ema_update, epoch_of


def test_learning_rates_per_epoch_equal_the_reference_tables(golden_planner_constants):
    tables = json.loads(golden_planner_constants.read_text())["warmup_cosine"]
    assert tables
    for name, table in tables.items():
        schedule = WarmupCosine(
            learning_rate=table["lr"],
            minimum=table["min_lr"],
            warmup_epochs=table["warmup_epochs"],
            epochs=table["epochs"],
        )
        # One step an epoch: 10 samples in batches of 10.
        learning_rate = jax.vmap(schedule.learning_rate_at(10, 10))
        got = learning_rate(jnp.arange(len(table["lr_per_epoch"])))
        np.testing.assert_allclose(got, table["lr_per_epoch"], rtol=1e-6, atol=1e-6 * table["lr"], err_msg=name)


def test_learning_rates_per_update_equal_the_reference_tables(golden_dir):
    path = golden_dir / "vlm" / "lr_schedule.json"
    cases = json.loads(path.read_text())["cases"]
    assert cases
    for case in cases:
        schedule = StepCosine(learning_rate=case["peak"], warmup_ratio=case["warmup_ratio"])
        learning_rate = schedule.learning_rate_at(1, 1, case["total_updates"])
        assert math.ceil(case["total_updates"] * case["warmup_ratio"]) == case["warmup_steps"]
        for update, expected in case["lr_at_update"].items():
            # The cosine's end is the difference of two numbers near one: float32 leaves 1e-7 of the peak there.
            np.testing.assert_allclose(
                learning_rate(jnp.int32(int(update))), expected, rtol=1e-6, atol=1e-7 * case["peak"]
            )


def test_a_schedule_as_long_as_the_run_refuses_a_run_of_unknown_length():
    with pytest.raises(ValueError, match="number of updates"):
        StepCosine().learning_rate_at(8, 64)


def test_weight_decay_leaves_out_what_the_model_exempts():
    transformation, _ = AdamW(Constant(0.1), weight_decay=0.5).build(1, 1, decayed=lambda name: name != "bias")
    params = {"weight": jnp.array([2.0]), "bias": jnp.array([2.0])}
    zeros = {name: jnp.zeros(1) for name in params}
    updates, _ = transformation.update(zeros, transformation.init(params), params)
    assert float(updates["weight"][0]) == pytest.approx(-0.1 * 0.5 * 2.0)
    assert float(updates["bias"][0]) == 0.0


def test_the_learning_rate_changes_only_when_an_epoch_ends():
    # 10 samples in batches of 4: steps 0-2 start within epoch 0 (samples 0, 4, 8), steps 3 and 4 in epoch 1.
    learning_rate = WarmupCosine(learning_rate=3.0, minimum=0.0, warmup_epochs=3, epochs=10).learning_rate_at(4, 10)
    assert [float(learning_rate(jnp.int32(step))) for step in range(6)] == pytest.approx([1, 1, 1, 2, 2, 3])


def test_after_its_last_epoch_the_cosine_stays_at_the_minimum():
    learning_rate = WarmupCosine(learning_rate=1.0, minimum=0.25, warmup_epochs=0, epochs=4).learning_rate_at(1, 1)
    assert [float(learning_rate(jnp.int32(step))) for step in (0, 2, 4, 7)] == pytest.approx([1, 0.625, 0.25, 0.25])


def test_the_epoch_does_not_overflow_where_the_plain_product_would():
    step, batch_size, samples = 3_000_000, 4096, 85_109
    assert step * batch_size > 2**31
    assert int(epoch_of(jnp.int32(step), batch_size, samples)) == step * batch_size // samples


@pytest.mark.parametrize("step", [0, 1, 20, 21, 22, 43, 999])
def test_the_epoch_is_the_number_of_samples_seen_over_the_samples_of_an_epoch(step):
    assert int(epoch_of(jnp.int32(step), 12, 257)) == step * 12 // 257


def test_a_constant_schedule_is_constant():
    learning_rate = Constant(2e-4).learning_rate_at(16, 100)
    assert float(learning_rate(jnp.int32(12345))) == pytest.approx(2e-4)


def hand_adamw(weights, grads, lr, beta1=0.9, beta2=0.95, eps=1e-8, decay=1e-4, clip=1.0):
    """The update as torch writes it, in float64, for one tensor."""
    m = v = np.zeros_like(weights)
    for t, grad in enumerate(grads, start=1):
        norm = math.sqrt((grad**2).sum())
        grad = grad * min(1.0, clip / norm)
        weights = weights * (1 - lr * decay)
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
        weights = weights - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return weights


def test_updates_equal_a_hand_written_adamw_with_clipping():
    grads = [np.array([3.0, -4.0]), np.array([0.1, 0.2]), np.array([-5.0, 1.0])]
    transformation, _ = AdamW(Constant(0.1)).build(1, 1)
    params = {"w": jnp.array([1.0, -2.0])}
    opt_state = transformation.init(params)
    for grad in grads:
        updates, opt_state = transformation.update({"w": jnp.asarray(grad, jnp.float32)}, opt_state, params)
        params = {"w": params["w"] + updates["w"]}
    np.testing.assert_allclose(params["w"], hand_adamw(np.array([1.0, -2.0]), grads, 0.1), rtol=1e-5)


def test_weight_decay_reaches_biases_too():
    transformation, _ = AdamW(Constant(0.1), weight_decay=0.5).build(1, 1)
    params = {"layer.bias": jnp.array([2.0])}
    updates, _ = transformation.update({"layer.bias": jnp.zeros(1)}, transformation.init(params), params)
    assert float(updates["layer.bias"][0]) == pytest.approx(-0.1 * 0.5 * 2.0)


def test_the_global_norm_is_taken_over_all_tensors_together():
    # Norm 5 over both; each alone would be clipped to 1. Adam's first step hides scale, so look at its first moment.
    transformation, _ = AdamW(Constant(0.1)).build(1, 1)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, opt_state = transformation.update(
        {"a": jnp.array([3.0]), "b": jnp.array([4.0])}, transformation.init(params), params
    )
    moments = {key: float(value[0]) for key, value in opt_state[1][0].mu.items()}
    assert moments == pytest.approx({"a": 0.06, "b": 0.08})


def test_the_average_moves_by_one_minus_decay_of_the_difference():
    averaged = ema_update({"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}, decay=0.999)
    assert float(averaged["w"][0]) == pytest.approx(1.002, abs=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmupCosine(learning_rate=-1.0), "learning_rate=-1.0"),
        (lambda: WarmupCosine(learning_rate=float("nan")), "learning_rate=nan"),
        (lambda: WarmupCosine(minimum=1.0), "minimum=1.0 must lie between"),
        (lambda: WarmupCosine(warmup_epochs=200), "warmup_epochs=200 must be"),
        (lambda: WarmupCosine().learning_rate_at(16, 0), "samples_per_epoch=0"),
        (lambda: Constant(0.0), "learning_rate=0.0"),
        (lambda: AdamW(beta2=1.0), "beta2=1.0"),
        (lambda: AdamW(eps=0.0), "eps=0.0"),
        (lambda: AdamW(weight_decay=-1.0), "weight_decay=-1.0"),
        (lambda: AdamW(clip_norm=0.0), "clip_norm=0.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_optimiser_and_schedule_are_gin_components():
    gin.parse_config("AdamW.schedule = @WarmupCosine()\nWarmupCosine.learning_rate = 0.5\nAdamW.beta2 = 0.99")
    optimizer = gin.get_configurable("AdamW")()
    assert (optimizer.schedule.learning_rate, optimizer.beta2) == (0.5, 0.99)
