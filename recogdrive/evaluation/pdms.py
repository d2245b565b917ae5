"""PDM score of what agents planned, scene by scene and on average."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from absl import logging
from jaxtyping import Float

from recogdrive.data.types import AgentClass, Scene
from recogdrive.evaluation.chunks import LISTED_IN_LOG, Chunk, chunks_of, invalid_problem, score_scenes
from recogdrive.evaluation.open_loop import OpenLoopEvaluation, bootstrap_interval, named_by_split
from recogdrive.evaluation.reasons import failed_signals, losses_of, sentence
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.footprint import CORNER_NAMES
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.scores import PdmScores

SUB_SCORES = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
)
"""NAVSIM's names, in the order of its table."""


class Scorer(Protocol):
    """What scores: `recogdrive.pdm.scorer.PdmScorer`, or a stand-in."""

    def score(self, scenes: Sequence[PdmScene], trajectories: Float[np.ndarray, "S G 8 3"]) -> PdmScores:
        """Scores G trajectories of each scene; poses in the initial rear-axle frame, which is the scene frame."""
        ...


@dataclass(frozen=True)
class PdmsRow:
    """One agent's PDM score on one scene. Everything measured is None where the row is not valid.

    An answer that states no trajectory scores 0 in a scene that can be scored: its row is not valid, has a problem and
    a `score`, and nothing else measured.

    Attributes:
      split: Name of the split the scene was evaluated in.
      agent: Who planned.
      token: Identity of the scene.
      log_name: Log it comes from.
      layout: Kind of road, where the scene's metadata names one (`layout`); else empty.
      valid: False where the scene could not be scored or the prediction is not finite.
      problem: Why the row is not valid; else empty.
      parsed: Whether the agent's answer states a trajectory; None for agents that do not answer in words.
      no_at_fault_collisions: 1, 0.5 (static object hit) or 0.
      drivable_area_compliance: 1 or 0.
      driving_direction_compliance: 1, 0.5 or 0.
      ego_progress: In [0, 1].
      time_to_collision_within_bound: 1 or 0.
      comfort: 1 or 0.
      score: In [0, 1].
      kind: What cost most points, see `reasons.LossKind`; empty where nothing was lost.
      reason: Everything that cost points, in words.
      progress_m: Metres along the centre line.
      normaliser_progress_m: The same of the trajectory whose progress counts as full.
      collision_step: First at-fault collision in steps of 0.1 s; None where there is none, as below.
      collision_track: Column of the object hit in `PdmScene.agent_poses`.
      collision_type: What that object is, in lower case.
      off_road_step: First step with a corner off the drivable area.
      off_road_corner: Which corner.
      ttc_step: First violation of time to collision.
      ttc_ahead_steps: How many steps ahead its projection hits.
      ttc_track: Whom.
      ttc_type: What that object is.
      comfort_failed: Signals out of bounds, separated by ", ".
      oncoming_m: Longest way within 1 s off the route's lanes, in metres.
    """

    split: str
    agent: str
    token: str
    log_name: str
    layout: str
    valid: bool
    problem: str = ""
    parsed: bool | None = None
    no_at_fault_collisions: float | None = None
    drivable_area_compliance: float | None = None
    driving_direction_compliance: float | None = None
    ego_progress: float | None = None
    time_to_collision_within_bound: float | None = None
    comfort: float | None = None
    score: float | None = None
    kind: str = ""
    reason: str = ""
    progress_m: float | None = None
    normaliser_progress_m: float | None = None
    collision_step: int | None = None
    collision_track: int | None = None
    collision_type: str = ""
    off_road_step: int | None = None
    off_road_corner: str = ""
    ttc_step: int | None = None
    ttc_ahead_steps: int | None = None
    ttc_track: int | None = None
    ttc_type: str = ""
    comfort_failed: str = ""
    oncoming_m: float | None = None


@dataclass(frozen=True)
class Evidence:
    """A row with what its picture needs beside the scene.

    Attributes:
      row: The result.
      index: Number of the scene in its split.
      states: (41, 11) simulated states in the local frame of the scene's `PdmScene`.
    """

    row: PdmsRow
    index: int
    states: Float[np.ndarray, "41 11"]


@dataclass(frozen=True)
class PdmsEvaluation:
    """Every PDM score of one evaluation.

    Attributes:
      rows: Split by split, agent by agent, scene by scene in the split's order.
      evidence: (split, agent) -> the worst rows of every kind of loss, worst first.
      to_pdm_scene: Makes the scene that was scored again, for pictures.
    """

    rows: tuple[PdmsRow, ...] = field(repr=False)
    evidence: Mapping[tuple[str, str], tuple[Evidence, ...]] = field(repr=False)
    to_pdm_scene: Callable[[Scene], PdmScene] = field(repr=False)

    @property
    def failed(self) -> tuple[PdmsRow, ...]:
        """Rows without a score."""
        return tuple(row for row in self.rows if row.score is None)

    def rows_of(self, split: str, agent: str) -> tuple[PdmsRow, ...]:
        """Rows of one agent on one split; entry i belongs to scene i of the split."""
        return tuple(row for row in self.rows if row.split == split and row.agent == agent)


def evaluate_pdms(
    evaluation: OpenLoopEvaluation,
    to_pdm_scene: Callable[[Scene], PdmScene],
    scorer: Scorer,
    *,
    chunk_size: int = 64,
    evidence_per_kind: int = 8,
    progress: bool = False,
    observers: Sequence[Callable[[Chunk], None]] = (),
) -> PdmsEvaluation:
    """Scores what every agent planned; all agents of a scene go to the scorer together.

    A scene that cannot be scored, and a prediction that is not finite, make rows that are not valid and say why. An
    answer that states no trajectory makes such a row with score 0.

    Args:
      evaluation: Scenes and predictions.
      to_pdm_scene: Makes what is scored of a scene; raises `SceneError` where it cannot.
      scorer: Scores them.
      chunk_size: Scenes held in memory and handed to the scorer at once.
      evidence_per_kind: How many of the worst rows of each kind of loss, agent and split keep their simulated states.
      progress: Whether to show a progress bar.
      observers: What else looks at the scenes while they are in memory, such as `epdms.EpdmsCollector`.

    Raises:
      ValueError: An agent's or split's name cannot be the name of a file, or a number is out of range.
    """
    if evidence_per_kind < 0:
        raise ValueError(f"evidence_per_kind={evidence_per_kind} must not be negative.")
    for name in (*evaluation.agents, *(split.name for split in evaluation.splits)):
        if "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} cannot be the name of a table: it must not hold '/' or start with a dot.")
    rows, evidence = [], {}
    for split in evaluation.splits:
        agents = tuple(split.predictions)
        split_rows: dict[str, list[PdmsRow]] = {agent: [] for agent in agents}
        worst = {agent: _Worst(evidence_per_kind) for agent in agents}
        for chunk in chunks_of(split, to_pdm_scene, chunk_size, progress=progress):
            for row, index, states in _score_chunk(chunk, scorer):
                split_rows[row.agent].append(row)
                if row.valid:
                    worst[row.agent].offer(row, index, states)
            for observe in observers:
                observe(chunk)
        for agent in agents:
            _log_failed(split.name, agent, split_rows[agent])
            rows.extend(split_rows[agent])
            evidence[split.name, agent] = worst[agent].ranked()
    return PdmsEvaluation(tuple(rows), evidence, to_pdm_scene)


def badness(row: PdmsRow) -> tuple[float, ...]:
    """Sorts valid rows, worst first: by score, then by the factors that zero it, then by the rest."""
    rest = row.ego_progress + row.time_to_collision_within_bound + row.comfort
    return row.score, row.no_at_fault_collisions * row.drivable_area_compliance, rest


def summarise_pdms(rows: Iterable[PdmsRow]) -> dict[str, dict[str, float]]:
    """Means over scenes: agent -> metric -> value, named for the headline split and every split as in `summarise`.

    Metrics: `pdms` with its 95 % bootstrap interval `pdms_ci95_low`, `pdms_ci95_high`, the sub-scores under NAVSIM's
    names, `pdms_scenes` (all), `pdms_failed` and `pdms_partial` (1 where the means leave out failed scenes, else 0).
    Means without a valid scene are NaN.

    An agent that answers in words has `pdms_valid` too, the mean over answers that state a trajectory; in `pdms` the
    others count as 0, in the sub-scores they do not take part.
    """
    return named_by_split(rows, _means)


def _means(rows: Sequence[PdmsRow]) -> dict[str, float]:
    """Summary values of one agent on one split."""
    valid = [row for row in rows if row.valid]
    scored = [row for row in rows if row.score is not None]
    low, high = bootstrap_interval(np.array([row.score for row in scored], dtype=np.float64))
    values = {"pdms": _mean(scored, "score"), "pdms_ci95_low": low, "pdms_ci95_high": high}
    values |= {name: _mean(valid, name) for name in SUB_SCORES}
    values |= {} if rows[0].parsed is None else {"pdms_valid": _mean(valid, "score")}
    failed = len(rows) - len(scored)
    return values | {"pdms_scenes": len(rows), "pdms_failed": failed, "pdms_partial": int(failed > 0)}


def partial_label(scenes: int, failed: int) -> str:
    """How an average over fewer scenes than the split has is marked; empty for a whole one."""
    return f"partial ({scenes - failed} of {scenes} scenes)" if failed else ""


class _Worst:
    """The worst rows of every kind of loss, so that pictures of each can be drawn later."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kinds: dict[str, list[Evidence]] = {}

    def offer(self, row: PdmsRow, index: int, states: np.ndarray) -> None:
        """Keeps the row if it is among the worst of its kind; rows that lost nothing are not kept."""
        if not row.kind:
            return
        kept = self._kinds.setdefault(row.kind, [])
        if len(kept) < self._count or (kept and badness(row) < badness(kept[-1].row)):
            kept.append(Evidence(row, index, np.array(states, dtype=np.float64)))
            kept.sort(key=lambda evidence: (badness(evidence.row), evidence.index))
            del kept[self._count :]

    def ranked(self) -> tuple[Evidence, ...]:
        """Everything kept, worst first."""
        kept = [evidence for kind in self._kinds.values() for evidence in kind]
        return tuple(sorted(kept, key=lambda evidence: (badness(evidence.row), evidence.index)))


def _score_chunk(chunk: Chunk, scorer: Scorer) -> Iterable[tuple[PdmsRow, int, np.ndarray | None]]:
    """(row, scene number, simulated states) of all agents on some scenes of a split."""
    results = score_scenes(chunk.records, chunk.planned, scorer.score)
    for i, (record, result) in enumerate(zip(chunk.records, results, strict=True)):
        for g, agent in enumerate(chunk.agents):
            identity, number = chunk.identity(i, agent), chunk.indices[i]
            if isinstance(result, SceneError):
                yield PdmsRow(**identity, valid=False, problem=str(result)), number, None
                continue
            if (problem := chunk.unread(i, agent)) is not None:
                yield PdmsRow(**identity, valid=False, problem=problem, score=0.0), number, None
                continue
            scores, s = result
            if not scores.valid[s, g]:
                yield PdmsRow(**identity, valid=False, problem=invalid_problem(chunk.planned[i, g])), number, None
                continue
            yield PdmsRow(**identity, valid=True, **_values(record, scores, s, g)), number, scores.states[s, g]


def _values(scene: PdmScene, scores: PdmScores, s: int, g: int) -> dict[str, object]:
    """Everything a row says of trajectory `g` of scene `s`."""
    losses = losses_of(scene, scores, s, g)
    values: dict[str, object] = {name: float(getattr(scores, name)[s, g]) for name in (*SUB_SCORES, "score")}
    values |= {"kind": str(losses[0].kind) if losses else "", "reason": sentence(losses)}
    values |= {"progress_m": float(scores.progress_m[s, g]), "oncoming_m": float(scores.oncoming_m[s, g])}
    values["normaliser_progress_m"] = float(scores.normaliser_progress_m[s])
    for name in ("collision_step", "collision_track", "off_road_step", "ttc_step", "ttc_ahead_steps", "ttc_track"):
        number = int(getattr(scores, name)[s, g])
        values[name] = number if number >= 0 else None
    if values["ttc_step"] is None:
        values["ttc_ahead_steps"] = None
    for name in ("collision", "ttc"):
        track = values[f"{name}_track"]
        values[f"{name}_type"] = "" if track is None else AgentClass(int(scene.agent_types[track])).name.lower()
    corner = int(scores.off_road_corner[s, g])
    values["off_road_corner"] = CORNER_NAMES[corner] if corner >= 0 else ""
    values["comfort_failed"] = failed_signals(scores, s, g)
    return values


def _mean(rows: Sequence[PdmsRow], name: str) -> float:
    return float(np.mean([getattr(row, name) for row in rows])) if rows else float("nan")


def _log_failed(split: str, agent: str, rows: Sequence[PdmsRow]) -> None:
    """Says how many scenes of an agent have no score, and names the first."""
    failed = [row for row in rows if row.score is None]
    if failed:
        listed = "; ".join(f"{row.token}: {row.problem}" for row in failed[:LISTED_IN_LOG])
        more = f"; and {len(failed) - LISTED_IN_LOG} more" if len(failed) > LISTED_IN_LOG else ""
        label = partial_label(len(rows), len(failed))
        logging.error("split=%s agent=%s: PDMS is %s: %s%s", split, agent, label, listed, more)
