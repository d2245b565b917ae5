"""What a planner needs of a diffusion process, whichever it is."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from jaxtyping import Array, Float, Int, Key

Denoiser = Callable[[Float[Array, "B S 8 3"], Int[Array, "B S"]], Float[Array, "B S 8 O"]]
"""(noisy trajectories, times) -> the network's prediction."""


class Diffusion(Protocol):
    """What a planner needs of a diffusion process."""

    output_channels: int
    has_eta: bool
    """Whether an official checkpoint of this kind holds the frozen parameter `eta.eta_logit`."""

    def draw(self, key: Key[Array, ""], batch: int) -> tuple[Float[Array, "B 8 3"], Array]:
        """Draws training noise and one time (integer step, or Beta sample for flow) per scene."""

    def loss(
        self, denoise: Denoiser, clean: Float[Array, "B 8 3"], noise: Float[Array, "B 8 3"], time: Array
    ) -> tuple[Float[Array, ""], Float[Array, "B 8 3"]]:
        """Training loss for given noise and times, and the squared errors it is the mean of."""

    def num_steps(self, denoising_steps: int) -> int:
        """Number of network evaluations (and step noises) of a sampler asked for `denoising_steps`."""

    def sample(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
        deterministic: bool,
    ) -> tuple[Float[Array, "B S 8 3"], dict[str, Array]]:
        """Samples as in evaluation; also every step's `decoder`, `mean`, `std`, `x0` stacked along a leading K."""

    def sample_chain(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
        deterministic: bool,
    ) -> Float[Array, "B S K+1 8 3"]:
        """Samples as in a reinforcement-learning rollout; entry 0 is the initial noise."""

    def buffers(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """Buffers an official checkpoint of this kind holds besides the network's."""
