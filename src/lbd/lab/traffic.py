"""Clients for the lab: who answers, how fast, and if nobody does, why not.

They are sockets of a host's namespace in this process, so there is no process for each request.
Everything is bounded in time and in count.
"""

from __future__ import annotations

import errno
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

from lbd.lab import sctp
from lbd.lab.namespaces import Lab, wait_until
from lbd.lab.servers import LONGEST, PAGE, reset_on_close

# What a client speaks: a line over TCP or UDP, a GET, or the beginning of SCTP, see servers.Kind and sctp.
Protocol = Literal["tcp", "http", "udp", "sctp"]

# SCTP is spoken without the kernel, which hence gives out no port: the dynamic ones of RFC 6335, in turn.
_sctp_ports = itertools.cycle(range(49152, 65536))

# A closed client port rests for 60 s, and there are 28,232 of them to one server (tcp(7),
# ip_local_port_range): more requests in a minute would fail for that reason alone.
MOST_REQUESTS = 20_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got: the name of the server, or a failure, and after how many seconds.

    `failure` is "refused", "timeout", "unreachable", "reset" (by the server, or closed without an
    answer), or the system's words for something rarer.
    """

    server: str = ""
    failure: str = ""
    seconds: float = 0.0


def ask(
    lab: Lab,
    host: str,
    address: str,
    port: int,
    *,
    protocol: Protocol = "tcp",
    timeout: float = 2.0,
    source_port: int | None = None,
    source: str = "",
) -> Answer:
    """Make one request from a host, in at most `timeout` seconds, on a connection of its own.

    `source` is one of the host's addresses, "" for the one that the kernel takes. A next hop that does not
    answer to ARP makes it "unreachable" only after 3 s. With a `source_port` the connection is reset in the
    end, so that the port is free at once. Raises OSError when that is in use.
    """
    start = time.monotonic()
    server, failure = "", ""
    with lab.inside(host):
        connection = _socket(address, protocol, source_port, source)
    try:
        with connection:
            deadline = start + timeout
            if protocol == "sctp":
                server = sctp.greet(connection, address, port, source_port or next(_sctp_ports), deadline)
            else:
                _connect(connection, address, port, deadline)
                server = _first_words(connection, protocol, deadline)
    except OSError as error:
        failure = why(error)
    return Answer(server, failure, time.monotonic() - start)


def why(error: OSError) -> str:
    """Return the word for a failed request, see `Answer`."""
    if isinstance(error, TimeoutError):
        return "timeout"
    # The numbers are what ICMP makes of a host that does not speak the protocol, in IPv4 and IPv6.
    if isinstance(error, ConnectionRefusedError) or error.errno in (errno.ENOPROTOOPT, errno.EPROTO):
        return "refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "reset"
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "unreachable"
    return error.strerror or str(error)


class Conversation(AbstractContextManager["Conversation"]):
    """A connection (or UDP flow) that stays open; `server` is who answered its first line.

    Raises OSError when it cannot be opened or nobody answers within `timeout` seconds.
    """

    def __init__(
        self,
        lab: Lab,
        host: str,
        address: str,
        port: int,
        *,
        protocol: Literal["tcp", "udp"] = "tcp",
        timeout: float = 2.0,
        source_port: int | None = None,
    ) -> None:
        self.protocol = protocol
        self._lines = 0
        self._buffer = b""
        with lab.inside(host):
            self._socket = _socket(address, protocol, source_port)
        try:
            _connect(self._socket, address, port, time.monotonic() + timeout)
            self.server = self.say(timeout)
        except OSError:
            self._socket.close()
            raise

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; a second time is harmless."""
        self._socket.close()

    def say(self, timeout: float = 2.0) -> str:
        """Exchange a line and return the name of who answered; raises OSError when nobody did in time."""
        self._lines += 1
        line = str(self._lines).encode()
        server, self._buffer = _exchange(self._socket, line, self._buffer, time.monotonic() + timeout)
        return server

    def alive(self, timeout: float = 2.0) -> bool:
        """Whether a line is still answered, by the server that answered the first."""
        try:
            return self.say(timeout) == self.server
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests so far: answers by server, failures by reason, and the seconds of the slowest answer."""

    answers: Mapping[str, int]
    failures: Mapping[str, int]
    worst: float

    @property
    def total(self) -> int:
        """All requests that have ended, either way."""
        return sum(self.answers.values()) + sum(self.failures.values())


class Requester(AbstractContextManager["Requester"]):
    """Makes request after request from a host while the context is open, `pause` seconds apart.

    It ends by itself after `seconds` or MOST_REQUESTS. `timeout` is for one request.
    """

    def __init__(
        self,
        lab: Lab,
        host: str,
        address: str,
        port: int,
        *,
        protocol: Protocol = "tcp",
        timeout: float = 2.0,
        pause: float = 0.002,
        seconds: float = 60.0,
    ) -> None:
        self._request = partial(ask, lab, host, address, port, protocol=protocol, timeout=timeout)
        self._pause, self._seconds = pause, seconds
        self._answers: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._worst = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"requests to {address}", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except BaseException:
            # A Ctrl-C may come when the thread runs already; without this it would outlive its lab.
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> Tally:
        """End after the request that is under way, and return how they all went."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        return self.tally()

    def tally(self) -> Tally:
        """Return how the requests went so far."""
        with self._lock:
            return Tally(dict(self._answers), dict(self._failures), self._worst)

    def wait_for(self, condition: Callable[[Tally], bool], seconds: float = 10.0) -> Tally:
        """Return the first tally that fits; raises TimeoutError, with the last, when none does in time."""

        def fitting() -> Tally | None:
            tally = self.tally()
            return tally if condition(tally) else None

        found = wait_until(fitting, seconds)
        if found is None:
            raise TimeoutError(f"not within {seconds} s: {self.tally()}")
        return found

    def _loop(self) -> None:
        deadline = time.monotonic() + self._seconds
        for _ in range(MOST_REQUESTS):
            if self._stop.wait(self._pause) or time.monotonic() > deadline:
                return
            answer = self._request()
            with self._lock:
                if answer.failure:
                    self._failures[answer.failure] += 1
                else:
                    self._answers[answer.server] += 1
                    self._worst = max(self._worst, answer.seconds)


def _socket(address: str, protocol: Protocol, source_port: int | None, source: str = "") -> socket.socket:
    if protocol == "sctp":
        return sctp.client(address, source)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
    if source_port is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reset_on_close(connection)
    if source or source_port is not None:
        connection.bind((source, source_port or 0))
    return connection


def _connect(connection: socket.socket, address: str, port: int, deadline: float) -> None:
    connection.settimeout(max(0.001, deadline - time.monotonic()))
    connection.connect((address, port))


def _first_words(connection: socket.socket, protocol: Protocol, deadline: float) -> str:
    if protocol == "http":
        return _fetch(connection, deadline)
    server, _ = _exchange(connection, b"hello", b"", deadline)
    return server


def _exchange(connection: socket.socket, line: bytes, buffer: bytes, deadline: float) -> tuple[str, bytes]:
    """Send a line and return the server's name and what came after its answer; late answers are skipped."""
    connection.settimeout(max(0.001, deadline - time.monotonic()))
    connection.sendall(line + b"\n")
    while True:
        while b"\n" in buffer:
            answer, _, buffer = buffer.partition(b"\n")
            server, _, said = answer.partition(b" ")
            if said == line:
                return server.decode(), buffer
        buffer += _receive(connection, deadline)


def _fetch(connection: socket.socket, deadline: float) -> str:
    """Get the page and return the name of the server that sent it, whole."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
    page = b""
    while not page.endswith(PAGE.encode()):
        page += _receive(connection, deadline)
    head = page.decode().split("\r\n")
    return next(line.removeprefix("Server: ") for line in head if line.startswith("Server: "))


def _receive(connection: socket.socket, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, "no answer in time")
    connection.settimeout(left)
    data = connection.recv(LONGEST)
    if not data:
        raise ConnectionResetError(errno.ECONNRESET, "closed without an answer")
    return data
