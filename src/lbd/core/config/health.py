"""Tables of health checks to values, and what a service needs to have so that it can be checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from lbd.core.config import wire
from lbd.core.config.findings import Finding, Place, keys_of
from lbd.core.config.lists import Lists
from lbd.core.config.tables import HealthTable, read
from lbd.core.config.tables.health import Kind
from lbd.core.config.written import Written
from lbd.core.probes import (
    AgentProbe,
    DnsProbe,
    ExecProbe,
    GrpcProbe,
    Health,
    HttpProbe,
    IcmpProbe,
    Probe,
    TcpProbe,
    Timing,
    Tls,
    UdpProbe,
)
from lbd.core.settings import Backend, Service

KINDS: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "none")
# A timeout nobody wrote, in seconds, where the interval is not shorter.
USUAL_TIMEOUT = 1.0

# The keys that are not for every type.
_FOR: dict[str, tuple[Kind, ...]] = {
    "port": tuple(kind for kind in KINDS if kind != "icmp"),
    "source": tuple(kind for kind in KINDS if kind != "exec"),
    "send": ("tcp", "udp", "agent"),
    "expect": ("tcp", "udp"),
    **dict.fromkeys(
        ("method", "path", "host", "headers", "status", "body", "http_version"), ("http", "https")
    ),
    **dict.fromkeys(("sni", "verify", "ca"), ("https", "grpc")),
    **dict.fromkeys(("service", "tls"), ("grpc",)),
    **dict.fromkeys(("query", "record", "answers"), ("dns",)),
    "command": ("exec",),
}
# What a type cannot do without.
_NEEDED: dict[Kind, tuple[str, str]] = {
    "dns": ("query", 'query = "www.example.com"'),
    "exec": ("command", 'command = ["/usr/local/bin/check-db"]'),
}


def health(raw: Mapping[str, object], place: Place, lists: Lists, found: list[Finding]) -> Health | None:
    """Return what the table at `place` asks for, as far as it is right; None is no check."""
    before = len(found)
    table = read(HealthTable, raw, place, found)
    told = keys_of(found[before:], place)
    if table.type is None:
        if "type" not in raw:
            listed = ", ".join(f'"{kind}"' for kind in KINDS)
            found.append(Finding(place, f'the key "type" is missing; a check is one of {listed}'))
        return None
    found.extend(_for_others(table.type, raw, place))
    found.extend(_times(table, raw, place, told))
    if table.type == "none":
        return None
    if (needed := _NEEDED.get(table.type)) and needed[0] not in raw:
        key, example = needed
        message = f'the key "{key}" is missing; a check of type "{table.type}" needs it: {example}'
        found.append(Finding(place, message))
    found.extend(_contradictions(table, raw, place))
    return Health(
        _probe(table, place, lists, found),
        Timing(
            table.interval,
            min(USUAL_TIMEOUT, table.interval) if table.timeout is None else table.timeout,
            table.rise,
            table.fall,
            table.fast_interval or table.interval,
            table.start,
        ),
        table.address,
        table.port,
        table.source,
        table.slow_start,
        table.panic,
    )


def service(written: Written) -> Iterator[Finding]:
    """Find what keeps the checks of a service from being made."""
    checks = written.service.health
    if checks is not None and written.right("health", "backends", "listen", "mark"):
        yield from _families(written, checks)
        if checks.port is None and not isinstance(checks.probe, IcmpProbe | ExecProbe):
            yield from _ports(written)


def _for_others(kind: Kind, raw: Mapping[str, object], place: Place) -> Iterator[Finding]:
    """Find keys that a check of this kind does not have."""
    for key in HealthTable.model_fields.keys() & raw.keys() - {"type"}:
        if kind == "none":
            message = f'"{key}" says how to check, and type "none" is no check; take one of them out'
            yield Finding(place / key, message, part="key")
        elif kind not in _FOR.get(key, KINDS):
            *most, last = (f'"{each}"' for each in _FOR[key])
            listed = f"{', '.join(most)} or {last}" if most else last
            message = f'"{key}" is for checks of type {listed}, and this one is "{kind}"'
            yield Finding(place / key, message, part="key")


def _times(
    table: HealthTable, raw: Mapping[str, object], place: Place, told: frozenset[str]
) -> Iterator[Finding]:
    """Find times that are longer than the interval. `told` are keys that could not be read."""
    interval = raw.get("interval", "2s")
    for key, why in (("timeout", ": a check would not be over when the next is due"), ("fast_interval", "")):
        seconds = getattr(table, key)
        if seconds is not None and seconds > table.interval and "interval" not in told:
            message = f"{raw[key]} is longer than the interval, which is {interval}{why}"
            yield Finding(place / key, message)


def _contradictions(table: HealthTable, raw: Mapping[str, object], place: Place) -> Iterator[Finding]:
    """Find keys that do not go together though each is right."""
    if table.source and table.address and table.source.version != table.address.version:
        message = f"{table.source} is IPv{table.source.version}, and {table.address}, which is asked, is not"
        yield Finding(place / "source", message, also=place / "address")
    if table.body and table.method == "HEAD" and table.type in {"http", "https"}:
        message = '"body" is looked for in the page, and "HEAD" asks for none; use "GET"'
        yield Finding(place / "body", message, also=place / "method")
    if table.ca and not table.verify:
        message = '"ca" is for verifying certificates, and verify is false; keep one of them'
        yield Finding(place / "ca", message, also=place / "verify")
    if table.type == "grpc" and not table.tls and raw.get("tls", False) is False:
        for key in sorted({"sni", "verify", "ca"} & raw.keys()):
            yield Finding(place / key, f'"{key}" is about TLS; add tls = true, or take it out')
    if table.type != "udp":
        for key in ("send", "expect"):
            if getattr(table, key) == b"":
                yield Finding(place / key, "there is nothing in it; leave the key out")


def _probe(  # noqa: PLR0911 - one for each type
    table: HealthTable, place: Place, lists: Lists, found: list[Finding]
) -> Probe:
    match table.type:
        case "http" | "https":
            return HttpProbe(
                table.method,
                table.path,
                table.host,
                _headers(table, place, found),
                tuple(table.status),
                table.body,
                table.http_version,
                _tls(table, lists) if table.type == "https" else None,
            )
        case "udp":
            return UdpProbe(table.send or b"", table.expect)
        case "dns":
            return DnsProbe(table.query, table.record, _answers(table, place, found))
        case "icmp":
            return IcmpProbe()
        case "exec":
            return ExecProbe(tuple(table.command))
        case "agent":
            return AgentProbe(table.send or b"")
        case "grpc":
            return GrpcProbe(table.service, _tls(table, lists) if table.tls else None)
    return TcpProbe(table.send or b"", table.expect or b"")


def _tls(table: HealthTable, lists: Lists) -> Tls:
    authorities = lists.path(table.ca) if table.ca else ""
    return Tls(table.sni or wire.without_port(table.host), table.verify, authorities)


def _headers(table: HealthTable, place: Place, found: list[Finding]) -> tuple[tuple[str, str], ...]:
    first: dict[str, Place] = {}
    for name in table.headers:
        here = place / "headers" / name
        earlier = first.setdefault(name.lower(), here)
        if earlier is not here:
            message = f'"{name}" is there twice; headers are the same in capitals'
            found.append(Finding(here, message, part="key", also=earlier))
    return tuple(table.headers.items())


def _answers(table: HealthTable, place: Place, found: list[Finding]) -> tuple[str, ...]:
    answers: list[str] = []
    if "record" in keys_of(found, place):
        return ()
    for i, text in enumerate(table.answers):
        try:
            answers.append(wire.ANSWERS[table.record](text))
        except ValueError as error:
            found.append(Finding(place / "answers" / i, f"record {table.record}: {error}"))
    return tuple(answers)


def _families(written: Written, checks: Health) -> Iterator[Finding]:
    for key, address, role in (
        ("source", checks.source, "is no source for checks of"),
        ("address", checks.address, "cannot stand for"),
    ):
        if address is None:
            continue
        there, other = next(
            ((at, each) for at, each in written.backends() if each.family != address.version), (None, None)
        )
        if other is not None:
            message = f"{address} is IPv{address.version} and {role} {other}, which is IPv{other.family}"
            own = "health" in written.given
            also = there if own else written.inherited["health"] / key
            yield Finding(written.place / "health" / key, message, also=also)


def _ports(written: Written) -> Iterator[Finding]:
    """Find that it is not clear which port of a backend is asked."""
    for place, backend in written.backends():
        if why := _portless(written.service, backend):
            found = written.finding("health", f'{backend} {why}; add "port", the one to ask')
            yield Finding(found.place, found.message, also=found.also or place)
            return


def _portless(service: Service, backend: Backend) -> str:
    """Return why a backend has no port to ask, "" if it has: its own, or else that of the listen address.

    Of several listen addresses the first of the backend's family counts, as in core/health.
    """
    if backend.ports is not None:
        return "" if backend.ports.single else "is a range of ports"
    if service.mark is not None:
        return "has no port, and packets with a mark come to any"
    first = next((each for each in service.listen if each.family == backend.family), None)
    return "" if first is None or first.ports.single else f"has the ports of {first}"
