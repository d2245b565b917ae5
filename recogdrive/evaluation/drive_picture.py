"""One scene as a picture for people: what the front camera sees, what was planned in it, and both from above."""

import textwrap
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Float
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from recogdrive.data.types import Scene
from recogdrive.evaluation.bev import draw_scene, empty_figure, trajectory_color, view_of

HALF_SIDE_M = 22.0
"""Nearer than usual, as for the report's scenes."""
NEAREST_M = 3.0
"""Ground nearer to the camera than this is not drawn on: it lies below the picture."""
_STEP_M = 0.25
_LINE_CHARACTERS = 155
_LAST_CHARACTER = 0x24F
"""End of extended Latin."""


class Projection(Protocol):
    """A camera of known place and focal length, as `Pinhole` is."""

    def seen_from(self, points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
        """Scene-frame points relative to the eye; the first coordinate is the depth."""
        ...

    def pixels(self, seen: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 2"]:
        """Column and row of points relative to the eye."""
        ...


def drive_figure(
    scene: Scene,
    image: Image.Image,
    trajectories: Mapping[str, Float[np.ndarray, "8 3"]],
    *,
    camera: Projection | None,
    title: str,
    answer: str,
) -> Figure:
    """Front image and bird's-eye view side by side, the VLM's words below.

    Args:
      scene: What to draw from above.
      image: Front image.
      trajectories: Name -> poses at 0.5 ... 4 s in the scene frame; later ones on top.
      camera: Puts trajectories into the front image; None leaves it as it is and says so.
      title: Above both.
      answer: What the VLM said.
    """
    figure = empty_figure((12.6, 5.5), dpi=110)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.75, 1.0), height_ratios=(5.0, 0.5))
    front = figure.add_subplot(grid[0, 0])
    _draw_front(front, image, trajectories, camera)
    above = figure.add_subplot(grid[0, 1])
    draw_scene(above, scene, trajectories, view=view_of(list(trajectories.values()), HALF_SIDE_M), title="")
    words = figure.add_subplot(grid[1, :])
    words.axis("off")
    text = "\n".join(textwrap.wrap(_drawable(answer), _LINE_CHARACTERS)[:3]) or "(nothing)"
    said = words.text(0.005, 0.98, f"VLM: {text}", va="top", fontsize=9, family="monospace", parse_math=False)
    said.set_gid("drive:answer")
    said.set_in_layout(False)  # Long words must not shrink the pictures.
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def ground_pixels(
    trajectory: Float[np.ndarray, "8 3"], camera: Projection
) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "Q 2"]]:
    """Pixels of a trajectory on flat ground: of its way from the ego on, and of its poses; NaN where too near."""
    way = np.concatenate([np.zeros((1, 2)), np.asarray(trajectory, dtype=np.float64)[:, :2]])
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))])
    along = np.arange(0.0, length[-1] + _STEP_M, _STEP_M)
    dense = np.stack([np.interp(along, length, way[:, i]) for i in range(2)], axis=-1)

    def seen(points: np.ndarray) -> np.ndarray:
        relative = camera.seen_from(np.concatenate([points, np.zeros((len(points), 1))], axis=1))
        ahead = relative[:, :1] >= NEAREST_M
        return np.where(ahead, camera.pixels(np.where(ahead, relative, NEAREST_M)), np.nan)

    return seen(dense), seen(way[1:])


def _drawable(text: str) -> str:
    """The text with a mark in place of what the picture's font lacks, as an untrained model may say."""
    return "".join(c if c.isprintable() and ord(c) <= _LAST_CHARACTER else "\N{REPLACEMENT CHARACTER}" for c in text)


def _draw_front(
    ax: Axes,
    image: Image.Image,
    trajectories: Mapping[str, Float[np.ndarray, "8 3"]],
    camera: Projection | None,
) -> None:
    # Pixels are counted from the upper left corner of the picture.
    ax.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
    ax.set_xticks([])
    ax.set_yticks([])
    if camera is None:
        note = "front image; its camera's calibration is not known, so nothing is drawn into it"
        ax.set_title(note, fontsize=8, color="#555555")
        return
    ax.set_title("front image, trajectories on the ground", fontsize=8, color="#555555")
    edge = [patheffects.withStroke(linewidth=4.2, foreground="white")]
    for order, (name, trajectory) in enumerate(trajectories.items()):
        if not np.isfinite(trajectory).all():
            continue
        way, poses = ground_pixels(trajectory, camera)
        color = trajectory_color(name, order)
        (line,) = ax.plot(*way.T, color=color, linewidth=2.4, path_effects=edge, zorder=3 + order)
        line.set_gid(f"front:{name}")
        ax.plot(*poses.T, color=color, linestyle="", marker="o", markersize=4.5, markeredgecolor="white",
                markeredgewidth=0.6, zorder=3.5 + order)  # fmt: skip
    ax.set_xlim(0, image.width)
    ax.set_ylim(image.height, 0)
