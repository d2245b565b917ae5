"""DiffGRPO: policy gradient of a diffusion planner on rewards compared within the group of samples of a scene.

Sampling, reward, advantages and loss are one pure function, so that the training step is one compiled program.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from recogdrive.models.bridge import Params
from recogdrive.models.planner.normalization import denormalize
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.models.planner.process import Rollout, Transitions
from recogdrive.pdm.rewards.reward import Reward, RewardScores
from recogdrive.pdm.tail import reverses, stops

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]
OverScenes = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Wraps a function of arrays with scenes in front so that every device computes its own scenes."""

REFERENCE_PREFIX = "reference/"
"""What names of the reference policy's weights begin with."""


@gin.register
@dataclass(frozen=True)
class GrpoSettings:
    """Numbers of DiffGRPO; the defaults are the reference's.

    Attributes:
      group_size: G, trajectories sampled a scene.
      denoising_discount: Weight of a denoising step relative to the one after it: the last counts fully.
      bc_weight: Weight of the behaviour-cloning term. The authors' later runs raise it to 1 against reward hacking.
      lower_quantile: Advantages below this quantile of the batch are raised to it.
      upper_quantile: Those above this one are lowered to it. 0 and 1 change nothing.
      log_prob_min: Least log-probability of a coordinate; below it there is no gradient.
      log_prob_max: Largest; at the standard deviation's floor of 0.1 none exceeds 1.39.
      advantage_eps: Added to a group's standard deviation.

    Raises:
      ValueError: A number is out of range.

    Source: upstream `GRPOConfig`, `forward_grpo`.
    """

    group_size: int = 8
    denoising_discount: float = 0.6
    bc_weight: float = 0.1
    lower_quantile: float = 0.0
    upper_quantile: float = 1.0
    log_prob_min: float = -5.0
    log_prob_max: float = 2.0
    advantage_eps: float = 1e-8

    def __post_init__(self) -> None:
        if not isinstance(self.group_size, int) or self.group_size < 2:
            raise ValueError(f"group_size={self.group_size!r} must be a whole number of at least 2: one has no group.")
        if not 0 < self.denoising_discount <= 1:
            raise ValueError(f"denoising_discount={self.denoising_discount} must be in (0, 1].")
        if not 0 <= self.bc_weight < float("inf"):
            raise ValueError(f"bc_weight={self.bc_weight} must be finite and not negative.")
        if not 0 <= self.lower_quantile < self.upper_quantile <= 1:
            raise ValueError(
                f"lower_quantile={self.lower_quantile} and upper_quantile={self.upper_quantile} must be an interval "
                "within [0, 1]."
            )
        if not self.log_prob_min < self.log_prob_max:
            raise ValueError(f"log_prob_min={self.log_prob_min} must be below log_prob_max={self.log_prob_max}.")
        if not self.advantage_eps > 0:
            raise ValueError(f"advantage_eps={self.advantage_eps} must be positive.")

    @property
    def clips_advantages(self) -> bool:
        """Whether the quantiles change anything."""
        return (self.lower_quantile, self.upper_quantile) != (0.0, 1.0)


class ChainNoise(NamedTuple):
    """All random draws of a step, standard normal.

    Attributes:
      initial: (B, G, 8, 3) of the policy's chains.
      steps: (K, B, G, 8, 3).
      reference_initial: (B, 1, 8, 3) of the reference policy's chain.
      reference_steps: (K, B, 1, 8, 3).
    """

    initial: Float[Array, "B G 8 3"]
    steps: Float[Array, "K B G 8 3"]
    reference_initial: Float[Array, "B 1 8 3"]
    reference_steps: Float[Array, "K B 1 8 3"]


class Chains(NamedTuple):
    """What a step samples.

    Attributes:
      policy: G chains a scene, with gradient of their densities.
      reference: One chain a scene of the reference policy, without any.
      cloned: Densities of the reference policy's chain under the policy, with gradient.
    """

    policy: Rollout
    reference: Rollout
    cloned: Transitions


def group_advantages(
    rewards: Float[Array, "B G"], known: Bool[Array, "B G"] | None = None, eps: float = 1e-8
) -> Float[Array, "B G"]:
    """Standardises each scene's rewards over its group of samples.

    A group whose rewards are all equal has advantages 0. (The reference divides the rounding error of its mean by
    `eps` there, which pushes all its samples alike by up to six standard deviations.)

    Args:
      rewards: Of G trajectories for each of B scenes.
      known: Which of them count; the others take no part in mean and deviation and have advantage 0. All by default.
      eps: Added to the group's standard deviation.

    Source: upstream `forward_grpo`; its std is the sample one (ddof=1).
    """
    known = jnp.ones(rewards.shape, bool) if known is None else known
    count = known.sum(axis=1, keepdims=True)
    rewards = jnp.where(known, rewards, 0)
    mean = rewards.sum(axis=1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(known, rewards - mean, 0)
    std = jnp.sqrt((centred**2).sum(axis=1, keepdims=True) / jnp.maximum(count - 1, 1))
    return jnp.where(flat_groups(rewards, known)[:, None], 0, centred / (std + eps))


def flat_groups(rewards: Float[Array, "B G"], known: Bool[Array, "B G"]) -> Bool[Array, "B"]:
    """Groups that tell nothing: all their known rewards are equal, or fewer than two are known."""
    highest = jnp.where(known, rewards, -jnp.inf).max(axis=1)
    lowest = jnp.where(known, rewards, jnp.inf).min(axis=1)
    return ~(highest > lowest)


def clip_to_quantiles(
    advantages: Float[Array, "B G"], known: Bool[Array, "B G"], lower: float, upper: float
) -> Float[Array, "B G"]:
    """Clips advantages to quantiles of all known ones of the batch, linear between order statistics.

    Source: upstream `forward_grpo`, `clip_advantage_lower_quantile` and `clip_advantage_upper_quantile`.
    """
    bounds = jnp.nanquantile(jnp.where(known, advantages, jnp.nan), jnp.array([lower, upper]))
    return jnp.where(known, jnp.clip(advantages, bounds[0], bounds[1]), advantages)


def denoising_discounts(steps: int, discount: float) -> Float[np.ndarray, "K"]:
    """Weight of each denoising step, the noisiest first: discount^(K-1-k). Source: upstream `gamma_denoising`."""
    return (discount ** np.arange(steps - 1, -1, -1, dtype=np.float64)).astype(np.float32)


class DiffGrpoObjective:
    """Policy gradient on the group's advantages, plus cloning of a frozen reference policy.

    What it minimises: minus the mean over trajectories and denoising steps of log-probability x advantage x discount,
    plus `bc_weight` times minus the mean log-probability of the reference policy's own chains. Log-probabilities are
    clamped a coordinate and averaged over the 8 x 3 coordinates of a step. There is one update a rollout, hence no
    ratio to an older policy.

    A trajectory whose reward is not finite is left out of both its group and the mean; a scene without any finite
    reward is left out of the cloning term too. A group of equal rewards counts with advantage 0, as in the reference.

    The scene is encoded once for the policy, and once for the reference policy.

    Args:
      planner: The policy's network and sampler; its diffusion must have Gaussian transitions.
      reward: Scores trajectories.
      settings: Numbers of the method.
      over_scenes: See `OverScenes`; `DataParallel.over_rows` on several devices, nothing on one.

    Raises:
      ValueError: The diffusion has no transition densities.

    Source: upstream `ReCogDriveDiffusionPlanner.forward_grpo`.
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        reward: Reward,
        settings: GrpoSettings | None = None,
        over_scenes: OverScenes | None = None,
    ) -> None:
        self.planner = planner
        self.reward = reward
        self.settings = GrpoSettings() if settings is None else settings
        self._over_scenes = over_scenes or (lambda function: function)
        if not getattr(planner.diffusion, "has_densities", False):
            raise ValueError(
                f"{type(planner.diffusion).__name__} has no transition densities to learn from; bind "
                "DiffusionPlanner.diffusion to DDIM."
            )

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial weights of the policy."""
        return self.planner.init(key)

    def draw(self, key: Key[Array, ""], scenes: int) -> ChainNoise:
        """The noise of a step."""
        policy_key, reference_key = jax.random.split(key)
        return ChainNoise(
            *self.planner.draw_sampling_noise(policy_key, scenes, self.settings.group_size),
            *self.planner.draw_sampling_noise(reference_key, scenes, 1),
        )

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The loss with noise drawn from `key`; see `loss_with_noise`."""
        return self.loss_with_noise(params, batch, self.draw(key, batch["history_trajectory"].shape[0]))

    def loss_with_noise(self, params: Params, batch: Batch, noise: ChainNoise) -> tuple[Float[Array, ""], Metrics]:
        """The loss for given draws.

        Args:
          params: Weights of the policy, and those of the reference policy under `REFERENCE_PREFIX`.
          batch: The planner's inputs and what the reward asks for.
          noise: All random draws.

        Returns:
          The loss, and scalars: `policy_loss`, `bc_loss`, mean `reward`, and what tells whether the policy exploits the
          reward (see docs/reinforcement.md).
        """
        policy_loss, bc_loss, metrics = self.terms(params, batch, noise)
        loss = policy_loss + self.settings.bc_weight * bc_loss
        return loss, metrics | jax.lax.stop_gradient({"policy_loss": policy_loss, "bc_loss": bc_loss})

    def terms(
        self, params: Params, batch: Batch, noise: ChainNoise
    ) -> tuple[Float[Array, ""], Float[Array, ""], Metrics]:
        """Both terms of the loss apart, not weighted, and the other scalars; arguments as `loss_with_noise`."""
        chains, trajectories, pending = self.act(params, batch, noise)
        bc_log_probs = self._log_probs(chains.cloned)[:, 0]  # (B, K)
        scores = self._over_scenes(self.reward.collect)(pending, jax.lax.stop_gradient(bc_log_probs.sum(axis=1)))
        known = jnp.isfinite(scores.total)
        advantages = self.advantages(scores.total, known)
        # A mean over known trajectories, and over scenes with one, whichever these are.
        discounts = denoising_discounts(self.planner.num_steps, self.settings.denoising_discount)
        weighted = self._log_probs(chains.policy.transitions) * advantages[..., None] * discounts
        policy_loss = -weighted.sum() / (jnp.maximum(known.sum(), 1) * len(discounts))
        scored = known.any(axis=1)
        bc_loss = -_mean(bc_log_probs.mean(axis=1), scored)
        metrics = _reward_metrics(scores, known) | _policy_metrics(chains, trajectories, known, scored)
        return policy_loss, bc_loss, jax.lax.stop_gradient(metrics)

    def act(self, params: Params, batch: Batch, noise: ChainNoise) -> tuple[Chains, Float[Array, "B G 8 3"], Any]:
        """Samples chains and hands their trajectories to the reward.

        Returns:
          The chains; the policy's trajectories in metres and radians, scene frame; what `Reward.collect` takes.
        """
        steps, diffusion = self.planner.denoising_steps, self.planner.diffusion
        reference = {n.removeprefix(REFERENCE_PREFIX): w for n, w in params.items() if n.startswith(REFERENCE_PREFIX)}
        policy = {name: weight for name, weight in params.items() if not name.startswith(REFERENCE_PREFIX)}
        denoise = self.planner.bind(policy, batch)
        rollout = diffusion.rollout(denoise, noise.initial, noise.steps, steps)
        trajectories = denormalize(rollout.chain[:, :, -1])
        pending = self._over_scenes(self.reward.submit)(dict(batch), trajectories)
        # A reward on the host is computed while the devices go on with the reference policy's chain.
        taught = jax.lax.stop_gradient(
            diffusion.rollout(
                self.planner.bind(reference, batch), noise.reference_initial, noise.reference_steps, steps
            )
        )
        cloned = diffusion.chain_transitions(denoise, taught.chain, steps)
        return Chains(rollout, taught, cloned), trajectories, pending

    def advantages(self, rewards: Float[Array, "B G"], known: Bool[Array, "B G"]) -> Float[Array, "B G"]:
        """Standardised and clipped; 0 where the reward is not known."""
        advantages = group_advantages(rewards, known, self.settings.advantage_eps)
        if self.settings.clips_advantages:
            lower, upper = self.settings.lower_quantile, self.settings.upper_quantile
            advantages = clip_to_quantiles(advantages, known, lower, upper)
        return advantages

    def _log_probs(self, transitions: Transitions) -> Float[Array, "B S K"]:
        """Of whole steps: clamped a coordinate, then their mean."""
        clamped = jnp.clip(transitions.log_probs, self.settings.log_prob_min, self.settings.log_prob_max)
        return clamped.mean(axis=(-2, -1))


def _mean(values: Array, counted: Bool[Array, "..."]) -> Float[Array, ""]:
    """Mean of the counted values; 0 where there are none, so that a log line stays finite."""
    return jnp.where(counted, values, 0).sum() / jnp.maximum(counted.sum(), 1)


def _reward_metrics(scores: RewardScores, known: Bool[Array, "B G"]) -> Metrics:
    """What the reward consists of, and how much it tells the samples of a scene apart."""
    scored = known.any(axis=1)
    count = known.sum(axis=1)
    rewards = jnp.where(known, scores.total, 0)
    mean = rewards.sum(axis=1) / jnp.maximum(count, 1)
    variance = (jnp.where(known, rewards - mean[:, None], 0) ** 2).sum(axis=1) / jnp.maximum(count - 1, 1)
    best = jnp.where(known, rewards, -jnp.inf).max(axis=1)
    return {
        "reward": _mean(rewards, known),
        "group/best_reward": _mean(best, scored),
        "group/reward_variance": _mean(variance, scored),
        "group/flat_share": _mean(flat_groups(rewards, known).astype(jnp.float32), scored),
        "unscored/scene_share": (~scored).mean(),
        "unscored/trajectory_share": (scored[:, None] & ~known).mean(),
        **{f"reward_part/{name}": _mean(part, jnp.isfinite(part)) for name, part in scores.parts.items()},
    }


def _policy_metrics(
    chains: Chains, trajectories: Float[Array, "B G 8 3"], known: Bool[Array, "B G"], scored: Bool[Array, "B"]
) -> Metrics:
    """How far the policy is from the reference policy, and how its rollouts end."""
    taught = chains.reference.transitions
    # Both are Gaussians of the same width, so their divergence is that of their means; a coordinate and step.
    divergence = ((chains.cloned.means - taught.means) / taught.stds) ** 2 / 2
    reference = denormalize(chains.reference.chain[:, :, -1])  # (B, 1, 8, 3)
    end_distance = jnp.linalg.norm(trajectories[..., -1, :2] - reference[..., -1, :2], axis=-1)
    log_prob_gap = (taught.log_probs - chains.cloned.log_probs).mean(axis=(1, 2, 3, 4))
    return {
        "drift/kl": _mean(divergence.mean(axis=(1, 2, 3, 4)), scored),
        "drift/log_prob_gap": _mean(log_prob_gap, scored),
        "drift/end_distance_m": _mean(end_distance, known),
        "rollout/reverse_share": _mean(reverses(trajectories).astype(jnp.float32), known),
        "rollout/stop_share": _mean(stops(trajectories).astype(jnp.float32), known),
        "reference/reverse_share": _mean(reverses(reference)[:, 0].astype(jnp.float32), scored),
        "reference/stop_share": _mean(stops(reference)[:, 0].astype(jnp.float32), scored),
    }
