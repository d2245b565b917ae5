"""Scenes -> the planner's samples: context, history, status, target."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from recogdrive.data.context import ContextSource
from recogdrive.data.types import FUTURE_FRAMES, Context, PromptRow, Scene

Sample = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]


class SceneSource(Protocol):
    """A split: scenes in a fixed order, by position. `source[i]` depends on nothing but the source and i."""

    name: str
    tokens: tuple[str, ...]
    report: dict[str, int]

    def __len__(self) -> int:
        """Number of scenes."""
        ...

    def __getitem__(self, index: int) -> Scene:
        """One scene."""
        ...

    def log_of(self, index: int) -> str:
        """Name of the log that scene `index` comes from, without building the scene."""
        ...


@runtime_checkable
class NavsimSplit(Protocol):
    """A source that says which of NAVSIM's split folders its scenes are from.

    Attributes:
      split: mini, trainval, test or private_test_e2e; empty for other scenes.
    """

    split: str


@runtime_checkable
class TimedScenes(Protocol):
    """A source that says when a scene is without building it."""

    def time_of(self, index: int) -> int:
        """Clock of scene `index`, its `timestamp_us`."""
        ...


def status_feature(scene: Scene) -> np.ndarray:
    """Status of the current frame: command one-hot (4), velocity x y, acceleration x y; (8,) float32.

    Source: upstream `recogdrive_features.py`; the order is the one official checkpoints were trained with.
    """
    return np.concatenate([scene.ego.command[-1], scene.ego.velocity[-1], scene.ego.acceleration[-1]]).astype(
        np.float32
    )


def planner_inputs(scene: Scene, context: ContextSource) -> Sample:
    """What the planner sees of a scene: one row of a batch (see `docs/architecture.md`) without target and batch axis.

    Raises:
      ValueError: Some number is not finite; names the scene, its log and the place.
    """
    made = context(scene)
    return _require_finite(
        scene,
        {
            **_context_entries(made),
            "history_trajectory": scene.ego.poses.astype(np.float32),
            "status_feature": status_feature(scene),
        },
    )


def _context_entries(made: Context | PromptRow) -> Sample:
    """Context tokens, or what they are made of later.

    Tokens in bfloat16 stay so: the planner widens them where it computes, which loses nothing and moves half.
    """
    if isinstance(made, PromptRow):
        return made.entries()
    tokens = made.tokens if made.tokens.dtype == ml_dtypes.bfloat16 else np.asarray(made.tokens, dtype=np.float32)
    return {"context": tokens, "context_mask": np.asarray(made.mask, dtype=bool)}


def planner_sample(scene: Scene, context: ContextSource, index: int) -> Sample:
    """A training sample: the planner's inputs, the driven trajectory as target, and its position in the split.

    Raises:
      ValueError: The scene has no driven future of 4 s, or some number is not finite; names the scene.
    """
    if scene.future is None or len(scene.future) < FUTURE_FRAMES:
        known = 0 if scene.future is None else len(scene.future)
        raise ValueError(
            f"Scene {scene.token} of log {scene.log_name} has {known} future poses; imitation needs {FUTURE_FRAMES}. "
            f"Use a scene filter with num_future_frames >= {FUTURE_FRAMES}."
        )
    target = _require_finite(scene, {"trajectory": scene.future[:FUTURE_FRAMES].astype(np.float32)})
    return planner_inputs(scene, context) | target | {"index": np.int32(index)}


def _require_finite(scene: Scene, sample: Sample) -> Sample:
    for name, value in sample.items():
        if not np.all(np.isfinite(value)):
            where = np.argwhere(~np.isfinite(value))[0].tolist()
            raise ValueError(
                f"Scene {scene.token} of log {scene.log_name}: {name}{where} is not finite; "
                "repair or exclude this log (log_names, tokens)."
            )
    return sample


class TrainingSamples(Protocol):
    """Random-access samples of a split, in its order."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """One sample."""
        ...


class PlannerSamples:
    """Random-access samples of a split; each is made once and kept.

    A sample of scene tokens weighs some tens of kilobytes, so a split of 100,000 takes a few gigabytes; `keep=False`
    makes every sample anew instead.

    Args:
      source: The split's scenes.
      context: Makes the context tokens.
      keep: Whether to hold samples in memory once made.
    """

    def __init__(self, source: SceneSource, context: ContextSource, *, keep: bool = True) -> None:
        self.source = source
        self.context = context
        self.keep = keep
        self._made: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._made.get(index)
        if sample is None:
            sample = planner_sample(self.source[index], self.context, index)
            if self.keep:
                self._made[index] = sample
        return sample

    def __getstate__(self) -> dict[str, object]:
        """Worker processes start with nothing kept: sending the samples would cost more than making them."""
        return self.__dict__ | {"_made": {}}


def planner_samples(source: SceneSource, context: ContextSource, *, keep: bool = True) -> "TrainingSamples":
    """Training samples of a split: read by the context source itself where it has them whole, else made of scenes.

    Args:
      source: The split's scenes.
      context: Makes the context tokens; its method `samples`, where it has one, gives samples of a split.
      keep: Whether samples that are made of scenes stay in memory; those with tiles of images, megabytes each, never
        do.
    """
    keep = keep and not getattr(context, "holds_prompts", False)
    whole = getattr(context, "samples", None)
    return PlannerSamples(source, context, keep=keep) if whole is None else whole(source)


def stack_samples(samples: list[Sample]) -> Batch:
    """Stacks samples along a new leading axis."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def filled_batches(samples: Iterable[Sample], batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Yields samples in order as batches of one shape, with the number of rows that count.

    The last batch is filled up by repeating its last row, so that nothing compiles twice.
    """
    samples = iter(samples)
    while rows := list(itertools.islice(samples, batch_size)):
        yield stack_samples(rows + [rows[-1]] * (batch_size - len(rows))), len(rows)
