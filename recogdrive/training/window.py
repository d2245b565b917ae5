"""Metrics of the steps since the last log line: left on the device, fetched together, checked before they are used."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from recogdrive.training.metrics_file import first_non_finite
from recogdrive.training.step import RESERVED_METRICS, Metrics

LAST_VALUE = ("grad_norm", "lr")
"""Metrics logged as of the window's last step; all others as the mean over its steps."""


class NonFiniteError(FloatingPointError):
    """A metric became NaN or infinite.

    Attributes:
      step: First update (counted from 1) where it did.
      metric: Its name.
    """

    def __init__(self, step: int, metric: str, value: float, advice: str) -> None:
        super().__init__(f"{metric} is {value} at step {step}; {advice}")
        self.step = step
        self.metric = metric


class Window:
    """Collects the scalars of consecutive steps.

    Args:
      pending: Values of the steps already in the window, from `pending` of an interrupted run.
    """

    def __init__(self, pending: list[dict[str, float]] | None = None) -> None:
        self._fetched: list[dict[str, float]] = list(pending or [])
        self._on_device: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Notes the metrics of an update without waiting for them."""
        self._on_device.append((step, metrics))

    def fetch(self) -> None:
        """Brings everything to the host in one transfer.

        Raises:
          NonFiniteError: For the earliest step with a value that is not finite.
        """
        steps = [step for step, _ in self._on_device]
        values = jax.device_get([metrics for _, metrics in self._on_device])
        self._on_device = []
        for step, metrics in zip(steps, values, strict=True):
            names = [*RESERVED_METRICS, *sorted(set(metrics) - set(RESERVED_METRICS))]
            row = {name: float(metrics[name]) for name in names}
            if (name := first_non_finite(row)) is not None:
                raise NonFiniteError(
                    step, name, row[name], "the run stops and its last good checkpoint is left as it is. Lower the "
                    "learning rate or look at this step's batch."
                )  # fmt: skip
            self._fetched.append(row)

    @property
    def pending(self) -> list[dict[str, float]]:
        """Fetched values not yet logged, oldest first; exact as JSON."""
        return list(self._fetched)

    def log(self) -> dict[str, float]:
        """Empties the window into one record: means over its steps, last values of `LAST_VALUE`."""
        rows, self._fetched = self._fetched, []
        return {
            name: rows[-1][name] if name in LAST_VALUE else math.fsum(row[name] for row in rows) / len(rows)
            for name in rows[-1]
        }


def require_finite(step: int, values: Mapping[str, float]) -> None:
    """Refuses evaluation results that are not numbers.

    Raises:
      NonFiniteError: For the first such value.
    """
    if (name := first_non_finite(values)) is not None:
        raise NonFiniteError(step, name, values[name], "look at what the evaluation returned.")


def wait_for(metrics: Metrics) -> None:
    """Blocks until the step that made these metrics has run."""
    jnp.asarray(metrics["loss"]).block_until_ready()
