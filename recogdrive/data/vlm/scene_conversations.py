"""Conversations made from scenes: the driven trajectory as an answer, and short questions about what is there."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import gin
import numpy as np

from recogdrive.data.samples import SceneSource
from recogdrive.data.types import Command, Scene
from recogdrive.data.vlm import scene_facts
from recogdrive.data.vlm.cameras import FrontCamera
from recogdrive.data.vlm.conversations import IMAGE_PLACEHOLDER, Cause, Conversation, ConversationError, Turn
from recogdrive.data.vlm.driving_prompt import DrivingPrompt, point_text
from recogdrive.data.vlm.pictures import PictureError
from recogdrive.suggestions import did_you_mean

TRAJECTORY = "trajectory"
QUESTION_SYSTEM = "Answer about the scene."
"""System turn of the questions; without one the template would put its own long sentence there."""
_GAP_BUCKETS_M = (10.0, 20.0, scene_facts.NEAR_M)
_COUNTED = 3
"""More pedestrians than this are not told apart."""


@dataclass(frozen=True)
class Question:
    """A kind of question.

    Attributes:
      wordings: Ways to ask it; where one has `{history}`, the past positions are filled in.
      answer: What is so in a scene.
      needs_picture: Whether the picture is shown.
    """

    wordings: tuple[str, ...]
    answer: Callable[[Scene], str]
    needs_picture: bool = True


def _lead_vehicle(scene: Scene) -> str:
    gap = scene_facts.gap_ahead_m(scene)
    if gap is None:
        return "No."
    low, high = next((a, b) for a, b in zip((0.0, *_GAP_BUCKETS_M), _GAP_BUCKETS_M, strict=False) if gap <= b)
    return f"Yes, {low:.0f} to {high:.0f} m away."


def _light(scene: Scene) -> str:
    state = scene_facts.light_ahead(scene)
    return "There is none." if state is None else f"It is {state}."


def _pedestrians(scene: Scene) -> str:
    count = scene_facts.pedestrians_ahead(scene)
    return f"{count}." if count <= _COUNTED else f"More than {_COUNTED}."


_SPEED_WORDS = {"STOP": "Stop", "KEEP": "Keep the speed", "ACCELERATE": "Accelerate", "DECELERATE": "Slow down"}
_PATH_WORDS = {
    "STRAIGHT": "go straight",
    "LEFT_TURN": "turn left",
    "LEFT_CHANGE": "move left",
    "RIGHT_TURN": "turn right",
    "RIGHT_CHANGE": "move right",
}


def _plan(scene: Scene) -> str:
    if scene.future is None or len(scene.future) < 2:
        raise ValueError(f"scene {scene.token} has no driven future to ask about; leave out the question 'plan'")
    speed, path = scene_facts.plan_of(scene.future)
    return f"{_SPEED_WORDS[speed]}." if speed == "STOP" else f"{_SPEED_WORDS[speed]} and {_PATH_WORDS[path]}."


def _speed(scene: Scene) -> str:
    return f"{scene_facts.recent_speed_mps(scene.ego.poses):.0f} m/s."


QUESTIONS = {
    "lead_vehicle": Question(
        ("Is there a vehicle straight ahead?", "Does a vehicle drive ahead of us?"), _lead_vehicle
    ),
    "light": Question(("What is the traffic light on our way?", "Which colour has our traffic light?"), _light),
    "pedestrians": Question(("How many pedestrians are ahead?",), _pedestrians),
    "plan": Question(("What should we do next?",), _plan),
    "speed": Question(("Positions {history}. How fast are we?",), _speed, needs_picture=False),
}
"""By name; `speed` is about text alone."""


@gin.register
class SceneConversations:
    """Conversations made from the scenes of any source, in the order of the scenes.

    Of every scene there is the trajectory conversation (the prompt, answered with what was driven), then as many
    others as asked for. Which questions these hold, how they are worded and whether a second one follows is drawn from
    the seed and the number of the scene, so conversation i is the same however and whenever it is asked for.

    Args:
      scenes: Where scenes come from; they need their driven future.
      prompt: Writes the trajectory conversation.
      camera: Makes the pictures.
      questions: Kinds of questions, of `QUESTIONS`.
      questions_per_scene: Conversations of a scene besides the trajectory's; at most as many as there are kinds.
      seed: Of the choice of questions.
      keep: Whether to hold scenes in memory once made (about 50 kB each for the town's).

    Attributes:
      name: Of the scenes.
      fingerprint: Changes with everything that decides the conversations.

    Raises:
      ValueError: An unknown kind, the nearest being named; a number out of range.
    """

    def __init__(
        self,
        scenes: SceneSource,
        prompt: DrivingPrompt,
        camera: FrontCamera,
        questions: Sequence[str] = tuple(QUESTIONS),
        questions_per_scene: int = 1,
        seed: int = 0,
        keep: bool = True,
    ) -> None:
        if isinstance(questions, str):
            raise ValueError(f"questions={questions!r} must be a list of names, such as ['light'].")
        for kind in questions:
            if kind not in QUESTIONS:
                raise ValueError(f"There is no question {kind!r}.{did_you_mean(str(kind), QUESTIONS)}")
        if len(set(questions)) != len(questions):
            raise ValueError(f"questions={list(questions)} names one twice.")
        if not 0 <= questions_per_scene <= len(questions):
            raise ValueError(
                f"questions_per_scene={questions_per_scene} must be from 0 to {len(questions)}, the number of kinds."
            )
        if seed < 0:
            raise ValueError(f"SceneConversations.seed={seed} must be at least 0.")
        self.scenes = scenes
        self.prompt = prompt
        self.camera = camera
        self.questions = tuple(questions)
        self.questions_per_scene = questions_per_scene
        self.seed = seed
        self.keep = keep
        self.name = scenes.name
        self._kept: dict[int, Scene] = {}
        choice = [self.questions, questions_per_scene, seed, list(constant_texts(prompt))]
        content = [list(scenes.tokens), prompt.fingerprint, camera.fingerprint, *choice]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.scenes) * (1 + self.questions_per_scene)

    def __getstate__(self) -> dict[str, object]:
        """Worker processes start with nothing kept: sending the scenes would cost more than making them."""
        return self.__dict__ | {"_kept": {}}

    def kinds_of(self, index: int) -> tuple[str, ...]:
        """What conversation `index` is about, in the order of its questions; does not build the scene."""
        number, slot = divmod(index, 1 + self.questions_per_scene)
        if slot == 0:
            return (TRAJECTORY,)
        order = [self.questions[k] for k in self._generator(number).permutation(len(self.questions))]
        first = order[slot - 1]
        if not QUESTIONS[first].needs_picture:
            return (first,)
        # A dialogue of two questions about one picture, every other time.
        followers = [kind for kind in order if kind != first and QUESTIONS[kind].needs_picture]
        return (first, followers[0]) if followers and self._generator(number, slot).random() < 0.5 else (first,)

    def __getitem__(self, index: int) -> Conversation:
        """One conversation.

        Raises:
          IndexError: There is no such conversation.
          ConversationError: The scene has no driven future or no picture; names the scene.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} of {self.name}, which has {len(self)}")
        kinds = self.kinds_of(index)
        number, slot = divmod(index, 1 + self.questions_per_scene)
        scene = self._scene(number)
        origin = f"scene {scene.token} of log {scene.log_name}"
        try:
            if kinds == (TRAJECTORY,):
                turns = (*self.prompt.prompt(scene), Turn("gpt", self.prompt.answer(scene)))
            else:
                turns = self._dialogue(scene, kinds, self._generator(number, slot))
            shown = any(IMAGE_PLACEHOLDER in turn.text for turn in turns)
            pictures = (self.camera.picture(scene),) if shown else ()
        except PictureError as error:
            cause = Cause.MISSING_IMAGE if error.missing else Cause.CORRUPT_IMAGE
            raise ConversationError(cause, origin, str(error)) from error
        except ValueError as error:
            raise ConversationError(Cause.BAD_RECORD, origin, str(error)) from error
        return Conversation(f"{scene.token}/{'+'.join(kinds)}", turns, pictures, origin)

    def describe(self) -> str:
        """One line: how many conversations of which kinds. The first thousand scenes stand for all."""
        counted = min(len(self), 1000 * (1 + self.questions_per_scene))
        kinds = Counter(kind for index in range(counted) for kind in self.kinds_of(index))
        shares = ", ".join(f"{kinds[kind]} {kind}" for kind in (TRAJECTORY, *self.questions) if kinds[kind])
        where = "" if counted == len(self) else f" in the first {counted:,}"
        return f"{len(self):,} conversations of {len(self.scenes):,} scenes of {self.name}: {shares}{where}"

    def _generator(self, number: int, slot: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, slot])

    def _scene(self, number: int) -> Scene:
        scene = self._kept.get(number)
        if scene is None:
            scene = self.scenes[number]
            if self.keep:
                self._kept[number] = scene
        return scene

    def _dialogue(self, scene: Scene, kinds: Sequence[str], generator: np.random.Generator) -> tuple[Turn, ...]:
        """Questions and answers; the picture stands before the first."""
        turns = [Turn("system", QUESTION_SYSTEM)]
        generator.random()  # has decided in `kinds_of` whether there are two
        for kind in kinds:
            question = QUESTIONS[kind]
            text = question.wordings[generator.integers(len(question.wordings))]
            if "{history}" in text:
                text = text.format(history=" ".join(point_text(pose) for pose in scene.ego.poses[:-1]))
            if question.needs_picture and len(turns) == 1:
                text = f"{IMAGE_PLACEHOLDER}\n{text}"
            turns += [Turn("human", text), Turn("gpt", question.answer(scene))]
        return tuple(turns)


def constant_texts(prompt: DrivingPrompt) -> Iterator[str]:
    """Everything that conversations may say apart from numbers, so that a tokenizer knows each word of it."""
    yield prompt.system
    yield QUESTION_SYSTEM
    for command in Command:
        yield prompt.question(np.zeros((4, 3)), command)
    yield prompt.answer_text(np.zeros((8, 3)))
    for question in QUESTIONS.values():
        yield from question.wordings
    yield from ("No.", "There is none.", "It is red.", "It is green.", "8 m/s.", f"More than {_COUNTED}.")
    yield from (f"Yes, {a:.0f} to {b:.0f} m away." for a, b in zip((0, *_GAP_BUCKETS_M), _GAP_BUCKETS_M, strict=False))
    yield f"{_SPEED_WORDS['STOP']}."
    moving = [words for speed, words in _SPEED_WORDS.items() if speed != "STOP"]
    yield from (f"{speed} and {path}." for speed in moving for path in _PATH_WORDS.values())


def training_texts(source: SceneConversations, count: int | None = None) -> Iterator[str]:
    """Texts to train a small tokenizer on: the constant ones and every turn of the first conversations.

    Args:
      source: Conversations.
      count: How many of them; None for all.

    Raises:
      ValueError: Fewer than 0, or a scene has no conversation (see `SceneConversations`).
    """
    if count is not None and count < 0:
        raise ValueError(f"count={count} must be at least 0.")
    yield from constant_texts(source.prompt)
    for index in range(len(source) if count is None else min(count, len(source))):
        for turn in source[index].turns:
            yield turn.text
