"""How what lbd keeps between runs is written: values to JSON text and back, with every doubt refused.

A kept file is one JSON object, {"kind", "version", "sha256", "body"}. The digest is there because a
file with a flipped digit is still JSON, and would be applied to the kernel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from lbd.core.source import Source
from lbd.core.state import LiveRoute, Memory, Route, RouteKey

VERSION = 1

_SOURCES = "last-good"
_MEMORY = "memory"


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


def _seal(kind: str, body: object) -> str:
    return (
        json.dumps({"kind": kind, "version": VERSION, "sha256": _digest(body), "body": body}, indent=1) + "\n"
    )


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
