"""How what lbd keeps between runs is written: values to JSON text and back, with every doubt refused.

A kept file is one JSON object, {"kind", "version", "sha256", "body"}. The digest is there because a
file with a flipped digit is still JSON, and would be applied to the kernel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import cast, get_args

from lbd.core.health import Agent, Belief, Phase
from lbd.core.incidents import Incident
from lbd.core.observed import BackendName
from lbd.core.overrides import Said
from lbd.core.source import Source
from lbd.core.state import LiveRoute, Memory, Route, RouteKey

VERSION = 1

_SOURCES = "last-good"
_MEMORY = "memory"
_INCIDENTS = "incidents"
_HEALTH = "health"
_OVERRIDES = "overrides"


def encode_sources(sources: Sequence[Source]) -> str:
    """Write the files of a configuration, in their order."""
    items = [{"path": source.path, "text": source.text, "kind": source.kind} for source in sources]
    return _seal(_SOURCES, items)


def decode_sources(text: str) -> tuple[Source, ...]:
    """Read what encode_sources wrote. Raises ValueError, in words, for anything else."""
    items = [_object(item) for item in _list(_unseal(_SOURCES, text))]
    if not items:
        raise ValueError("it holds no file")
    return tuple(_source(item) for item in items)


def _source(item: dict[str, object]) -> Source:
    path, text = _text(item, "path"), _text(item, "text")
    # Before there were files of prefixes no kind was kept.
    match item.get("kind", "toml"):
        case "toml":
            return Source(path, text)
        case "prefixes":
            return Source(path, text, "prefixes")
        case kind:
            raise ValueError(f"{path} is of a kind that this lbd does not know: {kind!r}")


def encode_memory(memory: Memory) -> str:
    """Write what was there before lbd changed it, and the digests of the chain bodies."""
    body = {
        "sysctls": dict(memory.sysctls),
        "routes": [{"key": asdict(key), **asdict(live)} for key, live in sorted(memory.routes.items())],
        "bodies": {text: list(digests) for text, digests in memory.bodies.items()},
    }
    return _seal(_MEMORY, body)


def decode_memory(text: str) -> Memory:
    """Read what encode_memory wrote. Raises ValueError, in words, for anything else."""
    body = _object(_unseal(_MEMORY, text))
    sysctls, bodies = _object(body.get("sysctls")), _object(body.get("bodies"))
    routes = [_object(item) for item in _list(body.get("routes"))]
    return Memory(
        sysctls={name: _text(sysctls, name) for name in sysctls},
        routes={
            _key(item.get("key")): LiveRoute(_route(item.get("route")), _number(item, "protocol"))
            for item in routes
        },
        bodies={
            name: tuple(_string(digest) for digest in _list(digests)) for name, digests in bodies.items()
        },
    )


def encode_incidents(incidents: Sequence[Incident]) -> str:
    """Write who changed the host, and when."""
    return _seal(_INCIDENTS, [asdict(incident) for incident in incidents])


def decode_incidents(text: str) -> tuple[Incident, ...]:
    """Read what encode_incidents wrote. Raises ValueError, in words, for anything else."""
    return tuple(_incident(_object(item)) for item in _list(_unseal(_INCIDENTS, text)))


def _incident(item: dict[str, object]) -> Incident:
    seconds, repaired = item.get("seconds"), item.get("repaired")
    if not isinstance(seconds, int | float) or not isinstance(repaired, bool):
        raise ValueError("an incident does not say how it ended")  # noqa: TRY004 - bad data, not a bad call
    return Incident(
        began=_text(item, "began"),
        ended=_text(item, "ended"),
        times=_number(item, "times"),
        operations=_number(item, "operations"),
        what=tuple(map(_string, _list(item.get("what")))),
        by=tuple(map(_string, _list(item.get("by")))),
        repaired=repaired,
        seconds=float(seconds),
    )


def encode_beliefs(boot: str, beliefs: Mapping[str, Belief]) -> str:
    """Write what is believed of backends, by the digest of the check; times are of this boot."""
    rows = {
        digest: [b.phase, b.since, b.count, b.reason, b.came_up, b.weight, b.agent]
        for digest, b in beliefs.items()
    }
    # On one line: of 10,000 checks this is written again and again, and indenting takes ten times as long.
    return _seal(_HEALTH, {"boot": boot, "beliefs": rows}, indent=None)


def decode_beliefs(text: str) -> tuple[str, dict[str, Belief]]:
    """Read what encode_beliefs wrote. Raises ValueError, in words, for anything else."""
    body = _object(_unseal(_HEALTH, text))
    return _text(body, "boot"), {
        digest: _belief(_list(row)) for digest, row in _object(body.get("beliefs")).items()
    }


def _belief(row: list[object]) -> Belief:
    match row:
        case [
            str(phase),
            int() | float() as since,
            int(count),
            str(reason),
            None | int() | float() as came_up,
            int(weight),
            str(agent),
        ] if phase in get_args(Phase) and agent in get_args(Agent):
            return Belief(cast("Phase", phase), since, count, reason, came_up, weight, cast("Agent", agent))
    raise ValueError(f"what is believed of a backend cannot be read: {row}")


def encode_overrides(said: Mapping[BackendName, Said]) -> str:
    """Write what was said of backends at run time."""
    items = [
        {"service": service, "backend": backend, **asdict(each)} for (service, backend), each in said.items()
    ]
    return _seal(_OVERRIDES, items)


def decode_overrides(text: str) -> dict[BackendName, Said]:
    """Read what encode_overrides wrote. Raises ValueError, in words, for anything else."""
    items = [_object(item) for item in _list(_unseal(_OVERRIDES, text))]
    return {(_text(item, "service"), _text(item, "backend")): _said(item) for item in items}


def _said(item: dict[str, object]) -> Said:
    uid, at = _number(item, "uid"), _text(item, "at")
    match _text(item, "state"):
        case "drain":
            return Said("drain", uid, at)
        case "maintenance":
            return Said("maintenance", uid, at)
        case state:
            raise ValueError(f"{state!r} is nothing that is said of a backend")


def _seal(kind: str, body: object, indent: int | None = 1) -> str:
    sealed = {"kind": kind, "version": VERSION, "sha256": _digest(body), "body": body}
    return json.dumps(sealed, indent=indent) + "\n"


def _unseal(kind: str, text: str) -> object:
    try:
        sealed = _object(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if sealed.get("kind") != kind:
        raise ValueError(f"it is of kind {sealed.get('kind')!r}, not {kind!r}")
    if sealed.get("version") != VERSION:
        raise ValueError(f"it has format version {sealed.get('version')!r}, this lbd reads {VERSION}")
    body = sealed.get("body")
    if sealed.get("sha256") != _digest(body):
        raise ValueError("its checksum does not match: it was damaged or edited")
    return body


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _key(data: object) -> RouteKey:
    item = _object(data)
    return RouteKey(_text(item, "to"), _number(item, "table"), _number(item, "metric"))


def _route(data: object) -> Route:
    item = _object(data)
    to, via, interface, source = (_text(item, name) for name in ("to", "via", "interface", "source"))
    return Route(to, via, interface, source, table=_number(item, "table"), metric=_number(item, "metric"))


def _object(data: object) -> dict[str, object]:
    if not isinstance(data, dict):
        raise ValueError(f"an object is missing, found {type(data).__name__}")  # noqa: TRY004 - bad data, not a bad call
    return data


def _list(data: object) -> list[object]:
    if not isinstance(data, list):
        raise ValueError(f"a list is missing, found {type(data).__name__}")  # noqa: TRY004 - bad data, not a bad call
    return data


def _string(data: object) -> str:
    if not isinstance(data, str):
        raise ValueError(f"a string is missing, found {type(data).__name__}")  # noqa: TRY004 - bad data, not a bad call
    return data


def _text(item: dict[str, object], name: str) -> str:
    return _string(item.get(name))


def _number(item: dict[str, object], name: str) -> int:
    value = item.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is not a number")  # noqa: TRY004 - bad data, not a bad call
    return value
