"""What cannot hold together, though each value alone is right: duplicates, families, loops.

Every check is one pass with a dictionary of what was seen, so that the cost grows with the file and not
with its square.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from lbd.core.config.findings import Finding, Place
from lbd.core.settings import IP, AddressEntry, Backend, Listen, RouteEntry, RuleEntry, Service

T = TypeVar("T")


Placed = Sequence[tuple[Place, T]]


def services(entries: Placed[Service]) -> Iterator[Finding]:
    """Find conflicts between services and inside each. A partly read service has empty fields."""
    yield from _repeated(
        ((place / "name", service.name) for place, service in entries if service.name),
        "a second service of this name; names are what commands call a service",
    )
    yield from _listens(entries)
    for place, service in entries:
        yield from _backends(place / "backends", service)
        yield from _families(place, service)


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


def _listens(entries: Placed[Service]) -> Iterator[Finding]:
    first: dict[Listen, tuple[Place, Service]] = {}
    for place, service in entries:
        for i, listen in enumerate(service.listen):
            here = place / "listen" / i
            there, other = first.setdefault(listen, (here, service))
            if there is here:
                continue
            if other is service:
                message = f"{listen} is listed twice"
            elif other.interface != service.interface:
                message = (
                    f'{listen} is also the listen address of service "{other.name}" on another interface: '
                    "not supported yet"
                )
            else:
                message = f'{listen} is already the listen address of service "{other.name}"'
            yield Finding(here, message, also=there)


def _backends(place: Place, service: Service) -> Iterator[Finding]:
    own = {(listen.address, listen.port) for listen in service.listen}
    ports = {listen.port for listen in service.listen}
    first: dict[tuple[IP, int], Place] = {}
    for i, backend in enumerate(service.backends):
        here = place / i
        # A backend without a port has that of each listen address.
        ends = [(backend.address, port) for port in ([backend.port] if backend.port else sorted(ports))]
        earlier = next((first[end] for end in ends if end in first), None)
        if earlier:
            hint = "give one a higher weight to send it more"
            yield Finding(here, f"{backend} is listed twice; {hint}", also=earlier)
        first |= dict.fromkeys(ends, here)
        if not own.isdisjoint(ends):
            yield Finding(here, f"{backend} is the service's own listen address, which would be a loop")


def _families(place: Place, service: Service) -> Iterator[Finding]:
    if not service.listen:
        return
    listens: dict[int, int] = {}
    for i, listen in enumerate(service.listen):
        listens.setdefault(listen.address.version, i)
    backends = {backend.address.version for backend in service.backends}
    for i, backend in enumerate(service.backends):
        if backend.address.version not in listens:
            yield Finding(place / "backends" / i, _no_listen(backend, service.listen[0]))
    for version, i in listens.items():
        if backends and version not in backends and backends & listens.keys():
            listen = service.listen[i]
            message = f"{listen} is IPv{version}, and the service has no IPv{version} backend for it"
            yield Finding(place / "listen" / i, message)
    source = service.return_path.source
    if source is None:
        return
    for version, i in listens.items():
        if version != source.version:
            message = (
                f"{service.return_path} is IPv{source.version} and cannot be the source for "
                f"{service.listen[i]}, which is IPv{version}"
            )
            yield Finding(place / "return_path", message, also=place / "listen" / i)


def _no_listen(backend: Backend, listen: Listen) -> str:
    return (
        f"{backend} is IPv{backend.address.version}, but the service listens on "
        f"IPv{listen.address.version} only, as {listen}; lbd does not translate between families"
    )
