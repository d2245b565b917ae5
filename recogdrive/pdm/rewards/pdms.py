"""The PDM score as a reward."""

import gin
import jax
from jaxtyping import Array, Float

from recogdrive.pdm.rewards.reward import Batch, DeviceReward, RewardScores, known_scenes, where_known
from recogdrive.pdm.rewards.scene_layout import PdmLayout
from recogdrive.pdm.scorer import score_once
from recogdrive.pdm.scores import REINFORCEMENT_WEIGHTS, ScoreWeights

PARTS = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
)
"""Sub-scores of `PdmScores`."""

_score_once = jax.jit(score_once, static_argnames="weights")
"""Part of the step's program; outside of one, as in a notebook, still compiled."""


@gin.register
class PdmsReward(DeviceReward):
    """PDMS in [0, 1]; its parts are "pdms" and NAVSIM's sub-scores.

    Args:
      weights: Of the averaged sub-scores; progress 10, time to collision 5, comfort 2 unless given.

    Source: upstream ReCogDrive's reward.
    """

    layouts = (PdmLayout(),)
    part_names = ("pdms", *PARTS)

    def __init__(self, weights: ScoreWeights | None = None) -> None:
        self.weights = REINFORCEMENT_WEIGHTS if weights is None else weights

    def __call__(self, batch: Batch, trajectories: Float[Array, "B G 8 3"]) -> RewardScores:
        """See `DeviceReward`."""
        scores = _score_once(self.layouts[0].batch(batch), trajectories, weights=self.weights)
        known = known_scenes(batch, len(trajectories))
        total = where_known(known, scores.score)
        return RewardScores(
            total, {"pdms": total} | {name: where_known(known, getattr(scores, name)) for name in PARTS}
        )
