"""How fast the steps of a run go, seen from a loop that does not wait for them."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

import jax

from recogdrive.training.step import Metrics
from recogdrive.training.time_account import INPUT, STEPS, TimeAccount


class StepWatch:
    """Notes when the steps under way end on the devices, in a thread, so that the loop need not wait for them.

    Args:
      clock: That of the account.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._started = 0
        self._ended = (0, clock())
        self._waiting: queue.SimpleQueue[tuple[int, jax.Array] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="step watch", daemon=True)
        self._thread.start()

    def add(self, metrics: Metrics) -> None:
        """Hands over what the newest step will have computed."""
        self._started += 1
        self._waiting.put((self._started, metrics["loss"]))

    def idle_since(self) -> float | None:
        """When the newest step ended; None while steps are under way."""
        number, ended = self._ended
        return ended if number == self._started else None

    def _watch(self) -> None:
        while (entry := self._waiting.get()) is not None:
            number, loss = entry
            with suppress(Exception):  # The loop meets it too, and is the one to report it.
                jax.block_until_ready(loss)
            self._ended = (number, self._clock())

    def close(self) -> None:
        """Ends the thread, which is left alone where a step never ends."""
        self._waiting.put(None)
        self._thread.join(timeout=1.0)


class StepPace:
    """How fast steps go between two log lines, evaluations and checkpoints left out.

    Args:
      account: Of the run.
    """

    def __init__(self, account: TimeAccount) -> None:
        self._account = account
        self.restart()

    def restart(self) -> None:
        """Begins a new interval."""
        self._steps, self._since = 0, self._account.read()

    def advance(self) -> None:
        """One step more."""
        self._steps += 1

    def report(self, batch_size: int) -> dict[str, float]:
        """Figures of the interval: samples a second, seconds a step, seconds a step without work for the devices.

        `goodput` is the share of the time since the run was started that steps took.

        Args:
          batch_size: Rows of a step.
        """
        now, steps = self._account.read(), max(self._steps, 1)
        seconds = now.training - self._since.training
        return {
            "samples_per_s": steps * batch_size / seconds,
            "step_time_s": seconds / steps,
            "input_wait_s": (now.seconds[INPUT] - self._since.seconds[INPUT]) / steps,
            "goodput": now.seconds[STEPS] / now.wall,
        }
