"""Scenes of different sizes as arrays of one size, ready for the scorer."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from recogdrive.data.types import AgentClass
from recogdrive.pdm.contact import STANDING_MPS, Agents, Boxes
from recogdrive.pdm.map import MapArrays
from recogdrive.pdm.map_index import MapIndex, build_map_index
from recogdrive.pdm.scene import PdmScene

STATIC_CLASSES = (AgentClass.TRAFFIC_CONE, AgentClass.BARRIER, AgentClass.CZONE_SIGN, AgentClass.GENERIC_OBJECT)
ABSENT_M = 1e7
"""Where absent and padding tracks lie: out of reach in either float format."""


class SceneBatch(NamedTuple):
    """S scenes on the device. The dtype of its numbers is the one scoring computes in.

    Attributes:
      ego_state: (S, 11) initial states, local frame.
      agents: Observed tracks.
      maps: Point-in-polygon indices.
      centerline: (S, C, 2) padded with its last point.
      centerline_points: (S,) int32, how many are real.
      normaliser_poses: (S, 51, 3), every 0.1 s.
      normaliser_progress_m: (S,) progress of the normaliser in metres; NaN until `scorer.with_normaliser`.
      normaliser_factor: (S,) product of its collision and drivable-area scores; likewise.
    """

    ego_state: Float[Array, "S 11"]
    agents: Agents
    maps: MapArrays
    centerline: Float[Array, "S C 2"]
    centerline_points: Int[Array, "S"]
    normaliser_poses: Float[Array, "S 51 3"]
    normaliser_progress_m: Float[Array, "S"]
    normaliser_factor: Float[Array, "S"]

    @property
    def num_scenes(self) -> int:
        """S."""
        return self.ego_state.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays."""
        return sum(array.nbytes for array in jax.tree.leaves(self))


class Sizes(NamedTuple):
    """Padded sizes of a batch: tracks, centre-line points, cells, listed edges, mask words.

    Scores do not depend on them; every new combination compiles the scorer anew.
    """

    agents: int
    centerline: int
    cells: int
    edges: int
    words: int

    @classmethod
    def fitting(cls, scenes: Sequence[PdmScene], indices: Sequence[MapIndex]) -> "Sizes":
        """Powers of two that hold all scenes, so that few combinations occur."""
        exact = cls.exact(scenes, indices)
        smallest = cls(agents=32, centerline=256, cells=32768, edges=8192, words=1)
        return cls(*(max(least, 1 << (size - 1).bit_length()) for least, size in zip(smallest, exact, strict=True)))

    @classmethod
    def exact(cls, scenes: Sequence[PdmScene], indices: Sequence[MapIndex]) -> "Sizes":
        """The smallest sizes that hold all scenes."""
        return cls(
            agents=max(1, *(scene.agent_types.shape[0] for scene in scenes)),
            centerline=max(len(scene.centerline) for scene in scenes),
            cells=max(len(index.whole) for index in indices),
            edges=max(1, *(len(index.bits) for index in indices)),
            words=max(index.whole.shape[1] for index in indices),
        )

    def union(self, other: "Sizes") -> "Sizes":
        """Sizes that hold what either holds."""
        return Sizes(*map(max, self, other))


def pad_scenes(
    scenes: Sequence[PdmScene],
    *,
    dtype: np.typing.DTypeLike = np.float64,
    indices: Sequence[MapIndex] | None = None,
    sizes: Sizes | None = None,
) -> SceneBatch:
    """Arranges valid scenes as one batch of NumPy arrays.

    Args:
      scenes: At least one, checked by `validation.validate`.
      dtype: float32 or float64.
      indices: Their map indices where they were built before, which takes most of this function's time.
      sizes: Padded sizes; by default what fits.

    Raises:
      ValueError: There are no scenes, or `sizes` are too small for them.
    """
    if not scenes:
        raise ValueError("There are no scenes to arrange as a batch; give at least one.")
    indices = [build_map_index(scene) for scene in scenes] if indices is None else indices
    exact = Sizes.exact(scenes, indices)
    sizes = Sizes.fitting(scenes, indices) if sizes is None else sizes
    if any(have < want for have, want in zip(sizes, exact, strict=True)):
        raise ValueError(f"{sizes} cannot hold these scenes, which need {exact}; pass larger sizes or none.")
    dtype = np.dtype(dtype)
    unknown = np.full(len(scenes), np.nan, dtype)
    return SceneBatch(
        ego_state=np.stack([scene.ego_state for scene in scenes]).astype(dtype),
        agents=_agents(scenes, sizes, dtype),
        maps=_maps(indices, sizes, dtype),
        centerline=np.stack([_padded_line(scene.centerline, sizes.centerline) for scene in scenes]).astype(dtype),
        centerline_points=np.array([len(scene.centerline) for scene in scenes], np.int32),
        normaliser_poses=np.stack([scene.normaliser_poses for scene in scenes]).astype(dtype),
        normaliser_progress_m=unknown,
        normaliser_factor=unknown,
    )


def _padded_line(line: np.ndarray, points: int) -> np.ndarray:
    return np.concatenate([line, np.repeat(line[-1:], points - len(line), axis=0)])


def _agents(scenes: Sequence[PdmScene], sizes: Sizes, dtype: np.dtype) -> Agents:
    """Tracks of all scenes; cosines and sines are taken in float64."""
    steps, (count, tracks) = scenes[0].agent_poses.shape[0], (len(scenes), sizes.agents)
    boxes = Boxes(*(np.full((steps, count, tracks), fill, dtype) for fill in (ABSENT_M, ABSENT_M, 1.0, 0.0)))
    half = np.ones((2, count, tracks), dtype)
    stopped, static = np.zeros((2, count, tracks), bool)
    for s, scene in enumerate(scenes):
        here, seen = scene.agent_types.shape[0], scene.agent_valid
        poses = np.asarray(scene.agent_poses, np.float64)
        boxes.x[:, s, :here] = np.where(seen, poses[..., 0], ABSENT_M)
        boxes.y[:, s, :here] = np.where(seen, poses[..., 1], ABSENT_M)
        boxes.cos[:, s, :here] = np.cos(poses[..., 2])
        boxes.sin[:, s, :here] = np.sin(poses[..., 2])
        half[:, s, :here] = np.asarray(scene.agent_sizes, np.float64).T / 2
        static[s, :here] = np.isin(scene.agent_types, STATIC_CLASSES)
        stopped[s, :here] = static[s, :here] | (scene.agent_speeds <= STANDING_MPS)
    return Agents(boxes, half[0], half[1], stopped, static)


def _maps(indices: Sequence[MapIndex], sizes: Sizes, dtype: np.dtype) -> MapArrays:
    count = len(indices)
    starts = np.zeros((count, sizes.cells + 1), np.int32)
    whole = np.zeros((count, sizes.cells, sizes.words), np.uint32)
    edges = np.zeros((count, sizes.edges, 4), dtype)
    bits = np.zeros((count, sizes.edges), np.int32)
    masks = np.zeros((4, count, sizes.words), np.uint32)
    for s, index in enumerate(indices):
        cells, listed, words = len(index.whole), len(index.bits), index.whole.shape[1]
        starts[s, : cells + 1], starts[s, cells + 1 :] = index.starts, listed
        whole[s, :cells, :words] = index.whole
        edges[s, :listed] = index.edges
        bits[s, :listed] = index.bits
        for mask, values in zip(
            masks, (index.lane_bits, index.route_bits, index.drivable_bits, index.intersection_bits), strict=True
        ):
            mask[s, :words] = values
    return MapArrays(
        origin=np.stack([index.origin for index in indices]).astype(dtype),
        cells_per_m=np.array([1 / index.cell_m for index in indices], dtype),
        shape=np.stack([index.shape for index in indices]).astype(np.int32),
        starts=starts,
        whole=whole,
        edges=edges,
        bits=bits,
        lane_bits=masks[0],
        route_bits=masks[1],
        drivable_bits=masks[2],
        intersection_bits=masks[3],
    )
