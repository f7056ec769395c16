"""The status document as text: made by the client, so nothing here imports what a command would wait for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

COLOURS = {
    "converged": "32",
    "converging": "33",
    "degraded": "31",
    "up": "32",
    "empty": "31",
    "drain": "33",
    "down": "31",
    "standby": "36",
    "sorry": "31",
    "full": "33",
    "maintenance": "33",
    "starting": "36",
    "panic": "31",
}


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
                _why(backend),
            )
            first = rest


def _why(backend: Mapping[str, Any]) -> str:
    """Return the reason for a backend's state, and what its checks say beside it."""
    reason: str = backend["reason"]
    health = backend.get("health")
    if health is None:
        return reason
    count = f"{health['against']} {'check' if health['against'] == 1 else 'checks'}"
    if health["up"]:
        failed = f"{count} failed: {health['reason']}" if health["against"] else ""
        return "; ".join(filter(None, [reason, failed]))
    if not backend.get("dead"):
        return reason
    return f"{reason}, for {_lasting(health['seconds'])}" + (f"; {count} passed" if health["against"] else "")


def _lasting(seconds: float) -> str:
    """Return a time in the largest unit of which there are two, cut: "90 s", "5 min", "3 h", "2 d"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
