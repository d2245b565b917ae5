"""Extended PDM score (EPDMS) of what agents planned, with and without the human filter, by scene and on average."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from absl import logging
from jaxtyping import Float

from recogdrive.data.types import Scene
from recogdrive.evaluation.chunks import LISTED_IN_LOG, Chunk, chunks_of, invalid_problem, score_scenes
from recogdrive.evaluation.frame_pairs import compare_frames, compared_columns, previous_frames
from recogdrive.evaluation.open_loop import OpenLoopEvaluation, bootstrap_interval, named_by_split
from recogdrive.evaluation.pdms import partial_label
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.extended_batch import require_extended
from recogdrive.pdm.extended_scores import EXTENDED_COMFORT, SUB_SCORES, ExtendedScores, forgive, weighted_score
from recogdrive.pdm.metrics.comfort import CHECKS
from recogdrive.pdm.scene import PdmScene

ALL_SUB_SCORES = (*SUB_SCORES, EXTENDED_COMFORT)
"""NAVSIM's names, in the order of its table."""
TOTALS = {"epdms": "score", "epdms_unfiltered": "score_unfiltered", "epdms_before_fix": "score_before_fix"}
"""Metric of the summary -> field of the rows."""
UNFILTERED_PREFIX = "epdms_unfiltered_"
FILTERED_PREFIX = "epdms_"

_STEPS = ("collision_step", "off_road_step", "red_light_step", "ttc_step", "off_line_step")


class ExtendedScoring(Protocol):
    """What scores: `recogdrive.pdm.extended.ExtendedScorer`, or a stand-in."""

    def score(self, scenes: Sequence[PdmScene], trajectories: Float[np.ndarray, "S G 8 3"]) -> ExtendedScores:
        """Scores G trajectories of each scene; poses in the initial rear-axle frame, which is the scene frame."""
        ...

    def compare(
        self, current: Float[np.ndarray, "B 41 11"], previous: Float[np.ndarray, "B 41 11"], steps: int
    ) -> Float[np.ndarray, "B"]:
        """Two-frame extended comfort of drives beside those of a frame some steps before."""
        ...


@dataclass(frozen=True)
class EpdmsRow:
    """One agent's extended score on one scene. Everything measured is None where the row is not valid.

    Sub-scores are those of the agent alone; the human filter turns those named in `forgiven` into 1, see `filtered`.
    An answer that states no trajectory scores 0 in a scene that can be scored: its row is not valid, has a problem and
    the scores, and nothing else measured.

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
      traffic_light_compliance: 1 or 0.
      ego_progress: In [0, 1].
      time_to_collision_within_bound: 1 or 0.
      lane_keeping: 1 or 0.
      history_comfort: 1 or 0.
      two_frame_extended_comfort: 1 or 0; None where the split has no frame of the log up to 0.55 s before. The filter
        does not touch it.
      previous_token: That frame; empty where there is none.
      forgiven: Sub-scores in which the human scores 0, separated by ", ".
      score: EPDMS with the human filter, of the filtered sub-scores: NAVSIM v2.2.
      score_unfiltered: EPDMS without the human filter.
      score_before_fix: What NAVSIM v2 before its fix of issue #151 writes beside filtered sub-scores: the score of the
        unfiltered ones, always equal to `score_unfiltered`.
      progress_m: Metres along the centre line.
      collision_step: First at-fault collision in steps of 0.1 s; None where there is none, as below.
      off_road_step: First step with a corner off the drivable area.
      red_light_step: First step on a connector with a red light.
      ttc_step: First violation of time to collision.
      off_line_step: When the car has been off the centre line for too long.
      oncoming_m: Longest way within 1 s off the route's lanes and out of intersections, in metres.
      comfort_failed: Signals of history comfort out of bounds, separated by ", ".
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
    traffic_light_compliance: float | None = None
    ego_progress: float | None = None
    time_to_collision_within_bound: float | None = None
    lane_keeping: float | None = None
    history_comfort: float | None = None
    two_frame_extended_comfort: float | None = None
    previous_token: str = ""
    forgiven: str = ""
    score: float | None = None
    score_unfiltered: float | None = None
    score_before_fix: float | None = None
    progress_m: float | None = None
    collision_step: int | None = None
    off_road_step: int | None = None
    red_light_step: int | None = None
    ttc_step: int | None = None
    off_line_step: int | None = None
    oncoming_m: float | None = None
    comfort_failed: str = ""

    def filtered(self, name: str) -> float | None:
        """A sub-score as the human filter shows it."""
        return 1.0 if name in self.forgiven.split(", ") else getattr(self, name)


@dataclass(frozen=True)
class EpdmsEvaluation:
    """Every extended score of one evaluation.

    Attributes:
      rows: Split by split, agent by agent, scene by scene in the split's order.
    """

    rows: tuple[EpdmsRow, ...] = field(repr=False)

    @property
    def failed(self) -> tuple[EpdmsRow, ...]:
        """Rows without a score."""
        return tuple(row for row in self.rows if row.score is None)

    def rows_of(self, split: str, agent: str) -> tuple[EpdmsRow, ...]:
        """Rows of one agent on one split; entry i belongs to scene i of the split."""
        return tuple(row for row in self.rows if row.split == split and row.agent == agent)


class EpdmsCollector:
    """Scores chunks of splits as they come by; at the end two-frame comfort joins what belongs together.

    Args:
      scorer: Computes extended scores and compares drives.
    """

    def __init__(self, scorer: ExtendedScoring) -> None:
        self._scorer = scorer
        self._found: dict[tuple[str, str], list[_Found]] = {}
        self._any_extended = False

    def __call__(self, chunk: Chunk) -> None:
        """Scores what all agents planned for some scenes; chunks of a split come in its order."""
        self._any_extended |= any(isinstance(r, PdmScene) and r.extended is not None for r in chunk.records)
        records = [_extended_or_error(record) for record in chunk.records]
        results = score_scenes(records, chunk.planned, self._scorer.score)
        for i, (record, result) in enumerate(zip(records, results, strict=True)):
            for g, agent in enumerate(chunk.agents):
                identity, unread = chunk.identity(i, agent), chunk.unread(i, agent)
                if unread is not None and not isinstance(result, SceneError):
                    found = _Found(identity, problem=unread, unread=True)
                else:
                    found = _found(identity, record, result, g, chunk.planned[i, g])
                self._found.setdefault((chunk.split.name, agent), []).append(found)

    def finish(self) -> EpdmsEvaluation | None:
        """All rows; None where no scene has the facts that extended scores need."""
        if not self._any_extended:
            return None
        rows: list[EpdmsRow] = []
        for (split, agent), found in self._found.items():
            logs, times_us = [f.identity["log_name"] for f in found], [f.time_us for f in found]
            pairs = previous_frames(logs, times_us, [not f.problem for f in found])
            comfort = compare_frames(pairs, [f.drive for f in found], self._scorer.compare)
            agent_rows = []
            for i, f in enumerate(found):
                previous = found[pairs[i][0]].identity["token"] if i in pairs else ""
                agent_rows.append(_row(f, comfort.get(i), previous))
            _log_failed(split, agent, agent_rows)
            rows.extend(agent_rows)
        return EpdmsEvaluation(tuple(rows))


def evaluate_epdms(
    evaluation: OpenLoopEvaluation,
    to_pdm_scene: Callable[[Scene], PdmScene],
    scorer: ExtendedScoring,
    *,
    chunk_size: int = 64,
    progress: bool = False,
) -> EpdmsEvaluation | None:
    """Extended scores of what every agent planned; None where no scene has the facts that they need.

    A scene without them, one that cannot be scored, and a prediction that is not finite make rows that are not valid
    and say why. Where PDM scores are computed too, an `EpdmsCollector` among their observers spares a second reading.

    Args:
      evaluation: Scenes and predictions.
      to_pdm_scene: Makes what is scored of a scene; raises `SceneError` where it cannot.
      scorer: Scores them.
      chunk_size: Scenes held in memory and handed to the scorer at once.
      progress: Whether to show a progress bar.

    Source: NAVSIM v2.2 `run_pdm_score_one_stage.py`.
    """
    collector = EpdmsCollector(scorer)
    for split in evaluation.splits:
        for chunk in chunks_of(split, to_pdm_scene, chunk_size, progress=progress):
            collector(chunk)
    return collector.finish()


def summarise_epdms(rows: Iterable[EpdmsRow]) -> dict[str, dict[str, float]]:
    """Means over scenes: agent -> metric -> value, named for the headline split and every split as in `summarise`.

    Metrics: `epdms` (filter on) with its 95 % bootstrap interval `epdms_ci95_low`, `epdms_ci95_high`,
    `epdms_unfiltered` with one of its own, `epdms_before_fix`; `epdms_<sub-score>` of filtered sub-scores and
    `epdms_unfiltered_<sub-score>`; `epdms_scenes` (all), `epdms_pairs` (those with two-frame extended comfort),
    `epdms_failed` and `epdms_partial` (1 where the means leave out failed scenes, else 0). Means of nothing are NaN.

    An agent that answers in words has `epdms_valid` too, the mean over answers that state a trajectory; in the three
    scores the others count as 0, in the sub-scores they do not take part.
    """
    return named_by_split(rows, _means)


@dataclass(frozen=True)
class _Found:
    """What is known of a row before pairs are compared."""

    identity: dict[str, str | bool | None]
    problem: str = ""
    unread: bool = False
    time_us: int = 0
    drive: np.ndarray | None = None
    values: dict[str, object] = field(default_factory=dict)
    human_breaks: np.ndarray | None = None


def _extended_or_error(record: PdmScene | SceneError) -> PdmScene | SceneError:
    if isinstance(record, SceneError):
        return record
    try:
        require_extended(record)
    except SceneError as error:
        return error
    return record


def _found(
    identity: dict[str, str | bool | None],
    record: PdmScene | SceneError,
    result: tuple[ExtendedScores, int] | SceneError,
    g: int,
    planned: np.ndarray,
) -> _Found:
    """What is known of trajectory `g` of a scene."""
    if isinstance(result, SceneError):
        return _Found(identity, problem=str(result))
    scores, s = result
    if not scores.valid[s, g]:
        return _Found(identity, problem=invalid_problem(planned))
    values: dict[str, object] = {name: float(getattr(scores, name)[s, g]) for name in SUB_SCORES}
    values |= {name: float(getattr(scores, name)[s, g]) for name in ("progress_m", "oncoming_m")}
    for name in _STEPS:
        step = int(getattr(scores, name)[s, g])
        values[name] = step if step >= 0 else None
    values["comfort_failed"] = ", ".join(n for n, ok in zip(CHECKS, scores.comfort_ok[s, g], strict=True) if not ok)
    return _Found(
        identity,
        time_us=int(record.timestamp_us),
        drive=compared_columns(np.asarray(scores.states[s, g])),
        values=values,
        human_breaks=np.asarray(scores.human_breaks[s]),
    )


def _row(found: _Found, comfort: float | None, previous_token: str) -> EpdmsRow:
    """The row of what was found and, where there is a frame before, of the comfort beside it."""
    if found.problem:
        scores = dict.fromkeys(TOTALS.values(), 0.0) if found.unread else {}
        return EpdmsRow(**found.identity, valid=False, problem=found.problem, **scores)
    own = {name: found.values[name] for name in SUB_SCORES}
    unfiltered = weighted_score(own, comfort)
    return EpdmsRow(
        **found.identity,
        valid=True,
        **found.values,
        two_frame_extended_comfort=comfort,
        previous_token=previous_token,
        forgiven=", ".join(n for n, broken in zip(SUB_SCORES, found.human_breaks, strict=True) if broken),
        score=weighted_score(forgive(own, found.human_breaks), comfort),
        score_unfiltered=unfiltered,
        score_before_fix=unfiltered,
    )


def _means(rows: Sequence[EpdmsRow]) -> dict[str, float]:
    """Summary values of one agent on one split."""
    valid = [row for row in rows if row.valid]
    scored = [row for row in rows if row.score is not None]
    values: dict[str, float] = {}
    for metric, name in TOTALS.items():
        scores = [getattr(row, name) for row in scored]
        values[metric] = _mean(scores)
        if metric != "epdms_before_fix":
            interval = bootstrap_interval(np.array(scores, dtype=np.float64))
            values[f"{metric}_ci95_low"], values[f"{metric}_ci95_high"] = interval
    values |= {f"{FILTERED_PREFIX}{n}": _mean(row.filtered(n) for row in valid) for n in ALL_SUB_SCORES}
    values |= {f"{UNFILTERED_PREFIX}{n}": _mean(getattr(row, n) for row in valid) for n in ALL_SUB_SCORES}
    values |= {} if rows[0].parsed is None else {"epdms_valid": _mean(row.score for row in valid)}
    failed = len(rows) - len(scored)
    pairs = sum(row.two_frame_extended_comfort is not None for row in valid)
    return values | {
        "epdms_scenes": len(rows),
        "epdms_pairs": pairs,
        "epdms_failed": failed,
        "epdms_partial": int(failed > 0),
    }


def _mean(values: Iterable[float | None]) -> float:
    """Mean of the values that are known; NaN without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _log_failed(split: str, agent: str, rows: Sequence[EpdmsRow]) -> None:
    """Says how many scenes of an agent have no extended score, and names the first."""
    failed = [row for row in rows if row.score is None]
    if failed:
        listed = "; ".join(f"{row.token}: {row.problem}" for row in failed[:LISTED_IN_LOG])
        more = f"; and {len(failed) - LISTED_IN_LOG} more" if len(failed) > LISTED_IN_LOG else ""
        label = partial_label(len(rows), len(failed))
        logging.error("split=%s agent=%s: EPDMS is %s: %s%s", split, agent, label, listed, more)
