"""The PDM score: drives trajectories through the simulator, multiplies and weights the metrics.

`score_trajectories` is the pure function for use inside other programs; `PdmScorer` is the same from NumPy to NumPy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recogdrive.pdm.batch import SceneBatch, Sizes, pad_scenes
from recogdrive.pdm.contact import first_contacts
from recogdrive.pdm.footprint import centers, corners
from recogdrive.pdm.groups import GroupScorer, check_groups
from recogdrive.pdm.map_index import build_map_index
from recogdrive.pdm.metrics import time_to_collision as ttc
from recogdrive.pdm.metrics.collision import collisions, ego_motion
from recogdrive.pdm.metrics.comfort import comfort
from recogdrive.pdm.metrics.drivable_area import areas, drivable_area
from recogdrive.pdm.metrics.driving_direction import driving_direction
from recogdrive.pdm.metrics.progress import ego_progress, raw_progress
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.scores import EVALUATION_WEIGHTS, PdmScores, ScoreWeights
from recogdrive.pdm.simulator import simulate
from recogdrive.pdm.state import EgoState
from recogdrive.pdm.trajectory import (
    absolute_poses,
    interpolate_candidate,
    interpolate_normaliser,
)
from recogdrive.pdm.validation import validate


class Drive(NamedTuple):
    """Simulated drives of S x G trajectories and their metrics, before normalisation and weighting.

    Attributes as in `PdmScores`.
    """

    no_at_fault_collisions: Float[Array, "S G"]
    drivable_area_compliance: Float[Array, "S G"]
    driving_direction_compliance: Float[Array, "S G"]
    time_to_collision_within_bound: Float[Array, "S G"]
    comfort: Float[Array, "S G"]
    progress_m: Float[Array, "S G"]
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


def drive(scenes: SceneBatch, poses: Float[Array, "S G 41 3"]) -> Drive:
    """Simulates the car along poses and judges what happens.

    Args:
      scenes: Where.
      poses: Rear-axle poses at 0 ... 4 s, local frame.
    """
    states = simulate(poses, scenes.ego_state[:, None])
    dtype = states.dtype
    center, footprint_corners = centers(states), corners(states)
    ego = ego_motion(states)
    where = areas(scenes.maps, states[..., : EgoState.HEADING], center, footprint_corners)
    contacts = first_contacts(ego.footprint, ego.speed, ego.speed < ttc.STANDING_MPS, scenes.agents)
    no_collision, collision_step, collision_track = collisions(ego, scenes.agents, where, contacts.collision)
    on_road, off_road_step, off_road_corner = drivable_area(where, dtype)
    ttc_score, ttc_step, ttc_ahead, ttc_track = ttc.time_to_collision(ego, scenes.agents, where, contacts.projected)
    direction, oncoming_m = driving_direction(center, where.oncoming)
    comfort_ok, comfort_min, comfort_max = comfort(states)
    return Drive(
        no_at_fault_collisions=no_collision,
        drivable_area_compliance=on_road,
        driving_direction_compliance=direction,
        time_to_collision_within_bound=ttc_score,
        comfort=comfort_ok.all(axis=-1).astype(dtype),
        progress_m=raw_progress(center[:, :, 0], center[:, :, -1], scenes.centerline, scenes.centerline_points),
        collision_step=collision_step,
        collision_track=collision_track,
        off_road_step=off_road_step,
        off_road_corner=off_road_corner,
        ttc_step=ttc_step,
        ttc_ahead_steps=ttc_ahead,
        ttc_track=ttc_track,
        oncoming_m=oncoming_m,
        comfort_ok=comfort_ok,
        comfort_min=comfort_min,
        comfort_max=comfort_max,
        states=states,
        area_flags=jnp.stack([where.several_lanes, where.off_road, where.oncoming], axis=-1),
    )


def with_normaliser(scenes: SceneBatch) -> SceneBatch:
    """The batch with progress and factor of its normalisers, which every score needs; once a scene is enough.

    Source: NAVSIM `pdm_score` scores the cached PDM-Closed trajectory beside every candidate.
    """
    return _normalised(scenes, drive(scenes, interpolate_normaliser(scenes.normaliser_poses)[:, None]))


def score_trajectories(
    scenes: SceneBatch, trajectories: Float[Array, "S G 8 3"], weights: ScoreWeights = EVALUATION_WEIGHTS
) -> PdmScores:
    """Scores G trajectories in each of S scenes; pure and jittable.

    Args:
      scenes: With their normalisers (`with_normaliser`); without, progress and score are NaN.
      trajectories: x, y, heading at 0.5 ... 4 s in the initial rear-axle frame, metres and radians. One with non-finite
        poses is invalid: its scores are NaN, those of the others are not touched.
      weights: Of the averaged sub-scores.

    Source: NAVSIM `pdm_score`, `PDMScorer.score_proposals`.
    """
    poses, finite = poses_to_follow(scenes, trajectories)
    return _scores(scenes, drive(scenes, poses), finite, weights)


def score_once(
    scenes: SceneBatch, trajectories: Float[Array, "S G 8 3"], weights: ScoreWeights = EVALUATION_WEIGHTS
) -> PdmScores:
    """The same for scenes whose normalisers are not scored yet: they drive along in the same program."""
    poses, finite = poses_to_follow(scenes, trajectories)
    reference = interpolate_normaliser(scenes.normaliser_poses)[:, None]
    driven = drive(scenes, jnp.concatenate([reference, poses], axis=1))
    scenes = _normalised(scenes, Drive(*(values[:, :1] for values in driven)))
    return _scores(scenes, Drive(*(values[:, 1:] for values in driven)), finite, weights)


def poses_to_follow(
    scenes: SceneBatch, trajectories: Float[Array, "S G 8 3"]
) -> tuple[Float[Array, "S G 41 3"], Bool[Array, "S G"]]:
    """Trajectories every 0.1 s in the local frame, and which of them are finite."""
    finite = jnp.isfinite(trajectories).all(axis=(-2, -1))
    # An invalid trajectory drives along zeros, so that nothing that is not finite enters the batch.
    planned = jnp.where(finite[..., None, None], trajectories, 0).astype(scenes.ego_state.dtype)
    initial_pose = scenes.ego_state[:, None, : EgoState.HEADING + 1]
    return interpolate_candidate(absolute_poses(planned, initial_pose), initial_pose), finite


def _normalised(scenes: SceneBatch, normaliser: Drive) -> SceneBatch:
    """The batch with what its normalisers (G = 1) achieved."""
    factor = normaliser.no_at_fault_collisions * normaliser.drivable_area_compliance
    return scenes._replace(normaliser_progress_m=normaliser.progress_m[:, 0], normaliser_factor=factor[:, 0])


def _scores(scenes: SceneBatch, driven: Drive, finite: Bool[Array, "S G"], weights: ScoreWeights) -> PdmScores:
    """Normalises progress, weights the sub-scores and blanks what is not valid."""
    # Finite poses of absurd size may still leave the range of float32 on the way.
    valid = finite & jnp.isfinite(driven.states).all(axis=(-2, -1))
    factor = driven.no_at_fault_collisions * driven.drivable_area_compliance
    normaliser = scenes.normaliser_progress_m[:, None], scenes.normaliser_factor[:, None]
    progress = ego_progress(driven.progress_m, factor, *normaliser)
    progress = jnp.where(jnp.isnan(normaliser[0]), jnp.nan, progress)  # Nobody scored the normaliser.
    average = weights.average(
        progress,
        driven.time_to_collision_within_bound,
        driven.comfort,
        driven.driving_direction_compliance,
    )
    return PdmScores(
        valid=valid,
        ego_progress=known(progress, valid),
        score=known(factor * average, valid),
        normaliser_progress_m=scenes.normaliser_progress_m,
        normaliser_factor=scenes.normaliser_factor,
        **{name: known(values, valid) for name, values in driven._asdict().items()},
    )


def known(values: Array, valid: Bool[Array, "S G"]) -> Array:
    """Values (S, G, ...) with NaN, False, or -1 for steps and tracks, where the trajectory is invalid."""
    is_valid = valid.reshape(*valid.shape, *[1] * (values.ndim - 2))
    if values.dtype == bool:
        return values & is_valid
    return jnp.where(is_valid, values, jnp.nan if jnp.issubdtype(values.dtype, jnp.floating) else -1)


@gin.register
class PdmScorer(GroupScorer[PdmScores]):
    """Computes PDM scores of trajectories, from NumPy to NumPy, compiled once for each size of batch.

    Args:
      weights: Of the averaged sub-scores; NAVSIM's evaluation unless given.
      dtype: "float64" as the reference computes, or "float32"; by default float64 but on TPUs, which lack it.
      max_scenes: Scenes scored at once; more are scored in turn, which bounds memory.

    Raises:
      ValueError: An argument is out of range.
    """

    def __init__(self, weights: ScoreWeights | None = None, *, dtype: str | None = None, max_scenes: int = 64) -> None:
        super().__init__(dtype, max_scenes)
        self.weights = EVALUATION_WEIGHTS if weights is None else weights
        self._sizes: Sizes | None = None
        self._normalise = jax.jit(with_normaliser)
        self._score = jax.jit(score_trajectories, static_argnames="weights")
        self._score_once = jax.jit(score_once, static_argnames="weights")

    def prepare(self, scenes: Sequence[PdmScene]) -> SceneBatch:
        """Scenes on the device with their normalisers scored, to score trajectories in again and again.

        Raises:
          SceneError: A scene cannot be scored.
        """
        return self.normalise(self._padded(scenes))

    def normalise(self, scenes: SceneBatch) -> SceneBatch:
        """A padded batch (`pad_scenes`, in this scorer's dtype) on the device, with its normalisers scored."""
        with self._precision():
            return self._normalise(scenes)

    def score_batch(self, scenes: SceneBatch, trajectories: Float[np.ndarray, "S G 8 3"]) -> PdmScores:
        """Scores in prepared scenes, on the device.

        Raises:
          ValueError: The trajectories do not have 8 poses at 0.5 s, or are not one group for each scene.
        """
        check_groups(trajectories, scenes.num_scenes)
        with self._precision():
            return self._score(scenes, jnp.asarray(trajectories, self.dtype), weights=self.weights)

    def _score_groups(self, scenes: Sequence[PdmScene], trajectories: Float[Array, "S G 8 3"]) -> PdmScores:
        return self._score_once(self._padded(scenes), trajectories, weights=self.weights)

    def _padded(self, scenes: Sequence[PdmScene]) -> SceneBatch:
        """Scenes, checked, as arrays of sizes that only grow, so that a split soon needs no further compilation."""
        for scene in scenes:
            validate(scene)
        indices = [build_map_index(scene) for scene in scenes]
        fitting = Sizes.fitting(scenes, indices)
        self._sizes = fitting if self._sizes is None else self._sizes.union(fitting)
        return pad_scenes(scenes, dtype=self.dtype, indices=indices, sizes=self._sizes)
