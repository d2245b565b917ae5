"""Flow matching: a straight path from noise to data in place of a diffusion."""

from typing import ClassVar

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from recogdrive.models.planner import schedule
from recogdrive.models.planner.diffusion import FINAL_CLIP, chain_of
from recogdrive.models.planner.process import Denoiser, Rollout, Transitions


@gin.register
class FlowMatching:
    """Flow matching: the network predicts the velocity from noise (u = 0) to data (u = 1).

    Args:
      beta_alpha: First parameter of the Beta(alpha, 1) distribution of training times.
      time_scale: s in u = (s - beta) / s; u can be as low as (s - 1) / s < 0.
      buckets: Resolution of the time the network sees.
      mean_variance_head: The network has six output channels of which sampling uses the first three.

    Source: upstream `FlowConfig`; Lipman et al. 2023.
    """

    has_eta: ClassVar[bool] = False
    has_densities: ClassVar[bool] = False

    def __init__(
        self,
        beta_alpha: float = 1.5,
        time_scale: float = 0.999,
        buckets: int = 1000,
        mean_variance_head: bool = False,
    ):
        self.beta_alpha, self.time_scale, self.buckets = beta_alpha, time_scale, buckets
        self.mean_variance_head = mean_variance_head
        self.output_channels = 6 if mean_variance_head else 3

    def draw(self, key: Key[Array, ""], batch: int) -> tuple[Float[Array, "B 8 3"], Float[Array, "B"]]:
        """Noise ~ N(0, 1) and s ~ Beta(alpha, 1), by inverting its distribution function s^alpha."""
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (batch, 8, 3))
        return noise, jax.random.uniform(time_key, (batch,)) ** (1 / self.beta_alpha)

    def times(self, beta: Float[Array, "B"]) -> tuple[Float[Array, "B"], Int[Array, "B"]]:
        """Continuous time u of a Beta sample, and the index the network sees: truncated toward zero."""
        u = (self.time_scale - beta) / self.time_scale
        return u, jnp.trunc(u * self.buckets).astype(jnp.int32)

    def loss(
        self, denoise: Denoiser, clean: Float[Array, "B 8 3"], noise: Float[Array, "B 8 3"], time: Float[Array, "B"]
    ) -> tuple[Float[Array, ""], Float[Array, "B 8 3"]]:
        """Mean squared error of the predicted velocity; `time` holds the Beta samples.

        Raises:
          ValueError: the network has the doubled output, which upstream cannot train either.
        """
        if self.mean_variance_head:
            raise ValueError("mean_variance_head=True can be sampled from but has no training loss; set it to False")
        u, index = self.times(time)
        u = u[:, None, None]
        prediction = denoise(((1 - u) * noise + u * clean)[:, None], index[:, None])[:, 0]
        errors = (prediction - (clean - noise)) ** 2
        return errors.mean(), errors

    def num_steps(self, denoising_steps: int) -> int:
        """As many as asked for."""
        return len(schedule.flow_sampling_times(denoising_steps, self.buckets))

    def sample(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
        deterministic: bool,
    ) -> tuple[Float[Array, "B S 8 3"], dict[str, Array]]:
        """Euler steps; there is no noise but the initial one. The end is clamped, the trace is not."""
        x, steps = self._run(denoise, initial_noise, denoising_steps)
        return jnp.clip(x, -FINAL_CLIP, FINAL_CLIP), steps

    def sample_chain(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
        deterministic: bool,
    ) -> Float[Array, "B S K+1 8 3"]:
        """Every state of the Euler steps, the last not clamped."""
        _, steps = self._run(denoise, initial_noise, denoising_steps)
        return chain_of(initial_noise, steps["x"])

    def log_probs(
        self, denoise: Denoiser, chain: Float[Array, "B S K+1 8 3"], denoising_steps: int
    ) -> Float[Array, "B S K 8 3"]:
        """Not available: Euler steps have no density.

        Raises:
          ValueError: always.
        """
        raise ValueError("FlowMatching has deterministic transitions and no log-probabilities; use DDIM instead")

    def chain_transitions(
        self, denoise: Denoiser, chain: Float[Array, "B S K+1 8 3"], denoising_steps: int
    ) -> Transitions:
        """Not available, see `log_probs`; raises ValueError."""
        return self.log_probs(denoise, chain, denoising_steps)

    def rollout(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
    ) -> Rollout:
        """Not available, see `log_probs`; raises ValueError."""
        return self.log_probs(denoise, initial_noise, denoising_steps)

    def _run(
        self, denoise: Denoiser, initial_noise: Float[Array, "B S 8 3"], denoising_steps: int
    ) -> tuple[Float[Array, "B S 8 3"], dict[str, Array]]:
        def step(x: Array, t: Int[Array, ""]) -> tuple[Array, dict[str, Array]]:
            prediction = denoise(x, jnp.full(x.shape[:2], t, jnp.int32))
            x = x + prediction[..., :3] / denoising_steps
            return x, {"decoder": prediction, "x": x}

        times = schedule.flow_sampling_times(denoising_steps, self.buckets)
        return jax.lax.scan(step, initial_noise, jnp.asarray(times, jnp.int32))

    def buffers(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """None besides the network's."""
        return {}
