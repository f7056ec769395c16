"""Which connections backends leave behind when they go, and what is to become of those.

A connection is lbd's when it was sent from a listen address to a backend as a file says, or said before. What
becomes of it depends on how its backend went (docs/configuration.md, `on_down`):

- one that is down has nobody there: TCP and SCTP end, unless `on_down = "keep"`.
- one that an administrator takes away may go on with what it has: they stay, unless `on_down = "reset"`.
- protocols without a handshake have no end of their own, and a sender keeps them alive for ever: in either
  case they end.

A backend that merely takes no new connections (drain, idle, full, standby) keeps what it has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from lbd.core import entry
from lbd.core.attribution import Attribution, Sent
from lbd.core.desired import wheres
from lbd.core.entry import Entry
from lbd.core.observed import BackendName, Observed, name
from lbd.core.packet import NAMES, SCTP, TCP, UDP
from lbd.core.rotation import condition, rotation
from lbd.core.settings import Backend, Config, OnDown, Ports, Service
from lbd.core.words import many

Why = Literal["down", "maintenance", "removed"]

# A message names so many backends.
SHOWN = 5

HANDSHAKE = frozenset({TCP, SCTP})
_NUMBERS = {said: number for number, said in NAMES.items()}


@dataclass(frozen=True, slots=True)
class Left:
    """Whose a connection was that is to end, and how its backend went."""

    backend: BackendName
    why: Why


class Ruling:
    """What is to become of connections, now that `now` is in force, with what is observed.

    `gone` has services as they were before, where they were another way: what nobody has any more is of them.
    """

    def __init__(self, now: Attribution, gone: Attribution, observed: Observed) -> None:
        self.gone = gone
        self._now, self._observed = now, observed
        self._on_down = {service.name: service.on_down for service in now.config.services}

    def left(self, sent: Sent) -> Left | None:
        """Return whose connections sent so were, if they are to end; None for those to keep and of others."""
        first = None
        for service, backend in self._now.takers(sent):
            why = self._why(service, backend)
            if why is None or not _ends(sent.protocol, why, service.on_down):
                return None
            first = first or Left(name(service, backend), why)
        if first:
            return first
        # Also of a service to which it would still go, if a more exact one had not come.
        for service, backend in chain(self.gone.takers(sent), self._now.takers(sent, hidden=True)):
            # What the file says now counts, as far as it still says something of that service.
            if not _ends(sent.protocol, "removed", self._on_down.get(service.name, service.on_down)):
                return None
            first = first or Left(name(service, backend), "removed")
        return first

    def hides(self, sent: Sent) -> bool:
        """Tell whether connections addressed so may have been of another service, which is still there."""
        return self._now.hides(sent)

    def _why(self, service: Service, backend: Backend) -> Why | None:
        if backend not in service.backends:
            return None  # a sorry server
        found = condition(service, backend, self._observed)
        if found.state == "maintenance":
            return "maintenance"
        if found.state != "down":
            return None
        if found.dead:
            turns = rotation(service, backend.family, self._observed)
            if turns.panic and backend in turns.active:
                return None
        return "down"


def _ends(protocol: int, why: Why, on_down: OnDown | None) -> bool:
    if protocol not in HANDSHAKE:
        return True
    return why == "down" if on_down is None else on_down == "reset"


def changed(before: Config, now: Config) -> tuple[tuple[Service, ...], tuple[Service, ...]]:
    """Return the services that are not the same in both: as they were, and as they are."""
    if before is now:
        return (), ()
    had = {service.name: service for service in before.services}
    has = {service.name: service for service in now.services}
    were = tuple(service for service in before.services if has.get(service.name) != service)
    are = tuple(service for service in now.services if had.get(service.name) != service)
    return were, are


def touched(before: Observed, now: Observed) -> frozenset[str]:
    """Return the names of services of which a backend may have gone, by what is observed."""
    names = (
        (before.dead ^ now.dead)
        | (before.ended ^ now.ended)
        | (before.expired ^ now.expired)
        | {key for key, _ in before.overrides.items() ^ now.overrides.items()}
    )
    return frozenset(service for service, _ in names)


def kinds(services: Iterable[Service]) -> tuple[frozenset[Sent], bool]:
    """Return how connections of these services may have been sent, and whether that is all there are.

    Of ranges of ports, of every address and of marks there are too many to name.
    """
    found: set[Sent] = set()
    whole = True
    for service in services:
        for where, listen in wheres(service):
            if listen is None or not where.address or where.shape.port != "one":
                whole = False
                continue
            for backend in (*service.backends, *service.sorry):
                if backend.family == where.family:
                    port = backend.ports_behind(listen).low
                    to = str(backend.address), port
                    found.add(Sent(_NUMBERS[where.protocol], where.address, where.ports.low, *to))
    return frozenset(found), whole


@dataclass(frozen=True, slots=True)
class Served:
    """A UDP listen address of a service that has somebody to send to; `interface` "" is every one."""

    service: str
    address: str
    ports: Ports
    interface: str = ""

    @property
    def kind(self) -> Sent | None:
        """Return how what was never translated went there; None when that is in more ways than one."""
        if not self.ports.single:
            return None
        return Sent(UDP, self.address, self.ports.low, self.address, self.ports.low)


def served(services: Iterable[Service], observed: Observed) -> frozenset[Served]:
    """Return the UDP listen addresses that have somebody to send to.

    Who sent there before has an entry that was never translated, and keeps it alive. Of services on every
    address and by mark it cannot be told that such an entry is theirs: they are left out.
    """
    return frozenset(_served(services, observed))


def _served(services: Iterable[Service], observed: Observed) -> Iterator[Served]:
    for service in services:
        if service.return_path.kind in ("direct", "stateless"):
            continue  # without connection tracking
        for where, listen in wheres(service):
            if listen is None or not where.address or where.protocol not in ("udp", "any"):
                continue
            if rotation(service, where.family, observed).active:
                yield Served(service.name, where.address, where.ports, where.interface)


class Unreached:
    """Listen addresses, to look up which of them what was never translated went to."""

    def __init__(self, listen: Iterable[Served]) -> None:
        self._by_address: dict[str, list[Served]] = defaultdict(list)
        for each in listen:
            self._by_address[each.address].append(each)

    def at(self, sent: Sent) -> list[Served]:
        """Return them; where one has an interface, what came by that one is meant."""
        return [each for each in self._by_address.get(sent.address, ()) if sent.port in each.ports]


def ended(left: Mapping[Left, int], unreached: Mapping[str, int], seconds: float) -> Entry | None:
    """Say how many connections were ended and why, the most first; None when there were none.

    `unreached` are UDP flows that were older than the service, by its name.
    """
    total = sum(left.values()) + sum(unreached.values())
    if not total:
        return None
    whys = {"down": "is down", "maintenance": "is in maintenance", "removed": "was removed"}
    lines = [
        f'{number} of backend {who.backend[1]} of service "{who.backend[0]}", which {whys[who.why]}'
        for who, number in sorted(left.items(), key=lambda each: (-each[1], each[0].backend))
        if number
    ]
    lines += [
        f'{number} to service "{service}" from before it had a backend'
        for service, number in sorted(unreached.items())
        if number
    ]
    shown = lines[:SHOWN] + [f"{len(lines) - SHOWN} more"] * (len(lines) > SHOWN)
    message = f"ended {many(total, 'connection')} that would go nowhere: {'; '.join(shown)}"
    fields = {"LBD_CONNECTIONS": str(total), "LBD_REASON": lines[0], "LBD_SECONDS": f"{seconds:.3f}"}
    if left:
        service, backend = max(left, key=lambda each: left[each]).backend
        fields |= {"LBD_SERVICE": service, "LBD_BACKEND": backend}
    return Entry(message, entry.ENDED, entry.NOTICE, fields)
