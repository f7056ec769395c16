"""What a valid configuration says, as values. core/config makes them, core/desired builds on them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Literal

from lbd.core.state import MAIN

IP = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
InterfaceAddress = IPv4Interface | IPv6Interface

Protocol = Literal["tcp", "udp"]
Scheduler = Literal["maglev", "random", "round-robin"]
WhenEmpty = Literal["reject", "drop"]
Log = Literal["off", "new", "path"]
BackendState = Literal["up", "drain", "down"]

# What IPv6 makes of a route without a metric (IP6_RT_PRIO_USER, include/net/ip6_route.h).
IPV6_METRIC = 1024


def bracketed(address: IP) -> str:
    """Return an address as it is written before a port."""
    return f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004 - the IP version


@dataclass(frozen=True, slots=True)
class Listen:
    """A listen address; as text "192.0.2.1:80" or "[2001:db8::1]:53/udp"."""

    address: IP
    port: int
    protocol: Protocol = "tcp"

    def __str__(self) -> str:
        suffix = "" if self.protocol == "tcp" else f"/{self.protocol}"
        return f"{bracketed(self.address)}:{self.port}{suffix}"


@dataclass(frozen=True, slots=True)
class Backend:
    """A real server. `port` None is the port of the listen address; weight 0 takes no new connections."""

    address: IP
    port: int | None = None
    weight: int = 1
    state: BackendState = "up"

    @property
    def in_rotation(self) -> bool:
        """Whether it takes new connections."""
        return self.state == "up" and self.weight > 0

    def port_behind(self, listen: Listen) -> int:
        """Return the port that connections to `listen` are sent to."""
        return self.port or listen.port

    def __str__(self) -> str:
        return bracketed(self.address) + ("" if self.port is None else f":{self.port}")


@dataclass(frozen=True, slots=True)
class ReturnPath:
    """How replies come back through the director; `source` is set for "snat" only."""

    kind: Literal["gateway", "masquerade", "snat"] = "gateway"
    source: IP | None = None

    def __str__(self) -> str:
        return self.kind if self.source is None else f"{self.kind}:{self.source}"


@dataclass(frozen=True, slots=True)
class Service:
    """A service with the defaults filled in. At least one listen address; there may be no backend."""

    name: str
    listen: tuple[Listen, ...]
    backends: tuple[Backend, ...]
    interface: str | None = None
    scheduler: Scheduler = "maglev"
    return_path: ReturnPath = ReturnPath()
    when_empty: WhenEmpty = "reject"
    log: Log = "off"


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
    family: Literal[4, 6] = 4
    source: Network | None = None
    to: Network | None = None
    iif: str | None = None


@dataclass(frozen=True, slots=True)
class Director:
    """What holds for the whole host. `forwarding` None: on when there is a service. `audit` in seconds."""

    forwarding: bool | None = None
    log_target: Literal["nflog", "kernel"] = "nflog"
    log_group: int = 76
    audit: float = 60.0


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the files say, in the order of the files."""

    director: Director = Director()
    services: tuple[Service, ...] = ()
    addresses: tuple[AddressEntry, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    rules: tuple[RuleEntry, ...] = ()
