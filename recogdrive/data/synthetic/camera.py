"""Pictures of what the front camera of a scene would see, drawn from its map, lights and boxes alone.

The world is flat. Everything is a polygon in space with one colour, drawn from far to near: first the ground, layer by
layer, then what stands on it. Left in the scene is left in the picture. Nothing is random.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from recogdrive.data.synthetic import camera_shapes as shapes
from recogdrive.data.synthetic.camera_shapes import Face
from recogdrive.data.types import Scene

DRAWING_VERSION = 1
"""To be raised with every change of what is drawn: hidden states made from other pictures are others."""

SKY_TOP, SKY_HORIZON = (122, 170, 222), (206, 224, 240)
GRASS_NEAR, GRASS_HORIZON = (98, 134, 74), (140, 162, 118)

NEAR_M = 1.0
"""Polygons are cut at this distance before the camera; the ground so near lies below the picture."""
SUPERSAMPLING = 2
"""Pixels are drawn so many times finer along each side and then averaged."""


@dataclass(frozen=True)
class Pinhole:
    """A pinhole camera that looks along the scene's x axis.

    Attributes:
      width: Of the picture in pixels.
      height: Of the picture in pixels.
      fov_deg: Horizontal field of view.
      forward_m: Place of the eye ahead of the rear axle.
      height_m: Height of the eye above the ground.
      horizon: Where the horizon lies, as a part of the picture's height from above.
    """

    width: int
    height: int
    fov_deg: float
    forward_m: float = 1.5
    height_m: float = 1.5
    horizon: float = 0.44

    @property
    def focal_px(self) -> float:
        """Focal length in pixels."""
        return self.width / 2 / np.tan(np.deg2rad(self.fov_deg) / 2)

    def seen_from(self, points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
        """Scene-frame points relative to the eye, axes unchanged (x is the depth)."""
        return points - [self.forward_m, 0.0, self.height_m]

    def pixels(self, seen: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 2"]:
        """Column and row, in pixels from the upper left corner, of points relative to the eye with positive depth."""
        depth = seen[:, 0]
        column = self.width / 2 - self.focal_px * seen[:, 1] / depth
        row = self.height * self.horizon - self.focal_px * seen[:, 2] / depth
        return np.stack([column, row], axis=-1)


def render(scene: Scene, camera: Pinhole) -> Image.Image:
    """Draws the current moment of a scene as an RGB picture of the camera's size."""
    fine = Pinhole(
        camera.width * SUPERSAMPLING,
        camera.height * SUPERSAMPLING,
        camera.fov_deg,
        camera.forward_m,
        camera.height_m,
        camera.horizon,
    )
    eye = np.array([camera.forward_m, 0.0, camera.height_m])
    image = _background(fine).copy()
    draw = ImageDraw.Draw(image)
    for outline, color in _in_picture([*shapes.ground(scene), *shapes.standing(scene, eye)], fine):
        draw.polygon(outline, fill=color)
    return image.reduce(SUPERSAMPLING)


def clip_near(seen: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "Q 3"]:
    """The part of a polygon, relative to the eye, that lies at least `NEAR_M` ahead; possibly without points."""
    inside = seen[:, 0] >= NEAR_M
    crosses = inside != np.roll(inside, -1)
    following = np.roll(seen, -1, axis=0)
    run = np.where(crosses, following[:, 0] - seen[:, 0], 1.0)
    cut = seen + ((NEAR_M - seen[:, 0]) / run)[:, None] * (following - seen)
    corners = np.stack([seen, cut], axis=1).reshape(-1, 3)
    return corners[np.stack([inside, crosses], axis=1).ravel()]


def _in_picture(faces: list[Face], camera: Pinhole) -> Iterator[tuple[list[float], shapes.Color]]:
    """Outlines (column, row, column, ...) in pixels of what is in front of the camera and not beside the picture."""
    if not faces:
        return
    ends = np.cumsum([len(corners) for corners, _ in faces])
    seen = camera.seen_from(np.concatenate([corners for corners, _ in faces]))
    in_front = seen[:, 0] >= NEAR_M
    starts = np.concatenate([[0], ends[:-1]])
    whole = np.logical_and.reduceat(in_front, starts)
    some = np.logical_or.reduceat(in_front, starts)
    # Points behind the eye get a depth that projects somewhere; only polygons without such points use the result.
    safe = np.where(in_front[:, None], seen, [NEAR_M, 0.0, 0.0])
    pixels = camera.pixels(safe)
    for start, end, is_whole, is_seen, (_, color) in zip(starts, ends, whole, some, faces, strict=True):
        if not is_seen:
            continue
        outline = pixels[start:end] if is_whole else camera.pixels(clip_near(seen[start:end]))
        (left, top), (right, bottom) = outline.min(axis=0), outline.max(axis=0)
        if left < camera.width and right > 0 and top < camera.height and bottom > 0:
            # Rounded, so that the last bits of a cosine, which differ between machines, move no pixel.
            yield np.round(outline, 3).ravel().tolist(), color


@functools.lru_cache(maxsize=4)
def _background(camera: Pinhole) -> Image.Image:
    """Sky above the horizon and grass below it, paler towards it."""
    rows = (np.arange(camera.height) + 0.5) / camera.height
    up = np.clip(1 - rows / camera.horizon, 0, 1)[:, None]
    down = np.clip((rows - camera.horizon) / (1 - camera.horizon), 0, 1)[:, None] ** 0.5
    sky = _mix(SKY_HORIZON, SKY_TOP, up)
    grass = _mix(GRASS_HORIZON, GRASS_NEAR, down)
    column = np.where(rows[:, None] < camera.horizon, sky, grass)
    pixels = np.repeat(np.rint(column).astype(np.uint8)[:, None], camera.width, axis=1)
    return Image.fromarray(pixels, "RGB")


def _mix(start: Iterable[int], end: Iterable[int], share: np.ndarray) -> np.ndarray:
    return np.asarray(start) * (1 - share) + np.asarray(end) * share
