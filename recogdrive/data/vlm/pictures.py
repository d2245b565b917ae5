"""Images that conversations are about: their size at little cost, their pixels when needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What a file may hold. Others are refused unopened: some of Pillow's readers start other programs."""
MAX_PIXELS = 89_478_485
"""Of one image; more is taken for a decompression bomb. It is the number from which Pillow warns."""
_DEEP_MODES = ("I", "F")
"""Modes of more than 8 bits a channel (also "I;16" and its like); Pillow clips them to white when it converts."""


class PictureError(ValueError):
    """An image that cannot be had; the message names the file and says why.

    Attributes:
      missing: Whether there is no such file, or it may not be read.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class Picture(Protocol):
    """An image that is made or read when asked for."""

    @property
    def name(self) -> str:
        """What messages call it: a path, a scene."""
        ...

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, without decoding."""
        ...

    def open(self) -> Image.Image:
        """The image, decoded, RGB."""
        ...


@dataclass(frozen=True)
class FilePicture:
    """An image file. Orientation tags are not applied, as the reference does not.

    Attributes:
      path: Of the file.
    """

    path: str

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the file's header.

        Raises:
          PictureError: No such file, not an image, or one of more pixels than `MAX_PIXELS`.
        """
        with self._opened() as image:
            return image.size

    def open(self) -> Image.Image:
        """The decoded image, RGB; transparency is dropped.

        Raises:
          PictureError: As for `size`; the file is cut off or damaged, or has more than 8 bits a channel.
        """
        with self._opened() as image:
            if image.mode.startswith(_DEEP_MODES):
                raise PictureError(f"{self.path} has more than 8 bits a channel (mode {image.mode}); convert it to 8.")
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                raise RuntimeError(
                    "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so that cut-off images would be filled up in silence; "
                    "set it to False."
                )
            try:
                return image.convert("RGB")
            except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to.
                raise PictureError(f"{self.path} is damaged or cut off: {_reason(error)}") from error

    def _opened(self) -> Image.Image:
        """The image with its header read."""
        try:
            image = Image.open(self.path, formats=FORMATS)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise PictureError(f"{self.path} cannot be read: {error.strerror}", missing=True) from error
        except Exception as error:
            raise PictureError(f"{self.path} is no image that can be read: {_reason(error)}") from error
        width, height = image.size
        if width * height > MAX_PIXELS:
            image.close()
            raise PictureError(f"{self.path} has {width} x {height} pixels, more than {MAX_PIXELS}; scale it down.")
        return image


def _reason(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def file_picture(root: str | Path, path: str) -> FilePicture:
    """The picture at `path` under `root`; an absolute path stands for itself."""
    return FilePicture(str(Path(root) / path))
