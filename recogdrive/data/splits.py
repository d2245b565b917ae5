"""Which scenes train and which are evaluated."""

import functools
from collections.abc import Callable, Sequence

import gin

from recogdrive.data.samples import SceneSource

OpenSource = Callable[[], SceneSource]


@gin.register
class PlanningSplits:
    """Splits of a planning experiment, opened when they are needed.

    Sources are given as callables (`@train/NavsimScenes`, without parentheses), so that an experiment can be described
    where its data is not.

    Args:
      train: Opens the training scenes; None for an experiment that only evaluates.
      evaluate: Pairs of a split's name and what opens its scenes. The first is the headline split: its figures carry
        the plain names. (Pairs and not a dictionary, because gin prints dictionaries in another order.)

    Raises:
      ValueError: Neither is given, or two splits share a name.
    """

    def __init__(self, train: OpenSource | None = None, evaluate: Sequence[tuple[str, OpenSource]] = ()) -> None:
        self._train = None if train is None else _once(train)
        self._evaluate = {name: _once(opener) for name, opener in evaluate}
        if train is None and not self._evaluate:
            raise ValueError("PlanningSplits has neither train nor evaluate; bind at least one of them to a source.")
        if len(self._evaluate) < len(evaluate):
            raise ValueError(f"PlanningSplits.evaluate names a split twice: {[name for name, _ in evaluate]}.")

    def open_train(self) -> SceneSource:
        """The training scenes.

        Raises:
          ValueError: The experiment has none, or the split is empty.
        """
        if self._train is None:
            raise ValueError("This experiment has no training split; bind PlanningSplits.train to a scene source.")
        return _require_scenes("train", self._train())

    def open_evaluate(self) -> dict[str, SceneSource]:
        """The evaluated splits, headline first.

        Raises:
          ValueError: A split is empty.
        """
        return {name: _require_scenes(name, opener()) for name, opener in self._evaluate.items()}

    def open_all(self) -> dict[str, SceneSource]:
        """Every split under the name `describe` gives it, the training scenes first.

        Raises:
          ValueError: A split is empty.
        """
        return {name: _require_scenes(name, opener()) for name, opener in self._openers().items()}

    def describe(self) -> dict[str, str]:
        """Split -> what was found there, or why nothing was; raises nothing that opening a split raises."""
        return {name: _found(opener) for name, opener in self._openers().items()}

    def _openers(self) -> dict[str, OpenSource]:
        train = {} if self._train is None else {"train": self._train}
        return train | {f"evaluate {name}": opener for name, opener in self._evaluate.items()}


def _once(opener: OpenSource) -> OpenSource:
    """The opener, which opens at its first call only: opening may read every log of a split."""
    return functools.cache(lambda: opener())


def _found(opener: OpenSource) -> str:
    try:
        source = opener()
    except (OSError, ValueError) as error:
        return f"not available: {str(error).splitlines()[0]}"  # Gin adds lines on where it was called.
    details = ", ".join(
        f"{count:,} {what.replace('_', ' ')}" for what, count in source.report.items() if what != "scenes"
    )
    return f"{len(source):,} scenes of {source.name}" + (f" ({details})" if details else "")


def _require_scenes(name: str, source: SceneSource) -> SceneSource:
    if len(source) == 0:
        raise ValueError(f"Split {name!r} ({source.name}) holds no scenes; check its data root and scene filter.")
    return source
