"""Services whose packets pass without connection tracking: what does not go with direct and stateless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbd.core.config.findings import Finding, Place
from lbd.core.config.spans import index, owner
from lbd.core.config.written import Written, whose
from lbd.core.settings import IP, Access, Limits, Listen, Protocol

_WHY = {
    "direct": "whose connections the director sees in one direction only",
    "stateless": "whose connections the director does not keep",
}


def service(written: Written) -> Iterator[Finding]:
    """Find what a service cannot have because its packets are not tracked."""
    path = written.service.return_path.kind
    if path not in _WHY or not written.right("return_path"):
        return
    label = f'return_path = "{path}"'
    if written.service.interface is None and written.right("interface"):
        yield written.finding("return_path", f'{label} needs "interface", where packets of clients enter')
    if written.service.scheduler not in {"maglev", "source-hash"} and written.right("scheduler"):
        message = f'{label} needs scheduler "maglev" or "source-hash", which send packets the same way twice'
        yield written.finding("scheduler", message)
    for key in _too_much(written):
        yield written.finding(key, f'"{key}" does not go with {label}, {_WHY[path]}; take it out')
    for place, backend in written.backends():
        if backend.max_connections:
            message = f'"max_connections" does not go with {label}, {_WHY[path]}; take it out'
            yield Finding(place / "max_connections", message)
    told = set()
    for place, listen in written.listens():
        if place not in told and (
            listen.wildcard or not listen.ports.single or listen.protocol not in {"tcp", "udp"}
        ):
            told.add(place)
            yield Finding(place, f"{label} is for single ports of TCP and UDP at one address, not {listen}")
    if path == "direct" and not told:
        yield from _other_ports(written)


def _too_much(written: Written) -> Iterator[str]:
    service = written.service
    has = {
        "mark": service.mark is not None,
        "persistence": service.persistence is not None,
        "pin": bool(service.pins),
        "allow": service.allow is not None,
        "deny": service.deny != Access(),
        "limits": service.limits != Limits(),
        "sorry_server": bool(service.sorry),
        "offload": service.offload,
        "log": service.log != "off",
        "on_down": service.on_down is not None,
    }
    return (key for key, there in has.items() if there)


def _other_ports(written: Written) -> Iterator[Finding]:
    listens = list(written.listens())
    for place, backend in written.backends():
        there, other = next(
            (
                (at, listen)
                for at, listen in listens
                if listen.family == backend.family and backend.ports_behind(listen) != listen.ports
            ),
            (None, None),
        )
        if other is not None:
            message = (
                f"{backend} has another port than {other}; with direct return packets are not changed, so "
                "leave the port out"
            )
            yield Finding(place, message, also=there)


def services(entries: Sequence[Written]) -> Iterator[Finding]:
    """Find what services cannot have together because packets of some are not tracked."""
    mine = [each for each in entries if each.service.return_path.kind in _WHY and each.right("return_path")]
    if not mine:
        return
    stateless = [
        each
        for each in mine
        if each.service.return_path.kind == "stateless" and each.right("listen", "backends")
    ]
    yield from _on_two_interfaces(mine)
    yield from _told_apart(stateless)
    yield from _tracked_as_well(entries, stateless)


def _on_two_interfaces(entries: Sequence[Written]) -> Iterator[Finding]:
    """Find listen addresses on two interfaces: their backends are found by address and port alone."""
    first: dict[Listen, tuple[Place, Written]] = {}
    for written in entries:
        if written.service.interface is None or not written.right("interface"):
            continue
        for place, listen in written.listens():
            there, other = first.setdefault(listen, (place, written))
            if other.service.interface != written.service.interface:
                message = (
                    f"{listen} is the listen address of {whose(other)} on {other.service.interface}; without "
                    "connection tracking a listen address is on one interface only"
                )
                yield Finding(place, message, also=there)


def _told_apart(entries: Sequence[Written]) -> Iterator[Finding]:
    """Find backends that two stateless listen addresses send to: whose replies could not be told apart."""
    first: dict[tuple[IP, int, Protocol], tuple[Place, Listen]] = {}
    for written in entries:
        listens = list(written.listens())
        for place, backend in written.backends():
            for at, listen in listens:
                if listen.family != backend.family:
                    continue
                key = backend.address, backend.ports_behind(listen).low, listen.protocol
                there, other = first.setdefault(key, (at, listen))
                if other is not listen:
                    message = (
                        f"{backend} is behind {listen} and behind {other}; without connections its replies "
                        "could not be told apart, so let it have a port for each"
                    )
                    yield Finding(place, message, also=there)
                    break


def _tracked_as_well(entries: Sequence[Written], stateless: Sequence[Written]) -> Iterator[Finding]:
    """Find backends of stateless services to which a service with connections sends as well."""
    known = index(
        (backend.address, backend.ports_behind(listen), (place, listen, written))
        for written in stateless
        for place, backend in written.backends()
        for listen in written.service.listen
        if listen.family == backend.family
    )
    for written in entries if known else ():
        tracked = written.service.return_path.kind not in _WHY
        if not tracked or not written.right("return_path", "listen", "mark", "backends"):
            continue
        for place, server in written.servers():
            found = owner(server, written, known)
            if found is not None:
                there, listen, other = found
                message = (
                    f'{server} is also a backend of {whose(other)}, whose return_path is "stateless": its '
                    f"replies to clients of this service, too, would come from {listen}; let it have a port "
                    "for each"
                )
                yield Finding(place, message, also=there)
