"""Which scenes train and which are evaluated."""

import functools
from collections.abc import Callable, Sequence

import gin

from recogdrive.data.samples import NavsimSplit, SceneSource

OpenSource = Callable[[], SceneSource]

TEST_SPLITS = ("test", "private_test_e2e")
"""NAVSIM's split folders that nothing may be chosen by: navtest, and the leaderboard's own scenes."""


@gin.register
class PlanningSplits:
    """Splits of a planning experiment, opened when they are needed.

    Sources are given as callables (`@train/NavsimScenes`, without parentheses), so that an experiment can be described
    where its data is not.

    Args:
      train: Opens the training scenes; None for an experiment that only evaluates.
      evaluate: Pairs of a split's name and what opens its scenes. The first is the headline split: its figures carry
        the plain names. (Pairs and not a dictionary, because gin prints dictionaries in another order.)
      validate: What is looked at during training, and the best weights are chosen by; pairs likewise. Where there are
        none, the evaluated splits are.

    Raises:
      ValueError: Neither `train` nor `evaluate` is given, or two splits share a name.
    """

    def __init__(
        self,
        train: OpenSource | None = None,
        evaluate: Sequence[tuple[str, OpenSource]] = (),
        validate: Sequence[tuple[str, OpenSource]] = (),
    ) -> None:
        self._train = None if train is None else _once(train)
        self._evaluate = _named("evaluate", evaluate)
        self._validate = _named("validate", validate)
        if train is None and not self._evaluate:
            raise ValueError("PlanningSplits has neither train nor evaluate; bind at least one of them to a source.")

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

    def open_validate(self) -> dict[str, SceneSource]:
        """The splits to look at during training, headline first: those to validate on, or else the evaluated ones.

        Raises:
          ValueError: A split is empty, or is NAVSIM's test split: what is chosen by it is no longer tested by it.
        """
        if not self._validate:
            return {name: _require_no_test(name, source) for name, source in self.open_evaluate().items()}
        return {name: _validation(name, opener) for name, opener in self._validate.items()}

    def open_all(self) -> dict[str, SceneSource]:
        """Every split under the name `describe` gives it, the training scenes first.

        Raises:
          ValueError: A split is empty, or one to validate on is NAVSIM's test split.
        """
        return {name: _require_scenes(name, opener()) for name, opener in self._openers().items()}

    def describe(self) -> dict[str, str]:
        """Split -> what was found there, or why nothing was; raises nothing that opening a split raises."""
        return {name: _found(opener) for name, opener in self._openers().items()}

    def _openers(self) -> dict[str, OpenSource]:
        train = {} if self._train is None else {"train": self._train}
        validate = {
            f"validate {name}": functools.partial(_validation, name, opener) for name, opener in self._validate.items()
        }
        return train | validate | {f"evaluate {name}": opener for name, opener in self._evaluate.items()}


def _named(argument: str, pairs: Sequence[tuple[str, OpenSource]]) -> dict[str, OpenSource]:
    """Name -> opener.

    Raises:
      ValueError: A name comes twice.
    """
    openers = {name: _once(opener) for name, opener in pairs}
    if len(openers) < len(pairs):
        raise ValueError(f"PlanningSplits.{argument} names a split twice: {[name for name, _ in pairs]}.")
    return openers


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


def _validation(name: str, opener: OpenSource) -> SceneSource:
    return _require_no_test(name, _require_scenes(name, opener()))


def _require_no_test(name: str, source: SceneSource) -> SceneSource:
    if isinstance(source, NavsimSplit) and source.split in TEST_SPLITS:
        raise ValueError(
            f"Split {name!r} ({source.name}) is NAVSIM's split {source.split!r}, which must not be looked at during "
            "training: weights chosen by it are no longer tested by it. Bind PlanningSplits.validate to a held-out "
            "part of the training logs (LogPart, or the log split's val_logs)."
        )
    return source
