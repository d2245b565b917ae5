"""Ending a run in order when the machine is taken away."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import jax
from absl import logging
from jax.experimental import multihost_utils

PREEMPTED_EXIT_CODE = 75
"""Exit status of a run that saved and stopped on request: EX_TEMPFAIL of sysexits.h, "try again later"."""


class Preempted(SystemExit):
    """The run was asked to stop, saved its state and can be continued by the same command.

    Attributes:
      step: Updates done and saved.
    """

    def __init__(self, step: int) -> None:
        super().__init__(PREEMPTED_EXIT_CODE)
        self.step = step


class PreemptionGuard:
    """While entered, SIGTERM and the first SIGINT are noted instead of ending the process; a second SIGINT interrupts.

    With several processes JAX's preemption service takes SIGTERM, which the first SIGINT then becomes, and all
    processes agree on the step to stop at.
    """

    def __init__(self) -> None:
        self._noted = False
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers; a loop run in another one is stopped by its owner.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._noted = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step`; every process calls it at every step and gets the same answer."""
        if jax.process_count() > 1:
            self._noted = multihost_utils.reached_preemption_sync_point(step)
        if self._noted:
            logging.warning("asked to stop: saving step %d and exiting with status %d", step, PREEMPTED_EXIT_CODE)
        return self._noted
