"""Writing a submission to NAVSIM's leaderboard."""

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gin
import numpy as np
import tqdm
from absl import logging

from recogdrive.data.context import ContextSource
from recogdrive.data.navsim_files import shown
from recogdrive.data.samples import SceneSource
from recogdrive.data.splits import PlanningSplits
from recogdrive.data.types import HISTORY_FRAMES, Scene
from recogdrive.evaluation.agents import Agent, Human
from recogdrive.evaluation.planner_agent import PlannerAgent, TrainablePlanner, planning_batches
from recogdrive.evaluation.submission import SUBMISSION_FILE, Team, require_seeds, write_submission
from recogdrive.run_folder import RunFolder, write_text
from recogdrive.stages.base import Description
from recogdrive.stages.context_identity import identified, require_same_context
from recogdrive.stages.planner_weights import describe_parameters, load_planner_weights, require_fit

SUMMARY_FILE = "submission.json"
_PlanSeeds = Callable[[Sequence[Scene]], Sequence[np.ndarray]]
"""Scenes -> (N, 8, 3) plans of them, once a seed."""


@gin.register
class WriteSubmission:
    """Plans every scene of the evaluated splits with the parent's weights and writes the plans as a submission.

    The planner sees a scene without its recorded future, as the server's scenes have none.

    Args:
      planner: Network and sampler; must fit the weights.
      splits: Scenes; all evaluated splits together are the submission's split.
      context: Makes the context tokens.
      team: Who submits.
      seeds: Sets of plans, each with its own noise of the sampler: 1, or at least 3.
      seed: Of the noise of the first set; the others count on from it.
      batch_size: Scenes planned at once.
      allow_other_context: Whether weights that were trained on another context are used all the same.

    Raises:
      ValueError: The number of seeds is not allowed.
    """

    def __init__(
        self,
        planner: TrainablePlanner,
        splits: PlanningSplits,
        context: ContextSource,
        team: Team,
        *,
        seeds: int = 1,
        seed: int = 0,
        batch_size: int = 64,
        allow_other_context: bool = False,
    ) -> None:
        require_fit(context, planner)
        require_seeds(seeds)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be positive.")
        self._planner = planner
        self._splits = splits
        self._context = context
        self._team = team
        self._seeds = range(seed, seed + seeds)
        self._batch_size = batch_size
        self._allow_other_context = allow_other_context

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Writes the submission of the weights of `parent`, a run folder or an official `.ckpt`."""
        self._team.require_complete()
        if parent is None:
            raise ValueError("A submission needs weights: set PARENT to a run folder or an official .ckpt file.")
        context = identified(self._context, self._planner)
        require_same_context(context, parent, allowed=self._allow_other_context, binding="WriteSubmission")
        params = load_planner_weights(self._planner, parent)
        agent = PlannerAgent(self._planner, params, self._context, batch_size=self._batch_size)
        agents = [agent.with_seed(seed) for seed in self._seeds]

        def plan(scenes: Sequence[Scene]) -> list[np.ndarray]:
            batches = planning_batches(scenes, self._context, self._batch_size)
            return [agent.plan_batches(batches) for agent in agents]

        return _write(folder, self._splits, plan, self._team, self._batch_size)

    def describe(self) -> Description:
        """Splits, weights, seeds and what is missing of the team."""
        parameters = describe_parameters(self._planner)
        weights = sum(4 * p.count for p in parameters)
        notes = [f"seeds: {', '.join(map(str, self._seeds))}", *_team_notes(self._team)]
        return Description(self._splits.describe(), parameters, {"weights (float32)": weights}, notes)


@gin.register
class WriteAgentSubmission:
    """Writes the plans of an agent that brings what it needs, such as a baseline, as a submission of one seed.

    Args:
      agent: Who plans; it sees scenes without their recorded future.
      splits: Scenes; all evaluated splits together are the submission's split.
      team: Who submits.
      batch_size: Scenes planned at once.

    Raises:
      ValueError: The agent drives what was recorded.
    """

    def __init__(self, agent: Agent, splits: PlanningSplits, team: Team, *, batch_size: int = 64) -> None:
        if isinstance(agent, Human):
            raise ValueError(f"Agent {agent.name!r} drives the recorded future, which the leaderboard's scenes lack.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be positive.")
        self._agent = agent
        self._splits = splits
        self._team = team
        self._batch_size = batch_size

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Writes the submission.

        Raises:
          ValueError: There is a parent: the agent takes no weights from it.
        """
        if parent is not None:
            raise ValueError(f"{parent} would not be read: {self._agent.name} starts from no run. Unset run.parent.")
        self._team.require_complete()
        return _write(folder, self._splits, lambda scenes: [self._agent.plan(scenes)], self._team, self._batch_size)

    def describe(self) -> Description:
        """Splits, agent and what is missing of the team."""
        notes = [f"agent: {self._agent.name}", *_team_notes(self._team)]
        return Description(self._splits.describe(), notes=notes)


def without_future(scene: Scene) -> Scene:
    """The scene as it was at its own time: no driven trajectory, no objects of later frames."""
    return dataclasses.replace(scene, future=None, detections=scene.detections[:HISTORY_FRAMES])


def _write(
    folder: RunFolder, splits: PlanningSplits, plan: _PlanSeeds, team: Team, batch_size: int
) -> Mapping[str, float]:
    """Plans, writes the submission and what is to be known of it."""
    sources = splits.open_evaluate()
    folder.update(data=splits.describe())
    for name, source in sources.items():
        _require_complete(name, source)
    tokens = _tokens(sources)
    written = write_submission(
        folder.path / SUBMISSION_FILE, _predictions(sources, plan, batch_size), team, tokens=tokens
    )
    figures = {"tokens": written.tokens, "seeds": written.seeds, "bytes": written.bytes}
    summary = {
        "file": SUBMISSION_FILE,
        "splits": {name: source.name for name, source in sources.items()},
        **figures,
        "sha256": written.sha256,
        "team": dataclasses.asdict(team),
    }
    write_text(folder.path / SUMMARY_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    folder.update(submission={key: summary[key] for key in (*figures, "sha256")})
    logging.info(
        "%s: %d scenes, %d seed(s), %d bytes, SHA-256 %s",
        *(written.path, written.tokens, written.seeds, written.bytes, written.sha256),
    )
    return figures


def _predictions(sources: Mapping[str, SceneSource], plan: _PlanSeeds, batch_size: int) -> list[dict[str, np.ndarray]]:
    """Token -> plan, once a seed; as many scenes in memory as are planned at once."""
    predictions: list[dict[str, np.ndarray]] = []
    for name, source in sources.items():
        for start in tqdm.tqdm(range(0, len(source), batch_size), desc=f"plan {name}", unit="batch"):
            scenes = [without_future(source[i]) for i in range(start, min(start + batch_size, len(source)))]
            planned = plan(scenes)
            predictions = predictions or [{} for _ in planned]
            for plans, poses in zip(predictions, planned, strict=True):
                plans.update(zip((scene.token for scene in scenes), poses, strict=True))
    return predictions


def _tokens(sources: Mapping[str, SceneSource]) -> tuple[str, ...]:
    """Scenes of all splits, each once."""
    tokens = tuple(token for source in sources.values() for token in source.tokens)
    twice = [token for token, count in collections.Counter(tokens).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} scenes are in the splits {', '.join(sources)} more than once: {shown(twice)}. A submission "
            "plans each scene once; leave one of the splits out."
        )
    return tokens


def _require_complete(name: str, source: SceneSource) -> None:
    """Refuses a split that lacks scenes: the server would refuse the submission."""
    expected = source.report.get("expected_scenes", len(source))
    if len(source) != expected:
        raise ValueError(
            f"Split {name!r} ({source.name}) has {len(source)} scenes instead of {expected}; the leaderboard takes "
            "exactly the split's scenes. Complete the download; --experiment=data_check says what is missing."
        )


def _team_notes(team: Team) -> list[str]:
    return [f"not filled in yet: {', '.join(team.empty_fields)}"] if team.empty_fields else []
