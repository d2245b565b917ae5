"""Who drives: agents that turn scenes into planned trajectories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import gin
import numpy as np
from jaxtyping import Float, Float32

from recogdrive.data.types import FRAME_INTERVAL_S, FUTURE_FRAMES, Scene


@runtime_checkable
class Agent(Protocol):
    """Plans 4 s of driving for each scene.

    Attributes:
      name: Short name, such as "constant_velocity"; the key of the agent's results in tables and reports.
    """

    name: str

    def plan(self, scenes: Sequence[Scene]) -> Float32[np.ndarray, "N 8 3"]:
        """Poses (x, y, heading) at 0.5 ... 4.0 s in each scene's frame, in metres and radians.

        A scene's plan depends on that scene alone, never on what else is in the call: evaluation hands scenes
        over in chunks of any size.
        """
        ...


@dataclass(frozen=True)
class Answer:
    """What an agent said of a scene, and what was made of it.

    Attributes:
      text: Its words.
      poses: (8, 3) float64 poses that they state, scene frame; None where they cannot be read.
      problem: Why they cannot be read; else empty.
    """

    text: str
    poses: Float[np.ndarray, "8 3"] | None
    problem: str = ""


@runtime_checkable
class AnsweringAgent(Agent, Protocol):
    """An agent that answers in words, which may turn out to state no trajectory.

    Such an answer is invalid and counted as that: the poses returned for it are NaN, its `Answer` says why. An agent
    that returns NaN and is not of this kind is broken.

    Attributes:
      answers: Token -> the answer, for every scene of the last call of `plan` (earlier ones may be there too).
    """

    answers: Mapping[str, Answer]


@gin.register
class ConstantVelocity:
    """Keeps the current speed, straight ahead: pose k is (0.5 k |v|, 0, 0). Source: NAVSIM `ConstantVelocityAgent`."""

    name = "constant_velocity"

    def plan(self, scenes: Sequence[Scene]) -> Float32[np.ndarray, "N 8 3"]:
        """Plans from the length of the current velocity vector; sideways motion counts as forward speed."""
        speed_mps = np.array([np.linalg.norm(scene.ego.velocity[-1].astype(np.float64)) for scene in scenes])
        time_s = FRAME_INTERVAL_S * np.arange(1, FUTURE_FRAMES + 1)
        poses = np.zeros((len(scenes), FUTURE_FRAMES, 3), dtype=np.float32)
        poses[..., 0] = speed_mps[:, None] * time_s
        return poses


@gin.register
class Stopped:
    """Stays where it is: 8 zero poses, whatever the current speed."""

    name = "stopped"

    def plan(self, scenes: Sequence[Scene]) -> Float32[np.ndarray, "N 8 3"]:
        """Plans the origin of each scene's frame."""
        return np.zeros((len(scenes), FUTURE_FRAMES, 3), dtype=np.float32)


@gin.register
class Human:
    """Drives what was recorded: the upper bound of open-loop results. Source: NAVSIM `HumanAgent`."""

    name = "human"

    def plan(self, scenes: Sequence[Scene]) -> Float32[np.ndarray, "N 8 3"]:
        """Returns each scene's recorded future.

        Raises:
          ValueError: A scene has no recorded future, or a shorter one than 4 s.
        """
        return recorded_trajectories(scenes).astype(np.float32)


def recorded_trajectories(scenes: Sequence[Scene]) -> np.ndarray:
    """The first 8 driven poses of every scene, (N, 8, 3) float64 in the scene frame.

    Raises:
      ValueError: A scene's future is missing, shorter than 4 s or not finite; the message names the scenes.
    """
    for problem, is_bad in (
        ("no recorded future", lambda future: future is None),
        (f"a recorded future shorter than {FUTURE_FRAMES} poses", lambda future: len(future) < FUTURE_FRAMES),
        ("a recorded future with non-finite values", lambda future: not np.isfinite(future[:FUTURE_FRAMES]).all()),
    ):
        bad = [scene.token for scene in scenes if is_bad(scene.future)]
        if bad:
            shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            raise ValueError(
                f"{len(bad)} of {len(scenes)} scenes have {problem}: {shown}. Open-loop evaluation and the human agent "
                f"need the driven trajectory; leave such scenes out with the scene filter."
            )
    if not len(scenes):
        return np.zeros((0, FUTURE_FRAMES, 3))
    return np.stack([np.asarray(scene.future[:FUTURE_FRAMES], dtype=np.float64) for scene in scenes])
