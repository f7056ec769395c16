"""What is different between two files, in words: `~ service web: backend 192.168.2.74:9999 weight 1 -> 3`.

It is about what the files say, not about the host: core/plan has what is to be done there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeVar

from lbd.core.probes import Health, Probe, Tls
from lbd.core.settings import (
    Access,
    AddressEntry,
    Backend,
    Config,
    Persistence,
    Pin,
    Rate,
    ReturnPath,
    RouteEntry,
    RuleEntry,
    Service,
)
from lbd.core.words import many

T = TypeVar("T")

# What a key is called in the file, where that is another name.
KEYS: Mapping[str, str] = {
    "refusal": "refuse",
    "sorry": "sorry_server",
    "pins": "pin",
    "fast": "fast_interval",
}

# Values that are text or data of any length: that they differ is worth a word, what they are is in the file.
LONG = 60


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: something is new (+), gone (-), or another (~). `subject` is what it is about."""

    sign: Literal["+", "-", "~"]
    subject: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.sign} {self.subject}" + (f": {self.what}" if self.what else "")


def changes(before: Config, now: Config) -> Iterator[Change]:
    """Give what makes `now` another file than `before`, services first."""
    old, new = _by(before.services, lambda s: s.name), _by(now.services, lambda s: s.name)
    for name, service in old.items():
        if name not in new:
            yield Change("-", f"service {name}", _summary(service))
    for name, service in new.items():
        if name not in old:
            yield Change("+", f"service {name}", _summary(service))
        elif service != old[name]:
            yield from _service(old[name], service)
    for key in _keys(before.director, now.director):
        yield Change("~", "director", str(key))
    yield from _entries("address", before.addresses, now.addresses, _address)
    yield from _entries("route", before.routes, now.routes, _route)
    yield from _entries("rule", before.rules, now.rules, _rule)
    yield from _entries("real server", before.real_server, now.real_server, str)


def _summary(service: Service) -> str:
    listen = " ".join(map(str, service.listen)) or f"mark {service.mark:#x}"
    return f"{listen}, {many(len(service.backends), 'backend')}"


def _service(before: Service, now: Service) -> Iterator[Change]:
    subject = f"service {now.name}"
    yield from (Change("-", subject, f"listen {each}") for each in before.listen if each not in now.listen)
    yield from (Change("+", subject, f"listen {each}") for each in now.listen if each not in before.listen)
    yield from _backends(subject, _by(before.backends, str), _by(now.backends, str))
    for key in _keys(before, now, apart=("listen", "backends")):
        yield Change("~", subject, str(key))


def _backends(subject: str, before: Mapping[str, Backend], now: Mapping[str, Backend]) -> Iterator[Change]:
    yield from (Change("-", subject, f"backend {name}") for name in before if name not in now)
    for name, backend in now.items():
        if name not in before:
            # What it says beyond an address.
            said = " ".join(
                f"{key.name} {key.now}" for key in _keys(Backend(backend.address, backend.ports), backend)
            )
            yield Change("+", subject, f"backend {name} {said}".rstrip())
            continue
        for key in _keys(before[name], backend):
            yield Change("~", subject, f"backend {name} {key}")


def _entries(
    subject: str, before: Iterable[T], now: Iterable[T], said: Callable[[T], str]
) -> Iterator[Change]:
    old, new = _by(before, said), _by(now, said)
    yield from (Change("-", f"{subject} {text}") for text in old if text not in new)
    yield from (Change("+", f"{subject} {text}") for text in new if text not in old)


def _by(values: Iterable[T], key: Callable[[T], str]) -> dict[str, T]:
    return {key(value): value for value in values}


class _Key(NamedTuple):
    """A key that has another value."""

    name: str
    before: str
    now: str

    def __str__(self) -> str:
        if max(len(self.before), len(self.now)) > LONG:
            return f"{self.name} is another"
        return f"{self.name} {self.before} -> {self.now}"


def _keys(before: Any, now: Any, apart: Iterable[str] = (), above: str = "") -> Iterator[_Key]:
    """Give the keys in which two values of one class differ; tables in tables key by key."""
    for each in fields(now):
        old, new = getattr(before, each.name), getattr(now, each.name)
        if each.name in apart or old == new:
            continue
        name = KEYS.get(each.name, each.name)
        if is_dataclass(new) and type(old) is type(new) and not isinstance(new, _WHOLE):
            yield from _keys(old, new, above=above + (f"{name}." if name else ""))
        else:
            yield _Key(above + (name or "type"), _said(old), _said(new))


# These are one word in the file, or are best said as one.
_WHOLE = (Access, Rate, ReturnPath)


def _said(value: Any) -> str:
    """Return a value as a person would say it."""
    if value is None or value in ("", (), b""):
        return "none"
    for kind, say in _WORDS.items():
        if isinstance(value, kind):
            return say(value)
    return str(value)


def _access(value: Access) -> str:
    listed = [str(each) for each in value.prefixes]
    listed += [f"{each.path} ({many(len(each.prefixes), 'prefix')})" for each in value.files]
    return ", ".join(listed) or "none"


def _probe(value: Probe) -> str:
    return type(value).__name__.removesuffix("Probe").lower()


_WORDS: Mapping[Any, Callable[[Any], str]] = {
    bool: lambda value: "on" if value else "off",
    float: lambda value: f"{value:g}s",
    datetime: datetime.isoformat,
    Access: _access,
    Rate: lambda value: f"{value.per_second}/s, burst {value.burst}",
    Pin: lambda value: f"{value.client} to {value.backend}",
    Health: lambda value: _probe(value.probe),
    Probe: _probe,
    Persistence: lambda value: f"{value.timeout:g}s",
    Tls: lambda value: "on" + (f" as {value.name}" if value.name else ""),
    tuple: lambda value: ", ".join(map(_said, value)),
}


def _address(entry: AddressEntry) -> str:
    return f"{entry.address} on {entry.interface}"


def _route(entry: RouteEntry) -> str:
    words = [f"{entry.to}"]
    words += [f"via {entry.via}"] if entry.via else []
    words += [f"on {entry.interface}"] if entry.interface else []
    words += [f"from {entry.source}"] if entry.source else []
    words.append(f"table {entry.table}")
    words += [f"metric {entry.metric}"] if entry.metric else []
    return " ".join(words)


def _rule(entry: RuleEntry) -> str:
    words = [f"priority {entry.priority}"]
    words += [f"from {entry.source}"] if entry.source else []
    words += [f"to {entry.to}"] if entry.to else []
    words += [f"interface {entry.iif}"] if entry.iif else []
    return " ".join([*words, f"table {entry.table}", f"IPv{entry.family}"])
