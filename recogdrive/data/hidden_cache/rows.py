"""Scenes -> rows for the VLM, made by threads ahead of the device that encodes them."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32

from recogdrive.data.samples import SceneSource, status_feature
from recogdrive.data.types import FUTURE_FRAMES, Scene


class RowMaker(Protocol):
    """Makes rows, as `ScenePrompts` does."""

    def inputs(self, scene: Scene) -> Mapping[str, np.ndarray]:
        """A row without batch axis, `segment_ids` among its entries."""
        ...


@dataclass(frozen=True)
class SceneRow:
    """A scene that is ready to be encoded.

    Attributes:
      token: Of the scene.
      log_name: Its log.
      inputs: Row for the VLM.
      history: (4, 3) past poses.
      status: (8,) see `status_feature`.
      target: (8, 3) driven trajectory; None where it is unknown.
    """

    token: str
    log_name: str
    inputs: Mapping[str, np.ndarray]
    history: Float32[np.ndarray, "4 3"]
    status: Float32[np.ndarray, "8"]
    target: Float32[np.ndarray, "8 3"] | None

    @property
    def length(self) -> int:
        """Tokens that are no padding."""
        return int(np.count_nonzero(self.inputs["segment_ids"]))


class FailedRow(NamedTuple):
    """A scene that cannot be encoded, and why."""

    token: str
    reason: str


class SceneList:
    """The scenes of several splits, each once, in the order of the splits.

    Args:
      splits: Name -> scenes.

    Attributes:
      tokens: Of the scenes.
    """

    def __init__(self, splits: Mapping[str, SceneSource]) -> None:
        found: dict[str, tuple[SceneSource, int]] = {}
        for source in splits.values():
            for index, token in enumerate(source.tokens):
                found.setdefault(token, (source, index))
        self.tokens = tuple(found)
        self._places = tuple(found.values())

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, position: int) -> Scene:
        source, index = self._places[position]
        return source[index]


def make_row(scenes: SceneList, position: int, maker: RowMaker) -> SceneRow | FailedRow:
    """The row of one scene; what is wrong with the scene, its prompt or its picture becomes a failure."""
    token = scenes.tokens[position]
    try:
        scene = scenes[position]
        inputs = maker.inputs(scene)
        history, status = scene.ego.poses.astype(np.float32), status_feature(scene)
        known = scene.future is not None and len(scene.future) >= FUTURE_FRAMES
        target = scene.future[:FUTURE_FRAMES].astype(np.float32) if known else None
        for name, array in (("history", history), ("status", status), ("driven trajectory", target)):
            if array is not None and not np.isfinite(array).all():
                raise ValueError(f"Scene {token} of log {scene.log_name}: its {name} is not finite")
    except (ValueError, OSError) as error:
        return FailedRow(token, str(error))
    return SceneRow(token, scene.log_name, inputs, history, status, target)


def rows_ahead(
    scenes: SceneList, positions: Sequence[int], maker: RowMaker, pool: Executor, ahead: int
) -> Iterator[SceneRow | FailedRow]:
    """Rows in the order of the positions; at most `ahead` are made or waiting at a time."""
    waiting: collections.deque[Future] = collections.deque()
    remaining = iter(positions)
    try:
        while True:
            while len(waiting) < ahead and (position := next(remaining, None)) is not None:
                waiting.append(pool.submit(make_row, scenes, position, maker))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
