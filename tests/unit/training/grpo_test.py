"""DiffGRPO: advantages by hand, and what is and is not counted in the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.planner.diffusion import DDIM
from recogdrive.models.planner.flow import FlowMatching
from recogdrive.models.planner.normalization import denormalize
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.pdm.rewards.reward import DeviceReward, RewardScores
from recogdrive.training.grpo import (
    REFERENCE_PREFIX,
    DiffGrpoObjective,
    GrpoSettings,
    clip_to_quantiles,
    denoising_discounts,
    group_advantages,
)

SCENES, GROUP = 3, 4
SIZES = {"context_width": 6, "heads": 2, "head_dim": 4, "layers": 2, "output_dim": 8, "hidden_dim": 8}


class InjectedReward(DeviceReward):
    """Rewards that come with the batch."""

    def __call__(self, batch, trajectories):
        return RewardScores(batch["rewards"], {"given": batch["rewards"], "unknown": batch["rewards"] * jnp.nan})


def advantages(rows, known=None):
    return np.asarray(group_advantages(jnp.asarray(rows, jnp.float32), known))


def test_advantages_are_standardised_within_a_group_by_the_sample_deviation():
    # Mean 2.5, squares 2.25 + 0.25 + 0.25 + 2.25 = 5, deviation sqrt(5 / 3).
    expected = np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(5 / 3)
    np.testing.assert_allclose(advantages([[1, 2, 3, 4], [10, 20, 30, 40]]), [expected, expected], rtol=1e-6)


def test_a_group_of_equal_rewards_has_no_advantages_even_where_its_mean_is_rounded():
    rewards = np.stack([np.full(8, 0.8), np.full(8, 0.3), np.linspace(0, 1, 8)])
    found = advantages(rewards)
    assert (found[:2] == 0).all()
    assert (found[2] != 0).all()


def test_a_member_without_reward_takes_no_part_in_its_group():
    rewards = [[1, 2, np.nan, 3, 4]]
    found = advantages(rewards, jnp.isfinite(jnp.asarray(rewards)))
    np.testing.assert_allclose(found[0, [0, 1, 3, 4]], advantages([[1, 2, 3, 4]])[0], rtol=1e-6)
    assert found[0, 2] == 0


@pytest.mark.parametrize("rewards", [[0.4, np.nan, np.nan], [np.nan] * 3])
def test_fewer_than_two_rewards_tell_nothing(rewards):
    known = jnp.isfinite(jnp.asarray([rewards]))
    assert (advantages([rewards], known) == 0).all()


def test_advantages_are_clipped_to_quantiles_of_all_known_ones():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    known = np.ones((3, 4), bool)
    known[2, 3] = False
    found = np.asarray(clip_to_quantiles(jnp.asarray(values), known, 0.1, 0.85))
    low, high = np.quantile(np.arange(11), [0.1, 0.85])
    np.testing.assert_allclose(found[known], np.clip(values[known], low, high), rtol=1e-6)


def test_the_last_denoising_step_counts_fully_and_the_ones_before_it_less():
    np.testing.assert_allclose(denoising_discounts(5, 0.6), [0.1296, 0.216, 0.36, 0.6, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"group_size": 1}, "group_size=1"),
        ({"denoising_discount": 0.0}, "denoising_discount=0.0"),
        ({"bc_weight": -0.1}, "bc_weight=-0.1"),
        ({"lower_quantile": 0.9, "upper_quantile": 0.2}, "lower_quantile=0.9"),
        ({"log_prob_min": 3.0}, "log_prob_min=3.0"),
        ({"advantage_eps": 0.0}, "advantage_eps=0.0"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        GrpoSettings(**settings)


def test_a_planner_without_transition_densities_is_refused():
    with pytest.raises(ValueError, match="FlowMatching has no transition densities"):
        DiffGrpoObjective(DiffusionPlanner(**SIZES, diffusion=FlowMatching()), InjectedReward())


@pytest.fixture(scope="module")
def problem():
    """Objective, lively weights of policy and reference policy, a batch, noise, and the compiled gradient."""
    planner = DiffusionPlanner(**SIZES, diffusion=DDIM(), denoising_steps=3)
    objective = DiffGrpoObjective(planner, InjectedReward(), GrpoSettings(group_size=GROUP))
    rng = np.random.default_rng(0)

    def weights(scale):
        return {row.name: rng.normal(0, scale, row.shape).astype(np.float32) for row in planner.parameter_table()}

    policy = weights(0.3)
    reference = {
        name: value + other for (name, value), other in zip(policy.items(), weights(0.05).values(), strict=True)
    }
    batch = {
        "context": rng.normal(size=(SCENES, 5, 6)).astype(np.float32),
        "history_trajectory": rng.normal(size=(SCENES, 4, 3)).astype(np.float32),
        "status_feature": rng.normal(size=(SCENES, 8)).astype(np.float32),
        "rewards": rng.uniform(size=(SCENES, GROUP)).astype(np.float32),
    }
    params = policy | {REFERENCE_PREFIX + name: value for name, value in reference.items()}
    noise = objective.draw(jax.random.key(1), SCENES)
    gradient = jax.jit(jax.value_and_grad(objective.loss_with_noise, has_aux=True))
    return objective, params, batch, noise, gradient


def test_only_the_policy_has_a_gradient(problem):
    _, params, batch, noise, gradient = problem
    _, gradients = gradient(params, batch, noise)
    moved = {name for name, value in gradients.items() if np.any(value)}
    assert moved and not any(name.startswith(REFERENCE_PREFIX) for name in moved)
    assert "action_decoder.fc2.weight" in moved


def test_a_rollout_is_the_sampled_chain_with_its_log_probabilities(problem):
    objective, params, batch, noise, _ = problem
    planner = objective.planner
    policy = {name: value for name, value in params.items() if not name.startswith(REFERENCE_PREFIX)}
    chains, trajectories, _ = jax.jit(objective.act)(params, batch, noise)
    chain = jax.jit(planner.sample_chain)(policy, batch, noise.initial, noise.steps)
    np.testing.assert_allclose(chains.policy.chain, chain, atol=1e-5)
    np.testing.assert_allclose(trajectories, denormalize(chain[:, :, -1]), atol=1e-3)
    log_probs = jax.jit(planner.log_probs)(policy, batch, chains.policy.chain)
    np.testing.assert_allclose(chains.policy.transitions.log_probs, log_probs, rtol=1e-4, atol=5e-4)


def without(problem, scene):
    """Loss and gradients of the batch without one of its scenes."""
    _, params, batch, noise, gradient = problem
    left = [i for i in range(SCENES) if i != scene]
    fewer = {name: value[left] for name, value in batch.items()}
    chosen = noise._replace(
        initial=noise.initial[jnp.array(left)],
        steps=noise.steps[:, jnp.array(left)],
        reference_initial=noise.reference_initial[jnp.array(left)],
        reference_steps=noise.reference_steps[:, jnp.array(left)],
    )
    return gradient(params, fewer, chosen)


def test_a_scene_without_rewards_counts_as_if_it_were_not_there(problem):
    _, params, batch, noise, gradient = problem
    rewards = batch["rewards"].copy()
    rewards[1] = np.nan
    (loss, metrics), gradients = gradient(params, batch | {"rewards": rewards}, noise)
    (expected, fewer), expected_gradients = without(problem, 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name, value in expected_gradients.items():
        np.testing.assert_allclose(gradients[name], value, atol=1e-5, err_msg=name)
    for name in ("reward", "bc_loss", "drift/kl", "group/reward_variance", "rollout/reverse_share"):
        np.testing.assert_allclose(metrics[name], fewer[name], rtol=1e-4, err_msg=name)
    assert metrics["unscored/scene_share"] == pytest.approx(1 / 3)
    assert metrics["unscored/trajectory_share"] == 0


def test_a_trajectory_without_reward_is_counted_and_left_out(problem):
    _, params, batch, noise, gradient = problem
    rewards = batch["rewards"].copy()
    rewards[2, 3] = np.nan
    (loss, metrics), gradients = gradient(params, batch | {"rewards": rewards}, noise)
    assert np.isfinite(loss) and all(np.isfinite(value).all() for value in gradients.values())
    assert metrics["unscored/trajectory_share"] == pytest.approx(1 / (SCENES * GROUP))
    assert metrics["unscored/scene_share"] == 0
    assert metrics["reward"] == pytest.approx(np.nanmean(rewards), rel=1e-5)


def test_equal_rewards_leave_only_the_cloning_term(problem):
    _, params, batch, noise, gradient = problem
    (loss, metrics), _ = gradient(params, batch | {"rewards": np.full((SCENES, GROUP), 0.8, np.float32)}, noise)
    assert metrics["policy_loss"] == 0
    assert loss == pytest.approx(0.1 * float(metrics["bc_loss"]), rel=1e-6)
    assert (metrics["group/flat_share"], metrics["group/reward_variance"]) == (1, 0)


def test_a_batch_without_any_reward_has_no_loss_and_finite_metrics(problem):
    _, params, batch, noise, gradient = problem
    (loss, metrics), gradients = gradient(params, batch | {"rewards": np.full((SCENES, GROUP), np.nan)}, noise)
    assert loss == 0
    assert not any(np.any(value) for value in gradients.values())
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_policy_equal_to_its_reference_has_not_drifted(problem):
    _, params, batch, noise, gradient = problem
    same = {n: params[n.removeprefix(REFERENCE_PREFIX)] for n in params}
    (_, metrics), _ = gradient(same, batch, noise)
    assert metrics["drift/kl"] == pytest.approx(0, abs=1e-9)
    assert metrics["drift/log_prob_gap"] == pytest.approx(0, abs=1e-4)
    (_, moved), _ = gradient(params, batch, noise)
    assert moved["drift/kl"] > 1e-4
