"""Backends that are listen addresses: lbd does not pass a connection through two services."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from lbd.core.config.findings import Finding, Place
from lbd.core.config.written import Written
from lbd.core.settings import EVERY_PORT, IP, Backend, Listen, Ports, Protocol

Owner = tuple[Place, Listen, Written]
Index = dict[IP, dict[Protocol, "_Spans"]]

_ALL: tuple[Protocol, ...] = ("tcp", "udp", "sctp", "any")


class _Spans:
    """Ranges of ports with their owners, to find one that shares a port with a given range."""

    def __init__(self, spans: list[tuple[Ports, Owner]]) -> None:
        self._kept: list[tuple[Ports, Owner]] = []
        for ports, owner in sorted(spans, key=lambda span: span[0]):
            # One that ends before another that begins no later is never needed.
            if not self._kept or ports.high > self._kept[-1][0].high:
                self._kept.append((ports, owner))
        self._lows = [ports.low for ports, _ in self._kept]

    def sharing(self, ports: Ports) -> Owner | None:
        at = bisect_right(self._lows, ports.high) - 1
        return self._kept[at][1] if at >= 0 and self._kept[at][0].high >= ports.low else None


def loops(entries: Sequence[Written]) -> Iterator[Finding]:
    """Find backends and sorry servers that are listen addresses of their own service or of another.

    A wildcard's addresses are not known here.
    """
    addresses = {listen.address for written in entries for listen in written.service.listen}
    suspects = [
        written
        for written in entries
        if any(server.address in addresses for server in (*written.service.backends, *written.service.sorry))
        and written.right("backends", "listen", "mark")
    ]
    index = _index(entries) if suspects else {}
    for written in suspects:
        ends = _ends(written)
        for place, server in written.servers():
            owner = _owner(server, ends, index)
            if owner is None:
                continue
            there, listen, other = owner
            if other is written:
                message = f"{server} is the service's own listen address, which would be a loop"
            else:
                message = (
                    f"{server} is the listen address {listen} of {whose(other)}; lbd does not pass a "
                    "connection through two services, so list the backends of that one"
                )
            yield Finding(place, message, also=there)


def whose(written: Written) -> str:
    """Return what a service is called in a message."""
    return f'service "{written.service.name}"' if written.service.name else "another service"


def _index(entries: Sequence[Written]) -> Index:
    spans: dict[IP, dict[Protocol, list[tuple[Ports, Owner]]]] = {}
    for written in entries:
        for place, listen in written.listens():
            owner = place, listen, written
            of_address = spans.setdefault(listen.address, {})
            of_address.setdefault(listen.protocol, []).append((listen.ports, owner))
    return {
        address: {protocol: _Spans(each) for protocol, each in found.items()}
        for address, found in spans.items()
    }


def _ends(written: Written) -> list[tuple[Ports, Protocol]]:
    """Return the ports and protocols that a server without a port is sent."""
    if written.service.mark is not None:
        return [(EVERY_PORT, "any")]
    return sorted({(listen.ports, listen.protocol) for listen in written.service.listen})


def _owner(server: Backend, ends: list[tuple[Ports, Protocol]], index: Index) -> Owner | None:
    spans = index.get(server.address)
    if spans is None:
        return None
    own = ends
    if server.ports:
        own = [(server.ports, protocol) for protocol in sorted({protocol for _, protocol in ends})]
    for ports, protocol in own:
        for each in _ALL if protocol == "any" else (protocol, "any"):
            if each in spans and (owner := spans[each].sharing(ports)):
                return owner
    return None
