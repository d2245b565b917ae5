"""What the extended score (EPDMS) consists of, how its parts are weighed, and the human filter."""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Array, Bool, Float, Int

MULTIPLIED = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
)
WEIGHTS = {
    "ego_progress": 5.0,
    "time_to_collision_within_bound": 5.0,
    "lane_keeping": 2.0,
    "history_comfort": 2.0,
}
"""Of the averaged sub-scores. Source: NAVSIM v2.2 `PDMScorerConfig`."""
SUB_SCORES = (*MULTIPLIED, *WEIGHTS)
"""What a single scene is scored by: NAVSIM's names, in the order of its table."""
EXTENDED_COMFORT = "two_frame_extended_comfort"
EXTENDED_COMFORT_WEIGHT = 2.0

Number = TypeVar("Number", float, np.ndarray, Array)


class ExtendedScores(NamedTuple):
    """Extended scores of G trajectories in each of S scenes, without two-frame extended comfort and without the filter.

    Sub-scores and `score` are NaN for an invalid trajectory (one with non-finite poses). Steps are multiples of 0.1 s
    from now on; -1 means never. Tracks are columns of `PdmScene.agent_poses`; -1 means none.

    Attributes:
      valid: (S, G) whether the trajectory could be scored.
      no_at_fault_collisions: (S, G) 1, 0.5 (static object hit) or 0.
      drivable_area_compliance: (S, G) 1 or 0.
      driving_direction_compliance: (S, G) 1, 0.5 or 0.
      traffic_light_compliance: (S, G) 1 or 0.
      ego_progress: (S, G) in [0, 1].
      time_to_collision_within_bound: (S, G) 1 or 0.
      lane_keeping: (S, G) 1 or 0.
      history_comfort: (S, G) 1 or 0.
      score: (S, G) in [0, 1], see `weighted_score`.
      human_breaks: (S, 8) which of `SUB_SCORES` the human scores 0 in; the filter sets these to 1.
      progress_m: (S, G) metres along the centre line before normalisation.
      normaliser_progress_m: (S,) the same of the normaliser.
      normaliser_factor: (S,) product of the normaliser's multiplied sub-scores.
      collision_step: (S, G) first at-fault collision.
      collision_track: (S, G) whom it hits.
      off_road_step: (S, G) first step at which a corner is in no drivable polygon.
      oncoming_m: (S, G) longest way within 1 s off the route's lanes and out of intersections, in metres.
      red_light_step: (S, G) first step on a connector with a red light.
      red_light: (S, G) which one of `ExtendedFacts`.
      ttc_step: (S, G) first violation of time to collision.
      ttc_track: (S, G) whom.
      off_line_step: (S, G) when the car has been off the centre line for too long.
      comfort_ok: (S, G, 6) in the order of `metrics.comfort.CHECKS`.
      states: (S, G, 41, 11) simulated states in the local frame.
    """

    valid: Bool[Array, "S G"]
    no_at_fault_collisions: Float[Array, "S G"]
    drivable_area_compliance: Float[Array, "S G"]
    driving_direction_compliance: Float[Array, "S G"]
    traffic_light_compliance: Float[Array, "S G"]
    ego_progress: Float[Array, "S G"]
    time_to_collision_within_bound: Float[Array, "S G"]
    lane_keeping: Float[Array, "S G"]
    history_comfort: Float[Array, "S G"]
    score: Float[Array, "S G"]
    human_breaks: Bool[Array, "S 8"]
    progress_m: Float[Array, "S G"]
    normaliser_progress_m: Float[Array, "S"]
    normaliser_factor: Float[Array, "S"]
    collision_step: Int[Array, "S G"]
    collision_track: Int[Array, "S G"]
    off_road_step: Int[Array, "S G"]
    oncoming_m: Float[Array, "S G"]
    red_light_step: Int[Array, "S G"]
    red_light: Int[Array, "S G"]
    ttc_step: Int[Array, "S G"]
    ttc_track: Int[Array, "S G"]
    off_line_step: Int[Array, "S G"]
    comfort_ok: Bool[Array, "S G 6"]
    states: Float[Array, "S G 41 11"]


def weighted_score(scores: Mapping[str, Number], extended_comfort: Number | None = None) -> Number:
    """EPDMS: the product of the first four sub-scores, times the weighted mean of the others.

    Args:
      scores: `SUB_SCORES` by name.
      extended_comfort: Two-frame extended comfort; without it its weight is left out, and 14 instead of 16 divides.

    Source: NAVSIM v2.2 `compute_final_scores`.
    """
    weighted = sum(weight * scores[name] for name, weight in WEIGHTS.items())
    total = sum(WEIGHTS.values())
    if extended_comfort is not None:
        weighted = weighted + EXTENDED_COMFORT_WEIGHT * extended_comfort
        total += EXTENDED_COMFORT_WEIGHT
    return math.prod(scores[name] for name in MULTIPLIED) * (weighted / total)


def forgive(scores: Mapping[str, float], human_breaks: Bool[np.ndarray, "8"]) -> dict[str, float]:
    """The human filter: sub-scores in which the human scores 0 become 1; halves are not forgiven.

    Args:
      scores: `SUB_SCORES` of one trajectory by name.
      human_breaks: In their order.

    Source: NAVSIM v2.2 `pdm_score`.
    """
    return {name: 1.0 if broken else scores[name] for name, broken in zip(SUB_SCORES, human_breaks, strict=True)}
