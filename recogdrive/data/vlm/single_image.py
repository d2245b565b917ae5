"""An image and an ego status given by hand, as a scene: enough for a VLM and a planner that reads it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import gin
import numpy as np

from recogdrive.data.types import FRAME_INTERVAL_S, HISTORY_FRAMES, Command, Detections, EgoStatus, MapPatch, Scene
from recogdrive.suggestions import did_you_mean

FRONT_CAMERA = "cam_f0"
"""Name of the camera whose image it is."""


@gin.register
@dataclass(frozen=True)
class GivenStatus:
    """What the ego knows of its own motion, as a person writes it down.

    Attributes:
      velocity: (x, y) m/s in the ego frame, now.
      acceleration: (x, y) m/s^2, likewise.
      command: "left", "straight", "right" or "unknown".
      history: Four poses (x m, y m, heading rad) at -1.5, -1, -0.5 and 0 s in the frame of the last, which is
        (0, 0, 0); None drives straight at the given velocity.

    Raises:
      ValueError: Numbers of another shape or not finite, a last pose other than the origin, or an unknown command.
    """

    velocity: tuple[float, float] = (0.0, 0.0)
    acceleration: tuple[float, float] = (0.0, 0.0)
    command: str = "straight"
    history: tuple[tuple[float, float, float], ...] | None = None

    def __post_init__(self) -> None:
        commands = [command.name.lower() for command in Command]
        if self.command not in commands:
            hint = did_you_mean(str(self.command), commands)
            raise ValueError(f"GivenStatus.command={self.command!r} does not exist.{hint}")
        for name, value, shape in (
            ("velocity", self.velocity, (2,)),
            ("acceleration", self.acceleration, (2,)),
            ("history", self.poses(), (HISTORY_FRAMES, 3)),
        ):
            if np.shape(value) != shape or not np.isfinite(value).all():
                raise ValueError(f"GivenStatus.{name}={value!r} must be finite numbers of shape {shape}.")
        if np.any(self.poses()[-1] != 0):
            raise ValueError(
                f"GivenStatus.history ends at {self.history[-1]}; poses are in the frame of the last: it is (0, 0, 0)."
            )

    def poses(self) -> np.ndarray:
        """The history, (4, 3) float64."""
        if self.history is not None:
            return np.asarray(self.history, dtype=np.float64)
        poses = np.zeros((HISTORY_FRAMES, 3))
        poses[:, :2] = FRAME_INTERVAL_S * np.arange(1 - HISTORY_FRAMES, 1)[:, None] * np.asarray(self.velocity)
        return poses

    def scene(self, image: str | Path) -> Scene:
        """The scene: empty surroundings, unknown future; its token is that of path and status."""
        frames = HISTORY_FRAMES
        one_hot = np.eye(len(Command), dtype=np.float32)[Command[self.command.upper()]]
        nothing = Detections(np.zeros((0, 7)), np.zeros(0, np.int8), np.zeros((0, 2)), ())
        return Scene(
            token=hashlib.sha256(f"{Path(image).resolve()} {self}".encode()).hexdigest()[:16],
            log_name=Path(image).name,
            map_name="none",
            timestamp_us=0,
            origin=np.zeros(3),
            ego=EgoStatus(
                poses=self.poses(),
                velocity=np.tile(np.asarray(self.velocity, np.float32), (frames, 1)),
                acceleration=np.tile(np.asarray(self.acceleration, np.float32), (frames, 1)),
                command=np.tile(one_hot, (frames, 1)),
            ),
            future=None,
            detections=(nothing,) * frames,
            map=MapPatch(0.0, ()),
            cameras={FRONT_CAMERA: str(image)},
        )
