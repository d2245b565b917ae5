"""Watches over one process of several: when one ends, all end, each saying why. Imports no jax.

JAX ends a process without a word when it loses contact, at a moment of its own choosing, and a collective that waits
for a dead process cannot be left. So the process that works is a child of one that does not, which stays able to speak.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from recogdrive.experiment import ConfigurationError
from recogdrive.hosts.link import How, Hub, Link, LinkError, News, Spoke
from recogdrive.hosts.settings import HostSettings
from recogdrive.version import __version__

LOST_EXIT_CODE = 76
"""Exit status of a process whose run ended because another one did: EX_PROTOCOL of sysexits.h."""

IN_ORDER = (0, 3, 75)
"""Exit codes that all processes end with together: finished, stopped by a threshold, preempted."""

MEMBER_VARIABLE = "RECOGDRIVE_MEMBER"
"""Set for a process that works under a supervisor: its `HostSettings`."""
REASON_VARIABLE = "RECOGDRIVE_REASON_FD"
"""Where it writes why it fails: the number of an open pipe."""

_POLL_S = 0.1
_TIME_FOR_OWN_ERROR_S = 5.0
"""How long a process may go on after another failed: often both have the same error, and each is to show its own."""
_TIME_FOR_NEWS_S = 3.0
"""JAX aborts a process as soon as process 0 is gone, which may be before the news of it is here."""


def supervise(
    settings: HostSettings, command: Sequence[str], close_record: Callable[[str], None], arguments: Sequence[str]
) -> int:
    """Runs `command` as this host's part of the run; returns its exit code, or `LOST_EXIT_CODE`.

    Args:
      settings: Which process this is.
      command: What works.
      close_record: Notes in the record of the run how it ended, where the process that keeps it cannot.
      arguments: What all processes must have been started with alike.

    Raises:
      ConfigurationError: The processes did not come together.
    """
    sys.stderr.write(f"{settings.described()}\n")
    # Paths of the interpreter and the checkout may differ.
    identity = f"recogdrive {__version__} {' '.join(arguments)}"
    with _signals() as signals:
        try:
            link = _link(settings, identity, signals)
        except LinkError as error:
            raise ConfigurationError(str(error)) from error
        if settings.is_lead:
            sys.stderr.write(f"all are there: {', '.join(f'{n} on {host}' for n, host in link.hosts.items())}\n")
        try:
            return _Supervision(settings, link, close_record).run(command, signals)
        finally:
            link.close()


def _link(settings: HostSettings, identity: str, signals: "_Signals") -> Hub | Spoke:
    host, port = settings.coordinator
    own = socket.gethostname()
    durations = (settings.start_timeout_s, settings.lost_after_s, lambda: signals.stopped)
    if settings.is_lead:
        return Hub(port + 1, settings.num_processes, identity, own, *durations)
    return Spoke((host, port + 1), settings.process_id, settings.num_processes, identity, own, *durations)


class _Signals:
    """Hands on what asks the run to stop; what a terminal sends reaches the child by itself."""

    def __init__(self) -> None:
        self.stopped = False
        self.child: subprocess.Popen | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.stopped = True
        if number == signal.SIGTERM and self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    before = {number: signal.signal(number, signals.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Supervision:
    """One child, and what is known of the other processes."""

    def __init__(self, settings: HostSettings, link: Link, close_record: Callable[[str], None]) -> None:
        self._settings = settings
        self._link = link
        self._close = close_record
        self._running = set(range(settings.num_processes))
        self._bad: News | None = None

    def run(self, command: Sequence[str], signals: _Signals) -> int:
        """Starts the child and waits for the end of it, or of the run."""
        reading, writing = os.pipe()
        variables = {MEMBER_VARIABLE: self._settings.to_json(), REASON_VARIABLE: str(writing)}
        child = subprocess.Popen(
            command, env=os.environ | variables, pass_fds=(writing,), preexec_fn=_dies_with(os.getpid())
        )
        os.close(writing)
        signals.child = child
        try:
            while (status := child.poll()) is None and self._bad is None:
                self._listen()
            if status is None:
                return self._end_of_another(child)
            return self._end_of_own(status, _written(reading))
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
            os.close(reading)

    def _listen(self) -> None:
        for news in self._link.poll(_POLL_S):
            self._running.discard(news.process)
            if news.how != How.IN_ORDER:
                self._bad = self._bad or news

    def _listen_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._bad is None:
            self._listen()

    def _end_of_another(self, child: subprocess.Popen) -> int:
        news = self._bad
        if news.how == How.FAILED:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = child.wait(_TIME_FOR_OWN_ERROR_S)
                if status > 0:
                    return status
        child.kill()
        child.wait()
        return self._lost(news)

    def _end_of_own(self, status: int, reason: str) -> int:
        own, host = self._settings.process_id, socket.gethostname()
        if status in IN_ORDER:
            self._link.tell(News(own, host, How.IN_ORDER, ""))
            self._running.discard(own)
            until = time.monotonic() + self._settings.lost_after_s
            while self._running and self._bad is None and time.monotonic() < until:
                self._listen()
            return status if self._bad is None else self._lost(self._bad)
        if status == -signal.SIGABRT:
            self._listen_for(_TIME_FOR_NEWS_S)
            if self._bad is not None:
                return self._lost(self._bad)
        if status < 0:
            text = f"it was ended by {signal.Signals(-status).name}"
            sys.stderr.write(f"error: this is process {own}: {text}. {_hint(status)}\n")
            self._link.tell(News(own, host, How.LOST, text))
            self._close_record(f"lost process {own} ({host}): {text}")
            return 128 - status
        self._link.tell(News(own, host, How.FAILED, reason or f"exit code {status}; its log says why"))
        self._close_record(f"failed: process {own} ({host}): {reason or f'exit code {status}'}")
        return status

    def _lost(self, news: News) -> int:
        """Says why this process ends although nothing was wrong with it."""
        who = f"process {news.process} of {self._settings.num_processes} ({news.host})"
        again = "run the same command again on all hosts: it goes on from the last checkpoint."
        if news.how == How.FAILED:
            first, rest = f"{who} failed: {news.text}", f"When that is put right, {again}"
            status = f"failed: process {news.process} ({news.host}): {news.text}"
        else:
            first, rest = f"lost {who}: {news.text}.", f"To continue, {again}"
            status = f"lost process {news.process} ({news.host}): {news.text}"
        sys.stderr.write(
            f"error: {first}\nProcess {self._settings.process_id} ends too, with code {LOST_EXIT_CODE}. {rest}\n"
        )
        if self._settings.process_id == (1 if news.process == 0 else 0):
            self._close_record(status)
        return LOST_EXIT_CODE

    def _close_record(self, status: str) -> None:
        """Ends the attempt in run.json, if the process that writes it could not."""
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            self._close(status)


def _hint(status: int) -> str:
    if status == -signal.SIGKILL:
        return "Where memory ran out, the kernel's log (dmesg) says so."
    if status == -signal.SIGTERM:
        return "It was asked to stop before it could save anything."
    return "What it wrote above says more."


def _written(reading: int) -> str:
    """The last reason that the child gave; empty where it gave none. The pipe holds it all, and its end is closed."""
    os.set_blocking(reading, False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reading, 1 << 16):
            data += part
    lines = data.decode(errors="replace").splitlines()
    return json.loads(lines[-1]) if lines else ""


def _dies_with(parent: int) -> Callable[[], None]:
    """For a child before its program starts: has the kernel kill it when `parent` dies, by whatever; only Linux can."""

    def prepare() -> None:
        if sys.platform == "linux":
            set_parent_death_signal = 1
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(LOST_EXIT_CODE)

    return prepare
