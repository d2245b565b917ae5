"""A scene as a question about the trajectory, the driven trajectory as its answer, and the way back from text."""

import dataclasses
import hashlib
import json
import re

import gin
import numpy as np
from jaxtyping import Float

from recogdrive.data.types import FUTURE_FRAMES, HISTORY_FRAMES, Command, Scene
from recogdrive.data.vlm import wire_text
from recogdrive.data.vlm.conversations import Turn
from recogdrive.suggestions import did_you_mean

MAX_DISTANCE_M = 1000.0
"""An answer with a coordinate beyond this is refused: nothing drives that far in 4 s."""
MAX_HEADING_RAD = 2 * np.pi
"""Likewise for a heading; recorded ones lie within half a turn."""
DEAD_ZONE = 0.01
"""Numbers whose two decimals are at most this are written as 0.0."""

_BLOCK = re.compile(r"\[\s*PT\b([^\[\]]*)\]")
_OPEN_BLOCK = re.compile(r"\[\s*PT\b")
_POINT = re.compile(r"\(([^()]*)\)")
_NUMBER = re.compile(r"([+-]?)\s*(\d+\.?\d*|\.\d+|nan|inf(?:inity)?)", re.ASCII | re.IGNORECASE)


class AnswerError(ValueError):
    """A text that holds no valid trajectory; the message says why."""


@dataclasses.dataclass(frozen=True)
class _Style:
    """Wording of one kind of prompt.

    Attributes:
      system: System turn.
      question: Human turn; `history` and `command` are filled in.
      history_item: One past pose; `step` half seconds ago.
      history_poses: How many of the past poses are told, from the oldest on.
      answer: Answer; `points` are filled in.
    """

    system: str
    question: str
    history_item: str
    history_poses: int
    answer: str


STYLES = {
    "inference": _Style(
        wire_text.DRIVING_SYSTEM_TEXT,
        wire_text.INFERENCE_IMAGE + wire_text.QUESTION,
        wire_text.INFERENCE_HISTORY_ITEM,
        HISTORY_FRAMES,
        wire_text.ANSWER,
    ),
    "sft": _Style(
        wire_text.DRIVING_SYSTEM_TEXT,
        wire_text.SFT_IMAGE + wire_text.QUESTION,
        wire_text.SFT_HISTORY_ITEM,
        HISTORY_FRAMES,
        wire_text.ANSWER,
    ),
    # The last history pose is the origin by definition, so three poses say all that four do.
    "town": _Style(
        "Plan the trajectory.",
        "<image>\n{command} from {history}",
        "{point}",
        HISTORY_FRAMES - 1,
        "[PT, {points}]",
    ),
}


@gin.register
class DrivingPrompt:
    """Writes trajectory questions and answers, and reads answers.

    Args:
      style: `sft` and `inference` are the two wordings of upstream ReCogDrive, for Stage 1's training data and for
        everything after it; they differ by a line break and the blanks in the history. `town` says the same in few
        tokens and is for small models without official weights.

    Attributes:
      system: Text of the system turn.
      fingerprint: Changes with every text that a prompt or an answer is made of.

    Raises:
      ValueError: There is no such style.
    """

    def __init__(self, style: str = "inference") -> None:
        if style not in STYLES:
            raise ValueError(f"DrivingPrompt.style={style!r} does not exist.{did_you_mean(str(style), STYLES)}")
        self.style = style
        self._text = STYLES[style]
        self.system = self._text.system
        # A prompt made of odd numbers covers the number format as well as the texts.
        probe = np.linspace(-12.345, 0.02, 3 * HISTORY_FRAMES).reshape(HISTORY_FRAMES, 3)
        texts = [*dataclasses.astuple(self._text), *(self.question(probe, command) for command in Command)]
        self.fingerprint = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    def prompt(self, scene: Scene) -> tuple[Turn, ...]:
        """System and human turn of a scene; the human one holds one `<image>` for the front camera's picture.

        Raises:
          ValueError: A past pose is not finite; names the scene.
        """
        try:
            question = self.question(scene.ego.poses, command_of(scene.ego.command[-1]))
        except ValueError as error:
            raise ValueError(f"Scene {scene.token} of log {scene.log_name}: history: {error}") from error
        return Turn("system", self.system), Turn("human", question)

    def answer(self, scene: Scene) -> str:
        """The driven trajectory of a scene as text.

        Raises:
          ValueError: The scene has no driven future of 4 s, or a pose is not finite; names the scene.
        """
        known = 0 if scene.future is None else len(scene.future)
        if known < FUTURE_FRAMES:
            raise ValueError(
                f"Scene {scene.token} of log {scene.log_name} has {known} future poses; an answer needs "
                f"{FUTURE_FRAMES}. Use a scene filter with num_future_frames >= {FUTURE_FRAMES}."
            )
        try:
            return self.answer_text(scene.future[:FUTURE_FRAMES])
        except ValueError as error:
            raise ValueError(f"Scene {scene.token} of log {scene.log_name}: future: {error}") from error

    def question(self, history: Float[np.ndarray, "4 3"], command: Command) -> str:
        """Human turn.

        Args:
          history: Rear-axle poses at -1.5, -1.0, -0.5 and 0 s in metres and radians, in the frame of the last.
          command: Where the route leads.

        Source: upstream `internvl_preprocess` and the trajectory data script.
        """
        items = [
            self._text.history_item.format(step=HISTORY_FRAMES - 1 - k, point=point_text(pose))
            for k, pose in enumerate(history[: self._text.history_poses])
        ]
        return self._text.question.format(history=" ".join(items), command=wire_text.COMMANDS[command])

    def answer_text(self, trajectory: Float[np.ndarray, "8 3"]) -> str:
        """Answer for a trajectory in metres and radians."""
        return self._text.answer.format(points=", ".join(point_text(pose) for pose in trajectory))

    def parse(self, text: str) -> Float[np.ndarray, "8 3"]:
        """Reads a trajectory from an answer of any style, float64 metres and radians.

        What stands around the one `[PT, ...]` block does not matter, nor do blanks and signs within it; everything
        else does: a text is either a complete trajectory or an error, never filled up.

        Raises:
          AnswerError: Anything else; says what is wrong.
        """
        content = _block_of(text)
        between = _POINT.sub("", content).replace(",", "").strip()
        if between:
            raise AnswerError(f"{_short(between)} between the points")
        points = _POINT.findall(content)
        if len(points) != FUTURE_FRAMES:
            raise AnswerError(f"{len(points)} points instead of {FUTURE_FRAMES}")
        trajectory = np.array([_numbers_of(point) for point in points])
        if not np.isfinite(trajectory).all():
            raise AnswerError("a number is not finite")
        beyond = np.abs(trajectory) > [MAX_DISTANCE_M, MAX_DISTANCE_M, MAX_HEADING_RAD]
        if beyond.any():
            row, column = np.argwhere(beyond)[0]
            what = ("x", "y", "heading")[column]
            raise AnswerError(f"{what} of point {row + 1} is {trajectory[row, column]:g}, which nothing reaches in 4 s")
        return trajectory


def command_of(one_hot: Float[np.ndarray, "4"]) -> Command:
    """The command that is set; UNKNOWN where none is. Source: upstream caching, the first entry equal to 1."""
    set_entries = np.flatnonzero(np.asarray(one_hot) == 1.0)
    return Command(int(set_entries[0])) if len(set_entries) else Command.UNKNOWN


def number_text(value: float) -> str:
    """A number with sign and two decimals, or 0.0 close to zero.

    Upstream holds poses in float32, which decides how half cents round.

    Raises:
      ValueError: The number is not finite.
    """
    value = float(np.float32(value))
    if not np.isfinite(value):
        raise ValueError(f"{value} has no place in a prompt; repair or exclude this scene.")
    return "0.0" if abs(round(value, 2)) <= DEAD_ZONE else f"{value:+.2f}"


def point_text(pose: Float[np.ndarray, "3"]) -> str:
    """A pose (x, y, heading) in the wire format."""
    x, y, heading = (number_text(value) for value in pose)
    return wire_text.POINT.format(x=x, y=y, heading=heading)


def _block_of(text: str) -> str:
    """What the one trajectory block of a text holds; a block without points, as the question has, may stand beside."""
    blocks = _BLOCK.findall(text)
    with_points = [content for content in blocks if "(" in content]
    if len(with_points) > 1:
        raise AnswerError(f"{len(with_points)} trajectories instead of one")
    if with_points:
        return with_points[0]
    if _OPEN_BLOCK.search(_BLOCK.sub("", text)):
        raise AnswerError("[PT, ...] is not closed")
    if not blocks:
        raise AnswerError("there is no [PT, ...]")
    return blocks[0]


def _numbers_of(point: str) -> list[float]:
    """The three numbers of a point."""
    parts = [part.strip() for part in point.split(",")]
    if len(parts) != 3:
        raise AnswerError(f"point {_short(f'({point})')} has {len(parts)} numbers instead of 3")
    numbers = [_NUMBER.fullmatch(part) for part in parts]
    if None in numbers:
        raise AnswerError(f"{_short(parts[numbers.index(None)])} in point {_short(f'({point})')} is not a number")
    return [float(number[1] + number[2]) for number in numbers]


def _short(text: str, limit: int = 40) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
