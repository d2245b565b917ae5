"""The extended PDM score of a single scene as a reward."""

import gin
import jax
from jaxtyping import Array, Float

from recogdrive.pdm.extended import score_extended_once
from recogdrive.pdm.extended_scores import SUB_SCORES
from recogdrive.pdm.rewards.reward import Batch, DeviceReward, RewardScores, known_scenes, where_known
from recogdrive.pdm.rewards.scene_layout import ExtendedLayout

_score_once = jax.jit(score_extended_once)
"""Part of the step's program; outside of one, as in a notebook, still compiled."""


@gin.register
class EpdmsReward(DeviceReward):
    """EPDMS in [0, 1] without two-frame extended comfort and without the human filter.

    The filter would reward breaking a rule wherever the human broke it. Parts are "epdms" and "epdms_<sub-score>".

    Source: NAVSIM v2.2 `compute_final_scores`.
    """

    layouts = (ExtendedLayout(),)
    part_names = ("epdms", *(f"epdms_{name}" for name in SUB_SCORES))

    def __call__(self, batch: Batch, trajectories: Float[Array, "B G 8 3"]) -> RewardScores:
        """See `DeviceReward`."""
        scores = _score_once(self.layouts[0].batch(batch), trajectories)
        known = known_scenes(batch, len(trajectories))
        total = where_known(known, scores.score)
        parts = {f"epdms_{name}": where_known(known, getattr(scores, name)) for name in SUB_SCORES}
        return RewardScores(total, {"epdms": total} | parts)
