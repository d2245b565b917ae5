"""Scenes of an evaluated split a chunk at a time, with their records to score in and what every agent planned."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from absl import logging
from jaxtyping import Float
from tqdm import tqdm

from recogdrive.data.types import Scene
from recogdrive.evaluation.open_loop import INVALID_ANSWER, EvaluatedSplit
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.validation import validate

LISTED_IN_LOG = 5
"""Scenes that a warning or error names."""

Scores = TypeVar("Scores")


@dataclass(frozen=True)
class Chunk:
    """Some scenes of a split.

    Attributes:
      split: Where they are from.
      agents: Who planned.
      indices: Numbers of the scenes in the split.
      scenes: The scenes.
      records: What is scored of each, or why it cannot be scored.
      planned: (S, G, 8, 3) plan of every agent, scene frame.
    """

    split: EvaluatedSplit
    agents: tuple[str, ...]
    indices: range
    scenes: Sequence[Scene]
    records: Sequence[PdmScene | SceneError]
    planned: Float[np.ndarray, "S G 8 3"]

    def unread(self, i: int, agent: str) -> str | None:
        """What rows say of a scene whose answer states no trajectory; None where the agent planned one."""
        token = self.scenes[i].token
        if self.split.parsed(agent, token) is not False:
            return None
        return f"{INVALID_ANSWER}: {self.split.answers[agent][token].problem}"

    def identity(self, i: int, agent: str) -> dict[str, str | bool | None]:
        """What rows say of scene `i` of the chunk and of who planned."""
        scene = self.scenes[i]
        return {
            "split": self.split.name,
            "agent": agent,
            "token": scene.token,
            "log_name": scene.log_name,
            "layout": scene.metadata.get("layout", ""),
            "parsed": self.split.parsed(agent, scene.token),
        }


def chunks_of(
    split: EvaluatedSplit, to_pdm_scene: Callable[[Scene], PdmScene], chunk_size: int, *, progress: bool = False
) -> Iterator[Chunk]:
    """The split, chunk by chunk, in its order.

    Args:
      split: Scenes and predictions.
      to_pdm_scene: Makes what is scored of a scene; raises `SceneError` where it cannot.
      chunk_size: Scenes held in memory at once.
      progress: Whether to show a progress bar.

    Raises:
      ValueError: `chunk_size` is not positive.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be positive.")
    agents = tuple(split.predictions)
    starts = range(0, len(split.scenes), chunk_size)
    for start in tqdm(starts, desc=f"PDM score {split.name}", unit="chunk", disable=not progress):
        indices = range(start, min(start + chunk_size, len(split.scenes)))
        scenes = [split.scenes[i] for i in indices]
        yield Chunk(
            split=split,
            agents=agents,
            indices=indices,
            scenes=scenes,
            records=[pdm_scene_or_error(scene, to_pdm_scene) for scene in scenes],
            planned=np.stack([split.predictions[agent][start : indices.stop] for agent in agents], axis=1),
        )


def score_scenes(
    scenes: Sequence[PdmScene | SceneError],
    trajectories: Float[np.ndarray, "S G 8 3"],
    score: Callable[[Sequence[PdmScene], Float[np.ndarray, "S G 8 3"]], Scores],
) -> list[tuple[Scores, int] | SceneError]:
    """Scores of every scene: (scores, the scene's number in them), or why there are none.

    Scenes given as errors are passed through. Where `score` refuses a batch, its scenes are scored one by one, so
    that one bad scene costs no other its score.
    """
    found: list[tuple[Scores, int] | SceneError] = [s if isinstance(s, SceneError) else None for s in scenes]
    numbers = [i for i, scene in enumerate(scenes) if not isinstance(scene, SceneError)]
    if not numbers:
        return found
    try:
        scores = score([scenes[i] for i in numbers], trajectories[numbers])
        for position, i in enumerate(numbers):
            found[i] = scores, position
    except SceneError:
        for i in numbers:
            try:
                found[i] = score([scenes[i]], trajectories[i : i + 1]), 0
            except SceneError as error:
                found[i] = error
    return found


def pdm_scene_or_error(scene: Scene, to_pdm_scene: Callable[[Scene], PdmScene]) -> PdmScene | SceneError:
    """What is scored of a scene, checked, or why it cannot be scored. What is unusual about it is logged."""
    try:
        made = to_pdm_scene(scene)
        for warning in validate(made):
            logging.log_first_n(logging.WARNING, "scene %s: %s", LISTED_IN_LOG, made.token, warning)
    except SceneError as error:
        return error
    return made


def invalid_problem(planned: np.ndarray) -> str:
    """Why the scorer called a trajectory invalid."""
    bad = int((~np.isfinite(planned).all(axis=-1)).sum())
    return f"{bad} of {len(planned)} poses are not finite" if bad else "the simulation of the trajectory is not finite"
