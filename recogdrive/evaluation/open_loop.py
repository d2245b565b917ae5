"""Open-loop metrics: how far a planned trajectory is from the driven one, scene by scene and on average."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from absl import logging
from jaxtyping import Float
from tqdm import tqdm

from recogdrive.data.types import FUTURE_FRAMES, Command, Scene
from recogdrive.evaluation.agents import Agent, Answer, AnsweringAgent, recorded_trajectories
from recogdrive.geometry import Pose, wrap_angle

MISS_THRESHOLD_M = 2.0
"""A trajectory that ends farther than this from the driven one is a miss."""

MEAN_METRICS = {
    "ade": "ade",
    "fde": "fde",
    "miss_rate": "miss",
    "heading_error": "heading_error",
    "final_heading_error": "final_heading_error",
}
"""Metric of the summary -> field of the rows it is the mean of."""

INVALID_ANSWER = "the answer states no trajectory"
"""How the problem of a row begins whose answer cannot be read."""
LISTED_ANSWERS = 5
"""Unread answers that the log names."""

BOOTSTRAP_METRICS = ("ade", "fde")
BOOTSTRAP_RESAMPLES = 1000
BOOTSTRAP_SEED = 0


class _SceneRow(Protocol):
    """A result of one agent on one scene of a split."""

    split: str
    agent: str


SceneRow = TypeVar("SceneRow", bound=_SceneRow)


@dataclass(frozen=True)
class OpenLoopRow:
    """One agent's result on one scene.

    Attributes:
      split: Name of the split the scene was evaluated in.
      token: Identity of the scene.
      log_name: Log it comes from.
      layout: Kind of road, where the scene's metadata names one (`layout`); else empty.
      command: Driving command in lower case.
      speed_mps: Current speed.
      agent: Who planned.
      valid: False where the prediction has non-finite values; the metrics are then None.
      problem: Why the row is not valid; else empty.
      parsed: Whether the agent's answer states a trajectory; None for agents that do not answer in words.
      ade: Mean distance over the 8 poses in metres.
      fde: Distance at 4 s in metres.
      miss: Whether `fde` is over 2 m.
      heading_error: Mean absolute heading error over the 8 poses in radians, wrapped.
      final_heading_error: The same at 4 s alone.
    """

    split: str
    token: str
    log_name: str
    layout: str
    command: str
    speed_mps: float
    agent: str
    valid: bool
    problem: str = ""
    parsed: bool | None = None
    ade: float | None = None
    fde: float | None = None
    miss: bool | None = None
    heading_error: float | None = None
    final_heading_error: float | None = None


@dataclass(frozen=True)
class EvaluatedSplit:
    """Scenes of one split with what every agent planned for them.

    Attributes:
      name: Split name shown to people.
      scenes: The split's scenes.
      predictions: Agent name -> (N, 8, 3) float32 poses in the scene frame; non-finite where an agent failed.
      answers: Name of an agent that answers in words -> token -> its answer, in the order of the scenes.
    """

    name: str
    scenes: Sequence[Scene]
    predictions: Mapping[str, np.ndarray]
    answers: Mapping[str, Mapping[str, Answer]] = field(default_factory=dict)

    def parsed(self, agent: str, token: str) -> bool | None:
        """Whether the agent's answer to a scene states a trajectory; None where it does not answer in words."""
        answers = self.answers.get(agent)
        return None if answers is None else answers[token].poses is not None


@dataclass(frozen=True)
class OpenLoopEvaluation:
    """Everything one evaluation found.

    Attributes:
      splits: In the given order; the first is the headline split.
      rows: Split by split, agent by agent, scene by scene in the split's order.
    """

    splits: tuple[EvaluatedSplit, ...]
    rows: tuple[OpenLoopRow, ...] = field(repr=False)

    @property
    def agents(self) -> tuple[str, ...]:
        """Agent names in the given order."""
        return tuple(dict.fromkeys(row.agent for row in self.rows))

    def rows_of(self, split: str, agent: str) -> tuple[OpenLoopRow, ...]:
        """Rows of one agent on one split; entry i belongs to scene i of the split."""
        return tuple(row for row in self.rows if row.split == split and row.agent == agent)


def trajectory_errors(
    predicted: Float[np.ndarray, "*n 8 3"], driven: Float[np.ndarray, "*n 8 3"]
) -> dict[str, np.ndarray]:
    """Errors of trajectories against the driven ones, both x, y, heading in one frame; computed in float64.

    Returns:
      `ade` and `fde` in metres, `miss` (bool), `heading_error` and `final_heading_error` in radians, each (*n,).
    """
    difference = np.asarray(predicted, dtype=np.float64) - np.asarray(driven, dtype=np.float64)
    distance = np.hypot(difference[..., Pose.X], difference[..., Pose.Y])
    heading = np.abs(wrap_angle(difference[..., Pose.HEADING]))
    return {
        "ade": distance.mean(axis=-1),
        "fde": distance[..., -1],
        "miss": distance[..., -1] > MISS_THRESHOLD_M,
        "heading_error": heading.mean(axis=-1),
        "final_heading_error": heading[..., -1],
    }


def evaluate_open_loop(
    agents: Sequence[Agent],
    splits: Sequence[tuple[str, Sequence[Scene]]],
    *,
    chunk_size: int = 64,
    progress: bool = False,
) -> OpenLoopEvaluation:
    """Lets every agent plan every scene of every split and compares with the driven trajectories.

    Args:
      agents: Their names are distinct.
      splits: (name, scenes) in order of importance; the first is the headline split.
      chunk_size: Scenes held in memory and handed to an agent at once.
      progress: Whether to show a progress bar.

    Raises:
      ValueError: Nothing to evaluate, a name occurs twice, a scene without driven trajectory, an agent that returns
        another shape than (N, 8, 3), or one whose answers do not go with its poses.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1.")
    _require_distinct("agent", [agent.name for agent in agents])
    _require_distinct("split", [name for name, _ in splits])
    evaluated, rows = [], []
    for split, scenes in splits:
        if not len(scenes):
            raise ValueError(f"Split {split!r} holds no scenes; check its scene filter and data root.")
        predictions: dict[str, list[np.ndarray]] = {agent.name: [] for agent in agents}
        answers = {agent.name: {} for agent in agents if isinstance(agent, AnsweringAgent)}
        split_rows: dict[str, list[OpenLoopRow]] = {agent.name: [] for agent in agents}
        starts = range(0, len(scenes), chunk_size)
        for start in tqdm(starts, desc=f"evaluate {split}", unit="chunk", disable=not progress):
            chunk = [scenes[i] for i in range(start, min(start + chunk_size, len(scenes)))]
            # Agents answer in float32; driven poses rounded the same way make the human's error exactly 0.
            driven = recorded_trajectories(chunk).astype(np.float32)
            for agent in agents:
                planned = _checked_plan(agent, chunk)
                predictions[agent.name].append(planned)
                said = _checked_answers(agent, chunk, planned) if agent.name in answers else None
                answers.get(agent.name, {}).update(said or {})
                split_rows[agent.name].extend(_rows(split, agent.name, chunk, planned, driven, said))
        joined = {name: np.concatenate(parts) for name, parts in predictions.items()}
        evaluated.append(EvaluatedSplit(split, scenes, joined, answers))
        for name, agent_rows in split_rows.items():
            _log_invalid(split, name, agent_rows)
            rows.extend(agent_rows)
    return OpenLoopEvaluation(tuple(evaluated), tuple(rows))


def summarise(rows: Iterable[OpenLoopRow]) -> dict[str, dict[str, float]]:
    """Means over scenes: agent -> metric -> value.

    Metrics of each split are named `<split>/<metric>`; those of the first split (the headline) appear under the
    plain names as well. Metrics: `ade`, `fde`, `miss_rate`, `heading_error`, `final_heading_error`; `scenes`
    (all), `invalid_scenes` and `partial` (1 where the means leave out invalid scenes, else 0); 95 % bootstrap
    intervals `ade_ci95_low`, `ade_ci95_high`, `fde_ci95_low`, `fde_ci95_high`. Means without a valid scene are NaN.
    Agents that answer in words have `invalid` (answers that state no trajectory) and `parse_rate` (share of the others)
    too.

    The intervals resample scenes as if independent; scenes of one log are not, so they are rather too narrow.
    """
    return named_by_split(rows, _means)


def named_by_split(
    rows: Iterable[SceneRow], values_of: Callable[[Sequence[SceneRow]], Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Agent -> metric -> value: `values_of` each agent's rows on each split, named `<split>/<metric>`.

    Metrics of the first split (the headline) appear under the plain names as well, before the others.

    Raises:
      ValueError: There are no rows.
    """
    groups: dict[tuple[str, str], list[SceneRow]] = {}
    for row in rows:
        groups.setdefault((row.split, row.agent), []).append(row)
    if not groups:
        raise ValueError("There are no rows to summarise.")
    headline = next(iter(groups))[0]
    summary: dict[str, dict[str, float]] = {agent: {} for _, agent in groups}
    for (split, agent), group in groups.items():
        values = values_of(group)
        if split == headline:
            summary[agent] = {**values, **summary[agent]}
        summary[agent].update({f"{split}/{metric}": value for metric, value in values.items()})
    return summary


def bootstrap_interval(
    values: Float[np.ndarray, "N"], *, resamples: int = BOOTSTRAP_RESAMPLES, seed: int = BOOTSTRAP_SEED
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values`; NaN where there are none."""
    if not len(values):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _means(rows: Sequence[OpenLoopRow]) -> dict[str, float]:
    """Summary values of one agent on one split."""
    valid = [row for row in rows if row.valid]
    values: dict[str, float] = {}
    for metric, name in MEAN_METRICS.items():
        values[metric] = float(np.mean([getattr(row, name) for row in valid])) if valid else float("nan")
    values |= {"scenes": len(rows), "invalid_scenes": len(rows) - len(valid), "partial": int(len(valid) < len(rows))}
    for metric in BOOTSTRAP_METRICS:
        interval = bootstrap_interval(np.array([getattr(row, metric) for row in valid], dtype=np.float64))
        values[f"{metric}_ci95_low"], values[f"{metric}_ci95_high"] = interval
    if rows[0].parsed is not None:
        invalid = sum(not row.parsed for row in rows)
        values |= {"invalid": invalid, "parse_rate": 1 - invalid / len(rows)}
    return values


def _require_distinct(what: str, names: Sequence[str]) -> None:
    """Refuses an empty or ambiguous list of names."""
    if not names:
        raise ValueError(f"There is no {what} to evaluate; name at least one.")
    for name in names:
        if not name or (what == "split" and "/" in name):
            raise ValueError(f"{what} name {name!r} cannot be used: it must not be empty or contain '/'.")
        if names.count(name) > 1:
            raise ValueError(f"{what} name {name!r} occurs {names.count(name)} times; names must be distinct.")


def _checked_plan(agent: Agent, scenes: Sequence[Scene]) -> np.ndarray:
    """The agent's (N, 8, 3) plan, refused in any other shape: broadcasting would hide the mistake."""
    planned = np.asarray(agent.plan(scenes), dtype=np.float32)
    expected = (len(scenes), FUTURE_FRAMES, 3)
    if planned.shape != expected:
        raise ValueError(
            f"Agent {agent.name!r} returned shape {planned.shape} for {len(scenes)} scenes, not {expected}."
        )
    return planned


def _checked_answers(agent: AnsweringAgent, scenes: Sequence[Scene], planned: np.ndarray) -> dict[str, Answer]:
    """The agent's answers to these scenes, refused where they do not go with its plan.

    A trajectory without an answer that states it, such as zeros in place of what could not be read, would count as a
    plan.
    """
    answers = {}
    for scene, poses in zip(scenes, planned, strict=True):
        answer = agent.answers.get(scene.token)
        if answer is None:
            raise ValueError(f"Agent {agent.name!r} has no answer to scene {scene.token}, which it planned.")
        if (answer.poses is None) != bool(answer.problem) or (answer.poses is None and np.isfinite(poses).any()):
            raise ValueError(
                f"Agent {agent.name!r} on scene {scene.token}: an answer has poses, or a problem and a plan of NaN; "
                f"found problem {answer.problem!r} and the plan {poses.tolist()}."
            )
        answers[scene.token] = answer
    return answers


def _log_invalid(split: str, agent: str, rows: Sequence[OpenLoopRow]) -> None:
    """Names scenes without a valid plan: a warning where answers say nothing, an error where numbers are broken."""
    unread = [f"{row.token} ({row.problem})" for row in rows if row.parsed is False]
    if unread:
        more = f", and {len(unread) - LISTED_ANSWERS} more" if len(unread) > LISTED_ANSWERS else ""
        logging.warning(
            "split=%s agent=%s: %d of %d answers state no trajectory, which open-loop means leave out: %s%s",
            *(split, agent, len(unread), len(rows), ", ".join(unread[:LISTED_ANSWERS]), more),
        )
    broken = [row.token for row in rows if not row.valid and row.parsed is not False]
    if broken:
        logging.error(
            "split=%s agent=%s: %d of %d predictions are not finite, means are partial: %s",
            *(split, agent, len(broken), len(rows), ", ".join(broken)),
        )


def _rows(
    split: str,
    agent: str,
    scenes: Sequence[Scene],
    planned: np.ndarray,
    driven: np.ndarray,
    answers: Mapping[str, Answer] | None,
) -> Iterable[OpenLoopRow]:
    """Rows of one agent on a chunk of scenes."""
    finite = np.isfinite(planned).all(axis=-1)  # (N, 8)
    valid = finite.all(axis=-1)
    # Infinity minus a number is no floating-point accident here: such rows carry no metrics.
    errors = trajectory_errors(np.where(valid[:, None, None], planned, 0.0), driven)
    for i, scene in enumerate(scenes):
        answer = None if answers is None else answers[scene.token]
        problem = f"{int((~finite[i]).sum())} of {FUTURE_FRAMES} poses are not finite"
        if answer is not None and answer.poses is None:
            problem = f"{INVALID_ANSWER}: {answer.problem}"
        yield OpenLoopRow(
            split=split,
            token=scene.token,
            log_name=scene.log_name,
            layout=scene.metadata.get("layout", ""),
            command=Command(int(np.argmax(scene.ego.command[-1]))).name.lower(),
            speed_mps=float(np.linalg.norm(scene.ego.velocity[-1].astype(np.float64))),
            agent=agent,
            valid=bool(valid[i]),
            problem="" if valid[i] else problem,
            parsed=None if answer is None else answer.poses is not None,
            **({name: values[i].item() for name, values in errors.items()} if valid[i] else {}),
        )
