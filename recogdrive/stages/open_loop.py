"""Open-loop evaluation of a planner beside the baselines: the part that imitation and evaluation stages share."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
from absl import logging
from matplotlib.figure import Figure

from recogdrive.data.context import ContextSource
from recogdrive.data.samples import SceneSource
from recogdrive.data.types import Scene
from recogdrive.evaluation.agents import Agent, ConstantVelocity, Human, Stopped, recorded_trajectories
from recogdrive.evaluation.bev import trajectory_grid
from recogdrive.evaluation.ego_status_agent import EgoStatusMLPAgent
from recogdrive.evaluation.open_loop import evaluate_open_loop, trajectory_errors
from recogdrive.evaluation.planner_agent import PlannerAgent, TrainablePlanner, planning_batches
from recogdrive.evaluation.report import write_report
from recogdrive.evaluation.tables import write_tables
from recogdrive.models.bridge import Params

HEADLINE_METRICS = ("ade", "fde", "miss_rate", "heading_error")


@gin.register
class OpenLoop:
    """Compares planned with driven trajectories, during training on a part of each split and at the end on all of it.

    Args:
      baselines: Agents that stand beside the planner; constant velocity, stopped and the human unless given.
      ego_status_mlp: Run folder or official `.ckpt` of a trained ego-status MLP, which then is a baseline too; read
        at once, so that an unusable one is known before anything runs.
      batch_size: Scenes planned at once.
      seed: Of the sampler's noise.
      scenes_during_training: How many scenes of each split a periodic evaluation takes, evenly spaced.
      pictures: How many of those are drawn for TensorBoard.
    """

    def __init__(
        self,
        baselines: Sequence[Agent] | None = None,
        *,
        ego_status_mlp: str | Path | None = None,
        batch_size: int = 64,
        seed: int = 0,
        scenes_during_training: int = 256,
        pictures: int = 6,
    ) -> None:
        if scenes_during_training < 1 or pictures < 0:
            raise ValueError(
                f"OpenLoop.scenes_during_training={scenes_during_training} must be positive and "
                f"pictures={pictures} not negative."
            )
        self._baselines = (ConstantVelocity(), Stopped(), Human()) if baselines is None else tuple(baselines)
        if ego_status_mlp is not None:
            self._baselines += (EgoStatusMLPAgent(ego_status_mlp, batch_size=batch_size),)
        self._batch_size = batch_size
        self._seed = seed
        self._scenes_during_training = scenes_during_training
        self._pictures = pictures

    def agent(self, planner: TrainablePlanner, params: Params | None, context: ContextSource) -> PlannerAgent:
        """The planner with these weights, as an agent; None where they come later."""
        return PlannerAgent(planner, params, context, batch_size=self._batch_size, seed=self._seed)

    def periodic(
        self, agent: PlannerAgent, context: ContextSource, splits: Mapping[str, SceneSource]
    ) -> Callable[[Params, int], dict[str, Any]]:
        """Evaluation for the training loop: (weights, step) -> scalars and pictures. Scenes are read once.

        The headline split's metrics have plain names, those of other splits are called `<split>/<metric>`. A planner
        whose plans are not finite gives metrics that are not, which the loop refuses by name.

        Args:
          agent: Plans with the weights it is handed; compiled once for the whole run.
          context: Makes the context tokens.
          splits: Headline first.
        """
        limit, batch_size = self._scenes_during_training, self._batch_size
        parts = [_Part(name, source, context, limit, batch_size) for name, source in splits.items()]

        def evaluate(params: Params, step: int) -> dict[str, Any]:
            del step
            agent.params = params
            found: dict[str, Any] = {}
            for part in parts:
                planned = agent.plan_batches(part.batches)
                means = part.means(planned)
                prefix = "" if part is parts[0] else f"{part.name}/"
                found |= {f"{prefix}{metric}": value for metric, value in means.items()}
                if self._pictures:
                    found[f"{part.name}/trajectories"] = part.picture(agent.name, planned, self._pictures)
            return found

        return evaluate

    def final(
        self,
        run_dir: Path,
        agents: Sequence[Agent],
        splits: Mapping[str, SceneSource],
    ) -> dict[str, dict[str, float]]:
        """Evaluates `agents` and the baselines on all of every split; writes tables, summary and report.

        The first agent is the report's subject. A baseline that carries an agent's name is left out: the agent stands
        in its place.

        Returns:
          agent -> metric -> value, as in `summary.json`.
        """
        named = {agent.name for agent in agents}
        everyone = [*agents, *(baseline for baseline in self._baselines if baseline.name not in named)]
        evaluation = evaluate_open_loop(everyone, list(splits.items()), progress=True)
        summary = write_tables(run_dir, evaluation)
        write_report(run_dir, evaluation, subject=everyone[0].name)
        for split in splits:
            for agent, metrics in summary.items():
                shown = "  ".join(f"{name} {metrics[f'{split}/{name}']:.3f}" for name in HEADLINE_METRICS)
                logging.info("%-18s on %-10s %s", agent, split, shown)
        return summary


class _Part:
    """Evenly spaced scenes of a split, with their inputs and driven trajectories at hand."""

    def __init__(self, name: str, source: SceneSource, context: ContextSource, limit: int, batch_size: int) -> None:
        self.name = name
        indices = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).round().astype(int))
        self.scenes: list[Scene] = [source[int(i)] for i in indices]
        self.batches = planning_batches(self.scenes, context, batch_size)
        self._driven = recorded_trajectories(self.scenes)

    def means(self, planned: np.ndarray) -> dict[str, float]:
        errors = trajectory_errors(planned, self._driven)
        return {
            "ade": float(errors["ade"].mean()),
            "fde": float(errors["fde"].mean()),
            "miss_rate": float(errors["miss"].mean()),
            "heading_error": float(errors["heading_error"].mean()),
        }

    def picture(self, agent: str, planned: np.ndarray, count: int) -> Figure:
        shown = np.unique(np.linspace(0, len(self.scenes) - 1, min(count, len(self.scenes))).round().astype(int))
        return trajectory_grid([self.scenes[i] for i in shown], {agent: planned[shown]})


def headline(summary: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of a summary worth printing: agent/metric -> value on the headline split."""
    return {f"{agent}/{name}": metrics[name] for agent, metrics in summary.items() for name in HEADLINE_METRICS}
