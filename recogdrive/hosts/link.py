"""Connections between the supervisors of a run's processes: each has one to that of process 0, which passes news on."""

import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol

_SIGNS_PER_TIMEOUT = 5
_RETRY_S = 0.25
_SEND_TIMEOUT_S = 5.0
_MAX_LINE = 1 << 20


class How(StrEnum):
    """How a process ended."""

    IN_ORDER = "in order"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True)
class News:
    """The end of a process.

    Attributes:
      process: Its number.
      host: Where it ran.
      how: Whether by itself, with an error of its own, or without a word.
      text: The error, or what is known of its death.
    """

    process: int
    host: str
    how: How
    text: str


class LinkError(RuntimeError):
    """The processes did not come together; the message says who is missing or does not fit."""


class Link(Protocol):
    """What a supervisor knows of the others."""

    def poll(self, timeout_s: float) -> list[News]:
        """News that came within `timeout_s`; gives signs of life as well."""
        ...

    def tell(self, news: News) -> None:
        """Tells all others."""
        ...

    def close(self) -> None:
        """Ends the connections."""
        ...


class _Peer:
    """One connection: lines of JSON both ways."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_SEND_TIMEOUT_S)
        self.connection = connection
        self.process: int | None = None
        self.host = ""
        self.heard = time.monotonic()
        self._rest = b""

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        # Who cannot be reached any more is noticed by the end of the connection, or by silence.
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that are there; None at the end of the connection."""
        try:
            data = self.connection.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            return None
        self._rest += data
        if not data or len(self._rest) > _MAX_LINE:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = self._rest.split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None  # Something else speaks here.
        return messages if all(isinstance(message, dict) for message in messages) else None


class _Connections:
    """What hub and spoke share: reading, signs of life, silence."""

    def __init__(self, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._selector = selectors.DefaultSelector()
        self._peers: list[_Peer] = []
        self._last_sign = time.monotonic()
        self._ended: set[int] = set()

    def _add(self, peer: _Peer) -> None:
        self._peers.append(peer)
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)

    def _remove(self, peer: _Peer) -> None:
        self._peers.remove(peer)
        self._selector.unregister(peer.connection)
        peer.connection.close()

    def _read(self, timeout_s: float) -> Iterator[tuple[_Peer, list[dict[str, Any]] | None]]:
        for key, _ in self._selector.select(timeout_s):
            if key.data is not None:
                yield key.data, key.data.receive()

    def poll(self, timeout_s: float) -> list[News]:
        """News that came within `timeout_s`; gives signs of life as well."""
        news: list[News] = []
        for peer, messages in self._read(timeout_s):
            for message in messages or []:
                if "news" in message:
                    told = message["news"]
                    news.append(News(told["process"], told["host"], How(told["how"]), told["text"]))
            if messages is None:
                news += self._gone(peer, "its connection ended")
        now = time.monotonic()
        for peer in list(self._peers):
            if now - peer.heard > self._lost_after_s:
                news += self._gone(peer, f"there was no sign of life for {self._lost_after_s:g} s")
        if now - self._last_sign > self._lost_after_s / _SIGNS_PER_TIMEOUT:
            self._last_sign = now
            for peer in self._peers:
                peer.send({"alive": True})
        fresh = [item for item in news if item.process not in self._ended]
        self._ended |= {item.process for item in fresh}
        self._pass_on(fresh)
        return fresh

    def _pass_on(self, news: list[News]) -> None:
        """Hands news to others that have no connection to where it is from."""

    def _gone(self, peer: _Peer, text: str) -> list[News]:
        self._remove(peer)
        # News of an orderly end may have come in the same breath.
        return [] if peer.process in self._ended else [News(peer.process, peer.host, How.LOST, text)]

    def tell(self, news: News) -> None:
        """Tells all others."""
        for peer in self._peers:
            peer.send({"news": asdict(news)})

    def close(self) -> None:
        """Ends the connections."""
        for peer in list(self._peers):
            self._remove(peer)
        self._selector.close()


class Hub(_Connections):
    """The supervisor of process 0: waits for all others, and passes on what one of them tells.

    Args:
      port: Where it listens.
      num_processes: How many there are, itself included.
      identity: What all must have in common: how they were started.
      host: Name of this host.
      timeout_s: How long the others may take to come.
      lost_after_s: Silence after which one is lost.
      stopped: Whether to give up waiting.

    Raises:
      LinkError: Some did not come in time, one was started otherwise, two have one number; or the port is taken.
    """

    def __init__(
        self,
        port: int,
        num_processes: int,
        identity: str,
        host: str,
        timeout_s: float,
        lost_after_s: float,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(lost_after_s)
        self._identity = identity
        try:
            self._listener = _listen(port)
        except OSError as error:
            raise LinkError(
                f"process 0 cannot listen on port {port} ({error.strerror}): another run may use it; choose another "
                "port in --coordinator_address on all processes."
            ) from error
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        try:
            self._gather(num_processes, time.monotonic() + timeout_s, timeout_s, stopped)
        except LinkError as error:
            for peer in self._peers:
                peer.send({"refused": str(error)})
            self.close()
            raise
        hosts = {0: host} | {peer.process: peer.host for peer in self._peers}
        for peer in self._peers:
            peer.heard = time.monotonic()
            peer.send({"go": {"host": host, "hosts": hosts}})
        self.hosts: dict[int, str] = dict(sorted(hosts.items()))

    def _gather(self, count: int, deadline: float, timeout_s: float, stopped: Callable[[], bool]) -> None:
        while missing := set(range(1, count)) - {peer.process for peer in self._peers}:
            if stopped():
                raise LinkError("process 0 was asked to stop before all had come.")
            if time.monotonic() > deadline:
                names = ", ".join(map(str, sorted(missing)[:10])) + (", ..." if len(missing) > 10 else "")
                raise LinkError(
                    f"of {count} processes {len(missing)} did not come within {timeout_s:g} s: {names}. Start the same "
                    "command on all of them, and look whether they can reach process 0."
                )
            for key, _ in self._selector.select(_RETRY_S):
                if key.data is None:
                    with suppress(OSError):
                        self._add(_Peer(self._listener.accept()[0]))
                elif (messages := key.data.receive()) is None:
                    self._remove(key.data)
                else:
                    for message in messages:
                        self._welcome(key.data, message, count)

    def _welcome(self, peer: _Peer, message: Mapping[str, Any], count: int) -> None:
        hello = message.get("hello")
        if hello is None:
            return
        number, found = hello["process"], hello["count"]
        if found != count:
            raise LinkError(
                f"process {number} on {hello['host']} was told of {found} processes, process 0 of {count}; start all "
                "with the same number."
            )
        if twin := next((other for other in self._peers if other.process == number), None):
            raise LinkError(
                f"two processes, on {twin.host} and {hello['host']}, say that they are process {number}; number them "
                f"from 0 to {count - 1}."
            )
        if hello["identity"] != self._identity:
            raise LinkError(
                f"process {number} on {hello['host']} runs something else:\n  process 0: {self._identity}\n  process "
                f"{number}: {hello['identity']}\nStart the same command, of the same version, on all."
            )
        peer.process, peer.host = number, hello["host"]

    def _pass_on(self, news: list[News]) -> None:
        for item in news:
            for peer in self._peers:
                if peer.process != item.process:
                    peer.send({"news": asdict(item)})

    def close(self) -> None:
        """Ends the connections and listens no more."""
        self._selector.unregister(self._listener)
        self._listener.close()
        super().close()


class Spoke(_Connections):
    """The supervisor of another process.

    Args:
      address: Host and port of the hub.
      process: Number of this one.
      count: How many there are.
      identity: How this one was started.
      host: Name of this host.
      timeout_s: How long it tries to reach the hub, and how long it then waits for all others to come.
      lost_after_s: Silence after which process 0 is lost.
      stopped: Whether to give up.

    Raises:
      LinkError: The hub cannot be reached, or did not want this process.
    """

    def __init__(
        self,
        address: tuple[str, int],
        process: int,
        count: int,
        identity: str,
        host: str,
        timeout_s: float,
        lost_after_s: float,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(lost_after_s)
        self.hosts: dict[int, str] = {}
        hello = {"hello": {"process": process, "count": count, "identity": identity, "host": host}}
        deadline = time.monotonic() + timeout_s
        while not self.hosts:
            peer = _Peer(_connect(address, process, deadline, timeout_s, stopped))
            peer.process = 0
            self._add(peer)
            peer.send(hello)
            # The hub gives up first, and says who is missing. One that ends before may be that of an earlier attempt.
            self._await_go(peer, deadline + lost_after_s, stopped)

    def _await_go(self, peer: _Peer, deadline: float, stopped: Callable[[], bool]) -> None:
        while True:
            for _, messages in self._read(_RETRY_S):
                for message in messages or []:
                    if "refused" in message:
                        raise LinkError(message["refused"])
                    if "go" in message:
                        peer.host = message["go"]["host"]
                        self.hosts = {int(number): name for number, name in message["go"]["hosts"].items()}
                        return
                if messages is None:
                    self._remove(peer)
                    return
            if stopped() or time.monotonic() > deadline:
                raise LinkError("process 0 is there and did not say to begin, or this process was asked to stop.")


def _listen(port: int) -> socket.socket:
    """All addresses, IPv6 too where there is any."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def _connect(
    address: tuple[str, int], process: int, deadline: float, timeout_s: float, stopped: Callable[[], bool]
) -> socket.socket:
    last = "it ended again and again"
    while time.monotonic() < deadline and not stopped():
        try:
            return socket.create_connection(address, timeout=max(1.0, min(10.0, deadline - time.monotonic())))
        except OSError as error:
            last = str(error.strerror or error)
            time.sleep(_RETRY_S)
    raise LinkError(
        f"process {process} cannot reach process 0 at {address[0]} port {address[1]}, within {timeout_s:g} s ({last}). "
        "Is process 0 started, is the address its own, and does no firewall stand between (ports "
        f"{address[1] - 1} and {address[1]})?"
    )
