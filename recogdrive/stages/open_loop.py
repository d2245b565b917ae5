"""Open-loop evaluation of a planner beside the baselines: the part that imitation and evaluation stages share."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
from absl import logging
from matplotlib.figure import Figure

from recogdrive.data.context import ContextSource
from recogdrive.data.samples import SceneSource, TimedScenes
from recogdrive.data.types import Scene
from recogdrive.evaluation.agents import Agent, ConstantVelocity, Human, Stopped, recorded_trajectories
from recogdrive.evaluation.bev import trajectory_grid
from recogdrive.evaluation.chunks import pdm_scene_or_error
from recogdrive.evaluation.ego_status_agent import EgoStatusMLPAgent
from recogdrive.evaluation.epdms import EpdmsCollector
from recogdrive.evaluation.frame_pairs import Pairs, compare_frames, compared_columns, previous_frames, spread_scenes
from recogdrive.evaluation.open_loop import evaluate_open_loop, trajectory_errors
from recogdrive.evaluation.pdms import SUB_SCORES, evaluate_pdms, partial_label
from recogdrive.evaluation.planner_agent import PlannerAgent, TrainablePlanner, planning_batches
from recogdrive.evaluation.report import write_report
from recogdrive.evaluation.tables import write_tables
from recogdrive.hosts import member
from recogdrive.models.bridge import Params
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.extended import ExtendedScorer
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.scorer import PdmScorer
from recogdrive.pdm.sources import PdmSceneSource
from recogdrive.pdm.tail import reverses, stops

SCORES = {"pdms": "pdms", "epdms": "epdms", "epdms_unfiltered": "epdms"}
"""Score -> prefix of the metrics that count its scenes."""
HEADLINE_METRICS = (*SCORES, "pdms_valid", "epdms_valid", "parse_rate", "ade", "fde", "miss_rate", "heading_error")
"""Scores only where they are computed; parse rate and scores without invalid answers only of agents that answer."""


@gin.register
class OpenLoop:
    """Compares planned with driven trajectories, during training on a part of each split and at the end on all of it.

    Where scenes to score in are at hand, planned trajectories get their PDM score too, and at the end, where these
    scenes know enough, their extended one. During training, what gives reward hacking away is measured as well.

    Args:
      baselines: Agents that stand beside the planner; constant velocity, stopped and the human unless given.
      ego_status_mlp: Run folder or official `.ckpt` of a trained ego-status MLP, which then is a baseline too; read
        at once, so that an unusable one is known before anything runs.
      pdm_scenes: Makes or finds what the PDM score needs to know of a scene; without it there are no PDM scores.
      scorer: Computes them; NAVSIM's evaluation unless given.
      extended_scorer: Computes extended scores, and compares consecutive frames.
      batch_size: Scenes planned at once.
      seed: Of the sampler's noise.
      scenes_during_training: How many scenes of each split a periodic evaluation takes, evenly spaced; where the
        split has consecutive frames, these come in pairs.
      pictures: How many of those are drawn for TensorBoard.
    """

    def __init__(
        self,
        baselines: Sequence[Agent] | None = None,
        *,
        ego_status_mlp: str | Path | None = None,
        pdm_scenes: PdmSceneSource | None = None,
        scorer: PdmScorer | None = None,
        extended_scorer: ExtendedScorer | None = None,
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
        self._pdm_scenes = pdm_scenes
        self._scorer = PdmScorer() if scorer is None else scorer
        self._extended_scorer = ExtendedScorer() if extended_scorer is None else extended_scorer
        self._batch_size = batch_size
        self._seed = seed
        self._scenes_during_training = scenes_during_training
        self._pictures = pictures

    def require(self) -> None:
        """Makes sure, before anything else is done, that scenes to score in can be had; raises what says why not."""
        if self._pdm_scenes is not None:
            self._pdm_scenes.require()

    @property
    def pdm_scenes(self) -> PdmSceneSource | None:
        """What makes or finds the scenes to score in; None where there are no PDM scores."""
        return self._pdm_scenes

    def agent(
        self, planner: TrainablePlanner, params: Params | None, context: ContextSource, name: str | None = None
    ) -> PlannerAgent:
        """The planner with these weights, as an agent; None where they come later. Named after the planner if not."""
        return PlannerAgent(planner, params, context, batch_size=self._batch_size, seed=self._seed, name=name)

    def periodic(
        self, agent: PlannerAgent, context: ContextSource, splits: Mapping[str, SceneSource]
    ) -> Callable[[Params, int], dict[str, Any]]:
        """Evaluation for the training loop: (weights, step) -> scalars and pictures. Scenes are read once.

        Metrics: `ade`, `fde`, `miss_rate`, `heading_error`; `tail_reverse_share` and `tail_stop_share` of plans that go
        back or stop at their end; with scenes to score in `pdms` and its sub-scores, and where some of these follow
        each other, `extended_comfort`, the two-frame extended comfort averaged over pairs.

        The headline split's metrics have plain names, those of other splits are called `<split>/<metric>`. A planner
        whose plans are not finite gives metrics that are not, which the loop refuses by name.

        Of several processes the first does it all; the others are told the scalars.

        Args:
          agent: Plans with the weights it is handed; compiled once for the whole run.
          context: Makes the context tokens.
          splits: Headline first.
        """
        if not member.is_lead():
            return lambda params, step: _on_lead(agent, params, dict)
        limit, batch_size = self._scenes_during_training, self._batch_size
        parts = [_Part(name, source, context, limit, batch_size) for name, source in splits.items()]
        if self._pdm_scenes is not None:
            for part in parts:
                part.make_pdm_scenes(self._pdm_scenes)

        def figures() -> dict[str, Any]:
            found: dict[str, Any] = {}
            for part in parts:
                planned = agent.plan_batches(part.batches)
                means = part.means(planned) | part.pdms_means(planned, self._scorer, self._extended_scorer)
                prefix = "" if part is parts[0] else f"{part.name}/"
                found |= {f"{prefix}{metric}": value for metric, value in means.items()}
                if self._pictures:
                    found[f"{part.name}/trajectories"] = part.picture(agent.name, planned, self._pictures)
            return found

        return lambda params, step: _on_lead(agent, params, figures)

    def final(
        self,
        run_dir: Path,
        agents: Sequence[Agent],
        splits: Mapping[str, SceneSource],
    ) -> dict[str, dict[str, float]]:
        """Evaluates `agents` and the baselines on all of every split; writes tables, summary and report.

        The first agent is the report's subject. A baseline that carries an agent's name is left out: the agent stands
        in its place. Of several processes the first does it all, as scenes are many and planning them is little.

        Returns:
          agent -> metric -> value, as in `summary.json`.
        """
        if member.is_several():
            for agent in agents:
                agent.params = member.local_weights(agent.params)
        return member.on_lead(lambda: self._final(run_dir, agents, splits))

    def _final(
        self, run_dir: Path, agents: Sequence[Agent], splits: Mapping[str, SceneSource]
    ) -> dict[str, dict[str, float]]:
        named = {agent.name for agent in agents}
        everyone = [*agents, *(baseline for baseline in self._baselines if baseline.name not in named)]
        evaluation = evaluate_open_loop(everyone, list(splits.items()), progress=True)
        pdms = epdms = None
        if self._pdm_scenes is not None:
            extended = EpdmsCollector(self._extended_scorer)
            pdms = evaluate_pdms(evaluation, self._pdm_scenes, self._scorer, progress=True, observers=[extended])
            epdms = extended.finish()
        summary = write_tables(run_dir, evaluation, pdms, epdms)
        write_report(run_dir, evaluation, pdms=pdms, epdms=epdms, subject=everyone[0].name)
        for split in splits:
            for agent, metrics in summary.items():
                logging.info("%-18s on %-10s %s", agent, split, _result_line(metrics, split))
        return summary


def _on_lead(agent: PlannerAgent, params: Params, figures: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an evaluation finds with these weights: all of it on process 0, its scalars on the others.

    All processes get the same numbers to the bit, which decide alike then whether they are the best.
    """
    agent.params = member.local_weights(params)
    pictures: dict[str, Any] = {}

    def scalars() -> dict[str, float]:
        found = figures()
        pictures.update({name: value for name, value in found.items() if not isinstance(value, float)})
        return {name: value for name, value in found.items() if isinstance(value, float)}

    found = member.on_lead(scalars)
    if member.is_several():
        agent.params = None  # A copy.
    return found | pictures


class _Part:
    """Evenly spaced scenes of a split, consecutive frames in pairs, with inputs and driven trajectories at hand."""

    def __init__(self, name: str, source: SceneSource, context: ContextSource, limit: int, batch_size: int) -> None:
        self.name = name
        self.scenes: list[Scene] = [source[i] for i in spread_scenes(len(source), limit, _source_pairs(source))]
        self.batches = planning_batches(self.scenes, context, batch_size)
        self._driven = recorded_trajectories(self.scenes)
        self._pdm_scenes: list[PdmScene] = []
        self._scored: list[int] = []
        self._pairs: Pairs = {}

    def make_pdm_scenes(self, source: PdmSceneSource) -> None:
        """Makes what is scored of every scene; those that cannot be scored are named and left out.

        Raises:
          ValueError: None can be scored.
        """
        made = [pdm_scene_or_error(scene, source) for scene in self.scenes]
        self._scored = [i for i, scene in enumerate(made) if not isinstance(scene, SceneError)]
        self._pdm_scenes = [made[i] for i in self._scored]
        self._pairs = _pairs([(self.scenes[i].log_name, self.scenes[i].timestamp_us) for i in self._scored])
        failed = [str(scene) for scene in made if isinstance(scene, SceneError)]
        if not self._scored:
            raise ValueError(f"None of the {len(made)} scenes of split {self.name!r} can be scored, e.g. {failed[0]}")
        if failed:
            label = partial_label(len(made), len(failed))
            logging.error("split=%s: PDMS during training is %s: %s", self.name, label, "; ".join(failed[:5]))

    def means(self, planned: np.ndarray) -> dict[str, float]:
        errors = trajectory_errors(planned, self._driven)
        return {
            "ade": float(errors["ade"].mean()),
            "fde": float(errors["fde"].mean()),
            "miss_rate": float(errors["miss"].mean()),
            "heading_error": float(errors["heading_error"].mean()),
            "tail_reverse_share": float(reverses(planned).mean()),
            "tail_stop_share": float(stops(planned).mean()),
        }

    def pdms_means(self, planned: np.ndarray, scorer: PdmScorer, extended_scorer: ExtendedScorer) -> dict[str, float]:
        """Mean PDM score, sub-scores and extended comfort of the scenes that can be scored; empty without any."""
        if not self._pdm_scenes:
            return {}
        scores = scorer.score(self._pdm_scenes, planned[self._scored][:, None])
        values = {"pdms": scores.score} | {name: getattr(scores, name) for name in SUB_SCORES}
        if self._pairs:
            drives = [compared_columns(states) for states in scores.states[:, 0]]
            values["extended_comfort"] = list(compare_frames(self._pairs, drives, extended_scorer.compare).values())
        return {name: float(np.mean(value)) for name, value in values.items()}

    def picture(self, agent: str, planned: np.ndarray, count: int) -> Figure:
        shown = np.unique(np.linspace(0, len(self.scenes) - 1, min(count, len(self.scenes))).round().astype(int))
        return trajectory_grid([self.scenes[i] for i in shown], {agent: planned[shown]})


def _source_pairs(source: SceneSource) -> Pairs:
    """Consecutive frames of a split; of a source that does not say when its scenes are, none are known."""
    if not isinstance(source, TimedScenes):
        return {}
    return _pairs([(source.log_of(i), source.time_of(i)) for i in range(len(source))])


def _pairs(places: Sequence[tuple[str, int]]) -> Pairs:
    """Consecutive frames among scenes given by their log and clock."""
    return previous_frames([log for log, _ in places], [time_us for _, time_us in places], [True] * len(places))


def headline(summary: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of a summary worth printing: agent/metric -> value on the headline split."""
    return {
        f"{agent}/{name}": metrics[name]
        for agent, metrics in summary.items()
        for name in HEADLINE_METRICS
        if name in metrics
    }


def _result_line(metrics: Mapping[str, float], split: str) -> str:
    """One agent's figures on a split, scores with their intervals, and what they leave out."""
    shown = []
    for name in HEADLINE_METRICS:
        if f"{split}/{name}" not in metrics:
            continue
        text = f"{name} {metrics[f'{split}/{name}']:.3f}"
        if name in SCORES:
            text += f" [{metrics[f'{split}/{name}_ci95_low']:.3f}, {metrics[f'{split}/{name}_ci95_high']:.3f}]"
            counts = f"{split}/{SCORES[name]}"
            label = partial_label(int(metrics[f"{counts}_scenes"]), int(metrics[f"{counts}_failed"]))
            text += f" {label}" if label else ""
        if name == "parse_rate":
            text += f" ({int(metrics[f'{split}/invalid'])} of {int(metrics[f'{split}/scenes'])} answers invalid)"
        shown.append(text)
    return "  ".join(shown)
