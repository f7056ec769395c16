"""The table of health checks: `[service.health]` and `[defaults.health]`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from lbd.core.config import values, wire
from lbd.core.config.tables import cells
from lbd.core.config.tables.reading import Table
from lbd.core.probes import Codes
from lbd.core.settings import IP

# "none" takes a default away.
Kind = Literal["tcp", "http", "https", "udp", "dns", "icmp", "exec", "agent", "grpc", "none"]

# A backend that is checked less often is not checked; 10 ms is a round trip within a site.
INTERVALS = ("100ms", "1h")
TIMEOUTS = ("10ms", "1h")
SLOW_STARTS = ("1s", "24h")
MOST_IN_A_ROW = 100
MOST_HEADERS = 32
MOST_ARGUMENTS = 64

Times = Annotated[int, cells.number(1, MOST_IN_A_ROW)]
Payload = Annotated[bytes | None, PlainValidator(wire.payload)]


def _listed(value: object) -> object:
    """Return a list of one for a status that stands alone."""
    return value if isinstance(value, list) else [value]


def _apart(found: list[Codes]) -> list[Codes]:
    ordered = sorted(found)
    for one, other in pairwise(ordered):
        if other[0] <= one[1]:
            shown = [str(low) if low == high else f"{low}-{high}" for low, high in (one, other)]
            raise ValueError(
                f"{shown[0]} is listed twice" if one == other else f"{shown[0]} and {shown[1]} overlap"
            )
    return ordered


def _few_headers(found: dict[str, str]) -> dict[str, str]:
    if len(found) > MOST_HEADERS:
        raise ValueError(f"{len(found)} headers are too many; {MOST_HEADERS} are the most")
    return found


def _no_switch(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 - pydantic's way
            f'must be a table, not {values.described(value)}; for no checks write {{ type = "none" }}'
        )
    return value


def _command(found: list[str]) -> list[str]:
    if not found[0].startswith("/"):
        raise ValueError(
            "the first word is the program with its whole path, as in "
            '["/usr/local/bin/check-db", "--quick"]; no shell looks for it'
        )
    if len(found) > MOST_ARGUMENTS:
        raise ValueError(f"{len(found)} words are too many; {MOST_ARGUMENTS} are the most")
    return found


class HealthTable(Table):
    """`[service.health]`. Which keys go with which type, core/config/health knows."""

    type: Annotated[
        Kind | None,
        cells.choice("tcp", "http", "https", "udp", "dns", "icmp", "exec", "agent", "grpc", "none"),
    ] = None
    interval: Annotated[float, cells.duration(*INTERVALS)] = 2.0
    timeout: Annotated[float | None, cells.duration(*TIMEOUTS)] = None
    fast_interval: Annotated[float | None, cells.duration(*INTERVALS)] = None
    rise: Times = 2
    fall: Times = 3
    start: Annotated[Literal["up", "down"], cells.choice("up", "down")] = "up"
    address: Annotated[IP | None, cells.text(values.service_address)] = None
    port: cells.Port | None = None
    source: Annotated[IP | None, cells.text(values.service_address)] = None
    slow_start: Annotated[float, cells.duration(*SLOW_STARTS)] = 0.0
    panic: Annotated[int, cells.number(0, 100)] = 0
    send: Payload = None
    expect: Payload = None
    method: Annotated[str, cells.text(wire.method)] = "GET"
    path: Annotated[str, cells.text(wire.path)] = "/"
    host: Annotated[str, cells.text(wire.host)] = ""
    headers: Annotated[
        dict[Annotated[str, cells.text(wire.header_name)], Annotated[str, cells.text(wire.header_value)]],
        AfterValidator(_few_headers),
    ] = Field(default_factory=dict)
    status: Annotated[
        list[Annotated[Codes, PlainValidator(wire.codes)]],
        cells.some("; name the status codes that are good"),
        AfterValidator(_apart),
        BeforeValidator(_listed),
    ] = Field(default_factory=lambda: [(200, 399)])
    body: Annotated[bytes, cells.text(wire.page_part)] = b""
    http_version: Annotated[Literal["1.1", "2"], cells.choice("1.1", "2")] = "1.1"
    sni: Annotated[str, cells.text(wire.server_name)] = ""
    verify: bool = True
    ca: Annotated[str, cells.text(lambda text: values.file_name(text, "tls/ca.pem"))] = ""
    service: Annotated[str, cells.text(wire.grpc_service)] = ""
    tls: bool = False
    query: Annotated[str, cells.text(wire.query)] = ""
    record: Annotated[str, cells.choice(*wire.ANSWERS)] = "A"
    answers: Annotated[
        list[Annotated[str, cells.text(wire.line)]],
        cells.some("; leave the key out to take any answer"),
        cells.ONCE,
        cells.LISTED,
    ] = Field(default_factory=list)
    command: Annotated[
        list[Annotated[str, cells.text(wire.argument)]],
        cells.some("; write the program and its arguments"),
        AfterValidator(_command),
    ] = Field(default_factory=list)


# The table is read by itself, so that it keeps what is right in it.
HealthKey = Annotated[dict[str, object] | None, BeforeValidator(_no_switch)]
