"""Evaluation of agents that bring what they need: the baselines."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gin

from recogdrive.data.splits import PlanningSplits
from recogdrive.evaluation.agents import Agent
from recogdrive.run_folder import RunFolder
from recogdrive.stages.base import Description
from recogdrive.stages.open_loop import OpenLoop, headline


@gin.register
class EvaluateAgents:
    """Lets agents plan every scene of the evaluated splits and writes tables and report.

    Args:
      agents: Who plans; the report is about the first, and the other baselines stand beside them.
      splits: Scenes.
      evaluation: Metrics, baselines, report.

    Raises:
      ValueError: There is no agent, or two share a name.
    """

    def __init__(self, agents: Sequence[Agent], splits: PlanningSplits, evaluation: OpenLoop) -> None:
        names = [agent.name for agent in agents]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"EvaluateAgents.agents are {names}; name at least one, each once.")
        self._agents = tuple(agents)
        self._splits = splits
        self._evaluation = evaluation

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Evaluates.

        Raises:
          ValueError: There is a parent: these agents take no weights from it.
        """
        if parent is not None:
            raise ValueError(f"{parent} would not be read: {self._names()} start from no run. Leave run.parent unset.")
        self._evaluation.require()
        splits = self._splits.open_evaluate()
        folder.update(data=self._splits.describe())
        return headline(self._evaluation.final(folder.path, self._agents, splits))

    def describe(self) -> Description:
        """Splits and agents."""
        return Description(self._splits.describe(), notes=[f"evaluated: {self._names()}"])

    def _names(self) -> str:
        return ", ".join(agent.name for agent in self._agents)
