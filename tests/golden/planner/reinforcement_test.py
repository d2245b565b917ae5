"""DiffGRPO with injected noise and rewards against the reference: chains, log-probabilities, losses, gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.pdm.rewards.reward import DeviceReward, RewardScores
from recogdrive.training.grpo import (
    REFERENCE_PREFIX,
    ChainNoise,
    DiffGrpoObjective,
    GrpoSettings,
    clip_to_quantiles,
    denoising_discounts,
    group_advantages,
)

POSE_ATOL = 2e-3  # metres or radians: the chain's gap times up to 33 m a unit
LOG_PROB = {"rtol": 1e-4, "atol": 5e-4}
ADVANTAGE = {"rtol": 1e-6, "atol": 1e-6}
LOSS_ATOL = 2e-5  # differences of larger numbers
GRADIENT_LIMIT = 5e-4  # of the tensor's largest entry
NORM_RTOL = 5e-4


class Variant(NamedTuple):
    """How a stored loss differs from the default one."""

    rewards: str = "grpo_rewards"
    bc_weight: float = 0.1
    lower_quantile: float = 0.0
    upper_quantile: float = 1.0


VARIANTS = {
    "grpo": Variant(),
    "grpo_no_bc": Variant(bc_weight=0.0),
    "grpo_quantile": Variant(lower_quantile=0.1, upper_quantile=0.85),
    "grpo_flat_group": Variant(rewards="grpo_rewards_flat"),
}


class InjectedReward(DeviceReward):
    """Rewards that come with the batch."""

    def __call__(self, batch, trajectories):
        return RewardScores(batch["rewards"], {})


class TracedQuantiles(DiffGrpoObjective):
    """The objective with quantiles that are inputs of its program, so that all variants share one."""

    quantiles = (0.0, 1.0)

    def advantages(self, rewards, known):
        return clip_to_quantiles(group_advantages(rewards, known), known, *self.quantiles)


class Found(NamedTuple):
    """Both terms of the loss, their gradients, and what they were made of."""

    metrics: dict
    policy_gradients: dict
    cloning_gradients: dict
    trajectories: jax.Array
    policy_log_probs: jax.Array
    cloned_log_probs: jax.Array


class Reinforced:
    """A stored run as a program of rewards and quantiles."""

    def __init__(self, run, weight, compile_once):
        self.run = run
        case, inputs = run.case, run.inputs
        self.scenes, self.group = case["grpo_batch"], case["group"]
        self.planner = run.planner()
        self.policy = run.params(self.planner)
        self.reference = {
            REFERENCE_PREFIX + name: jnp.asarray(
                0.95 * np.asarray(value, np.float64) + 0.05 * weight(name, value.shape, case["teacher_seed"]),
                jnp.float32,
            )
            for name, value in self.policy.items()
        }

        def grouped(noise):
            return noise.reshape(*noise.shape[:-3], self.scenes, self.group, 8, 3)  # rows are scene-major

        self.noise = ChainNoise(
            grouped(inputs["grpo_init_noise"]),
            grouped(inputs["grpo_step_noise"]),
            inputs["grpo_teacher_init_noise"][:, None],
            inputs["grpo_teacher_step_noise"][:, :, None],
        )
        example = (self.policy, self.reference, self.noise, self.batch("grpo_rewards"), (0.0, 1.0))
        self._program = compile_once(self._compute, *example)

    def batch(self, rewards):
        batch = self.run.batch(index=slice(self.scenes))
        return batch | {"rewards": self.run.inputs[rewards].reshape(self.scenes, self.group)}

    def found(self, variant):
        quantiles = (variant.lower_quantile, variant.upper_quantile)
        return self._program(self.policy, self.reference, self.noise, self.batch(variant.rewards), quantiles)

    def _compute(self, policy, reference, noise, batch, quantiles):
        objective = TracedQuantiles(self.planner, InjectedReward(), GrpoSettings(group_size=self.group))
        objective.quantiles = quantiles

        def terms(policy):
            policy_loss, bc_loss, metrics = objective.terms(policy | reference, batch, noise)
            return (policy_loss, bc_loss), metrics | {"policy_loss": policy_loss, "bc_loss": bc_loss}

        _, pull_back, metrics = jax.vjp(terms, policy, has_aux=True)
        chains, trajectories, _ = objective.act(policy | reference, batch, noise)
        return Found(
            metrics,
            pull_back((jnp.ones(()), jnp.zeros(())))[0],
            pull_back((jnp.zeros(()), jnp.ones(())))[0],
            trajectories,
            chains.policy.transitions.log_probs,
            chains.cloned.log_probs,
        )


_SEEN = {}


@pytest.fixture
def reinforcement(reinforced, recipe_weight, compile_once):
    if reinforced.id not in _SEEN:
        _SEEN[reinforced.id] = Reinforced(reinforced, recipe_weight, compile_once)
    return _SEEN[reinforced.id]


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients_are_the_references(reinforcement, name, assert_close):
    run, variant = reinforcement.run, VARIANTS[name]
    stored = {k.removeprefix(f"{name}/"): v for k, v in run.outputs.items() if k.startswith(f"{name}/")}
    if not stored:
        pytest.skip(f"{run.id} was recorded without {name}")
    found = reinforcement.found(variant)
    metrics = found.metrics
    loss = metrics["policy_loss"] + variant.bc_weight * metrics["bc_loss"]
    assert_close(loss, stored["loss"], "loss", atol=LOSS_ATOL)
    assert_close(metrics["policy_loss"], stored["policy_loss"], "policy loss", atol=LOSS_ATOL)
    assert_close(metrics["reward"], stored["mean_reward"], "mean reward", **ADVANTAGE)
    if "bc_loss" in stored:
        assert_close(metrics["bc_loss"], stored["bc_loss"], "cloning loss", atol=LOSS_ATOL)
    gradients = {k: g + variant.bc_weight * found.cloning_gradients[k] for k, g in found.policy_gradients.items()}
    for key, value in stored.items():
        if key.startswith("grad/"):
            assert_close(gradients[key.removeprefix("grad/")], value, key, relative_to_max=GRADIENT_LIMIT)
    report = run.scalars.get(name, {})
    squares = {key: float(np.sum(np.asarray(g, np.float64) ** 2)) for key, g in gradients.items()}
    for key, norm in report.get("grad_l2", {}).items():
        assert_close(np.sqrt(squares[key]), np.array(norm), f"norm of {key}", rtol=NORM_RTOL)
    for module, norm in report.get("grad_norm", {}).items():
        total = sum(s for key, s in squares.items() if module == "TOTAL" or key.split(".")[0] == module)
        assert_close(np.sqrt(total), np.array(norm), f"norm of {module}", rtol=NORM_RTOL)
    known = {"loss", "policy_loss", "bc_loss", "mean_reward", "advantages", "discount", "traj"}
    known |= {"policy_logprob", "bc_logprob"}
    left = {key for key in stored if not key.startswith("grad/")} - known
    assert not left, f"not compared: {sorted(left)}"


@pytest.mark.parametrize("name", VARIANTS)
def test_advantages_are_the_references(reinforced, name, assert_close):
    variant, case = VARIANTS[name], reinforced.case
    if f"{name}/advantages" not in reinforced.outputs:
        pytest.skip(f"{reinforced.id} was recorded without {name}")
    settings = GrpoSettings(
        group_size=case["group"], lower_quantile=variant.lower_quantile, upper_quantile=variant.upper_quantile
    )
    rewards = jnp.asarray(reinforced.inputs[variant.rewards].reshape(case["grpo_batch"], case["group"]))
    objective = DiffGrpoObjective(reinforced.planner(), InjectedReward(), settings)
    found = objective.advantages(rewards, jnp.ones(rewards.shape, bool))
    assert_close(found.reshape(-1), reinforced.outputs[f"{name}/advantages"], "advantages", **ADVANTAGE)


def test_chains_discounts_and_log_probabilities_are_the_references(reinforcement, assert_close):
    outputs, found = reinforcement.run.outputs, reinforcement.found(VARIANTS["grpo"])
    discounts = denoising_discounts(reinforcement.planner.num_steps, 0.6)
    assert_close(discounts, outputs["grpo/discount"], "discount", **ADVANTAGE)
    assert_close(found.trajectories.reshape(-1, 8, 3), outputs["grpo/traj"], "trajectory", atol=POSE_ATOL)
    log_probs = found.policy_log_probs.reshape(-1, 8, 3)
    assert_close(log_probs, outputs["grpo/policy_logprob"], "log-probability", **LOG_PROB)
    cloned = found.cloned_log_probs.reshape(-1, 8, 3)
    assert_close(cloned, outputs["grpo/bc_logprob"], "cloning log-probability", **LOG_PROB)
