"""Several rewards as one."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import gin
from jaxtyping import Array, Float

from recogdrive.pdm.rewards.reward import Batch, Reward, RewardScores
from recogdrive.pdm.rewards.scene_layout import SceneLayout
from recogdrive.pdm.scene import PdmScene


@gin.register
class RewardSum:
    """The weighted sum of rewards, with the parts of all of them; NaN where one that has a weight is.

    Args:
      terms: The rewards. Their parts must have different names.
      weights: One for each, not negative; a term of weight 0 is computed and shown, but does not count.

    Raises:
      ValueError: No terms, other weights than terms, weights that are not finite, negative or all zero, or parts of the
        same name.
    """

    def __init__(self, terms: Sequence[Reward], weights: Sequence[float]) -> None:
        self.terms, self.weights = tuple(terms), tuple(map(float, weights))
        if not self.terms or len(self.terms) != len(self.weights):
            raise ValueError(
                f"RewardSum has {len(self.terms)} terms and {len(self.weights)} weights; give each term its weight."
            )
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise ValueError(f"RewardSum.weights={self.weights} must be finite, not negative and not all zero.")
        self.part_names = tuple(name for term in self.terms for name in term.part_names)
        if twice := [name for name, count in collections.Counter(self.part_names).items() if count > 1]:
            raise ValueError(f"Several terms of RewardSum have a part {twice[0]!r}; a term can be there only once.")
        layouts: dict[str, SceneLayout] = {}
        for term in self.terms:
            layouts |= {layout.prefix: layout for layout in term.layouts}
        self.layouts = tuple(layouts.values())
        self.uses_previous_plans = any(term.uses_previous_plans for term in self.terms)

    def attach(self, records: Callable[[int], PdmScene]) -> None:
        """See `Reward`."""
        for term in self.terms:
            term.attach(records)

    def submit(self, batch: Batch, trajectories: Float[Array, "B G 8 3"]) -> tuple[Any, ...]:
        """See `Reward`."""
        return tuple(term.submit(batch, trajectories) for term in self.terms)

    def collect(self, pending: tuple[Any, ...], after: Array) -> RewardScores:
        """See `Reward`."""
        scores = [term.collect(begun, after) for term, begun in zip(self.terms, pending, strict=True)]
        parts = {name: values for score in scores for name, values in score.parts.items()}
        total = sum(w * score.total for w, score in zip(self.weights, scores, strict=True) if w)
        return RewardScores(total, parts)
