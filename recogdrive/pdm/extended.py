"""The extended PDM score (EPDMS) of NAVSIM v2: drives trajectories through the simulator and multiplies more metrics.

`score_extended` is the pure function for use inside other programs; `ExtendedScorer` is the same from NumPy to NumPy.
What compares a scene with the one before it, two-frame extended comfort, is in `metrics/extended_comfort.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recogdrive.pdm.batch import ABSENT_M
from recogdrive.pdm.contact import Agents, Boxes, corners, first_contacts, overlap_gap, polygons_meet
from recogdrive.pdm.extended_batch import ExtendedBatch, ExtendedSizes, pad_extended, require_extended
from recogdrive.pdm.extended_scores import MULTIPLIED, SUB_SCORES, ExtendedScores, weighted_score
from recogdrive.pdm.footprint import centers
from recogdrive.pdm.footprint import corners as footprint_corners
from recogdrive.pdm.groups import GroupScorer, check_groups
from recogdrive.pdm.map_index import build_map_index
from recogdrive.pdm.metrics import time_to_collision as ttc
from recogdrive.pdm.metrics.collision import collisions, ego_motion
from recogdrive.pdm.metrics.drivable_area import areas, drivable_area
from recogdrive.pdm.metrics.driving_direction import driving_direction
from recogdrive.pdm.metrics.extended_comfort import extended_comfort
from recogdrive.pdm.metrics.history_comfort import history_comfort
from recogdrive.pdm.metrics.lane_keeping import lane_keeping
from recogdrive.pdm.metrics.progress import extended_ego_progress, raw_progress
from recogdrive.pdm.metrics.traffic_light import traffic_light
from recogdrive.pdm.predicates import settle
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.scorer import known, poses_to_follow
from recogdrive.pdm.simulator import simulate
from recogdrive.pdm.state import HALF_LENGTH_M, HALF_WIDTH_M, NUM_STATES, EgoState
from recogdrive.pdm.trajectory import interpolate_normaliser
from recogdrive.pdm.validation import validate

LAST_TTC_STEP = NUM_STATES - 1 - max(ttc.PROJECTED_STEPS)
"""Later steps would look beyond the observed 4 s."""


class ExtendedDrive(NamedTuple):
    """Simulated drives of S x G trajectories and their metrics, before normalisation and weighting.

    Attributes as in `ExtendedScores`.
    """

    no_at_fault_collisions: Float[Array, "S G"]
    drivable_area_compliance: Float[Array, "S G"]
    driving_direction_compliance: Float[Array, "S G"]
    traffic_light_compliance: Float[Array, "S G"]
    time_to_collision_within_bound: Float[Array, "S G"]
    lane_keeping: Float[Array, "S G"]
    history_comfort: Float[Array, "S G"]
    progress_m: Float[Array, "S G"]
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

    @property
    def factor(self) -> Float[Array, "S G"]:
        """Product of the multiplied sub-scores."""
        return jnp.prod(jnp.stack([getattr(self, name) for name in MULTIPLIED]), axis=0)


def drive_extended(batch: ExtendedBatch, poses: Float[Array, "S G 41 3"]) -> ExtendedDrive:
    """Simulates the car along poses and judges what happens.

    Args:
      batch: Where, without objects that overlap the ego at 0 s.
      poses: Rear-axle poses at 0 ... 4 s, local frame.
    """
    scenes = batch.scenes
    states = simulate(poses, scenes.ego_state[:, None])
    dtype = states.dtype
    center, ego = centers(states), ego_motion(states)
    where = areas(scenes.maps, states[..., : EgoState.HEADING], center, footprint_corners(states))
    left_out = (ego.speed < ttc.STANDING_MPS) | (jnp.arange(NUM_STATES) > LAST_TTC_STEP)
    contacts = first_contacts(ego.footprint, ego.speed, left_out, scenes.agents)
    no_collision, collision_step, collision_track = collisions(ego, scenes.agents, where, contacts.collision)
    on_road, off_road_step, _ = drivable_area(where, dtype)
    direction, oncoming_m = driving_direction(center, where.oncoming & ~where.center_intersection)
    no_red_light, red_light_step, red_light = traffic_light(ego.footprint, batch.lights)
    ttc_score, ttc_step, _, ttc_track = ttc.time_to_collision(ego, scenes.agents, where, contacts.projected)
    on_line, off_line_step = lane_keeping(
        center, where.center_intersection, scenes.centerline, scenes.centerline_points
    )
    comfort_ok, _, _ = history_comfort(states, batch.history)
    return ExtendedDrive(
        no_at_fault_collisions=no_collision,
        drivable_area_compliance=on_road,
        driving_direction_compliance=direction,
        traffic_light_compliance=no_red_light,
        time_to_collision_within_bound=ttc_score,
        lane_keeping=on_line,
        history_comfort=comfort_ok.all(axis=-1).astype(dtype),
        progress_m=raw_progress(center[:, :, 0], center[:, :, -1], scenes.centerline, scenes.centerline_points),
        collision_step=collision_step,
        collision_track=collision_track,
        off_road_step=off_road_step,
        oncoming_m=oncoming_m,
        red_light_step=red_light_step,
        red_light=red_light,
        ttc_step=ttc_step,
        ttc_track=ttc_track,
        off_line_step=off_line_step,
        comfort_ok=comfort_ok,
        states=states,
    )


def without_initial_contacts(agents: Agents, ego_state: Float[Array, "S 11"]) -> Agents:
    """The traffic without the objects whose boxes meet the ego's at 0 s; touching counts.

    Source: NAVSIM v2.2 `LogReplayTrafficAgents`.
    """
    ego = Boxes(*(values[:, 0, 0, None] for values in ego_motion(ego_state[:, None, None]).footprint))
    others = Boxes(*(values[0] for values in agents.boxes))
    gap, error = overlap_gap(ego, (HALF_LENGTH_M, HALF_WIDTH_M), others, (agents.half_length, agents.half_width))

    def decide(chosen: Array) -> Array:
        scene, track = jnp.unravel_index(chosen, gap.shape)
        other = Boxes(*(values[scene, track] for values in others))
        return polygons_meet(
            corners(Boxes(*(values[scene, 0] for values in ego)), HALF_LENGTH_M, HALF_WIDTH_M),
            corners(other, agents.half_length[scene, track], agents.half_width[scene, track]),
        )

    meets = settle(jnp.abs(gap) <= error, gap < 0, decide)
    absent = jnp.asarray(ABSENT_M, gap.dtype)
    boxes = agents.boxes._replace(
        x=jnp.where(meets, absent, agents.boxes.x), y=jnp.where(meets, absent, agents.boxes.y)
    )
    return agents._replace(boxes=boxes)


def with_references(batch: ExtendedBatch) -> ExtendedBatch:
    """The batch ready to score in: initial contacts taken out, normaliser and human driven; once a scene is enough.

    Source: NAVSIM v2.2 `pdm_score` scores PDM-Closed beside every candidate, and the human alone.
    """
    batch = _with_traffic(batch)
    return _referred(batch, drive_extended(batch, _references(batch)))


def score_extended(batch: ExtendedBatch, trajectories: Float[Array, "S G 8 3"]) -> ExtendedScores:
    """Scores G trajectories in each of S scenes; pure and jittable.

    Args:
      batch: With its references (`with_references`); without, progress and score are NaN.
      trajectories: x, y, heading at 0.5 ... 4 s in the initial rear-axle frame, metres and radians. One with non-finite
        poses is invalid: its scores are NaN, those of the others are not touched.

    Source: NAVSIM v2.2 `pdm_score`, `PDMScorer.score_proposals`.
    """
    poses, finite = poses_to_follow(batch.scenes, trajectories)
    return _scores(batch, drive_extended(batch, poses), finite)


def score_extended_once(batch: ExtendedBatch, trajectories: Float[Array, "S G 8 3"]) -> ExtendedScores:
    """The same for scenes whose references have not driven yet: they drive along in the same program."""
    batch = _with_traffic(batch)
    poses, finite = poses_to_follow(batch.scenes, trajectories)
    driven = drive_extended(batch, jnp.concatenate([_references(batch), poses], axis=1))
    batch = _referred(batch, ExtendedDrive(*(values[:, :2] for values in driven)))
    return _scores(batch, ExtendedDrive(*(values[:, 2:] for values in driven)), finite)


def _with_traffic(batch: ExtendedBatch) -> ExtendedBatch:
    """The batch without initial contacts."""
    agents = without_initial_contacts(batch.scenes.agents, batch.scenes.ego_state)
    return batch._replace(scenes=batch.scenes._replace(agents=agents))


def _references(batch: ExtendedBatch) -> Float[Array, "S 2 41 3"]:
    """What normaliser and human drive along."""
    normaliser = interpolate_normaliser(batch.scenes.normaliser_poses)[:, None]
    human, _ = poses_to_follow(batch.scenes, batch.human_poses[:, None])
    return jnp.concatenate([normaliser, human], axis=1)


def _referred(batch: ExtendedBatch, driven: ExtendedDrive) -> ExtendedBatch:
    """The batch with what its normalisers achieved and its humans broke, drives of both in this order.

    Progress and history comfort of the human never are 0: the reference scores it alone and without its history.
    """
    scores = driven._asdict() | dict.fromkeys(("ego_progress", "history_comfort"), jnp.ones_like(driven.progress_m))
    breaks = jnp.stack([scores[name][:, 1] == 0 for name in SUB_SCORES], axis=-1)
    scenes = batch.scenes._replace(normaliser_progress_m=driven.progress_m[:, 0], normaliser_factor=driven.factor[:, 0])
    return batch._replace(scenes=scenes, human_breaks=breaks)


def _scores(batch: ExtendedBatch, driven: ExtendedDrive, finite: Bool[Array, "S G"]) -> ExtendedScores:
    """Normalises progress, weights the sub-scores and blanks what is not valid."""
    # Finite poses of absurd size may still leave the range of float32 on the way.
    valid = finite & jnp.isfinite(driven.states).all(axis=(-2, -1))
    normaliser = batch.scenes.normaliser_progress_m[:, None], batch.scenes.normaliser_factor[:, None]
    progress = extended_ego_progress(driven.progress_m, driven.factor, *normaliser)
    progress = jnp.where(jnp.isnan(normaliser[0]), jnp.nan, progress)  # Nobody scored the normaliser.
    score = weighted_score(driven._asdict() | {"ego_progress": progress})
    return ExtendedScores(
        valid=valid,
        ego_progress=known(progress, valid),
        score=known(score, valid),
        human_breaks=batch.human_breaks,
        normaliser_progress_m=batch.scenes.normaliser_progress_m,
        normaliser_factor=batch.scenes.normaliser_factor,
        **{name: known(values, valid) for name, values in driven._asdict().items()},
    )


@gin.register
class ExtendedScorer(GroupScorer[ExtendedScores]):
    """Computes extended scores of trajectories, from NumPy to NumPy, compiled once for each size of batch.

    Args:
      dtype: "float64" as the reference computes, or "float32"; by default float64 but on TPUs, which lack it.
      max_scenes: Scenes scored at once; more are scored in turn, which bounds memory.

    Raises:
      ValueError: An argument is out of range.
    """

    SCENE_FIELDS = GroupScorer.SCENE_FIELDS | {"human_breaks"}

    def __init__(self, *, dtype: str | None = None, max_scenes: int = 64) -> None:
        super().__init__(dtype, max_scenes)
        self._sizes: ExtendedSizes | None = None
        self._refer = jax.jit(with_references)
        self._score = jax.jit(score_extended)
        self._score_once = jax.jit(score_extended_once)
        self._compare = jax.jit(extended_comfort, static_argnames="steps")

    def prepare(self, scenes: Sequence[PdmScene]) -> ExtendedBatch:
        """Scenes on the device with normaliser and human driven, to score trajectories in again and again.

        Raises:
          SceneError: A scene cannot be scored.
        """
        with self._precision():
            return self._refer(self._padded(scenes))

    def score_batch(self, batch: ExtendedBatch, trajectories: Float[np.ndarray, "S G 8 3"]) -> ExtendedScores:
        """Scores in prepared scenes, on the device.

        Raises:
          ValueError: The trajectories do not have 8 poses at 0.5 s, or are not one group for each scene.
        """
        check_groups(trajectories, batch.num_scenes)
        with self._precision():
            return self._score(batch, jnp.asarray(trajectories, self.dtype))

    def compare(
        self, current: Float[np.ndarray, "B 41 11"], previous: Float[np.ndarray, "B 41 11"], steps: int
    ) -> Float[np.ndarray, "B"]:
        """Two-frame extended comfort, 1 or 0, of drives beside those of a frame some steps of 0.1 s before.

        Raises:
          ValueError: See `extended_comfort`.
        """
        # Copies of the last pair up to a power of two: few sizes are compiled.
        rows = np.minimum(np.arange(1 << (len(current) - 1).bit_length()), len(current) - 1)
        with self._precision():
            states = (jnp.asarray(values[rows], self.dtype) for values in (current, previous))
            alike, _ = self._compare(*states, steps=steps)
        return np.asarray(alike.all(axis=-1), np.float64)[: len(current)]

    def _score_groups(self, scenes: Sequence[PdmScene], trajectories: Float[Array, "S G 8 3"]) -> ExtendedScores:
        return self._score_once(self._padded(scenes), trajectories)

    def _padded(self, scenes: Sequence[PdmScene]) -> ExtendedBatch:
        """Scenes, checked, as arrays of sizes that only grow, so that a split soon needs no further compilation."""
        for scene in scenes:
            validate(scene)
            require_extended(scene)
        indices = [build_map_index(scene) for scene in scenes]
        fitting = ExtendedSizes.fitting(scenes, indices)
        self._sizes = fitting if self._sizes is None else self._sizes.union(fitting)
        return pad_extended(scenes, dtype=self.dtype, indices=indices, sizes=self._sizes)
