"""An image -> square tiles of one size, as many as its shape asks for."""

import functools
import io
from dataclasses import dataclass

import gin
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1]; the model normalises with them on the device."""
JPEG_QUALITIES = (75, 100)
"""Least and greatest quality of the round trip that augments an image."""


@gin.register
@dataclass(frozen=True)
class Tiling:
    """Cuts an image into tiles: the whole image, resized to the grid nearest its aspect ratio, cut row by row.

    Where the grid has more than one cell a tile of the whole image follows the others. The aspect ratio is not kept.

    Attributes:
      image_size: Side of a tile in pixels.
      min_tiles: Least number of cells of a grid.
      max_tiles: Greatest number of cells of a grid; the thumbnail comes on top.
      thumbnail: Whether the whole image follows more than one cell.
      dynamic: Whether there is a grid at all; if not, the image becomes one tile.
      pad_to_square: Whether an image without a grid is padded to a square with the mean colour before resizing.
      normalize_type: How pixels are normalised; only "imagenet" is built, and the model does it.

    Raises:
      ValueError: A size that is not positive, limits in the wrong order, another normalisation.

    Source: upstream `dynamic_preprocess` and `build_transform` of InternVL.
    """

    image_size: int = 448
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    dynamic: bool = True
    pad_to_square: bool = False
    normalize_type: str = "imagenet"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"Tiling.image_size={self.image_size} must be positive, e.g. 448.")
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ValueError(
                f"Tiling.min_tiles={self.min_tiles} and max_tiles={self.max_tiles} must satisfy "
                "1 <= min_tiles <= max_tiles."
            )
        if self.normalize_type != "imagenet":
            raise ValueError(
                f"Tiling.normalize_type={self.normalize_type!r} is not built: the model divides by 255 and applies "
                "ImageNet's mean and deviation. Use 'imagenet'."
            )

    def grid(self, width: int, height: int, max_tiles: int | None = None) -> tuple[int, int]:
        """Columns and rows for an image of this size; (1, 1) where no grid lies within the limits.

        Args:
          width: Of the image, in pixels.
          height: Likewise.
          max_tiles: Takes the place of the own limit.
        """
        if width < 1 or height < 1:
            raise ValueError(f"an image of {width} x {height} pixels has nothing to tile.")
        if not self.dynamic:
            return 1, 1
        aspect = width / height
        best, best_distance = (1, 1), float("inf")
        for columns, rows in _grids(self.min_tiles, self.max_tiles if max_tiles is None else max_tiles):
            distance = abs(aspect - columns / rows)
            large = width * height > 0.5 * self.image_size**2 * columns * rows
            if distance < best_distance or (distance == best_distance and large):
                best, best_distance = (columns, rows), distance
        return best

    def count(self, width: int, height: int, max_tiles: int | None = None) -> int:
        """Tiles of an image of this size, the thumbnail included."""
        columns, rows = self.grid(width, height, max_tiles)
        cells = columns * rows
        return cells + 1 if self.thumbnail and cells > 1 else cells

    def tiles(
        self, image: Image.Image, max_tiles: int | None = None, augment: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "n S S 3"]:
        """Tiles in reading order, RGB, the thumbnail last.

        Args:
          image: Any mode that Pillow converts to RGB.
          max_tiles: Takes the place of the own limit.
          augment: Where given, every tile goes through JPEG of a quality drawn from it.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        side = self.image_size
        if not self.dynamic:
            image = _padded_to_square(image) if self.pad_to_square else image
            return _resized(image if augment is None else _jpeg_round_trip(image, augment), side, side)[None]
        columns, rows = self.grid(*image.size, max_tiles)
        whole = _resized(image, side * columns, side * rows)
        cut = whole.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
        if self.thumbnail and len(cut) > 1:
            cut = np.concatenate([cut, _resized(image, side, side)[None]])
        if augment is not None:
            cut = np.stack([np.asarray(_jpeg_round_trip(Image.fromarray(tile), augment)) for tile in cut])
        return cut


@functools.lru_cache(maxsize=256)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Candidate grids by number of cells.

    Grids with equally many cells come in the order in which CPython iterates over a set of them filled in this order:
    the reference decides exact ties that way, and hashes of pairs of integers are the same in every process.
    """
    candidates: set[tuple[int, int]] = set()
    for limit in range(min_tiles, max_tiles + 1):
        for columns in range(1, limit + 1):
            for rows in range(1, limit + 1):
                if min_tiles <= columns * rows <= max_tiles:
                    candidates.add((columns, rows))
    return tuple(sorted(candidates, key=lambda grid: grid[0] * grid[1]))


def _resized(image: Image.Image, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _padded_to_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a square of ImageNet's mean colour."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in IMAGENET_MEAN))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _jpeg_round_trip(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    low, high = JPEG_QUALITIES
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG", quality=int(generator.integers(low, high + 1)))
    return Image.open(encoded, formats=("JPEG",)).convert("RGB")


def normalise(tiles: UInt8[np.ndarray, "n S S 3"]) -> Float[np.ndarray, "n 3 S S"]:
    """What a tower sees: tiles over 255, less ImageNet's mean, over its deviation; channels first, float32."""
    mean, std = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
    return ((tiles.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
