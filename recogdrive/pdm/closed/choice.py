"""Which proposal PDM-Closed drives: all are simulated and scored against its own forecast, many scenes at once.

Source: NAVSIM `AbstractPDMClosedPlanner._get_closed_loop_trajectory`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recogdrive.geometry import Pose
from recogdrive.pdm.angles import wrap_half_open
from recogdrive.pdm.batch import SceneBatch, Sizes, pad_scenes
from recogdrive.pdm.closed.extended_choice import extended_proposal_scores
from recogdrive.pdm.lights import ALWAYS, Light, LightSizes, pad_lights
from recogdrive.pdm.map_index import MapIndex
from recogdrive.pdm.metrics.progress import ego_progress
from recogdrive.pdm.metrics.traffic_light import Lights
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.scorer import drive
from recogdrive.pdm.scores import EVALUATION_WEIGHTS, ScoreWeights

_USUAL_SIZES = Sizes(agents=128, centerline=256, cells=32768, edges=32768, words=2)
_USUAL_LIGHT_SIZES = LightSizes(lights=4, vertices=128)
"""Hold most scenes of real driving, so that few processes compile more than once."""


class ProposalScores(NamedTuple):
    """Scores of G proposals in each of S scenes.

    Attributes:
      score: (S, G) in [0, 1].
      winner: (S,) the first of the best.
      extended_score: (S, G) in [0, 1].
      extended_winner: (S,) the first of the best by the extended score: what the PDM-Closed of NAVSIM v2 drives.
      no_at_fault_collisions: (S, G).
      drivable_area_compliance: (S, G).
      ego_progress: (S, G) relative to the best proposal.
      time_to_collision_within_bound: (S, G).
      comfort: (S, G).
      driving_direction_compliance: (S, G).
      states: (S, G, 41, 11) simulated.
    """

    score: Float[Array, "S G"]
    winner: Int[Array, "S"]
    extended_score: Float[Array, "S G"]
    extended_winner: Int[Array, "S"]
    no_at_fault_collisions: Float[Array, "S G"]
    drivable_area_compliance: Float[Array, "S G"]
    ego_progress: Float[Array, "S G"]
    time_to_collision_within_bound: Float[Array, "S G"]
    comfort: Float[Array, "S G"]
    driving_direction_compliance: Float[Array, "S G"]
    states: Float[Array, "S G 41 11"]


def score_proposals(
    scenes: SceneBatch, lights: Lights, poses: Float[Array, "S G 41 3"], weights: ScoreWeights = EVALUATION_WEIGHTS
) -> ProposalScores:
    """Simulates and scores proposals; progress counts relative to the best of the *group*, unlike in evaluation.

    Args:
      scenes: With the forecast as agents.
      lights: Red lights now on the corrected route, which stay red; the PDM score does not look at them.
      poses: Rear-axle poses at 0 ... 4 s, local frame.
      weights: Of the averaged sub-scores.
    """
    headings = wrap_half_open(poses[..., Pose.HEADING])
    driven = drive(scenes, jnp.concatenate([poses[..., : Pose.HEADING], headings[..., None]], axis=-1))
    factor = driven.no_at_fault_collisions * driven.drivable_area_compliance
    best = jnp.max(driven.progress_m * factor, axis=-1, keepdims=True)
    progress = ego_progress(driven.progress_m, factor, best, jnp.ones_like(best))
    average = weights.average(
        progress, driven.time_to_collision_within_bound, driven.comfort, driven.driving_direction_compliance
    )
    score = factor * average
    extended_score = extended_proposal_scores(scenes, lights, driven)
    return ProposalScores(
        score=score,
        winner=jnp.argmax(score, axis=-1),
        extended_score=extended_score,
        extended_winner=jnp.argmax(extended_score, axis=-1),
        no_at_fault_collisions=driven.no_at_fault_collisions,
        drivable_area_compliance=driven.drivable_area_compliance,
        ego_progress=progress,
        time_to_collision_within_bound=driven.time_to_collision_within_bound,
        comfort=driven.comfort,
        driving_direction_compliance=driven.driving_direction_compliance,
        states=driven.states,
    )


class ProposalScorer:
    """`score_proposals` from NumPy to NumPy in float64, compiled once for each size of batch, sizes only growing.

    Args:
      scenes_at_once: Scenes of a batch; fewer are filled up with copies.
    """

    def __init__(self, scenes_at_once: int = 16) -> None:
        self.scenes_at_once = scenes_at_once
        self._sizes = _USUAL_SIZES
        self._light_sizes = _USUAL_LIGHT_SIZES
        self._score = jax.jit(score_proposals)

    def score(
        self,
        scenes: Sequence[PdmScene],
        indices: Sequence[MapIndex],
        red_lights: Sequence[Sequence[Float[np.ndarray, "V 2"]]],
        poses: Float[np.ndarray, "S G 41 3"],
    ) -> ProposalScores:
        """Scores of at most `scenes_at_once` scenes.

        Args:
          scenes: With the forecast as agents, valid.
          indices: Their map indices.
          red_lights: Outlines of the connectors of the corrected route that are red now, local frame.
          poses: Proposals.
        """
        rows = np.minimum(np.arange(self.scenes_at_once), len(scenes) - 1)
        self._sizes = self._sizes.union(Sizes.fitting(scenes, indices))
        batch = pad_scenes(
            [scenes[i] for i in rows], dtype=np.float64, indices=[indices[i] for i in rows], sizes=self._sizes
        )
        lit = [[Light(outline, ALWAYS) for outline in red_lights[i]] for i in rows]
        self._light_sizes = self._light_sizes.union(LightSizes.fitting(lit))
        with jax.enable_x64(True):
            scores = self._score(batch, pad_lights(lit, self._light_sizes, np.float64), jnp.asarray(poses[rows]))
        return ProposalScores(*(np.asarray(values)[: len(scenes)] for values in scores))
