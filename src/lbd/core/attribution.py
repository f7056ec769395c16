"""Whose a connection is: from where it was addressed and where it was sent, to a service and its backend.

Connection tracking keeps neither the interface nor the mark that a connection came with. Of two services that
differ in nothing else the one that has the backend is meant; where both have it, a connection counts for
each: rather full too early than too late.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lbd.core.desired import wheres
from lbd.core.observed import BackendName, name
from lbd.core.packet import NAMES
from lbd.core.settings import Backend, Config, Family, Ports, Service
from lbd.core.shape import Where


class Sent(NamedTuple):
    """Where connections were addressed, and to which backend they were sent.

    `protocol` is IPPROTO_* of in(7), addresses are in normal form, a port is 0 where there is none.
    """

    protocol: int
    address: str
    port: int
    backend: str
    backend_port: int


# The address of services on every address of the director, by family.
EVERYWHERE: Mapping[Family, str] = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - a name here, nothing listens

# The place of a service in its Config, which is shorter to look up than its name.
_Number = int


class Attribution:
    """The listen addresses and backends of a Config, to look connections up in, in a few steps."""

    def __init__(self, config: Config) -> None:
        self._single: dict[tuple[str, str, int], list[_Number]] = defaultdict(list)
        self._ranges: dict[tuple[str, str], dict[str, _Ranges]] = defaultdict(dict)
        self._every: dict[tuple[str, str], list[_Number]] = defaultdict(list)
        # By the address of the backend: there is nothing else to go by.
        self._marked: dict[str, list[_Number]] = defaultdict(list)
        self._backends: dict[tuple[_Number, str], list[tuple[Ports | None, BackendName]]] = defaultdict(list)
        self.config = config
        for number, service in enumerate(config.services):
            for backend in service.backends:
                address = str(backend.address)
                self._backends[number, address].append((backend.ports, name(service, backend)))
            if service.mark is not None:
                for address in {str(backend.address) for backend in (*service.backends, *service.sorry)}:
                    self._marked[address].append(number)
            for where, _ in wheres(service):
                if where.mark is None:
                    self._add(where, number)

    def _add(self, where: Where, number: _Number) -> None:
        address = where.address or EVERYWHERE[where.family]
        match where.shape.port:
            case "one":
                self._single[where.protocol, address, where.ports.low].append(number)
            case "range":
                # On one interface they do not overlap.
                of_address = self._ranges[where.protocol, address]
                of_address.setdefault(where.interface, _Ranges()).add(where.ports, number)
            case "every" | "none":
                self._every[where.protocol, address].append(number)

    def count(self, counts: Mapping[Sent, int]) -> Counter[BackendName]:
        """Return the connections of each backend; those of nobody are left out."""
        found: Counter[BackendName] = Counter()
        for sent, number in counts.items():
            for owner in self._owners(sent):
                found[owner] += number
        return found

    def takers(self, sent: Sent, *, hidden: bool = False) -> Iterator[tuple[Service, Backend]]:
        """Give every backend that a connection may be with, sorry servers too, of each service it may be of.

        A service that has no interface takes all that comes to its listen address: then it is of no service
        whose listen address is less exact. With `hidden` those are given all the same.
        """
        for service in self._in_reach(sent, hidden=hidden):
            for backend in (*service.backends, *service.sorry):
                if str(backend.address) == sent.backend and _same(backend.ports, sent):
                    yield service, backend

    def hides(self, sent: Sent) -> bool:
        """Tell whether what is addressed so would be of another service if a more exact one was not there."""
        in_reach = sum(1 for _ in self._in_reach(sent, hidden=False))
        return sum(1 for _ in self._in_reach(sent, hidden=True)) > in_reach

    def _in_reach(self, sent: Sent, *, hidden: bool) -> Iterator[Service]:
        services = self.config.services
        for numbers in self._services(sent):
            yield from (services[number] for number in numbers)
            if not hidden and any(services[number].interface is None for number in numbers):
                return

    def _owners(self, sent: Sent) -> list[BackendName]:
        for numbers in self._services(sent):
            if owners := [owner for number in numbers for owner in self._of(number, sent)]:
                return owners
        return []

    def _services(self, sent: Sent) -> Iterator[list[_Number]]:
        """Give the services that it may have come to, the most exact first."""
        protocol = NAMES.get(sent.protocol, "")
        for address in (sent.address, EVERYWHERE[6 if ":" in sent.address else 4]):
            yield self._single.get((protocol, address, sent.port), [])
            yield [
                number
                for ranges in self._ranges.get((protocol, address), {}).values()
                if (number := ranges.find(sent.port)) is not None
            ]
            yield self._every.get((protocol, address), [])
            yield self._every.get(("any", address), [])
        yield self._marked.get(sent.backend, [])

    def _of(self, number: _Number, sent: Sent) -> Iterator[BackendName]:
        for ports, owner in self._backends.get((number, sent.backend), ()):
            if _same(ports, sent):
                yield owner


def _same(ports: Ports | None, sent: Sent) -> bool:
    """Tell whether connections to a backend with these ports are sent so."""
    return sent.backend_port == sent.port if ports is None else sent.backend_port in ports


class _Ranges:
    """Ranges of ports that do not overlap."""

    def __init__(self) -> None:
        self._known: list[tuple[int, int, _Number]] = []
        self._sorted = True

    def add(self, ports: Ports, number: _Number) -> None:
        self._known.append((ports.low, ports.high, number))
        self._sorted = False

    def find(self, port: int) -> _Number | None:
        if not self._sorted:
            self._known.sort()
            self._sorted = True
        at = bisect_right(self._known, port, key=lambda known: known[0]) - 1
        if at < 0 or port > self._known[at][1]:
            return None
        return self._known[at][2]
