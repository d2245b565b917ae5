"""Samplers, rollouts and transition densities against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.planner.normalization import denormalize

STEP_ATOL = 5e-5  # one step of normalised coordinates
STD_ATOL = 1e-6
CHAIN_ATOL = 1e-4  # rounding through the whole chain
POSE_ATOL = 2e-3  # metres or radians: the chain's gap times up to 33 m a unit
LOG_PROB = {"rtol": 1e-4, "atol": 5e-4}  # squares divided by a variance of 0.01

SAMPLINGS = {
    "sample_deterministic": {"deterministic": True},
    "sample_stochastic": {},
    "sample_rl_settings": {},
}


def _diffusion_arguments(group, run):
    return {"clip_evaluation_noise": True} if group == "sample_rl_settings" and run.method == "ddpm" else {}


@pytest.mark.parametrize("group", SAMPLINGS)
def test_sampled_trajectories_and_every_step_are_the_references(sampled, group, assert_close):
    run = sampled
    stored = {k.removeprefix(f"{group}/"): v for k, v in run.outputs.items() if k.startswith(f"{group}/")}
    if not stored:
        return  # this method stored no such sampling; test_every_stored_output_is_compared counts what is left
    planner = run.planner(**SAMPLINGS[group], **_diffusion_arguments(group, run))
    denoise = run.denoiser(planner, samples=1)
    initial, noise = run.inputs["init_noise"][:, None], run.inputs["step_noise"][:, :, None]
    with jax.disable_jit():
        x, steps = planner.diffusion.sample(
            denoise, jnp.asarray(initial), jnp.asarray(noise), planner.denoising_steps, planner.deterministic
        )
    assert_close(denormalize(x), stored.pop("pred_traj"), "trajectory", atol=POSE_ATOL)
    for name, limits in (
        ("decoder", {"relative_to_max": run.output_tolerance}),
        ("mean", {"atol": STEP_ATOL}),
        ("x0", {"atol": STEP_ATOL}),
    ):
        if name in stored:
            assert_close(steps[name], stored.pop(name), name, **limits)
    if "logvar" in stored:
        std = np.exp(stored.pop("logvar") / 2)
        found = np.broadcast_to(np.asarray(steps["std"])[:, None, None, None], std.shape)  # one for all scenes
        assert_close(found, std, "std", atol=STD_ATOL)
    assert not stored, f"not compared: {sorted(stored)}"


def test_the_compiled_sampler_gives_the_same_trajectories(sampled, assert_close):
    run = sampled
    name = "sample_stochastic" if "sample_stochastic/pred_traj" in run.outputs else "sample_deterministic"
    planner = run.planner(**SAMPLINGS[name])
    trajectories = jax.jit(planner.sample_with_noise)(
        run.params(planner), run.batch(), run.inputs["init_noise"][:, None], run.inputs["step_noise"][:, :, None]
    )
    assert_close(trajectories, run.outputs[f"{name}/pred_traj"], "trajectory", atol=POSE_ATOL)


def test_a_doubled_output_head_samples_from_its_first_half(sampled, assert_close):
    run = sampled
    if "sample_mean_variance_head/pred_traj" not in run.outputs:
        pytest.skip(f"{run.id} was recorded without a doubled output head, which flow matching alone has")
    planner = run.planner(mean_variance_head=True)
    found = jax.jit(planner.sample_with_noise)(
        run.params(planner), run.batch(), run.inputs["init_noise"][:, None], run.inputs["step_noise"][:, :, None]
    )
    assert_close(found, run.outputs["sample_mean_variance_head/pred_traj"], "trajectory", atol=POSE_ATOL)


def test_one_step_at_mixed_times_is_the_references(stepped, assert_close):
    run = stepped
    planner = run.planner()
    diffusion, x = planner.diffusion, jnp.asarray(run.inputs["init_noise"][:, None])
    t, index = run.outputs["p_mean_variance/t"], run.outputs["p_mean_variance/index"]
    if run.method == "ddim":
        constants = {k: v[index] for k, v in diffusion.transitions(planner.denoising_steps).items()}
        np.testing.assert_array_equal(constants["t"], t)
    else:
        constants = diffusion.at(t)
    prediction = run.denoiser(planner, samples=1)(x, t[:, None])
    constants = {name: value.astype(np.float32)[:, None, None, None] for name, value in constants.items()}
    for name in ("deterministic", "stochastic"):
        mean, std, x0 = diffusion.posterior(x, prediction, constants, stochastic=name == "stochastic")
        prefix = f"p_mean_variance/{name}"
        assert_close(mean, run.outputs[f"{prefix}/mean"], "mean", atol=STEP_ATOL)
        assert_close(x0, run.outputs[f"{prefix}/x0"], "x0", atol=STEP_ATOL)
        assert_close(std, np.exp(run.outputs[f"{prefix}/logvar"] / 2), "std", atol=STD_ATOL)


@pytest.mark.parametrize("kind", ["deterministic", "stochastic"])
def test_rollouts_keep_the_references_chain(rolled_out, kind, assert_close):
    run = rolled_out
    if f"chain_{kind}/chain" not in run.outputs:
        pytest.skip(f"{run.id} was recorded without a {kind} rollout")
    planner = run.planner(deterministic=kind == "deterministic")
    denoise = run.denoiser(planner, samples=1)
    initial, noise = run.inputs["init_noise"][:, None], run.inputs["step_noise"][:, :, None]
    with jax.disable_jit():
        chain = planner.diffusion.sample_chain(
            denoise, jnp.asarray(initial), jnp.asarray(noise), planner.denoising_steps, planner.deterministic
        )
    assert_close(chain[:, 0], run.outputs[f"chain_{kind}/chain"], "chain", atol=CHAIN_ATOL)
    assert_close(denormalize(chain[:, 0, -1]), run.outputs[f"chain_{kind}/traj"], "trajectory", atol=POSE_ATOL)


def test_log_probabilities_of_chains_are_the_references(weighed, assert_close):
    run = weighed
    planner = run.planner()
    denoise = run.denoiser(planner, samples=planner.num_steps)
    chains = {"given": "logprob/given_chain", "own": "chain_stochastic/chain"}
    compared = 0
    for name, chain in chains.items():
        if f"logprob/{name}" in run.outputs:
            found = planner.diffusion.log_probs(denoise, jnp.asarray(run.outputs[chain])[:, None], run.case["steps"])
            assert_close(found, run.outputs[f"logprob/{name}"], f"log-probability of {name}", **LOG_PROB)
            compared += 1
    assert compared


def test_every_stored_output_is_compared(stored):
    """Outputs of reinforcement-learning losses (`grpo*`) belong to the tests of that stage."""
    known = ("train/", "p_mean_variance/", "logprob/", "chain_", "sample_mean_variance_head/", "optim/", "grpo")
    known += tuple(f"{group}/" for group in SAMPLINGS)
    assert [name for name in stored.outputs if not name.startswith(known)] == []
    assert any(not name.startswith("grpo") for name in stored.outputs), f"{stored.id} compares nothing"
