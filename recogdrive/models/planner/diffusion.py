"""Diffusion of trajectories: training losses, samplers and transition densities of DDIM and DDPM.

Everything acts on normalised trajectories and on a `Denoiser`, the network with its scene bound. Axis names: B scenes,
S samples a scene, K denoising steps.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from recogdrive.models.planner import schedule
from recogdrive.models.planner.process import Denoiser, Rollout, Transitions

DENOISED_CLIP = 1.0
"""Limit of a step's estimate of the clean trajectory. Source: upstream `denoised_clip_value`."""
FINAL_CLIP = 1.0
EVALUATION_NOISE_CLIP = 1.0
"""Limit of a step's noise in standard deviations. Source: upstream `eval_randn_clip_value`."""
ROLLOUT_NOISE_CLIP = 5.0
ROLLOUT_STD_FLOOR = 0.04
"""Source: upstream `min_sampling_denoising_std`."""
LOG_PROB_STD_FLOOR = 0.1
"""Source: upstream `min_logprob_denoising_std`."""
DDIM_EVALUATION_STD_FLOOR = 1e-4
DDPM_STD_FLOOR = 1e-3


class _Gaussian(abc.ABC):
    """What DDIM and DDPM share: the noise-prediction loss and the loop over Gaussian transitions."""

    output_channels: ClassVar[int] = 3
    has_eta: ClassVar[bool] = False
    has_densities: ClassVar[bool] = True

    def draw(self, key: Key[Array, ""], batch: int) -> tuple[Float[Array, "B 8 3"], Int[Array, "B"]]:
        """Noise ~ N(0, 1) and times ~ U{0 ... 99}."""
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (batch, 8, 3))
        return noise, jax.random.randint(time_key, (batch,), 0, schedule.TRAINING_STEPS)

    def loss(
        self, denoise: Denoiser, clean: Float[Array, "B 8 3"], noise: Float[Array, "B 8 3"], time: Int[Array, "B"]
    ) -> tuple[Float[Array, ""], Float[Array, "B 8 3"]]:
        """Mean squared error of the predicted noise. Source: upstream `p_losses`."""
        constants = schedule.ddpm_constants()
        keep = jnp.asarray(constants["ddpm_sqrt_alphas_cumprod"])[time][:, None, None]
        add = jnp.asarray(constants["ddpm_sqrt_one_minus_alphas_cumprod"])[time][:, None, None]
        prediction = denoise((keep * clean + add * noise)[:, None], time[:, None])[:, 0]
        errors = (prediction - noise) ** 2
        return errors.mean(), errors

    @abc.abstractmethod
    def transitions(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """Constants of the sampler's steps in order, each of length `num_steps`; `t` is the time given to the net."""

    @abc.abstractmethod
    def posterior(
        self, x: Float[Array, "*n 8 3"], prediction: Float[Array, "*n 8 3"], step: dict[str, Array], stochastic: bool
    ) -> tuple[Float[Array, "*n 8 3"], Float[Array, "*#n 1 1"], Float[Array, "*n 8 3"]]:
        """Mean, standard deviation (before any floor) and clean estimate of one step.

        `step` holds this step's entries of `transitions`, broadcastable against x.
        """

    @abc.abstractmethod
    def _evaluation_std(self, std: Array, step: dict[str, Array], deterministic: bool) -> Array:
        """Standard deviation of an evaluation's step, floors applied."""

    @abc.abstractmethod
    def _rollout_std(self, std: Array, step: dict[str, Array], deterministic: bool) -> Array:
        """The same of a rollout's step."""

    @abc.abstractmethod
    def _evaluation_noise_clip(self) -> float | None:
        """Limit of an evaluation's noise in standard deviations; None for no limit."""

    def num_steps(self, denoising_steps: int) -> int:
        """Number of network evaluations of the sampler."""
        return len(self.transitions(denoising_steps)["t"])

    def sample(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
        deterministic: bool,
    ) -> tuple[Float[Array, "B S 8 3"], dict[str, Array]]:
        """Samples as in evaluation. Source: upstream `get_action`."""
        limit = self._evaluation_noise_clip()
        noise = step_noise if limit is None else jnp.clip(step_noise, -limit, limit)
        return self._run(denoise, initial_noise, noise, denoising_steps, deterministic, self._evaluation_std)

    def sample_chain(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
        deterministic: bool,
    ) -> Float[Array, "B S K+1 8 3"]:
        """Samples with the rollout's wider noise, keeping every state. Source: upstream `sample_chain`."""
        noise = jnp.clip(step_noise, -ROLLOUT_NOISE_CLIP, ROLLOUT_NOISE_CLIP)
        _, steps = self._run(denoise, initial_noise, noise, denoising_steps, deterministic, self._rollout_std)
        return chain_of(initial_noise, steps["x"])

    def _run(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
        deterministic: bool,
        floor_std: Callable[[Array, dict[str, Array], bool], Array],
    ) -> tuple[Float[Array, "B S 8 3"], dict[str, Array]]:
        """The denoising loop; compiled once however many steps it has."""
        transitions = self.transitions(denoising_steps)
        last = np.arange(len(transitions["t"])) == len(transitions["t"]) - 1
        _require_step_noise(step_noise, len(last))

        def step(x: Array, inputs: tuple[dict[str, Array], Array, Array]) -> tuple[Array, dict[str, Array]]:
            constants, noise, is_last = inputs
            prediction = denoise(x, jnp.full(x.shape[:2], constants["t"], jnp.int32))
            mean, std, x0 = self.posterior(x, prediction, constants, stochastic=not deterministic)
            x = mean + floor_std(std, constants, deterministic) * noise
            x = jnp.where(is_last, jnp.clip(x, -FINAL_CLIP, FINAL_CLIP), x)
            return x, {"decoder": prediction, "mean": mean, "std": std, "x0": x0, "x": x}

        scanned = (_float32(transitions), step_noise, last)
        return jax.lax.scan(step, initial_noise, jax.tree.map(jnp.asarray, scanned))

    def log_prob_transitions(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """Constants that `log_probs` pairs a chain's transitions with."""
        return self.transitions(denoising_steps)

    def log_probs(
        self, denoise: Denoiser, chain: Float[Array, "B S K+1 8 3"], denoising_steps: int
    ) -> Float[Array, "B S K 8 3"]:
        """Log-densities of a chain's transitions, per coordinate, not clamped; the std is floored at 0.1.

        All steps are evaluated in one call of the network. Source: upstream `get_logprobs`.
        """
        return self.chain_transitions(denoise, chain, denoising_steps).log_probs

    def chain_transitions(
        self, denoise: Denoiser, chain: Float[Array, "B S K+1 8 3"], denoising_steps: int
    ) -> Transitions:
        """Densities under this network of the transitions of a chain, see `log_probs`."""
        transitions = self.log_prob_transitions(denoising_steps)
        batch, samples, length = chain.shape[:3]
        steps = len(transitions["t"])
        if length != steps + 1:
            raise ValueError(f"chain holds {length} states; {steps} transitions need {steps + 1}")
        x = chain[:, :, :-1].reshape(batch, -1, 8, 3)
        constants = {name: jnp.tile(jnp.asarray(value), samples) for name, value in _float32(transitions).items()}
        prediction = denoise(x, jnp.broadcast_to(constants["t"].astype(jnp.int32), x.shape[:2]))
        constants = {name: value[:, None, None] for name, value in constants.items()}
        mean, std, _ = self.posterior(x, prediction, constants, stochastic=True)
        std = jnp.broadcast_to(std, (*mean.shape[:2], 1, 1)).reshape(batch, samples, steps, 1, 1)
        return _densities(chain, mean.reshape(batch, samples, steps, 8, 3), std)

    def rollout(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
    ) -> Rollout:
        """A stochastic `sample_chain` together with its `chain_transitions`; gradients flow through the latter only."""
        chain = jax.lax.stop_gradient(self.sample_chain(denoise, initial_noise, step_noise, denoising_steps, False))
        return Rollout(chain, self.chain_transitions(denoise, chain, denoising_steps))


@gin.register
class DDIM(_Gaussian):
    """Denoising diffusion implicit models, with eta 1 (stochastic) or 0 (deterministic).

    Args:
      rollout_std_floor: Least standard deviation of a rollout's steps, normalised. Only the last step is below the
        default: its noise is independent from one way-point to the next, 1.3 m ahead and 0.8 m to the side.

    Raises:
      ValueError: The floor is not positive.

    Source: Song et al. 2021.
    """

    has_eta: ClassVar[bool] = True

    def __init__(self, rollout_std_floor: float = ROLLOUT_STD_FLOOR):
        if not rollout_std_floor > 0:
            raise ValueError(f"rollout_std_floor={rollout_std_floor} must be positive, such as {ROLLOUT_STD_FLOOR}.")
        self.rollout_std_floor = rollout_std_floor

    def transitions(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """See base class. Times are multiples of floor(100 / K), K of them."""
        constants = schedule.ddim_constants(denoising_steps)
        return {"t": constants["ddim_t"], "alpha": constants["ddim_alphas"], "previous": constants["ddim_alphas_prev"]}

    def posterior(
        self, x: Float[Array, "*n 8 3"], prediction: Float[Array, "*n 8 3"], step: dict[str, Array], stochastic: bool
    ) -> tuple[Float[Array, "*n 8 3"], Float[Array, "*#n 1 1"], Float[Array, "*n 8 3"]]:
        """See base class. The noise is derived anew from the clamped clean estimate. Source: Song et al. eq. 12, 16."""
        alpha, previous = step["alpha"], step["previous"]
        x0 = (x - jnp.sqrt(1 - alpha) * prediction) / jnp.sqrt(alpha)
        x0 = jnp.clip(x0, -DENOISED_CLIP, DENOISED_CLIP)
        noise = (x - jnp.sqrt(alpha) * x0) / jnp.sqrt(1 - alpha)
        # At the last step previous = 1 and both factors are 0 or positive; maximum keeps rounding from a negative root.
        variance = jnp.maximum((1 - previous) / (1 - alpha) * (1 - alpha / previous), 0.0)
        variance = variance if stochastic else jnp.zeros_like(variance)
        mean = jnp.sqrt(previous) * x0 + jnp.sqrt(jnp.maximum(1 - previous - variance, 0.0)) * noise
        return mean, jnp.sqrt(variance), x0

    def rollout(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
    ) -> Rollout:
        """See base class. Each network evaluation both makes a step and gives its density, so there are K, not 2 K."""
        transitions = self.transitions(denoising_steps)
        last = np.arange(len(transitions["t"])) == len(transitions["t"]) - 1
        _require_step_noise(step_noise, len(last))

        def step(x: Array, inputs: tuple[dict[str, Array], Array, Array]) -> tuple[Array, tuple[Array, Array, Array]]:
            constants, noise, is_last = inputs
            prediction = denoise(x, jnp.full((len(x), 1), constants["t"], jnp.int32))
            mean, std, _ = self.posterior(x, prediction, constants, stochastic=True)
            following = mean + self._rollout_std(std, constants, deterministic=False) * noise
            following = jnp.where(is_last, jnp.clip(following, -FINAL_CLIP, FINAL_CLIP), following)
            following = jax.lax.stop_gradient(following)  # What was sampled is data; only its density has a gradient.
            return following, (following, mean, std)

        noise = jnp.clip(step_noise, -ROLLOUT_NOISE_CLIP, ROLLOUT_NOISE_CLIP)
        scanned = jax.tree.map(jnp.asarray, (_float32(transitions), noise, last))
        _, (states, means, stds) = jax.lax.scan(step, initial_noise, scanned)
        chain = chain_of(initial_noise, states)
        return Rollout(chain, _densities(chain, jnp.moveaxis(means, 0, 2), stds[:, None, None]))

    def _evaluation_std(self, std: Array, step: dict[str, Array], deterministic: bool) -> Array:
        return jnp.zeros_like(std) if deterministic else jnp.maximum(std, DDIM_EVALUATION_STD_FLOOR)

    def _rollout_std(self, std: Array, step: dict[str, Array], deterministic: bool) -> Array:
        return jnp.zeros_like(std) if deterministic else jnp.maximum(std, self.rollout_std_floor)

    def _evaluation_noise_clip(self) -> float:
        return EVALUATION_NOISE_CLIP

    def buffers(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """The 12 `ddpm_*` and 7 `ddim_*` buffers."""
        return schedule.ddpm_constants() | schedule.ddim_constants(denoising_steps)


@gin.register
class DDPM(_Gaussian):
    """Denoising diffusion probabilistic models on a strided list of times.

    Each step uses the one-step posterior of its time although the list skips times, and `log_probs` pairs a chain with
    the times K-1 ... 0 instead of those it was made with: upstream's behaviour, kept for parity.

    Args:
      clip_evaluation_noise: Limit the noise of `sample` to one standard deviation, as upstream does where the model
        carries reinforcement-learning settings.
    """

    def __init__(self, clip_evaluation_noise: bool = False):
        self.clip_evaluation_noise = clip_evaluation_noise

    def transitions(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """See base class. A number of steps that does not divide 100 gives more than K."""
        return self.at(schedule.ddpm_sampling_times(denoising_steps))

    def log_prob_transitions(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """See base class: times K-1 ... 0."""
        return self.at(np.arange(self.num_steps(denoising_steps))[::-1])

    def at(self, times: Int[np.ndarray, "K"]) -> dict[str, np.ndarray]:
        """Constants of the one-step posterior at the given times."""
        constants = schedule.ddpm_constants()
        names = ("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "mu_coef1", "mu_coef2", "logvar_clipped")
        return {"t": times} | {name: constants[f"ddpm_{name}"][times] for name in names}

    def posterior(
        self, x: Float[Array, "*n 8 3"], prediction: Float[Array, "*n 8 3"], step: dict[str, Array], stochastic: bool
    ) -> tuple[Float[Array, "*n 8 3"], Float[Array, "*#n 1 1"], Float[Array, "*n 8 3"]]:
        """See base class; the same whether stochastic or not. Source: Ho et al. 2020, eq. 7."""
        x0 = step["sqrt_recip_alphas_cumprod"] * x - step["sqrt_recipm1_alphas_cumprod"] * prediction
        x0 = jnp.clip(x0, -DENOISED_CLIP, DENOISED_CLIP)
        return step["mu_coef1"] * x0 + step["mu_coef2"] * x, jnp.exp(0.5 * step["logvar_clipped"]), x0

    def _evaluation_std(self, std: Array, step: dict[str, Array], deterministic: bool) -> Array:
        return jnp.where(step["t"] == 0, 0.0, jnp.maximum(std, DDPM_STD_FLOOR))

    def _rollout_std(self, std: Array, step: dict[str, Array], deterministic: bool) -> Array:
        if deterministic:
            return self._evaluation_std(std, step, deterministic)
        return jnp.maximum(std, ROLLOUT_STD_FLOOR)

    def _evaluation_noise_clip(self) -> float | None:
        return EVALUATION_NOISE_CLIP if self.clip_evaluation_noise else None

    def buffers(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """The 12 `ddpm_*` buffers."""
        return schedule.ddpm_constants()


def chain_of(initial: Float[Array, "B S 8 3"], states: Float[Array, "K B S 8 3"]) -> Float[Array, "B S K+1 8 3"]:
    """The states of a sampler's steps, behind the noise they began with."""
    return jnp.moveaxis(jnp.concatenate([initial[None], states]), 0, 2)


def _densities(
    chain: Float[Array, "B S K+1 8 3"], means: Float[Array, "B S K 8 3"], stds: Float[Array, "*#bsk 1 1"]
) -> Transitions:
    """Gaussian log-densities of a chain's steps, with the floor that upstream's log-probabilities have."""
    stds = jnp.maximum(stds, LOG_PROB_STD_FLOOR)
    log_probs = -0.5 * ((chain[:, :, 1:] - means) / stds) ** 2 - jnp.log(stds) - 0.5 * np.log(2 * np.pi)
    return Transitions(means, stds, log_probs)


def _float32(constants: dict[str, np.ndarray]) -> dict[str, Any]:
    """Constants as float32 (exact for the times, which stay below 2^24)."""
    return {name: np.asarray(value, np.float32) for name, value in constants.items()}


def _require_step_noise(step_noise: Array, steps: int) -> None:
    if step_noise.shape[0] != steps:
        raise ValueError(f"step_noise holds {step_noise.shape[0]} draws; the sampler takes {steps} steps")
