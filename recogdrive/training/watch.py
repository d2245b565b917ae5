"""Thresholds on what a run reports: warnings in its log, and a stop where one is asked for."""

import math
from collections.abc import Callable, Mapping, Sequence

import gin
import jax
from absl import logging

from recogdrive.suggestions import did_you_mean

STOPPED_EXIT_CODE = 3
"""Exit status of a run that a threshold stopped; its last step is saved. Unlike that of a preempted run it must not be
started again unseen."""

_KINDS = ("train/", "eval/")

Watch = Callable[[int, Mapping[str, float]], None]
"""(step, values) of a log line, named train/<metric>, or of an evaluation, named eval/<metric>. May raise
`ThresholdReached` to stop the run after a checkpoint. Every process calls it and all must decide alike: the values of
training are the same on all of them, those of an evaluation are where each of them evaluates everything."""


class ThresholdReached(RuntimeError):  # noqa: N818 - Like `Preempted`, the end of a run in order.
    """The run is to stop because of a value it reported; the training loop saves it first.

    Attributes:
      step: Updates done.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"stopped after step {step}: {reason}")
        self.step = step


@gin.register
class Threshold:
    """Bounds of one metric.

    Args:
      metric: As the training loop names it: train/<metric> or eval/<metric>.
      above: Values greater than this are out of bounds; None sets no such bound.
      below: Values less than this are; None sets no such bound.
      stop: Whether the run is to stop.
      patience: Consecutive values out of bounds after which it does.
      hint: What values out of bounds may mean, for the log.
      optional: Whether a run that does not report the metric may go on, with a warning.

    Raises:
      ValueError: The name is of no known kind, no bound is given, no value is within the bounds, or `patience` is no
        positive whole number.
    """

    def __init__(
        self,
        metric: str,
        above: float | None = None,
        below: float | None = None,
        *,
        stop: bool = False,
        patience: int = 1,
        hint: str | None = None,
        optional: bool = False,
    ) -> None:
        if not metric.startswith(_KINDS):
            raise ValueError(f"metric={metric!r} must start with {' or '.join(map(repr, _KINDS))}.")
        bounds = {"above": above, "below": below}
        if above is None and below is None:
            raise ValueError(f"the threshold on {metric!r} needs a bound: set `above`, `below` or both.")
        for name, bound in bounds.items():
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"{name}={bound} of the threshold on {metric!r} must be a finite number.")
        if above is not None and below is not None and above < below:
            raise ValueError(f"above={above} and below={below} of the threshold on {metric!r} leave no value allowed.")
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise ValueError(f"patience={patience!r} of the threshold on {metric!r} must be a whole number from 1 on.")
        self.metric = metric
        self.above = above
        self.below = below
        self.stop = stop
        self.patience = patience
        self.hint = hint
        self.optional = optional

    @property
    def kind(self) -> str:
        """The records it is looked for in: "train/" or "eval/"."""
        return next(kind for kind in _KINDS if self.metric.startswith(kind))

    def exceeded(self, value: float) -> str | None:
        """Which bound the value is beyond, for messages; None where it is within bounds."""
        if self.above is not None and value > self.above:
            return f"above {self.above:g}"
        if self.below is not None and value < self.below:
            return f"below {self.below:g}"
        return None


@gin.register
class MetricWatch:
    """Warns of values out of bounds in the log, once until they are back, and stops the run where a threshold says so.

    How many consecutive values were out of bounds is not kept across a resume: a run that is continued judges the
    values it reports from then on.

    Args:
      thresholds: What to look at.
    """

    def __init__(self, thresholds: Sequence[Threshold] = ()) -> None:
        self._thresholds = list(thresholds)
        self._out_of_bounds = [0] * len(self._thresholds)
        self._seen_kinds: set[str] = set()

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Looks at one record.

        Raises:
          ThresholdReached: A threshold that stops the run was exceeded for long enough.
          ValueError: The first record of its kind lacks a metric that has a threshold.
        """
        for kind in _KINDS:
            if kind not in self._seen_kinds and any(name.startswith(kind) for name in values):
                self._seen_kinds.add(kind)
                self._require_known(kind, values)
        reached = []
        for index, threshold in enumerate(self._thresholds):
            if threshold.metric in values and (reason := self._judge(index, step, values[threshold.metric])):
                reached.append(reason)
        if reached:  # After all have been looked at, so that the log names every one.
            raise ThresholdReached(step, "; ".join(reached))

    def _judge(self, index: int, step: int, value: float) -> str | None:
        """Counts and warns; why to stop, or None."""
        threshold = self._thresholds[index]
        exceeded = threshold.exceeded(value)
        if exceeded is None:
            self._out_of_bounds[index] = 0
            return None
        self._out_of_bounds[index] += 1
        count = self._out_of_bounds[index]
        found = f"{threshold.metric} is {value:.4g}, {exceeded}"
        hint = f" ({threshold.hint})" if threshold.hint else ""
        if count == 1 and jax.process_index() == 0:
            logging.warning("step %d: %s%s", step, found, hint)
        if not threshold.stop or count < threshold.patience:
            return None
        return found + (f", for {count} values in a row" if count > 1 else "") + hint

    def _require_known(self, kind: str, values: Mapping[str, float]) -> None:
        known = [name for name in values if name.startswith(kind)]
        for threshold in self._thresholds:
            if threshold.kind != kind or threshold.metric in values:
                continue
            problem = f"there is no metric {threshold.metric!r} to watch."
            if not threshold.optional:
                raise ValueError(
                    f"{problem}{did_you_mean(threshold.metric, known)} Correct the threshold, or set optional=True."
                )
            if jax.process_index() == 0:
                logging.warning("%s Its threshold has no effect.", problem)
