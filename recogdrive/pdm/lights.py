"""Red lights of scenes as arrays of one size."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from recogdrive.data.types import FUTURE_FRAMES
from recogdrive.pdm.batch import ABSENT_M
from recogdrive.pdm.metrics.traffic_light import Lights
from recogdrive.pdm.scene import ExtendedFacts

ALWAYS = (1 << FUTURE_FRAMES + 1) - 1
"""Bits of a light that is red in all frames from now to 4 s."""


class Light(NamedTuple):
    """A red light.

    Attributes:
      outline: (V, 2) of its lane connector in metres, without a repeated closing point.
      frames: Bit k is set where it is red in frame k.
    """

    outline: Float[np.ndarray, "V 2"]
    frames: int


class LightSizes(NamedTuple):
    """Padded sizes: lights of a scene, vertices of a light."""

    lights: int
    vertices: int

    @classmethod
    def exact(cls, scenes: Sequence[Sequence[Light]]) -> "LightSizes":
        """The smallest sizes that hold the lights of all scenes."""
        return cls(
            lights=max([1, *map(len, scenes)]),
            vertices=max([1, *(len(light.outline) for lights in scenes for light in lights)]),
        )

    @classmethod
    def fitting(cls, scenes: Sequence[Sequence[Light]]) -> "LightSizes":
        """Powers of two that hold all scenes, so that few combinations occur."""
        smallest = cls(lights=4, vertices=32)
        exact = cls.exact(scenes)
        return cls(*(max(least, 1 << (size - 1).bit_length()) for least, size in zip(smallest, exact, strict=True)))

    def union(self, other: "LightSizes") -> "LightSizes":
        """Sizes that hold what either holds."""
        return LightSizes(*map(max, self, other))


def lights_of(facts: ExtendedFacts) -> list[Light]:
    """The lights of a scene that are red in some frame."""
    bounds = zip(facts.light_offsets[:-1], facts.light_offsets[1:], facts.light_frames, strict=True)
    return [Light(facts.light_vertices[start:end], int(frames)) for start, end, frames in bounds]


def pad_lights(scenes: Sequence[Sequence[Light]], sizes: LightSizes, dtype: np.typing.DTypeLike) -> Lights:
    """Arranges the lights of scenes as NumPy arrays.

    Raises:
      ValueError: `sizes` are too small for them.
    """
    exact = LightSizes.exact(scenes)
    if exact.lights > sizes.lights or exact.vertices > sizes.vertices:
        raise ValueError(f"{sizes} cannot hold these lights, which need {exact}; pass larger sizes.")
    vertices = np.full((len(scenes), *sizes, 2), ABSENT_M, dtype)
    frames = np.zeros((len(scenes), sizes.lights), np.int32)
    for s, lights in enumerate(scenes):
        for number, (outline, red_in) in enumerate(lights):
            vertices[s, number] = outline[0]
            vertices[s, number, : len(outline)] = outline
            frames[s, number] = red_in
    return Lights(vertices, frames)
