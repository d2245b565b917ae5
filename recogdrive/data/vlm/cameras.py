"""The front camera's picture of a scene: recorded, or drawn from what the scene holds."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import gin
from PIL import Image

from recogdrive.data.navsim_log import CAMERA_NAMES
from recogdrive.data.synthetic.camera import DRAWING_VERSION, Pinhole, render
from recogdrive.data.types import Scene
from recogdrive.data.vlm.pictures import FilePicture, Picture, PictureError
from recogdrive.suggestions import did_you_mean


class FrontCamera(Protocol):
    """Says what the front camera of a scene sees.

    Attributes:
      fingerprint: Changes with everything that pictures depend on besides the scene.
    """

    fingerprint: str

    def picture(self, scene: Scene) -> Picture:
        """The picture of a scene's current moment; made or read when it is opened."""
        ...


@dataclass(frozen=True)
class RecordedPicture:
    """An image file of a scene; its errors name both.

    Attributes:
      scene: Token of the scene.
      file: The image.
    """

    scene: str
    file: FilePicture

    @property
    def name(self) -> str:
        """Scene and path."""
        return f"scene {self.scene}: {self.file.name}"

    def size(self) -> tuple[int, int]:
        """Width and height in pixels. Raises PictureError as `FilePicture.size` does."""
        try:
            return self.file.size()
        except PictureError as error:
            raise PictureError(f"Scene {self.scene}: {error}", missing=error.missing) from error

    def open(self) -> Image.Image:
        """The decoded image, RGB. Raises PictureError as `FilePicture.open` does."""
        try:
            return self.file.open()
        except PictureError as error:
            raise PictureError(f"Scene {self.scene}: {error}", missing=error.missing) from error


@gin.register
class FileCamera:
    """Pictures recorded with a scene.

    Args:
      camera: Which camera, `cam_f0` for the front.

    Raises:
      ValueError: There is no such camera.
    """

    def __init__(self, camera: str = "cam_f0") -> None:
        if camera not in CAMERA_NAMES:
            raise ValueError(f"FileCamera.camera={camera!r} does not exist.{did_you_mean(str(camera), CAMERA_NAMES)}")
        self.camera = camera
        self.fingerprint = f"recorded {camera}"

    def picture(self, scene: Scene) -> RecordedPicture:
        """The recorded picture; whether the file is there shows when it is opened.

        Raises:
          PictureError: The scene has no such camera.
        """
        if self.camera not in scene.cameras:
            has = ", ".join(scene.cameras) or "none"
            raise PictureError(
                f"Scene {scene.token} of log {scene.log_name} has no camera {self.camera} (it has: {has}). "
                "For scenes without cameras bind CAMERA to @TownCamera().",
                missing=True,
            )
        return RecordedPicture(scene.token, FilePicture(scene.cameras[self.camera]))


@dataclass(frozen=True, eq=False)
class DrawnPicture:
    """A picture that is drawn anew whenever it is opened.

    Attributes:
      scene: What to draw.
      camera: How.
    """

    scene: Scene
    camera: Pinhole

    @property
    def name(self) -> str:
        """The scene."""
        return f"drawing of scene {self.scene.token}"

    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.camera.width, self.camera.height

    def open(self) -> Image.Image:
        """Draws the scene, RGB."""
        return render(self.scene, self.camera)


@gin.register
class TownCamera:
    """Draws the front view from a scene's map, lights and boxes; needs no image files.

    The route is not in the picture: a camera would not see it either.

    Args:
      width: Of the picture in pixels.
      height: Of the picture in pixels.
      fov_deg: Horizontal field of view.

    Raises:
      ValueError: A size is not between 8 and 4096, or the field of view not between 20 and 140 degrees.
    """

    def __init__(self, width: int = 480, height: int = 270, fov_deg: float = 90.0) -> None:
        for name, value in (("width", width), ("height", height)):
            if isinstance(value, bool) or not isinstance(value, int) or not 8 <= value <= 4096:
                raise ValueError(f"TownCamera.{name}={value!r} must be a whole number from 8 to 4096.")
        if not 20.0 <= fov_deg <= 140.0:
            raise ValueError(f"TownCamera.fov_deg={fov_deg!r} must be from 20 to 140 degrees, e.g. 90.")
        self._pinhole = Pinhole(width, height, float(fov_deg))
        self.fingerprint = hashlib.sha256(f"{DRAWING_VERSION} {self._pinhole}".encode()).hexdigest()[:16]

    def picture(self, scene: Scene) -> DrawnPicture:
        """The picture of a scene, drawn when opened."""
        return DrawnPicture(scene, self._pinhole)
