"""What the health checks of a service ask, as values. core/config makes them, host/probe carries them out."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

# A range of HTTP status codes, both ends included.
Codes = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tls:
    """How a connection is encrypted. `name` is for SNI and the certificate; "" is the backend's address.

    `authorities` is a file of certificates that are trusted in the place of the system's.
    """

    name: str = ""
    verify: bool = True
    authorities: str = ""


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """Connect; send `send`, if there is any, and wait for `expect` in what comes back."""

    send: bytes = b""
    expect: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """Ask for a page. `host` "" is the backend's address and port; `body` has to be part of the page."""

    method: str = "GET"
    path: str = "/"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    status: tuple[Codes, ...] = ((200, 399),)
    body: bytes = b""
    version: Literal["1.1", "2"] = "1.1"
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class UdpProbe:
    """Send a datagram and wait for one with `expect` in it; None: it is enough that no error comes back."""

    send: bytes = b""
    expect: bytes | None = None


@dataclass(frozen=True, slots=True)
class DnsProbe:
    """Ask a name server. `answers` have to be among the records that come back; () is any, one at least."""

    query: str
    record: str = "A"
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IcmpProbe:
    """Ping."""


@dataclass(frozen=True, slots=True)
class ExecProbe:
    """Run a program, without a shell; its exit code 0 is good."""

    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AgentProbe:
    """Ask HAProxy's agent: a line of text that says how a backend feels ("75%", "drain", "up")."""

    send: bytes = b""


@dataclass(frozen=True, slots=True)
class GrpcProbe:
    """Ask grpc.health.v1.Health/Check for `service`; "" is the server as a whole."""

    service: str = ""
    tls: Tls | None = None


Probe = TcpProbe | HttpProbe | UdpProbe | DnsProbe | IcmpProbe | ExecProbe | AgentProbe | GrpcProbe


@dataclass(frozen=True, slots=True)
class Timing:
    """When to check and what to make of it. Times in seconds.

    `rise` checks in a row have to pass before a backend that is down takes connections, and `fall` to fail
    before it takes none. `fast` is the interval while that is being found out. `start` is what is believed
    until the first check, which decides alone.
    """

    interval: float = 2.0
    timeout: float = 1.0
    rise: int = 2
    fall: int = 3
    fast: float = 2.0
    start: Literal["up", "down"] = "up"


@dataclass(frozen=True, slots=True)
class Health:
    """What a service says of the health of its backends.

    `address` and `port` are where a check goes instead of the backend, `source` is where it comes from.
    `slow_start` are the seconds in which a backend that came up gets to its weight. Below `panic` per cent
    of the backends of a pool that are up the pool is passed over; 0 is none.
    """

    probe: Probe
    timing: Timing = Timing()
    address: IPv4Address | IPv6Address | None = None
    port: int | None = None
    source: IPv4Address | IPv6Address | None = None
    slow_start: float = 0.0
    panic: int = 0
