"""Evaluation of a trained planner."""

from collections.abc import Mapping
from pathlib import Path

import gin

from recogdrive.data.context import ContextSource
from recogdrive.data.splits import PlanningSplits
from recogdrive.evaluation.planner_agent import TrainablePlanner
from recogdrive.run_folder import RunFolder
from recogdrive.stages.base import Description
from recogdrive.stages.context_identity import identified, require_same_context
from recogdrive.stages.open_loop import OpenLoop, headline
from recogdrive.stages.planner_weights import describe_parameters, load_planner_weights, require_fit


@gin.register
class Evaluate:
    """Plans every scene of the evaluated splits with the parent's weights and writes tables and report.

    Args:
      planner: Network and sampler; must fit the weights.
      splits: Scenes.
      context: Makes the context tokens.
      evaluation: Metrics, baselines, report.
      allow_other_context: Whether weights that were trained on another context (other VLM weights, prompt, ...) are
        evaluated all the same.
    """

    def __init__(
        self,
        planner: TrainablePlanner,
        splits: PlanningSplits,
        context: ContextSource,
        evaluation: OpenLoop,
        *,
        allow_other_context: bool = False,
    ) -> None:
        require_fit(context, planner)
        self._planner = planner
        self._splits = splits
        self._evaluation = evaluation
        self._context = context
        self._allow_other_context = allow_other_context

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Evaluates the weights of `parent`, a run folder or an official `.ckpt`."""
        if parent is None:
            raise ValueError("Evaluation needs weights: set PARENT to a run folder or an official .ckpt file.")
        self._evaluation.require()
        context = identified(self._context, self._planner)
        require_same_context(context, parent, allowed=self._allow_other_context, binding="Evaluate")
        params = load_planner_weights(self._planner, parent)
        splits = self._splits.open_evaluate()
        folder.update(data=self._splits.describe())
        agent = self._evaluation.agent(self._planner, params, self._context)
        return headline(self._evaluation.final(folder.path, [agent], splits))

    def describe(self) -> Description:
        """Splits and weights."""
        parameters = describe_parameters(self._planner)
        weights = sum(4 * p.count for p in parameters)
        memory = {"weights (float32)": weights}
        frozen = getattr(self._planner, "frozen_shapes", dict)()
        if frozen:
            memory["frozen weights"] = sum(shape.size * shape.dtype.itemsize for shape in frozen.values())
        return Description(self._splits.describe(), parameters, memory)
