"""One scene, or one image with an ego status: what the planner drives, what the VLM says, and a picture of both."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gin
import numpy as np

from recogdrive.data.context import ContextSource
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.types import FRAME_INTERVAL_S, FUTURE_FRAMES, Command, PromptRow, Scene
from recogdrive.data.vlm.pictures import FilePicture, Picture
from recogdrive.data.vlm.single_image import GivenStatus
from recogdrive.evaluation.agents import Answer
from recogdrive.evaluation.bev import HUMAN, figure_png
from recogdrive.evaluation.drive_picture import drive_figure
from recogdrive.evaluation.open_loop import trajectory_errors
from recogdrive.evaluation.planner_agent import PlannerAgent, TrainablePlanner
from recogdrive.evaluation.text_agent import TextPlanner
from recogdrive.experiment import ConfigurationError
from recogdrive.run_folder import RunFolder, write_text
from recogdrive.stages.base import Description
from recogdrive.stages.planner_weights import describe_parameters, load_planner_weights

PICTURE_FILE = "drive.png"
RECORD_FILE = "drive.json"
"""Within the run folder: scene, answer and trajectories."""


class _Input(NamedTuple):
    """What is driven: the scene, its front picture, and the row for the VLM."""

    scene: Scene
    picture: Picture
    row: Mapping[str, np.ndarray]


@gin.register
class DriveOnce:
    """Asks VLM and planner about one scene and shows what they answer.

    Args:
      text: Asks the VLM for a trajectory in words; its prompts make the VLM's input.
      planner: What plans beside it, with the weights of `run.parent`; without a parent the VLM is alone.
      context: Context source of the planner; one that reads the VLM's hidden states needs none.
      splits: Where scenes are from: the first evaluated split.
      scene: Number or token of the scene there.
      image: Path of a front image in place of a scene.
      status: Motion of the ego that belongs to the image.
      seed: Of the planner's noise.

    Raises:
      ValueError: There are neither splits nor an image.
    """

    def __init__(
        self,
        text: TextPlanner,
        *,
        planner: TrainablePlanner | None = None,
        context: ContextSource | None = None,
        splits: PlanningSplits | None = None,
        scene: int | str = 0,
        image: str | None = None,
        status: GivenStatus | None = None,
        seed: int = 0,
    ) -> None:
        if image is None and splits is None:
            raise ValueError("DriveOnce has nothing to drive: bind IMAGE to a file, or include a file of gin/data.")
        self._text = text
        self._planner = planner
        self._context = context
        self._splits = splits
        self._scene = scene
        self._image = image
        self._status = GivenStatus() if status is None else status
        self._seed = seed

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Prints trajectories and answer, and writes `drive.png` and `drive.json`."""
        given = self._input()
        (answer,) = self._text.ask([given.row])
        trajectories: dict[str, np.ndarray] = {}
        if given.scene.future is not None:
            trajectories[HUMAN] = np.asarray(given.scene.future[:FUTURE_FRAMES], dtype=np.float64)
        if answer.poses is not None:
            trajectories[self._text.name] = answer.poses
        if parent is not None and self._planner is not None:
            trajectories[self._planner.name] = self._plan(given, parent)
        figure = drive_figure(
            given.scene,
            given.picture.open(),
            trajectories,
            camera=getattr(given.picture, "camera", None),
            title=describe_scene(given.scene),
            answer=answer.text if answer.poses is not None else f"{answer.text}   [no trajectory: {answer.problem}]",
        )
        (folder.path / PICTURE_FILE).write_bytes(figure_png(figure))
        write_text(folder.path / RECORD_FILE, json.dumps(_record(given.scene, answer, trajectories), indent=2) + "\n")
        sys.stdout.write(drive_text(given.scene, answer, trajectories))
        return _errors(trajectories)

    def describe(self) -> Description:
        """What would be driven, and the planner's weights."""
        notes = [f"image {self._image}, {self._status}" if self._image else f"scene {self._scene}"]
        data = {} if self._image or self._splits is None else self._splits.describe()
        return Description(data, [] if self._planner is None else describe_parameters(self._planner), notes=notes)

    def _input(self) -> _Input:
        prompts = self._text.prompts
        if self._image is not None:
            scene, picture = self._status.scene(self._image), FilePicture(self._image)
            return _Input(scene, picture, prompts.picture_inputs(scene, picture))
        source = next(iter(self._splits.open_evaluate().values()))
        scene = source[_number(self._scene, source.tokens, source.name)]
        return _Input(scene, prompts.camera.picture(scene), prompts.inputs(scene))

    def _plan(self, given: _Input, parent: Path) -> np.ndarray:
        """The planner's trajectory, (8, 3) float64."""
        if getattr(self._planner, "reads_prompts", False):
            source: Any = lambda scene: PromptRow(given.row)  # noqa: E731
        elif self._context is None or self._image is not None:
            raise ConfigurationError(
                f"{type(self._planner).__name__} reads context tokens, which an image does not give; include "
                "gin/option/online.gin, or leave PARENT unset."
            )
        else:
            source = self._context
        params = load_planner_weights(self._planner, parent)
        agent = PlannerAgent(self._planner, params, source, batch_size=1, seed=self._seed)
        return agent.plan([given.scene])[0].astype(np.float64)


def describe_scene(scene: Scene) -> str:
    """A line about a scene: where it is from, speed and command."""
    speed = float(np.linalg.norm(scene.ego.velocity[-1]))
    command = Command(int(np.argmax(scene.ego.command[-1]))).name.lower()
    return f"{scene.log_name}  {scene.token}   {speed:.1f} m/s, command {command}"


def drive_text(scene: Scene, answer: Answer, trajectories: Mapping[str, np.ndarray]) -> str:
    """What is printed: the VLM's words, and a table with every trajectory's x, y and heading at every time."""
    lines = ["", describe_scene(scene), f"VLM: {answer.text}"]
    if answer.poses is None:
        lines.append(f"     states no trajectory: {answer.problem}")
    if trajectories:
        lines.append("")
        lines.append("  t (s)" + "".join(f"  {name:>26}" for name in trajectories))
        lines.append(" " * 7 + f"  {'x (m)':>8} {'y (m)':>8} {'head (rad)':>8}" * len(trajectories))
        for k in range(FUTURE_FRAMES):
            cells = "".join(f"  {x:>8.2f} {y:>8.2f} {h:>8.3f}" for x, y, h in (t[k] for t in trajectories.values()))
            lines.append(f"  {(k + 1) * FRAME_INTERVAL_S:>5.1f}{cells}")
    lines += [f"{name} {value:.2f} m" for name, value in _errors(trajectories).items()]
    return "\n".join(lines) + "\n"


def _number(scene: int | str, tokens: tuple[str, ...], split: str) -> int:
    """Position of a scene named by number or token."""
    if isinstance(scene, str):
        if scene not in tokens:
            raise ValueError(f"SCENE={scene!r} is not a token of {split}, which has {len(tokens)}, e.g. {tokens[0]!r}.")
        return tokens.index(scene)
    if not 0 <= scene < len(tokens):
        raise ValueError(f"SCENE={scene} must be a token, or a number from 0 to {len(tokens) - 1} of {split}.")
    return scene


def _errors(trajectories: Mapping[str, np.ndarray]) -> dict[str, float]:
    """ADE and FDE in metres of every trajectory, where the driven one is known."""
    if HUMAN not in trajectories:
        return {}
    driven = trajectories[HUMAN]
    return {
        f"{name}/{metric}": float(trajectory_errors(trajectory, driven)[metric])
        for name, trajectory in trajectories.items()
        if name != HUMAN
        for metric in ("ade", "fde")
    }


def _record(scene: Scene, answer: Answer, trajectories: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What `drive.json` holds."""
    return {
        "token": scene.token,
        "log_name": scene.log_name,
        "answer": answer.text,
        "problem": answer.problem,
        "trajectories": {name: trajectory.tolist() for name, trajectory in trajectories.items()},
    }
