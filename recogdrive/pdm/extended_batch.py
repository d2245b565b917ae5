"""Scenes as arrays for the extended score: traffic as NAVSIM v2 observes it, history, red lights, the human's plan."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recogdrive.geometry import Pose, wrap_angle
from recogdrive.pdm.batch import SceneBatch, Sizes, pad_scenes
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.extended_scores import SUB_SCORES
from recogdrive.pdm.lights import LightSizes, lights_of, pad_lights
from recogdrive.pdm.map_index import MapIndex
from recogdrive.pdm.metrics.history_comfort import History
from recogdrive.pdm.metrics.traffic_light import STEPS_PER_FRAME, Lights
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.state import NUM_OBSERVED, NUM_STATES, EgoState

HISTORY_INTERVAL_US = 100_000


class ExtendedBatch(NamedTuple):
    """S scenes on the device, to compute extended scores in.

    Attributes:
      scenes: With the traffic of `as_observed_for_4_s`. Its normaliser is NaN until `extended.with_references`, which
        also takes objects that overlap the ego at 0 s out of the traffic.
      history: What was driven before.
      lights: Red lights.
      human_poses: (S, 8, 3) driven poses in the initial rear-axle frame.
      human_breaks: (S, 8) which of `SUB_SCORES` the human scores 0 in; False until `extended.with_references`.
    """

    scenes: SceneBatch
    history: History
    lights: Lights
    human_poses: Float[Array, "S 8 3"]
    human_breaks: Bool[Array, "S 8"]

    @property
    def num_scenes(self) -> int:
        """S."""
        return self.scenes.num_scenes

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays."""
        return sum(array.nbytes for array in jax.tree.leaves(self))


class ExtendedSizes(NamedTuple):
    """Padded sizes of a batch: those of its scenes, samples of history, and of its lights."""

    scenes: Sizes
    history: int
    lights: LightSizes

    @classmethod
    def fitting(cls, scenes: Sequence[PdmScene], indices: Sequence[MapIndex]) -> "ExtendedSizes":
        """Powers of two that hold all scenes, so that few combinations occur."""
        exact = cls.exact(scenes, indices)
        return cls(
            scenes=Sizes.fitting(scenes, indices),
            history=max(16, 1 << (exact.history - 1).bit_length()),
            lights=LightSizes.fitting([lights_of(scene.extended) for scene in scenes]),
        )

    @classmethod
    def exact(cls, scenes: Sequence[PdmScene], indices: Sequence[MapIndex]) -> "ExtendedSizes":
        """The smallest sizes that hold all scenes."""
        return cls(
            scenes=Sizes.exact(scenes, indices),
            history=max(1, *(len(_sample_times_us(scene)) for scene in scenes)),
            lights=LightSizes.exact([lights_of(scene.extended) for scene in scenes]),
        )

    def union(self, other: "ExtendedSizes") -> "ExtendedSizes":
        """Sizes that hold what either holds."""
        return ExtendedSizes(
            scenes=self.scenes.union(other.scenes),
            history=max(self.history, other.history),
            lights=self.lights.union(other.lights),
        )


def require_extended(scene: PdmScene) -> None:
    """Refuses a valid scene that lacks what the extended score needs.

    Raises:
      SceneError: Extended facts or the human's plan are unknown.
    """
    if scene.extended is None:
        raise SceneError(
            f"scene {scene.token}: its extended facts (red lights, history, sightings) are unknown, so it has no "
            f"EPDMS; make the scene from its log and map, as `cache_metrics` does"
        )
    if not np.isfinite(scene.human_poses).all():
        raise SceneError(
            f"scene {scene.token}: its human_poses are unknown, but the human filter of EPDMS needs them; make the "
            f"scene from a log with 4 s of future"
        )


def as_observed_for_4_s(scene: PdmScene) -> PdmScene:
    """The scene with the tracks that NAVSIM v2 observes in it at 0 ... 4 s, none afterwards, and with its normaliser.

    A track that one frame of these 4 s shows stands there at all steps. One that several frames show is there from the
    first to the last of them. Others are not there.

    Source: NAVSIM v2.2 `MetricCacheProcessor`, whose observation ends with the proposals.
    """
    first, last = scene.extended.agent_sightings.T.astype(np.int64)
    step = np.arange(NUM_OBSERVED)[:, None]
    valid = (first >= 0) & (step >= STEPS_PER_FRAME * first) & (step <= STEPS_PER_FRAME * last) & (step < NUM_STATES)
    alone = (first >= 0) & (first == last)
    valid = np.where(alone, step < NUM_STATES, valid)
    standing = scene.agent_poses[STEPS_PER_FRAME * np.maximum(first, 0), np.arange(len(first))]
    poses = np.where(alone[:, None], standing, scene.agent_poses)
    return dataclasses.replace(
        scene,
        agent_poses=np.where(valid[..., None], poses, 0),
        agent_valid=valid,
        normaliser_poses=scene.extended.normaliser_poses_v2,
    )


def pad_extended(
    scenes: Sequence[PdmScene],
    *,
    dtype: np.typing.DTypeLike = np.float64,
    indices: Sequence[MapIndex],
    sizes: ExtendedSizes | None = None,
) -> ExtendedBatch:
    """Arranges valid scenes with extended facts as one batch of NumPy arrays.

    Args:
      scenes: At least one, checked by `validation.validate` and `require_extended`.
      dtype: float32 or float64.
      indices: Their map indices.
      sizes: Padded sizes; by default what fits.

    Raises:
      ValueError: There are no scenes, or `sizes` are too small for them.
    """
    if not scenes:
        raise ValueError("There are no scenes to arrange as a batch; give at least one.")
    sizes = ExtendedSizes.fitting(scenes, indices) if sizes is None else sizes
    observed = [as_observed_for_4_s(scene) for scene in scenes]
    dtype = np.dtype(dtype)
    return ExtendedBatch(
        scenes=pad_scenes(observed, dtype=dtype, indices=indices, sizes=sizes.scenes),
        history=_history(scenes, sizes.history, dtype),
        lights=pad_lights([lights_of(scene.extended) for scene in scenes], sizes.lights, dtype),
        human_poses=np.stack([scene.human_poses for scene in scenes]).astype(dtype),
        human_breaks=np.zeros((len(scenes), len(SUB_SCORES)), bool),
    )


def _sample_times_us(scene: PdmScene) -> Int[np.ndarray, "H"]:
    """When the history is sampled: every 0.1 s from its start, the last time before now left out."""
    times = scene.extended.history_times_us
    return np.arange(times[0], times[-1], HISTORY_INTERVAL_US)[:-1]


def _history(scenes: Sequence[PdmScene], columns: int, dtype: np.dtype) -> History:
    signals = np.zeros((3, len(scenes), columns), dtype)
    samples = np.zeros(len(scenes), np.int32)
    longest = max(len(_sample_times_us(scene)) for scene in scenes)
    if longest > columns:
        raise ValueError(f"{columns} columns cannot hold a history of {longest} samples; pass larger sizes or none.")
    for s, scene in enumerate(scenes):
        sampled, known = _sample_times_us(scene), scene.extended.history_times_us
        states = scene.extended.history_states
        values = np.stack(
            [
                wrap_angle(np.interp(sampled, known, np.unwrap(states[:, EgoState.HEADING]))),
                np.interp(sampled, known, states[:, EgoState.ACCELERATION_X]),
                np.interp(sampled, known, states[:, EgoState.ACCELERATION_Y]),
            ]
        )
        samples[s] = len(sampled)
        if len(sampled):
            signals[:, s] = np.concatenate([np.repeat(values[:, :1], columns - len(sampled), axis=1), values], axis=1)
        else:
            signals[0, s] = scene.ego_state[Pose.HEADING]
    return History(*signals, samples)
