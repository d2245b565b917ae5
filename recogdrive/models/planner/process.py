"""What a planner needs of a diffusion process, whichever it is."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, Float, Int, Key

Denoiser = Callable[[Float[Array, "B S 8 3"], Int[Array, "B S"]], Float[Array, "B S 8 O"]]
"""(noisy trajectories, times) -> the network's prediction. Times may be (B, 1): one for all samples of a scene."""


class Transitions(NamedTuple):
    """Gaussian densities of the steps of S chains a scene, all normalised.

    Attributes:
      means: (B, S, K, 8, 3) of each step.
      stds: Their standard deviations with the floor of log-probabilities, broadcastable against the means.
      log_probs: (B, S, K, 8, 3) log-density of the step that was taken, per coordinate, not clamped.
    """

    means: Float[Array, "B S K 8 3"]
    stds: Float[Array, "*#bsk 1 1"]
    log_probs: Float[Array, "B S K 8 3"]


class Rollout(NamedTuple):
    """Chains and the densities of their steps.

    Attributes:
      chain: (B, S, K+1, 8, 3) normalised states, initial noise first; without gradient.
      transitions: With gradient.
    """

    chain: Float[Array, "B S K+1 8 3"]
    transitions: Transitions


class Diffusion(Protocol):
    """What a planner needs of a diffusion process."""

    output_channels: int
    has_eta: bool
    """Whether an official checkpoint of this kind holds the frozen parameter `eta.eta_logit`."""
    has_densities: bool
    """Whether its steps are Gaussian, so that `rollout` and `chain_transitions` are there."""

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

    def rollout(
        self,
        denoise: Denoiser,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
        denoising_steps: int,
    ) -> Rollout:
        """The same, stochastic, with the densities of its steps."""

    def chain_transitions(
        self, denoise: Denoiser, chain: Float[Array, "B S K+1 8 3"], denoising_steps: int
    ) -> Transitions:
        """Densities of the steps of given chains."""

    def buffers(self, denoising_steps: int) -> dict[str, np.ndarray]:
        """Buffers an official checkpoint of this kind holds besides the network's."""
