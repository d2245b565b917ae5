"""What makes scenes to score in, many at a time: the contract between sources and the stage that writes containers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float

from recogdrive.pdm.scene import PdmScene

GEOMETRIES = ("float32", "float64")
"""Dtypes that makers offer for the geometry of scenes."""


@dataclass(frozen=True)
class MadeScene:
    """A scene that can be scored.

    Attributes:
      scene: The record.
      map_vertices: (V, 2) float64 global coordinates of `scene.vertices`, from which these follow by subtracting
        `scene.origin` and rounding to the geometry's dtype: maps are stored once for all scenes that share them. None
        where the map has no place in the world.
      seconds: Part of the work -> time it took, for reports.
    """

    scene: PdmScene
    map_vertices: Float[np.ndarray, "V 2"] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FailedScene:
    """A scene that cannot be made, and why."""

    token: str
    reason: str


class SceneMaker(Protocol):
    """Makes the records of a split. Pickled, it goes to worker processes: it must hold no data, only where that is.

    Attributes:
      name: What to call the split.
      tokens: Token of every scene, in order.
      expected_scenes: How many scenes the complete split holds; None where that is not known.
    """

    name: str
    tokens: Sequence[str]
    expected_scenes: int | None

    def make(self, positions: Sequence[int]) -> Iterator[MadeScene | FailedScene]:
        """The records at positions of `tokens`, in their order; a scene that cannot be made is no reason to stop."""
        ...

    def describe(self) -> Mapping[str, object]:
        """Where the scenes come from, as JSON values that are equal for equal scenes wherever the data lies."""
        ...
