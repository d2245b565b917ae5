"""Loss, network outputs and gradients against the reference, and twenty optimiser steps with EMA."""

import jax
import numpy as np
import optax

from recogdrive.models.planner.normalization import normalize
from recogdrive.training.optim import AdamW, Constant, ema_update

LOSS_RTOL = 1e-5  # a mean over few hundred float32 squares
GRADIENT_LIMIT = 1e-4  # of the tensor's largest entry: the backward pass sums in another order
NORM_RTOL = 1e-4
CURVE_RTOL = 2e-4  # rounding feeds back through twenty updates
WEIGHT_ATOL = 2e-5  # one update moves a weight by at most 1e-4


def test_loss_is_the_references(trained, assert_close):
    run = trained
    loss, parts, _ = run.gradients
    assert_close(loss, run.outputs["train/loss"], "loss", rtol=LOSS_RTOL)
    if "train" in run.scalars:
        assert_close(loss, np.array(run.scalars["train"]["loss"]), "loss in the report", rtol=LOSS_RTOL)
    assert_close(np.mean(list(parts.values())), run.outputs["train/loss"], "mean of the parts", rtol=LOSS_RTOL)


def test_every_stored_gradient_is_the_references(trained, assert_close):
    run = trained
    _, _, gradients = run.gradients
    stored = {k.removeprefix("train/grad/"): v for k, v in run.outputs.items() if k.startswith("train/grad/")}
    assert stored
    for name, value in stored.items():
        assert_close(gradients[name], value, name, relative_to_max=GRADIENT_LIMIT)


def test_gradient_norms_are_the_references(trained, assert_close):
    run = trained
    _, _, gradients = run.gradients
    squares = {name: float(np.sum(np.asarray(g, np.float64) ** 2)) for name, g in gradients.items()}
    report = run.scalars.get("train", {})
    for name, norm in report.get("grad_l2", {}).items():
        assert_close(np.sqrt(squares[name]), np.array(norm), f"norm of {name}", rtol=NORM_RTOL)
    for module, norm in report.get("grad_norm", {}).items():
        total = sum(s for name, s in squares.items() if module == "TOTAL" or name.split(".")[0] == module)
        assert_close(np.sqrt(total), np.array(norm), f"norm of {module}", rtol=NORM_RTOL)
    assert set(report.get("grad_l2", squares)) == set(squares)


def test_prediction_and_every_recorded_submodule_output_are_the_references(trained, compile_once, assert_close):
    run = trained
    planner = run.planner()
    params, batch = run.params(planner), run.batch()
    noise, time, masked = run.training_draws
    clean = normalize(batch["trajectory"])
    seen = {}

    def record_pair(x, t):
        seen["x"], seen["t"] = x, t
        return np.zeros(x.shape, np.float32)

    planner.diffusion.loss(record_pair, clean, noise, time)  # what the loss shows the network

    names = [k.removeprefix("train/module/") for k in run.outputs if k.startswith("train/module/")]
    encoder_names = [n for n in names if n in ("feature_encoder", "his_traj_encoder", "ego_status_encoder")]
    decoder_names = [n for n in names if n not in encoder_names]

    def forward(params, batch, x, t):
        history = batch["history_trajectory"].reshape(len(x), -1)
        encoding, first = planner._apply(
            params,
            "encode",
            batch["context"],
            history,
            batch["status_feature"],
            status_masked=masked,
            capture=encoder_names,
        )
        prediction, second = planner._apply(params, "denoise", encoding, x, t, capture=decoder_names)
        return prediction, first | second

    prediction, outputs = compile_once(forward, params, batch, seen["x"], seen["t"])(
        params, batch, seen["x"], seen["t"]
    )
    assert_close(clean, run.outputs["train/normalised_action"], "normalised action", rtol=1e-6, atol=1e-6)
    assert_close(prediction, run.outputs["train/pred"], "prediction", relative_to_max=run.output_tolerance)
    assert set(outputs) == set(names)
    for name, output in outputs.items():
        assert_close(output, run.outputs[f"train/module/{name}"], name, relative_to_max=run.output_tolerance)
    if "train/t_continuous" in run.outputs:
        u, index = planner.diffusion.times(time)
        assert_close(u, run.outputs["train/t_continuous"], "continuous time", rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(index, run.outputs["train/t_discrete"])


def test_twenty_adamw_steps_with_ema_end_where_the_reference_ends(optimised, assert_close):
    run, settings = optimised, optimised.case["optim"]
    stored = {k.removeprefix("optim/"): v for k, v in run.outputs.items() if k.startswith("optim/")}
    report = run.scalars.get("optim", {})
    times = stored["t"].astype(np.int32)
    batches = [run.batch(stored, index) for index in range(len(stored["vl_features"]))]
    planner = run.planner()
    params = run.params(planner)
    grad = run.gradient_function(planner, params, batches[0], stored["noise"][0], times[0], None)
    # Betas, epsilon and decay are the product's defaults, which are the reference's.
    optimiser, _ = AdamW(schedule=Constant(settings["lr"]), clip_norm=settings["clip"]).build(1, 1)
    state, ema = optimiser.init(params), params

    @jax.jit
    def update(params, state, ema, gradients):
        updates, state = optimiser.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, ema_update(ema, params, settings["ema_decay"]), optax.tree.norm(gradients)

    losses, norms = [], []
    for step in range(settings["steps"]):
        batch = batches[step % len(batches)]  # used in turn
        (loss, _), gradients = grad(params, batch, stored["noise"][step], times[step], None)
        params, state, ema, norm = update(params, state, ema, gradients)
        losses.append(loss)
        norms.append(norm)
    for name, found in (("loss", losses), ("grad_norm_before_clip", norms)):
        if name in report:
            assert_close(np.array(found), np.array(report[name]), name, rtol=CURVE_RTOL)
    for kind, found in (("final", params), ("ema", ema)):
        for name, value in found.items():
            assert_close(value, stored[f"{kind}/{name}"], f"{kind} {name}", atol=WEIGHT_ATOL)
        if kind in report:
            l2 = np.sqrt(sum(np.sum(np.asarray(v, np.float64) ** 2) for v in found.values()))
            assert_close(l2, np.array(report[kind]["l2"]), f"norm of all {kind} weights", rtol=1e-5)
