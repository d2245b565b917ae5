"""A penalty on plans that end backwards."""

import gin
import jax.numpy as jnp
from jaxtyping import Array, Float

from recogdrive.pdm.rewards.reward import Batch, DeviceReward, RewardScores
from recogdrive.pdm.state import CANDIDATE_POSES
from recogdrive.pdm.tail import TAIL_INTERVALS, backward_m


@gin.register
class ReversePenalty(DeviceReward):
    """Minus the metres that a plan goes backwards in its last intervals, of the raw poses: 0 for ordinary plans.

    Args:
      last_steps: How many intervals of 0.5 s, counted from the end; the PDM score hardly sees the last ones.

    Raises:
      ValueError: A plan has fewer.
    """

    part_names = ("reverse_penalty",)

    def __init__(self, last_steps: int = TAIL_INTERVALS) -> None:
        if not 1 <= last_steps <= CANDIDATE_POSES:
            raise ValueError(f"ReversePenalty.last_steps={last_steps} must be between 1 and {CANDIDATE_POSES}.")
        self.last_steps = last_steps

    def __call__(self, batch: Batch, trajectories: Float[Array, "B G 8 3"]) -> RewardScores:
        """See `DeviceReward`."""
        del batch
        finite = jnp.isfinite(trajectories).all(axis=(-2, -1))
        total = jnp.where(finite, -backward_m(trajectories, self.last_steps).sum(axis=-1), jnp.nan)
        return RewardScores(total, {"reverse_penalty": total})
