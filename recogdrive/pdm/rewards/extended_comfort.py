"""Two-frame extended comfort as a reward: rollouts against what was planned half a second before."""

import gin
import jax.numpy as jnp
from jaxtyping import Array, Float

from recogdrive.pdm.metrics.extended_comfort import extended_comfort
from recogdrive.pdm.rewards.reward import Batch, DeviceReward, RewardScores
from recogdrive.pdm.simulator import simulate
from recogdrive.pdm.state import EgoState
from recogdrive.pdm.trajectory import absolute_poses, interpolate_candidate

CURRENT_STATE = "current/ego_state"
PREVIOUS_STATE = "previous/ego_state"
PREVIOUS_PLAN = "previous/plan"
PREVIOUS_KNOWN = "previous/known"
STEPS = 5
"""Of 0.1 s: the frame before lies 0.5 s back."""


@gin.register
class ExtendedComfort(DeviceReward):
    """1 where a rollout drives like the plan for the frame 0.5 s before, as both are simulated, else 0.

    Where there is no such frame, the reward is 0 for all rollouts, which changes no advantage, and the part is NaN.

    Entries of the batch:
      current/ego_state: (B, 11) initial state of the scene, see `EgoState`, in its record's local frame.
      previous/ego_state: (B, 11) that of the frame before, in the local frame of *its* record.
      previous/plan: (B, 8, 3) a plan for that frame, of a policy that does not change, in that frame's initial
        rear-axle frame.
      previous/known: (B,) bool, whether there is such a frame; the others are read nowhere.

    Source: NAVSIM v2.2 `ego_is_two_frame_extended_comfort`.
    """

    uses_previous_plans = True
    part_names = ("extended_comfort",)

    def __call__(self, batch: Batch, trajectories: Float[Array, "B G 8 3"]) -> RewardScores:
        """See `DeviceReward`.

        Raises:
          ValueError: The batch lacks an entry.
        """
        names = (CURRENT_STATE, PREVIOUS_STATE, PREVIOUS_PLAN, PREVIOUS_KNOWN)
        if missing := [name for name in names if name not in batch]:
            raise ValueError(f"The batch lacks {missing[0]}, which ExtendedComfort reads; see its description.")
        state, before, plan = (jnp.asarray(batch[name], trajectories.dtype) for name in names[:-1])
        current = _driven(state, trajectories)
        previous = _driven(before, plan[:, None])
        alike, _ = extended_comfort(current, previous, STEPS)
        comfort = alike.all(axis=-1).astype(trajectories.dtype)
        known = batch[PREVIOUS_KNOWN] & jnp.isfinite(previous).all(axis=(-3, -2, -1)) & jnp.isfinite(state).all(axis=-1)
        # Absurd poses may leave the range of float32 on the way.
        valid = jnp.isfinite(trajectories).all(axis=(-2, -1)) & (
            jnp.isfinite(current).all(axis=(-2, -1)) | ~known[:, None]
        )
        total = jnp.where(valid, jnp.where(known[:, None], comfort, 0), jnp.nan)
        return RewardScores(total, {"extended_comfort": jnp.where(known[:, None], total, jnp.nan)})


def _driven(state: Float[Array, "B 11"], trajectories: Float[Array, "B G 8 3"]) -> Float[Array, "B G 41 11"]:
    """Simulated states of a car that starts in `state` and follows trajectories."""
    pose = state[:, None, : EgoState.HEADING + 1]
    return simulate(interpolate_candidate(absolute_poses(trajectories, pose), pose), state[:, None])
