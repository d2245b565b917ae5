"""Submissions to NAVSIM's leaderboard: the file `submission.pkl`, written and read."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType

import gin
import numpy as np

from recogdrive.data.navsim_files import shown
from recogdrive.data.safe_pickle import Record, RecordForm, load_record_pickle
from recogdrive.data.types import FRAME_INTERVAL_S, FUTURE_FRAMES
from recogdrive.evaluation.submission_pickle import HORIZON_S, SAMPLING, TRAJECTORY, submission_bytes
from recogdrive.evaluation.tables import replace_file

SUBMISSION_FILE = "submission.pkl"
"""The only name the server accepts."""
FIRST_STAGE, SECOND_STAGE = "first_stage_predictions", "second_stage_predictions"
PREDICTIONS = "predictions"
LEAST_SEEDS = 3
"""Of a submission with several: their spread is what such a submission is for."""
PLAN_SHAPE = (FUTURE_FRAMES, 3)
MAX_BYTES = 2**30
"""Of a file that is read: about 5 million plans, some hundred seeds of the largest split."""
_SAMPLING_FIELDS = MappingProxyType(
    {"num_poses": FUTURE_FRAMES, "time_horizon": HORIZON_S, "interval_length": FRAME_INTERVAL_S}
)
_RECORDS = MappingProxyType({TRAJECTORY: RecordForm.STATE, SAMPLING: RecordForm.STATE})

TEAM_KEYS = MappingProxyType(
    {
        "name": "team_name",
        "authors": "authors",
        "email": "email",
        "institution": "institution",
        "country": "country / region",
    }
)
"""Field of `Team` -> key in the file."""

Plans = Mapping[str, np.ndarray]
"""Token -> (8, 3) float32 poses x, y, heading at 0.5 ... 4.0 s, metres and radians in the scene's ego frame."""


@gin.register
@dataclass(frozen=True)
class Team:
    """Who submits; the server shows it on the leaderboard. All of it is needed by the time something is written.

    Attributes:
      name: Of the team.
      authors: As one text.
      email: To reach them.
      institution: Where they work.
      country: Country or region.

    Raises:
      ValueError: A field is no text.
    """

    name: str | None = None
    authors: str | None = None
    email: str | None = None
    institution: str | None = None
    country: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"Team.{field.name}={value!r} must be a text, such as {str(value)!r}.")

    @property
    def empty_fields(self) -> tuple[str, ...]:
        """Fields that are not filled in."""
        return tuple(field.name for field in fields(self) if not (getattr(self, field.name) or "").strip())

    def require_complete(self) -> None:
        """Refuses a team that is not filled in.

        Raises:
          ValueError: Names every empty field.
        """
        if self.empty_fields:
            raise ValueError(
                f"The submission's team has no {', '.join(self.empty_fields)}: set TEAM_NAME, AUTHORS, EMAIL, "
                "INSTITUTION and COUNTRY (the fields of Team)."
            )


@dataclass(frozen=True)
class Submission:
    """What a submission holds.

    Attributes:
      team: Who submits; fields may be empty.
      predictions: Plans, one mapping a seed, all of the same scenes; those of the first stage in NAVSIM v2.
      second_stage: Plans of the second stage likewise; empty in v1.
    """

    team: Team
    predictions: tuple[Plans, ...]
    second_stage: tuple[Plans, ...] = ()

    @property
    def seeds(self) -> int:
        """Sets of plans."""
        return len(self.predictions)


@dataclass(frozen=True)
class WrittenSubmission:
    """What was written.

    Attributes:
      path: The file.
      tokens: Scenes of every seed, of both stages together.
      seeds: Sets of plans.
      bytes: Size of the file.
      sha256: Of the file.
    """

    path: Path
    tokens: int
    seeds: int
    bytes: int
    sha256: str


def write_submission(
    path: str | Path,
    predictions: Sequence[Plans],
    team: Team,
    *,
    tokens: Collection[str],
    second_stage: Sequence[Plans] | None = None,
    second_stage_tokens: Collection[str] = (),
) -> WrittenSubmission:
    """Writes a submission, whole or not at all.

    Args:
      path: Where to; the server wants the name `submission.pkl`.
      predictions: Plans of every scene, one mapping a seed: 1, or at least 3.
      team: Who submits.
      tokens: Scenes of the split; every seed has to hold exactly these.
      second_stage: Plans of the second stage, seed by seed, which makes it a submission of NAVSIM v2.
      second_stage_tokens: Scenes of that stage.

    Raises:
      ValueError: The file has another name, the team is not filled in, the number of seeds is not allowed, tokens are
        missing or in excess, or a plan has another shape or is not finite; names and counts the tokens.

    Source: NAVSIM `run_create_submission_pickle.py` and `run_merge_submission_pickles.py`.
    """
    path = Path(path)
    if path.name != SUBMISSION_FILE:
        raise ValueError(f"{path} must be called {SUBMISSION_FILE}: the leaderboard accepts no other name.")
    team.require_complete()
    if second_stage is not None and len(second_stage) != len(predictions):
        raise ValueError(f"{len(predictions)} seeds in the first stage and {len(second_stage)} in the second.")
    stages = {PREDICTIONS if second_stage is None else FIRST_STAGE: _checked(predictions, tokens)}
    if second_stage is not None:
        stages[SECOND_STAGE] = _checked(second_stage, second_stage_tokens)
    content = submission_bytes({key: getattr(team, field) for field, key in TEAM_KEYS.items()}, stages)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: temporary.write_bytes(content))
    return WrittenSubmission(
        path=path,
        tokens=sum(len(seeds[0]) for seeds in stages.values()),
        seeds=len(predictions),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def read_submission(path: str | Path) -> Submission:
    """Reads a submission of NAVSIM v1 or v2, whoever wrote it, without running anything it contains.

    Plans in float64 are rounded to float32, in which agents plan.

    Raises:
      OSError: There is no such file.
      ValueError: It is no submission: not a readable pickle of plain data and trajectories, an entry is missing, a plan
        has another horizon, spacing or shape or is not finite, or seeds have different scenes. Names what and where.

    Source: NAVSIM `run_pdm_score_from_submission.py`.
    """
    content = load_record_pickle(path, _RECORDS, what="a submission", max_bytes=MAX_BYTES)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of a submission's dictionary.")
    texts = {}
    for field, key in TEAM_KEYS.items():
        texts[field] = _entry(content, key, path)
        if not isinstance(texts[field], str):
            raise ValueError(f"{path}: {key!r} is a {type(texts[field]).__name__} instead of a text.")
    if FIRST_STAGE in content:
        first = _read_stage(content, FIRST_STAGE, path)
        second = _read_stage(content, SECOND_STAGE, path)
        if len(first) != len(second):
            raise ValueError(f"{path}: {len(first)} seeds in the first stage and {len(second)} in the second.")
        return Submission(Team(**texts), first, second)
    return Submission(Team(**texts), _read_stage(content, PREDICTIONS, path))


def _entry(content: Mapping[object, object], key: str, path: str | Path) -> object:
    if key not in content:
        raise ValueError(f"{path} has no entry {key!r}; it is no submission.")
    return content[key]


def _read_stage(content: Mapping[object, object], key: str, path: str | Path) -> tuple[Plans, ...]:
    seeds = _entry(content, key, path)
    if not isinstance(seeds, list) or not seeds or not all(isinstance(plans, dict) for plans in seeds):
        raise ValueError(f"{path}: {key!r} is no list of dictionaries, one a seed.")
    for seed, plans in enumerate(seeds):
        where = f"{path}: seed {seed} of {key!r}"
        if different := sorted(map(str, plans.keys() ^ seeds[0].keys())):
            raise ValueError(
                f"{where} has {len(plans)} scenes and seed 0 has {len(seeds[0])}; {len(different)} are in one of them "
                f"alone: {shown(different)}."
            )
        if not plans:
            raise ValueError(f"{where} has no scenes.")
        problems = {token: text for token, value in plans.items() if (text := _record_problem(token, value))}
        if problems:
            listed = shown(f"{token} ({text})" for token, text in problems.items())
            raise ValueError(f"{where}: {len(problems)} of {len(plans)} plans cannot be used: {listed}.")
    return tuple({token: value.fields["poses"].astype(np.float32) for token, value in p.items()} for p in seeds)


def _record_problem(token: object, value: object) -> str:
    """What keeps a value of the pickle from being a trajectory of 8 poses in 4 s; empty where nothing does."""
    if not isinstance(token, str):
        return f"its token is {type(token).__name__} instead of text"
    if not _is_record(value, TRAJECTORY):
        return f"{_kind(value)} instead of a trajectory"
    sampling = value.fields.get("trajectory_sampling")
    if not _is_record(sampling, SAMPLING):
        return f"its trajectory_sampling is {_kind(sampling)}"
    for name, expected in _SAMPLING_FIELDS.items():
        found = sampling.fields.get(name)
        if isinstance(found, bool) or not isinstance(found, int | float | np.number) or found != expected:
            return f"{name}={found!r} instead of {expected}"
    return plan_problem(value.fields.get("poses"))


def _is_record(value: object, module_and_name: tuple[str, str]) -> bool:
    return isinstance(value, Record) and value.class_name == ".".join(module_and_name) and bool(value.fields)


def _kind(value: object) -> str:
    return repr(value) if isinstance(value, Record) else type(value).__name__


def require_seeds(seeds: int) -> None:
    """Refuses a number of seeds that the leaderboard does not take.

    Raises:
      ValueError: It is neither 1 nor at least 3.
    """
    if seeds != 1 and seeds < LEAST_SEEDS:
        raise ValueError(
            f"A submission of {seeds} seeds is none: use 1 (a regular submission) or at least {LEAST_SEEDS} "
            "(one with several seeds)."
        )


def _checked(predictions: Sequence[Plans], tokens: Collection[str]) -> list[dict[str, np.ndarray]]:
    """Plans as float32, in the order of `tokens`."""
    require_seeds(len(predictions))
    if not tokens:
        raise ValueError("The split of the submission has no scenes.")
    return [_checked_seed(plans, tokens, f"Seed {seed} of the submission") for seed, plans in enumerate(predictions)]


def _checked_seed(plans: Plans, tokens: Collection[str], where: str) -> dict[str, np.ndarray]:
    wanted = dict.fromkeys(tokens)
    missing = [token for token in wanted if token not in plans]
    extra = [token for token in plans if token not in wanted]
    if missing or extra:
        parts = [f"lacks {len(missing)} of {len(wanted)} scenes: {shown(missing)}"] if missing else []
        parts += [f"has {len(extra)} scenes that are not of the split: {shown(extra)}"] if extra else []
        raise ValueError(f"{where} {' and '.join(parts)}. The leaderboard takes exactly the split's scenes.")
    problems = {token: text for token in wanted if (text := plan_problem(plans[token]))}
    if problems:
        listed = shown(f"{token} ({text})" for token, text in problems.items())
        raise ValueError(f"{where}: {len(problems)} of {len(wanted)} plans cannot be submitted: {listed}.")
    return {token: plans[token].astype(np.float32) for token in wanted}


def plan_problem(poses: object) -> str:
    """What keeps a value from being a plan: (8, 3) finite floats that fit into float32. Empty where nothing does."""
    if not isinstance(poses, np.ndarray) or poses.dtype not in (np.float32, np.float64):
        return f"{poses.dtype if isinstance(poses, np.ndarray) else type(poses).__name__} instead of float32"
    if poses.shape != PLAN_SHAPE:
        return f"shape {poses.shape} instead of {PLAN_SHAPE}"
    with np.errstate(over="ignore"):  # What is beyond float32's range becomes infinite.
        single = poses.astype(np.float32)
    if not np.isfinite(single).all():
        pose, entry = np.argwhere(~np.isfinite(single))[0].tolist()
        return f"pose {pose} has {('x', 'y', 'heading')[entry]}={poses[pose, entry]}"
    return ""
