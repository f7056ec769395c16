"""What `lbd status` says: the document (JSON) and the text made of it.

The text is made by the client from the document, so this file imports nothing that a client command
would have to wait for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lbd.core.words import many

if TYPE_CHECKING:
    from lbd.core.observed import BackendName
    from lbd.core.settings import Backend, Config, Service

State = Literal["converged", "converging", "degraded"]

COLOURS = {
    "converged": "32",
    "converging": "33",
    "degraded": "31",
    "up": "32",
    "empty": "31",
    "drain": "33",
    "down": "31",
    "full": "33",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the daemon stands, apart from what the file says.

    `hash` is that of the file in force; `error` is why the file on disk is not it; `problems` is what
    keeps the host from it. `last_drift` is {"time", "operations", "by"} or None. `connections` are those of
    backends where they are counted, `full` the backends that have as many as they may.
    """

    state: State
    path: str
    hash: str = ""
    error: str = ""
    problems: tuple[str, ...] = ()
    drifts: int = 0
    last_drift: Mapping[str, Any] | None = None
    elements: int = 0
    generation: int = 0
    connections: Mapping[BackendName, int] = field(default_factory=dict)
    full: frozenset[BackendName] = frozenset()


def document(standing: Standing, config: Config | None) -> dict[str, Any]:
    """Return the status document; its keys are a contract (docs/operations.md)."""
    services = config.services if config else ()
    return {
        "state": standing.state,
        "problems": list(standing.problems),
        "config": {"path": standing.path, "hash": standing.hash, "error": standing.error or None},
        "services": [_service(service, standing) for service in services],
        "drift": {"count": standing.drifts, "last": standing.last_drift},
        "kernel": {"elements": standing.elements, "generation": standing.generation},
    }


def _service(service: Service, standing: Standing) -> dict[str, Any]:
    takers = [b for b in service.backends if b.in_rotation and (service.name, str(b)) not in standing.full]
    return {
        "name": service.name,
        "state": "up" if takers else "empty",
        "listen": [str(listen) for listen in service.listen],
        "scheduler": service.scheduler,
        "return_path": str(service.return_path),
        "backends": [_backend(service, backend, standing) for backend in service.backends],
    }


def _backend(service: Service, backend: Backend, standing: Standing) -> dict[str, Any]:
    name = service.name, str(backend)
    state: str = backend.state
    reason = "" if state == "up" else f"state = {state!r} in the file"
    if state == "up" and not backend.weight:
        reason = "weight = 0 in the file"
    elif state == "up" and name in standing.full:
        state, reason = "full", f"max_connections = {backend.max_connections} in the file"
    said = {"address": str(backend), "weight": backend.weight, "state": state, "reason": reason}
    if name in standing.connections:
        said["connections"] = standing.connections[name]
    return said


def headline(standing: Standing, config: Config | None) -> str:
    """Return the one line for STATUS= of sd_notify(3)."""
    if config is None:
        return f"no configuration in force: {standing.error}"
    backends = sum(len(service.backends) for service in config.services)
    text = f"{standing.state}: {many(len(config.services), 'service')}, {many(backends, 'backend')}"
    if standing.error:
        text += f"; the file on disk is refused, the last good one is in force: {standing.error}"
    return "; ".join([text, *standing.problems[:1]])


def text(status: Mapping[str, Any], *, colour: bool) -> Iterator[str]:
    """Give the lines that a person reads."""

    def paint(word: str, width: int = 0) -> str:
        padded = word.ljust(width)
        return f"\x1b[{COLOURS[word]}m{padded}\x1b[0m" if colour and word in COLOURS else padded

    config, drift, kernel = status["config"], status["drift"], status["kernel"]
    yield f"{paint(status['state'])}: {config['path']} ({config['hash'][:12] or 'nothing in force'})"
    if config["error"]:
        yield f"  the file on disk is refused: {config['error']}"
    yield from (f"  {problem}" for problem in status["problems"])
    # A column with nothing below its title is left out.
    columns = [column for column in zip(*_rows(status["services"]), strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        yield "  ".join(paint(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
    last = f", last {drift['last']['time']} by {drift['last']['by']}" if drift["last"] else ""
    yield f"drift repaired: {drift['count']}{last}"
    yield f"kernel: {kernel['elements']} elements, generation {kernel['generation']}"


def _rows(services: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield (
        "SERVICE",
        "LISTEN",
        "SCHEDULER",
        "RETURN PATH",
        "BACKEND",
        "WEIGHT",
        "CONNECTIONS",
        "STATE",
        "REASON",
    )
    for service in services:
        first = (service["name"], " ".join(service["listen"]), service["scheduler"], service["return_path"])
        rest = "", "", "", ""
        if not service["backends"]:
            yield *first, "(none)", "", "", service["state"], ""
        for backend in service["backends"]:
            counted = str(backend.get("connections", ""))
            yield (
                *first,
                backend["address"],
                str(backend["weight"]),
                counted,
                backend["state"],
                backend["reason"],
            )
            first = rest
