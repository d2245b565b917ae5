"""Every scene with the hidden states of another one: what a planner makes of the states is what it loses by that."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np

from recogdrive.data.hidden_cache.reader import HiddenStateCache, HiddenStateSamples
from recogdrive.data.samples import Sample, SceneSource
from recogdrive.data.types import Context, Scene


@gin.register
class ShuffledHiddenStates(HiddenStateCache):
    """A hidden-state cache in which every scene has the states of another scene; ego status and target stay its own.

    Args:
      path: See `HiddenStateCache`.
      num_tokens: Likewise.
      width: Likewise.
      seed: Of the permutation, which leaves no scene its own states.

    Raises:
      ValueError: No folder is named.
    """

    def __init__(
        self, path: str | Path | None, *, num_tokens: int | None = None, width: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(path, num_tokens=num_tokens, width=width)
        self._seed = seed

    @property
    def fingerprint(self) -> str:
        """Another one than that of the cache as it is."""
        return f"shuffled, seed {self._seed}: {super().fingerprint}"

    @property
    def fields(self) -> dict[str, Any]:
        """Those of the cache, and the seed."""
        return {**super().fields, "shuffled": self._seed}

    def other(self, token: str) -> str:
        """The scene whose states a scene gets; of one that is not there, itself."""
        return self._others.get(token, token)

    @functools.cached_property
    def _others(self) -> Mapping[str, str]:
        # In a random cycle each has the next one's states.
        cycle = np.random.default_rng(self._seed).permutation(np.asarray(self.container.tokens))
        return dict(zip(cycle.tolist(), np.roll(cycle, -1).tolist(), strict=True))

    def __call__(self, scene: Scene) -> Context:
        """Another scene's states; raises HiddenCacheError if the container does not hold it."""
        states = self.container.read(self.other(scene.token))
        return Context(states.tokens, states.mask)

    def samples(self, source: SceneSource) -> "_ShuffledSamples":
        """Training samples of a split, straight from the records."""
        return _ShuffledSamples(self, source)


class _ShuffledSamples(HiddenStateSamples):
    """Samples of the split with the states of others."""

    def __init__(self, cache: ShuffledHiddenStates, source: SceneSource) -> None:
        super().__init__(cache, source)
        self._shuffled = cache

    def __getitem__(self, index: int) -> Sample:
        """One sample, for which two records are read."""
        states = self._shuffled.container.read(self._shuffled.other(self._tokens[index]))
        return super().__getitem__(index) | {"context": states.tokens, "context_mask": states.mask}
