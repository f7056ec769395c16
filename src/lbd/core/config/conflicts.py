"""What cannot hold together between entries, though each alone is right: duplicates, overlaps, loops.

Every check is one pass with a dictionary of what was seen, or over what was sorted, so that the cost grows
with the file and not with its square.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from lbd.core.config import untracked
from lbd.core.config.findings import Finding, Place
from lbd.core.config.loops import loops
from lbd.core.config.written import Written, whose
from lbd.core.settings import IP, AddressEntry, Listen, Ports, Protocol, RouteEntry, RuleEntry

T = TypeVar("T")


Placed = Sequence[tuple[Place, T]]
Claim = tuple[Place, Listen, Written]


def services(entries: Sequence[Written]) -> Iterator[Finding]:
    """Find conflicts between services. One that was read in part has nothing where it is wrong."""
    yield from _repeated(
        ((each.place / "name", each.service.name) for each in entries if each.service.name),
        "a second service of this name; names are what commands call a service",
    )
    yield from _marks(entries)
    yield from _listens(entries)
    yield from loops(entries)
    yield from untracked.services(entries)


def addresses(entries: Placed[AddressEntry]) -> Iterator[Finding]:
    """Find addresses that are listed twice for one interface."""
    keys = ((place / "address", (entry.address.ip, entry.interface)) for place, entry in entries)
    return _repeated(keys, "this address is listed twice for the interface")


def routes(entries: Placed[RouteEntry]) -> Iterator[Finding]:
    """Find routes that the kernel would take for one: same destination, table and metric."""
    keys = ((place / "to", (entry.to, entry.table, entry.live_metric)) for place, entry in entries)
    return _repeated(keys, "a second route to this network with the same table and metric")


def rules(entries: Placed[RuleEntry]) -> Iterator[Finding]:
    """Find rules that are listed twice."""
    return _repeated(entries, "this rule is listed twice")


def _repeated(keys: Iterable[tuple[Place, Hashable]], message: str) -> Iterator[Finding]:
    first: dict[Hashable, Place] = {}
    for place, key in keys:
        earlier = first.setdefault(key, place)
        if earlier is not place:
            yield Finding(place, message, also=earlier)


def real_server(
    direct: Placed[IP], entries: Sequence[Written], carried: Placed[AddressEntry]
) -> Iterator[Finding]:
    """Find addresses that this host answers for as a real server, and also as what it must not be there."""
    listens: dict[IP, tuple[Place, str]] = {}
    for written in entries:
        for place, listen in written.listens():
            listens.setdefault(listen.address, (place, f"the listen address of {whose(written)}"))
    addresses = {entry.address.ip: (place, "an [[address]]") for place, entry in carried}
    for place, address in direct:
        for there, what in (found[address] for found in (addresses, listens) if address in found):
            message = f"{address} is also {what}; here this host is the director or a real server, not both"
            yield Finding(place, message, also=there)


def _marks(entries: Sequence[Written]) -> Iterator[Finding]:
    first: dict[int, Written] = {}
    for written in entries:
        mark = written.service.mark
        if mark is not None and (other := first.setdefault(mark, written)) is not written:
            message = f"{mark} is already the mark of {whose(other)}"
            yield Finding(written.place / "mark", message, also=other.place / "mark")


def _listens(entries: Sequence[Written]) -> Iterator[Finding]:
    """Find two listen addresses of one kind for the same packets; of different kinds, the more exact wins."""
    groups: dict[tuple[str | None, IP, Protocol], list[Claim]] = {}
    for written in entries:
        if written.right("interface"):
            for place, listen in written.listens():
                key = written.service.interface, listen.address, listen.protocol
                groups.setdefault(key, []).append((place, listen, written))
    for group in groups.values():
        first: dict[Ports, Claim] = {}
        ranges: list[tuple[Ports, int]] = []
        for i, claim in enumerate(group):
            ports = claim[1].ports
            earlier = first.setdefault(ports, claim)
            if earlier is not claim:
                yield _taken(claim, earlier)
            elif not (ports.single or ports.every):
                ranges.append((ports, i))
        yield from _overlaps(sorted(ranges), group)


def _overlaps(ranges: Sequence[tuple[Ports, int]], group: Sequence[Claim]) -> Iterator[Finding]:
    furthest = holder = -1
    for ports, i in ranges:
        if ports.low <= furthest:
            yield _taken(group[max(i, holder)], group[min(i, holder)])
        if ports.high > furthest:
            furthest, holder = ports.high, i


def _taken(claim: Claim, earlier: Claim) -> Finding:
    place, listen, written = claim
    there, other, owner = earlier
    if listen != other:
        of = "" if owner is written else f" of {whose(owner)}"
        message = f"{listen} overlaps {other}{of}; divide the ports between them"
    elif owner is written:
        message = f"{listen} is listed twice"
    else:
        message = f"{listen} is already the listen address of {whose(owner)}"
    return Finding(place, message, also=there)
