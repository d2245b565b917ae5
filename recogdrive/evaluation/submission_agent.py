"""A submission as an agent, so that it is evaluated like any other."""

from collections.abc import Sequence
from pathlib import Path

import gin
import numpy as np
from jaxtyping import Float32

from recogdrive.data.navsim_files import shown
from recogdrive.data.types import Scene
from recogdrive.evaluation.submission import read_submission


@gin.register
class SubmissionAgent:
    """Plans what a submission says, scene by scene.

    A file that is there is read at once, one that is not when plans are asked for: an experiment can be described
    where there is none yet.

    Args:
      path: The submission.
      seed: Which of its sets of plans.
      name: What tables call this agent.

    Raises:
      OSError: The file is there and cannot be read.
      ValueError: No file is named, it cannot be used (see `read_submission`), or it has no such seed.
    """

    def __init__(self, path: str | Path | None, *, seed: int = 0, name: str = "submission") -> None:
        if not path:
            raise ValueError("No submission is named: set SUBMISSION to the path of a submission.pkl.")
        self.name = name
        self._path = Path(path)
        self._seed = seed
        self._plans = self._read() if self._path.exists() else {}

    def _read(self) -> dict[str, np.ndarray]:
        """Token -> plan; scenes of the two stages are different ones."""
        submission = read_submission(self._path)
        if not 0 <= self._seed < submission.seeds:
            raise ValueError(f"{self._path} has no seed {self._seed}: it holds {submission.seeds}, counted from 0.")
        second_stage = submission.second_stage[self._seed] if submission.second_stage else {}
        return {**submission.predictions[self._seed], **second_stage}

    def plan(self, scenes: Sequence[Scene]) -> Float32[np.ndarray, "N 8 3"]:
        """The submitted plans.

        Raises:
          FileNotFoundError: There is no such file.
          ValueError: A scene has no plan; names and counts such scenes. Or the file, which was not there before, cannot
            be used.
        """
        if not self._plans:
            if not self._path.exists():
                raise FileNotFoundError(
                    f"There is no submission at {self._path}: write one with an experiment such as mini_submission, or "
                    "set SUBMISSION to the path of one."
                )
            self._plans = self._read()
        missing = [scene.token for scene in scenes if scene.token not in self._plans]
        if missing:
            raise ValueError(
                f"{self._path} has no plan for {len(missing)} of the {len(scenes)} scenes asked for together: "
                f"{shown(missing)}. It was made for {len(self._plans)} scenes; evaluate it on their split."
            )
        return np.stack([self._plans[scene.token] for scene in scenes])
