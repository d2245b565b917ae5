"""Where the wall time of a training run goes: every moment is charged to one kind of work, so that all add up."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import jax

START = "start"
COMPILE = "compile"
INPUT = "input_wait"
STEPS = "steps"
CHECKPOINT = "checkpoint"
EVALUATION = "evaluation"
OTHER = "other"
KINDS = (START, COMPILE, INPUT, STEPS, CHECKPOINT, EVALUATION, OTHER)

_COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
"""What JAX reports at the start (as a scalar) and at the end (as a duration) of tracing, lowering and compiling."""


@dataclass(frozen=True)
class Spent:
    """Seconds until now.

    Attributes:
      seconds: Kind of work -> seconds; their sum is the wall time.
      compiled_in: Kind of work -> seconds of compilation that it asked for, all part of `seconds[COMPILE]`.
    """

    seconds: Mapping[str, float]
    compiled_in: Mapping[str, float]

    @property
    def wall(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    @property
    def training(self) -> float:
        """Seconds without evaluations and checkpoints and what was compiled for them."""
        apart = (EVALUATION, CHECKPOINT)
        return self.wall - sum(self.seconds[kind] + self.compiled_in[kind] for kind in apart)


class TimeAccount:
    """A clock with one hand for each kind of work, of which one moves at any moment.

    Phases nest: the inner one's time is not the outer one's. A phase also shows in profiles under its kind.

    Args:
      clock: Seconds from any fixed moment on.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._stack = [OTHER]
        self._since = clock()
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._compiled_in = dict.fromkeys(KINDS, 0.0)

    def _charge(self) -> None:
        now = self._clock()
        kind = self._stack[-1]
        self._seconds[kind] += now - self._since
        if kind == COMPILE:
            asker = next(outer for outer in reversed(self._stack) if outer != COMPILE)
            self._compiled_in[asker] += now - self._since
        self._since = now

    def read(self) -> Spent:
        """The time until now."""
        self._charge()
        return Spent(dict(self._seconds), dict(self._compiled_in))

    @contextmanager
    def phase(self, kind: str) -> Iterator[None]:
        """Charges the time within it to `kind`."""
        self._charge()
        depth = len(self._stack)
        self._stack.append(kind)
        try:
            with jax.profiler.TraceAnnotation(kind):
                yield
        finally:
            self._charge()
            del self._stack[depth:]

    @contextmanager
    def input_phase(self, idle_since: Callable[[], float | None]) -> Iterator[None]:
        """Charges the time within it to `INPUT` as far as the devices had nothing to do, else to the outer kind.

        Args:
          idle_since: Asked at the end: when the devices became idle, None where they are not.
        """
        self._charge()
        before, start = self._seconds[INPUT], self._since
        try:
            with self.phase(INPUT):
                yield
        finally:
            since = idle_since()
            busy = self._since - start if since is None else max(0.0, min(since, self._since) - start)
            hidden = min(busy, self._seconds[INPUT] - before)
            self._seconds[INPUT] -= hidden
            self._seconds[self._stack[-1]] += hidden

    @contextmanager
    def compilation_apart(self) -> Iterator[None]:
        """Within it, what JAX traces, lowers and compiles in this thread is charged to `COMPILE`, whoever asks."""
        thread = threading.get_ident()

        def begin(event: str, value: float, **_: Any) -> None:
            if event in _COMPILING and threading.get_ident() == thread:
                self._charge()
                self._stack.append(COMPILE)

        def end(event: str, seconds: float, **_: Any) -> None:
            if event in _COMPILING and threading.get_ident() == thread and self._stack[-1] == COMPILE:
                self._charge()
                self._stack.pop()

        jax.monitoring.register_scalar_listener(begin)
        jax.monitoring.register_event_duration_secs_listener(end)
        try:
            yield
        finally:
            jax.monitoring.unregister_scalar_listener(begin)
            jax.monitoring.unregister_event_duration_listener(end)
