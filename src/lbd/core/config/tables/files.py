"""The other tables: what the director carries and does, and the files as wholes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lbd.core.config import values
from lbd.core.config.tables import cells
from lbd.core.config.tables.cells import HIGHEST_U32, Entries, Interface, ReturnPathKey
from lbd.core.config.tables.reading import Table
from lbd.core.settings import IP, WHOLE_MARK, InterfaceAddress, Network
from lbd.core.state import MAIN

HIGHEST_U16 = 65535
# More than anybody has: with it, any number of services may go at once.
MOST_SERVICES = 1_000_000
# 0 is the kernel's rule for the local table, 32766 and 32767 are those for main and default.
HIGHEST_PRIORITY = 32765


class AddressTable(Table):
    """`[[address]]`."""

    required = ("address", "interface")
    address: Annotated[InterfaceAddress | None, cells.text(values.interface_address)] = None
    interface: Interface = ""


class RouteTable(Table):
    """`[[route]]`."""

    required = ("to",)
    to: Annotated[
        Network | Literal["default"] | None,
        cells.text(lambda text: text if text == "default" else values.network(text)),
    ] = None
    via: Annotated[IP | None, cells.text(values.unicast)] = None
    interface: Interface | None = None
    source: Annotated[IP | None, cells.text(values.unicast)] = None
    table: Annotated[int, cells.number(1, HIGHEST_U32)] = MAIN
    metric: Annotated[int, cells.number(0, HIGHEST_U32)] = 0
    replace: bool = False


class RuleTable(Table):
    """`[[rule]]`."""

    required = ("table", "priority")
    source: Annotated[Network | None, cells.text(values.network)] = Field(default=None, alias="from")
    to: Annotated[Network | None, cells.text(values.network)] = None
    interface: Interface | None = None
    table: Annotated[int, cells.number(1, HIGHEST_U32)] = MAIN
    priority: Annotated[int, cells.number(1, HIGHEST_PRIORITY)] = 1


class DirectorTable(Table):
    """`[director]`."""

    forwarding: bool | None = None
    return_path: ReturnPathKey = None
    allow_empty: bool = False
    log_target: Annotated[Literal["nflog", "kernel"], cells.choice("nflog", "kernel")] = "nflog"
    log_group: Annotated[int, cells.number(0, HIGHEST_U16)] = 76
    audit: Annotated[float, cells.duration("1s", "1h")] = 60.0
    ssh_ports: Annotated[list[cells.Port], cells.ONCE] = Field(default_factory=lambda: [22])
    mark_mask: Annotated[int, cells.number(1, HIGHEST_U32)] = WHOLE_MARK
    devices: Annotated[list[Interface], cells.ONCE] = Field(default_factory=list)
    removed_percent: Annotated[int, cells.number(0, 100)] = 50
    removed_from: Annotated[int, cells.number(1, MOST_SERVICES)] = 10


class RealServerTable(Table):
    """`[real_server]`."""

    direct: Annotated[list[Annotated[IP, cells.text(values.service_address)]], cells.ONCE] = Field(
        default_factory=list
    )


class DropInTable(Table):
    """An included file."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        key: f'"{key}" belongs in the main file, not in an included one'
        for key in ("include", "allow_empty", "director", "defaults", "real_server")
    }
    service: Entries = Field(default_factory=list)
    address: Entries = Field(default_factory=list)
    route: Entries = Field(default_factory=list)
    rule: Entries = Field(default_factory=list)


class MainTable(DropInTable):
    """The main file. Its tables are read one by one, so that each keeps what is right in it."""

    elsewhere: ClassVar[Mapping[str, str]] = {}
    include: list[Annotated[str, cells.text(values.include_pattern)]] = Field(default_factory=list)
    allow_empty: bool = False
    director: dict[str, object] = Field(default_factory=dict)
    defaults: dict[str, object] = Field(default_factory=dict)
    real_server: dict[str, object] = Field(default_factory=dict)
