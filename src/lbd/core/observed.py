"""What the file cannot say and the host or the time can: what core/desired takes beside a Config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from lbd.core.settings import Backend, Config, Network, Service

# Portions are in per cent.
WHOLE = 100

# A backend is named by its service's name and its own words, as in the file.
BackendName = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Link:
    """The way to a backend: the interface and its index, and whether a router is between."""

    interface: str
    index: int
    routed: bool = False


@dataclass(frozen=True, slots=True)
class Override:
    """What a backend is to be whatever the file says, and who says so."""

    state: Literal["drain", "maintenance"]
    reason: str


@dataclass(frozen=True, slots=True)
class Observed:
    """The host as far as the rules depend on it.

    Of backends: `dead` are those that checks say are down, `overrides` what was said at run time (by a
    command or an agent), `ended` the drained ones whose last connection is over. `portions` are per cent of
    their weights, where it is not 100; with 0 a backend takes no new connections.

    `expired` are drained backends whose time is over. `neighbours` are networks with the interface that
    leads to them without a router. `full` are backends with as many connections as they may have; `shares`
    are the weights of backends of least-connections, where they are not those of the file. `links` are the
    ways to backends that are reached without connection tracking, by address; `interfaces` are those there
    are of `named_interfaces`. `offloads`: the kernel can, as far as a service wants it to.
    """

    expired: frozenset[BackendName] = frozenset()
    neighbours: frozenset[tuple[Network, str]] = frozenset()
    full: frozenset[BackendName] = frozenset()
    shares: Mapping[BackendName, int] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)
    interfaces: frozenset[str] = frozenset()
    offloads: bool = False
    dead: frozenset[BackendName] = frozenset()
    overrides: Mapping[BackendName, Override] = field(default_factory=dict)
    ended: frozenset[BackendName] = frozenset()
    portions: Mapping[BackendName, int] = field(default_factory=dict)


def name(service: Service, backend: Backend) -> BackendName:
    """Return what a backend is called by here."""
    return service.name, str(backend)


def expired(config: Config, now: datetime) -> frozenset[BackendName]:
    """Return the drained backends whose time is over; `now` has a UTC offset."""
    return frozenset(name(service, backend) for service, backend, until in _deadlines(config) if until <= now)


def next_deadline(config: Config, now: datetime) -> datetime | None:
    """Return when the time of the next drained backend is over."""
    return min((until for _, _, until in _deadlines(config) if until > now), default=None)


def untracked_backends(config: Config) -> frozenset[str] | None:
    """Return the addresses of backends of services without connection tracking; None when there are none."""
    mine = [s for s in config.services if s.return_path.kind in ("direct", "stateless")]
    return frozenset(str(b.address) for s in mine for b in s.backends) if mine else None


def wants_offload(config: Config) -> bool:
    """Tell whether a service's connections are to be offloaded."""
    return any(service.offload for service in config.services)


def named_interfaces(config: Config) -> frozenset[str]:
    """Return the interfaces that have to be there for a rule to name them."""
    names = {s.interface for s in config.services if s.return_path.kind in ("direct", "stateless")}
    names.update(config.director.devices if wants_offload(config) else ())
    return frozenset(name for name in names if name)


def changes(before: Observed, after: Observed) -> tuple[str, ...]:
    """Return in words what changed on the host. Shares change all the time, and are not worth a word."""
    words = [
        *(f"{_said(each)}: the time to drain is over" for each in sorted(after.expired - before.expired)),
        *(f"{_said(each)} has as many connections as it may" for each in sorted(after.full - before.full)),
        *(f"{_said(each)} takes connections again" for each in sorted(before.full - after.full)),
    ]
    if before.neighbours != after.neighbours:
        words.append("the director's networks changed")
    words.extend(f"interface {name} is gone" for name in sorted(before.interfaces - after.interfaces))
    words.extend(f"interface {name} is there" for name in sorted(after.interfaces - before.interfaces))
    words.extend(
        f"the way to {address} is {'known' if address in after.links else 'not known any more'}"
        for address in sorted(before.links.keys() | after.links.keys())
        if before.links.get(address) != after.links.get(address)
    )
    return tuple(words)


def _said(backend: BackendName) -> str:
    return f'backend {backend[1]} of service "{backend[0]}"'


def _deadlines(config: Config) -> Iterator[tuple[Service, Backend, datetime]]:
    for service in config.services:
        for backend in service.backends:
            if backend.drain_until is not None:
                yield service, backend, backend.drain_until
