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

    Args:
      path: The submission; None where it is not known yet, as in a description.
      seed: Which of its sets of plans.
      name: What tables call this agent.

    Raises:
      OSError: There is no such file.
      ValueError: It cannot be used (see `read_submission`), or has no such seed.
    """

    def __init__(self, path: str | Path | None, *, seed: int = 0, name: str = "submission") -> None:
        self.name = name
        self._path = path
        self._plans = {}
        if path is None:
            return
        submission = read_submission(path)
        if not 0 <= seed < submission.seeds:
            raise ValueError(f"{path} has no seed {seed}: it holds {submission.seeds}, counted from 0.")
        # Scenes of the two stages are different ones.
        self._plans = dict(submission.predictions[seed])
        if submission.second_stage:
            self._plans |= submission.second_stage[seed]

    def plan(self, scenes: Sequence[Scene]) -> Float32[np.ndarray, "N 8 3"]:
        """The submitted plans.

        Raises:
          ValueError: A scene has none; names and counts such scenes.
        """
        if self._path is None:
            raise ValueError("No submission is named: set SUBMISSION to the path of a submission.pkl.")
        missing = [scene.token for scene in scenes if scene.token not in self._plans]
        if missing:
            raise ValueError(
                f"{self._path} has no plan for {len(missing)} of the {len(scenes)} scenes asked for together: "
                f"{shown(missing)}. It was made for {len(self._plans)} scenes; evaluate it on their split."
            )
        return np.stack([self._plans[scene.token] for scene in scenes])
