"""Scoring of groups of trajectories, one group for each scene, a bounded number of scenes at once."""

import abc
from collections.abc import Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.trajectory import check_trajectories

DTYPES = ("float32", "float64")

Scores = TypeVar("Scores", bound=NamedTuple)


class GroupScorer(abc.ABC, Generic[Scores]):
    """Scores trajectories of scenes, from NumPy to NumPy, compiled once for each size of batch.

    Args:
      dtype: "float64" as the reference computes, or "float32"; by default float64 but on TPUs, which lack it.
      max_scenes: Scenes scored at once; more are scored in turn, which bounds memory.

    Raises:
      ValueError: An argument is out of range.
    """

    SCENE_FIELDS: ClassVar[frozenset[str]] = frozenset({"normaliser_progress_m", "normaliser_factor"})
    """Fields of the scores that have a row for each scene, (S, ...), but none for each trajectory."""

    def __init__(self, dtype: str | None, max_scenes: int) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}.")
        if max_scenes < 1:
            raise ValueError(f"max_scenes={max_scenes} must be positive.")
        self._dtype = dtype
        self._max_scenes = max_scenes
        self._rows, self._columns = 0, 0

    @property
    def dtype(self) -> str:
        """What scores are computed in. Asks JAX for its device only when needed, since that starts the device."""
        return self._dtype or ("float32" if jax.default_backend() == "tpu" else "float64")

    def score(self, scenes: Sequence[PdmScene], trajectories: Float[np.ndarray, "S G 8 3"]) -> Scores:
        """Scores of G trajectories in each scene, as NumPy arrays.

        Args:
          scenes: At least one, fit for this score.
          trajectories: x, y, heading at 0.5 ... 4 s in each scene's initial rear-axle frame.

        Raises:
          ValueError: No scenes; the trajectories do not have 8 poses, or are not one group for each scene.
          SceneError: A scene cannot be scored.
        """
        trajectories = np.asarray(trajectories)
        check_groups(trajectories, len(scenes))
        if not len(scenes):
            raise ValueError("There are no scenes to score; give at least one.")
        parts = [
            self._score_at_once(
                scenes[start : start + self._max_scenes], trajectories[start : start + self._max_scenes]
            )
            for start in range(0, len(scenes), self._max_scenes)
        ]
        return type(parts[0])(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    @abc.abstractmethod
    def _score_groups(self, scenes: Sequence[PdmScene], trajectories: Float[Array, "S G 8 3"]) -> Scores:
        """Scores on the device of what has been padded to a size; called with the precision of `dtype`."""

    def _score_at_once(self, scenes: Sequence[PdmScene], trajectories: Float[np.ndarray, "S G 8 3"]) -> Scores:
        num_scenes, group = trajectories.shape[:2]
        rows, columns = self._filled(num_scenes, group)
        planned = trajectories[rows][:, columns]
        with self._precision():
            scores = self._score_groups([scenes[i] for i in rows], jnp.asarray(planned, self.dtype))
        found = {name: np.asarray(values)[:num_scenes] for name, values in scores._asdict().items()}
        return scores._replace(
            **{name: values if name in self.SCENE_FIELDS else values[:, :group] for name, values in found.items()}
        )

    def _filled(self, scenes: int, group: int) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "G"]]:
        """Positions of scenes and trajectories, with copies of the last up to sizes that only grow.

        Few sizes are compiled so. At least two scenes: for a single one the compiler arranges sums differently, in
        their last digits.
        """
        self._rows = max(self._rows, 2, 1 << (scenes - 1).bit_length())
        self._columns = max(self._columns, group + -(group + 1) % 4)  # With the normaliser a multiple of four.
        return np.minimum(np.arange(self._rows), scenes - 1), np.minimum(np.arange(self._columns), group - 1)

    def _precision(self) -> jax.enable_x64:
        return jax.enable_x64(self.dtype == "float64")


def check_groups(trajectories: np.ndarray, num_scenes: int) -> None:
    """Refuses trajectories of another horizon or for another number of scenes.

    Raises:
      ValueError: They are not (S, G, 8, 3) with a group for each of `num_scenes` scenes.
    """
    check_trajectories(trajectories)
    if trajectories.ndim != 4 or trajectories.shape[0] != num_scenes or trajectories.shape[1] == 0:
        raise ValueError(
            f"trajectories have shape {trajectories.shape} for {num_scenes} scenes; give (S, G, 8, 3) with "
            f"S={num_scenes}: G trajectories for each scene."
        )
