"""The contract between rewards and the training step, and the base of rewards that are part of its program."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recogdrive.pdm.rewards.scene_layout import SceneLayout
from recogdrive.pdm.scene import PdmScene

KNOWN = "reward/known"
"""(B,) bool entry of a batch: whether a scene's record is there. Without the entry all are."""

Batch = Mapping[str, Array]


class RewardScores(NamedTuple):
    """What G rollouts in each of B scenes are worth.

    Attributes:
      total: The reward; NaN where it is unknown: no record, a rollout that is not finite, a host function that failed.
      parts: What it consists of, by names that are the same in every call; NaN where unknown.
    """

    total: Float[Array, "B G"]
    parts: dict[str, Float[Array, "B G"]]


class Reward(Protocol):
    """Scores rollouts inside the compiled training step, on its devices or on host cores meanwhile.

    Attributes:
      layouts: What of the scenes' records must be in the batch (`RewardedSamples`); may be empty.
      uses_previous_plans: Whether `previous/...` and `current/ego_state` must be, see `ExtendedComfort`.
      part_names: Keys of `RewardScores.parts`.
    """

    layouts: tuple[SceneLayout, ...]
    uses_previous_plans: bool
    part_names: tuple[str, ...]

    def attach(self, records: Callable[[int], PdmScene]) -> None:
        """Told before training where the record of sample `index` is found; for rewards that read it themselves."""
        ...

    def submit(self, batch: Batch, trajectories: Float[Array, "B G 8 3"]) -> Any:
        """Starts to score; what it returns is for `collect`: a tree of arrays with the scenes first.

        Args:
          batch: Entries of a training batch, scenes first.
          trajectories: float32 rollouts in each scene's initial rear-axle frame, metres and radians. No gradient
            reaches them.
        """
        ...

    def collect(self, pending: Any, after: Array) -> RewardScores:
        """The scores.

        Args:
          pending: What `submit` returned.
          after: Something computed meanwhile: a reward that has to wait, waits no sooner than when this is there.
        """
        ...


class DeviceReward(abc.ABC):
    """A reward that is a pure function of batch and rollouts, jittable, in float32: part of the step's program."""

    layouts: tuple[SceneLayout, ...] = ()
    uses_previous_plans = False
    part_names: tuple[str, ...] = ()

    @abc.abstractmethod
    def __call__(self, batch: Batch, trajectories: Float[Array, "B G 8 3"]) -> RewardScores:
        """The scores, see `Reward.submit`."""

    def attach(self, records: Callable[[int], PdmScene]) -> None:
        """Nothing: what is needed is in the batch."""
        del records

    def submit(self, batch: Batch, trajectories: Float[Array, "B G 8 3"]) -> RewardScores:
        """Scores at once."""
        return self(batch, jax.lax.stop_gradient(jnp.asarray(trajectories, jnp.float32)))

    def collect(self, pending: RewardScores, after: Array) -> RewardScores:
        """What `submit` returned."""
        del after
        return pending


def known_scenes(batch: Batch, num_scenes: int) -> Bool[Array, "B"]:
    """Which scenes have a record."""
    return jnp.asarray(batch[KNOWN], bool) if KNOWN in batch else jnp.ones(num_scenes, bool)


def where_known(known: Bool[Array, "B"], values: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """Values with NaN in the rows of scenes without record."""
    return jnp.where(known[:, None], values, jnp.nan)
