"""Groups of trajectories, one for each scene: their check, and padding to sizes that only grow."""

import numpy as np
from jaxtyping import Array, Int

from recogdrive.pdm.trajectory import check_trajectories


class GrowingGroups:
    """Fills groups up to sizes that only grow, so that a split soon needs no further compilation."""

    def __init__(self) -> None:
        self._rows, self._columns = 0, 0

    def filled(self, scenes: int, group: int) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "G"]]:
        """Positions of scenes and trajectories, with copies of the last up to the sizes so far.

        At least two scenes: for a single one the compiler arranges sums differently, in their last digits.
        """
        self._rows = max(self._rows, 2, 1 << (scenes - 1).bit_length())
        self._columns = max(self._columns, group + -(group + 1) % 4)  # With the normaliser a multiple of four.
        return np.minimum(np.arange(self._rows), scenes - 1), np.minimum(np.arange(self._columns), group - 1)


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


def without_copies(values: Array, scenes: int, group: int) -> np.ndarray:
    """The first scenes and trajectories of values (S, G, ...) or, of scenes alone, (S,)."""
    values = np.asarray(values)[:scenes]
    return values if values.ndim == 1 else values[:, :group]
