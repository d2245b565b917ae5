"""What scoring returns, and the weightings of the final score."""

from dataclasses import dataclass
from typing import NamedTuple

import gin
from jaxtyping import Array, Bool, Float, Int


@gin.register
@dataclass(frozen=True)
class ScoreWeights:
    """Weights of the averaged sub-scores; the multiplied ones have none. The default is NAVSIM's evaluation.

    Source: NAVSIM `PDMScorerConfig`.
    """

    progress: float = 5.0
    time_to_collision: float = 5.0
    comfort: float = 2.0
    driving_direction: float = 0.0

    def __post_init__(self) -> None:
        values = (self.progress, self.time_to_collision, self.comfort, self.driving_direction)
        if not all(0 <= value < float("inf") for value in values) or sum(values) == 0:
            raise ValueError(f"{self} cannot be used: weights must be finite, not negative and not all zero.")

    def average(
        self,
        progress: Float[Array, "*n"],
        time_to_collision: Float[Array, "*n"],
        comfort: Float[Array, "*n"],
        driving_direction: Float[Array, "*n"],
    ) -> Float[Array, "*n"]:
        """Weighted mean of the averaged sub-scores."""
        weighted = (
            self.progress * progress
            + self.time_to_collision * time_to_collision
            + self.comfort * comfort
            + self.driving_direction * driving_direction
        )
        return weighted / (self.progress + self.time_to_collision + self.comfort + self.driving_direction)


EVALUATION_WEIGHTS = ScoreWeights()
REINFORCEMENT_WEIGHTS = ScoreWeights(progress=10.0)
"""Source: upstream ReCogDrive's reward."""


class PdmScores(NamedTuple):
    """Scores of G trajectories in each of S scenes, and why they are what they are.

    Sub-scores and `score` are NaN for an invalid trajectory (one with non-finite poses). Steps are multiples of 0.1 s
    from now on; -1 means never. Tracks are columns of `PdmScene.agent_poses`; -1 means none.

    Attributes:
      valid: (S, G) whether the trajectory could be scored.
      no_at_fault_collisions: (S, G) 1, 0.5 (static object hit) or 0.
      drivable_area_compliance: (S, G) 1 or 0.
      driving_direction_compliance: (S, G) 1, 0.5 or 0.
      ego_progress: (S, G) in [0, 1].
      time_to_collision_within_bound: (S, G) 1 or 0.
      comfort: (S, G) 1 or 0.
      score: (S, G) in [0, 1] under the given weights.
      progress_m: (S, G) metres along the centre line before normalisation.
      normaliser_progress_m: (S,) the same of the normaliser.
      normaliser_factor: (S,) product of the normaliser's collision and drivable-area scores.
      collision_step: (S, G) first at-fault collision.
      collision_track: (S, G) whom it hits, the first of several by column.
      off_road_step: (S, G) first step at which a corner is in no drivable polygon.
      off_road_corner: (S, G) which: 0 front left, 1 rear left, 2 rear right, 3 front right.
      ttc_step: (S, G) first violation of time to collision.
      ttc_ahead_steps: (S, G) how many steps ahead its projection hits: 0, 3, 6 or 9.
      ttc_track: (S, G) whom.
      oncoming_m: (S, G) longest way within 1 s off the route's lanes, in metres.
      comfort_ok: (S, G, 6) in the order of `metrics/comfort.py`: longitudinal and lateral acceleration, jerk magnitude,
        longitudinal jerk, yaw acceleration, yaw rate.
      comfort_min: (S, G, 6) least value of each signal.
      comfort_max: (S, G, 6) largest value.
      states: (S, G, 41, 11) simulated states in the local frame.
      area_flags: (S, G, 41, 3) several lanes, off the drivable area, off the route's lanes.
    """

    valid: Bool[Array, "S G"]
    no_at_fault_collisions: Float[Array, "S G"]
    drivable_area_compliance: Float[Array, "S G"]
    driving_direction_compliance: Float[Array, "S G"]
    ego_progress: Float[Array, "S G"]
    time_to_collision_within_bound: Float[Array, "S G"]
    comfort: Float[Array, "S G"]
    score: Float[Array, "S G"]
    progress_m: Float[Array, "S G"]
    normaliser_progress_m: Float[Array, "S"]
    normaliser_factor: Float[Array, "S"]
    collision_step: Int[Array, "S G"]
    collision_track: Int[Array, "S G"]
    off_road_step: Int[Array, "S G"]
    off_road_corner: Int[Array, "S G"]
    ttc_step: Int[Array, "S G"]
    ttc_ahead_steps: Int[Array, "S G"]
    ttc_track: Int[Array, "S G"]
    oncoming_m: Float[Array, "S G"]
    comfort_ok: Bool[Array, "S G 6"]
    comfort_min: Float[Array, "S G 6"]
    comfort_max: Float[Array, "S G 6"]
    states: Float[Array, "S G 41 11"]
    area_flags: Bool[Array, "S G 41 3"]
