"""What a valid configuration says, as values. core/config makes them, core/desired builds on them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Literal

from lbd.core.probes import Health
from lbd.core.state import MAIN

IP = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
InterfaceAddress = IPv4Interface | IPv6Interface

Family = Literal[4, 6]
# "any" is every protocol there is, also those without ports.
Protocol = Literal["tcp", "udp", "sctp", "any"]
Scheduler = Literal["maglev", "source-hash", "random", "round-robin", "least-connections"]
HashField = Literal["source-address", "source-port", "destination-address", "destination-port"]
WhenEmpty = Literal["reject", "drop"]
Refusal = Literal["drop", "reject"]
Log = Literal["off", "new", "path"]
BackendState = Literal["up", "drain", "down", "maintenance"]
# What becomes of open TCP connections of a backend that goes.
OnDown = Literal["keep", "reset"]

# What IPv6 makes of a route without a metric (IP6_RT_PRIO_USER, include/net/ip6_route.h).
IPV6_METRIC = 1024

HIGHEST_PORT = 65535

# The value of a mark that every bit of counts.
WHOLE_MARK = 0xFFFFFFFF


def bracketed(address: IP) -> str:
    """Return an address as it is written before a port."""
    return f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004 - the IP version


@dataclass(frozen=True, slots=True, order=True)
class Ports:
    """A port (`low` equals `high`), a range of ports, or all of them."""

    low: int
    high: int

    @property
    def single(self) -> bool:
        """Whether it is one port."""
        return self.low == self.high

    @property
    def every(self) -> bool:
        """Whether it is all ports."""
        return self.high - self.low >= HIGHEST_PORT - 1

    def __len__(self) -> int:
        return self.high - self.low + 1

    def __contains__(self, port: int) -> bool:
        return self.low <= port <= self.high

    def overlaps(self, other: Ports) -> bool:
        """Tell whether a port is in both."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        if self.every:
            return "*"
        return str(self.low) if self.single else f"{self.low}-{self.high}"


EVERY_PORT = Ports(0, HIGHEST_PORT)


@dataclass(frozen=True, slots=True)
class Listen:
    """A listen address; as text "192.0.2.1:80", "[2001:db8::1]:53/udp", "192.0.2.1:8-9", "192.0.2.1:*/any".

    An unspecified `address` (0.0.0.0 or ::) is every address of the director. Protocol "any" goes with
    EVERY_PORT.
    """

    address: IP
    ports: Ports
    protocol: Protocol = "tcp"

    @property
    def family(self) -> Family:
        """The IP version."""
        return 4 if self.address.version == 4 else 6  # noqa: PLR2004 - the IP version

    @property
    def wildcard(self) -> bool:
        """Whether it is every address of the director."""
        return self.address.is_unspecified

    def __str__(self) -> str:
        suffix = "" if self.protocol == "tcp" else f"/{self.protocol}"
        return f"{bracketed(self.address)}:{self.ports}{suffix}"


@dataclass(frozen=True, slots=True)
class Backend:
    """A real server.

    `ports` None is the port of the listen address, a range is as long as that of the listen address and
    shifts it. Weight 0 takes no new connections. `backup` 0 is always used, 1 and up when nothing below is
    left. A drained one counts as down from `drain_until` on (with a UTC offset). `max_connections` 0
    is no limit.
    """

    address: IP
    ports: Ports | None = None
    weight: int = 1
    state: BackendState = "up"
    backup: int = 0
    drain_until: datetime | None = None
    max_connections: int = 0

    @property
    def family(self) -> Family:
        """The IP version."""
        return 4 if self.address.version == 4 else 6  # noqa: PLR2004 - the IP version

    @property
    def in_rotation(self) -> bool:
        """Whether the file lets it take new connections."""
        return self.state == "up" and self.weight > 0

    def ports_behind(self, listen: Listen) -> Ports:
        """Return the ports that connections to `listen` are sent to."""
        return self.ports or listen.ports

    def __str__(self) -> str:
        return bracketed(self.address) + ("" if self.ports is None else f":{self.ports}")


@dataclass(frozen=True, slots=True)
class ReturnPath:
    """How replies come back through the director, or past it ("direct").

    `sources` are the addresses of "snat", of either family, and `ports` the source ports to take, None for
    the kernel's choice.
    """

    kind: Literal["gateway", "masquerade", "snat", "direct", "stateless"] = "gateway"
    sources: tuple[IP, ...] = ()
    ports: Ports | None = None

    def of(self, family: Family) -> tuple[IP, ...]:
        """Return the source addresses of a family."""
        return tuple(source for source in self.sources if source.version == family)

    def __str__(self) -> str:
        if not self.sources:
            return self.kind
        ports = f" port {self.ports}" if self.ports else ""
        return f"{self.kind}:{','.join(map(str, self.sources))}{ports}"


@dataclass(frozen=True, slots=True)
class Persistence:
    """The same client, the same backend, until `timeout` seconds after its last new connection.

    Clients that share the first `prefix_v4` or `prefix_v6` bits of their address count as one.
    """

    timeout: float
    prefix_v4: int = 32
    prefix_v6: int = 128

    def prefix(self, family: Family) -> int:
        """Return the length of the prefix that makes a client."""
        return self.prefix_v4 if family == 4 else self.prefix_v6  # noqa: PLR2004 - the IP version


@dataclass(frozen=True, slots=True)
class Pin:
    """Clients that always go to one backend, which is one of the service's."""

    client: Network
    backend: Backend


@dataclass(frozen=True, slots=True)
class PrefixFile:
    """A file of prefixes: its path as resolved, and what is in it, collapsed and in order."""

    path: str
    prefixes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Access:
    """Prefixes of clients: those written in the service, collapsed and in order, and those in files."""

    prefixes: tuple[Network, ...] = ()
    files: tuple[PrefixFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Rate:
    """New connections per second, and how many may come at once beyond that."""

    per_second: int
    burst: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused beyond. `client_connections` 0 is no limit."""

    new: Rate | None = None
    client_new: Rate | None = None
    client_connections: int = 0
    synproxy: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """A service with the defaults filled in.

    It takes what comes to `listen` (and enters `interface`), or all that has `mark` when that is not None;
    then `listen` is empty. There may be no backend. `table_size` is a maglev table's, 0 for lbd's choice.
    `sorry` takes the connections when no backend can, and is of one family. `on_down` None: reset those of
    backends that are down, keep those of backends that an administrator takes away.
    """

    name: str
    listen: tuple[Listen, ...]
    backends: tuple[Backend, ...]
    interface: str | None = None
    mark: int | None = None
    scheduler: Scheduler = "maglev"
    hash: tuple[HashField, ...] = ("source-address", "source-port")
    table_size: int = 0
    return_path: ReturnPath = ReturnPath()
    persistence: Persistence | None = None
    pins: tuple[Pin, ...] = ()
    allow: Access | None = None
    deny: Access = Access()
    refusal: Refusal = "drop"
    limits: Limits = Limits()
    when_empty: WhenEmpty = "reject"
    sorry: tuple[Backend, ...] = ()
    offload: bool = False
    log: Log = "off"
    ssh: bool = False
    health: Health | None = None
    on_down: OnDown | None = None


@dataclass(frozen=True, slots=True)
class AddressEntry:
    """An address that the director carries."""

    address: InterfaceAddress
    interface: str


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """A route; `via` or `interface` is set. `replace` lets it take the place of one that is not lbd's."""

    to: Network
    via: IP | None = None
    interface: str | None = None
    source: IP | None = None
    table: int = MAIN
    metric: int = 0
    replace: bool = False

    @property
    def live_metric(self) -> int:
        """The metric that the route has in the kernel."""
        return self.metric or (IPV6_METRIC if self.to.version == 6 else 0)  # noqa: PLR2004 - the IP version


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """A policy routing rule. None matches everything, and so does a network of prefix length 0."""

    priority: int
    table: int
    family: Family = 4
    source: Network | None = None
    to: Network | None = None
    iif: str | None = None


@dataclass(frozen=True, slots=True)
class Director:
    """What holds for the whole host. `forwarding` None: on when a service forwards. `audit` in seconds.

    `ssh_ports` are those that no service may take unseen. Of a packet's mark only the bits of `mark_mask`
    are looked at. `devices` are the interfaces between which connections may be offloaded. Of `removed_from`
    services or more, not over `removed_percent` may go at once.
    """

    forwarding: bool | None = None
    log_target: Literal["nflog", "kernel"] = "nflog"
    log_group: int = 76
    audit: float = 60.0
    ssh_ports: tuple[int, ...] = (22,)
    mark_mask: int = WHOLE_MARK
    devices: tuple[str, ...] = ()
    removed_percent: int = 50
    removed_from: int = 10


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the files say, in the order of the files.

    `real_server` are addresses of services with direct return that this host, as a real server, answers
    for without telling its network.
    """

    director: Director = Director()
    services: tuple[Service, ...] = ()
    addresses: tuple[AddressEntry, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    rules: tuple[RuleEntry, ...] = ()
    real_server: tuple[IP, ...] = ()
