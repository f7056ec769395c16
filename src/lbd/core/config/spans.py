"""Who has a port of an address: ranges of ports with their owners, looked up by a server that is sent to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from lbd.core.config.findings import Place
from lbd.core.config.written import Written
from lbd.core.settings import EVERY_PORT, IP, Backend, Listen, Ports, Protocol

# The place that is found, the listen address that it is or is behind, and whose that is.
Owner = tuple[Place, Listen, Written]
Index = dict[IP, dict[Protocol, "Spans"]]

_ALL: tuple[Protocol, ...] = ("tcp", "udp", "sctp", "any")


class Spans:
    """Ranges of ports with their owners, to find one that shares a port with a given range."""

    def __init__(self, spans: list[tuple[Ports, Owner]]) -> None:
        self._kept: list[tuple[Ports, Owner]] = []
        for ports, owner in sorted(spans, key=lambda span: span[0]):
            # One that ends before another that begins no later is never needed.
            if not self._kept or ports.high > self._kept[-1][0].high:
                self._kept.append((ports, owner))
        self._lows = [ports.low for ports, _ in self._kept]

    def sharing(self, ports: Ports) -> Owner | None:
        """Return an owner of one of `ports`."""
        at = bisect_right(self._lows, ports.high) - 1
        return self._kept[at][1] if at >= 0 and self._kept[at][0].high >= ports.low else None


def index(owned: Iterable[tuple[IP, Ports, Owner]]) -> Index:
    """Return what finds the owners of ports of addresses, of the protocols of their listen addresses."""
    spans: dict[IP, dict[Protocol, list[tuple[Ports, Owner]]]] = {}
    for address, ports, owner in owned:
        spans.setdefault(address, {}).setdefault(owner[1].protocol, []).append((ports, owner))
    return {
        address: {protocol: Spans(each) for protocol, each in found.items()}
        for address, found in spans.items()
    }


def owner(server: Backend, written: Written, known: Index) -> Owner | None:
    """Return who has a port that the service sends to at one of its backends or sorry servers."""
    spans = known.get(server.address)
    if spans is None:
        return None
    for ports, protocol in _ends(server, written):
        for each in _ALL if protocol == "any" else (protocol, "any"):
            if each in spans and (found := spans[each].sharing(ports)):
                return found
    return None


def _ends(server: Backend, written: Written) -> list[tuple[Ports, Protocol]]:
    """Return the ports and protocols that a server is sent, in order."""
    if written.service.mark is not None:
        return [(EVERY_PORT, "any")]
    listens = (listen for listen in written.service.listen if listen.family == server.family)
    return sorted({(server.ports_behind(listen), listen.protocol) for listen in listens})
