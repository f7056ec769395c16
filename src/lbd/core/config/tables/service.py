"""The tables of services: `[[service]]` with what is inside it, and `[defaults]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from lbd.core.config import endpoints, values
from lbd.core.config.tables import cells
from lbd.core.config.tables.cells import (
    LISTED,
    AllowKey,
    HashKey,
    Interface,
    LogKey,
    OnDownKey,
    PrefixList,
    RefusalKey,
    ReturnPathKey,
    SchedulerKey,
    WhenEmptyKey,
)
from lbd.core.config.tables.health import HealthKey
from lbd.core.config.tables.reading import Table
from lbd.core.settings import Backend, BackendState, Network

# A service has 65,536 slots at most: with more backends, shares would be more rounding than weight.
MOST_BACKENDS = 4096
HIGHEST_WEIGHT = 65535
HIGHEST_RATE = 1_000_000
# What nf_conncount takes for one client, and more than a conntrack table holds for a backend.
HIGHEST_CLIENT_CONNECTIONS = 65535
HIGHEST_CONNECTIONS = 10_000_000

Rate = Annotated[int | None, cells.number(1, HIGHEST_RATE)]


def _keys(value: object, kind: str, needed: tuple[str, ...], example: str) -> dict[str, object]:
    """Return a table that has the keys it cannot do without."""
    if not isinstance(value, dict):
        raise ValueError(f"must be {kind}, not {values.described(value)}")  # noqa: TRY004 - pydantic's way
    for key in needed:
        if key not in value:
            raise ValueError(f'the key "{key}" is missing; write {example}')
    return value


class LimitsTable(Table):
    """`[service.limits]`."""

    new_per_second: Rate = None
    new_burst: Rate = None
    client_new_per_second: Rate = None
    client_new_burst: Rate = None
    client_connections: Annotated[int, cells.number(1, HIGHEST_CLIENT_CONNECTIONS)] = 0
    synproxy: bool = False


class BackendTable(Table):
    """An entry of `backends`; as a string it is its address alone."""

    address: Annotated[Backend | None, cells.text(endpoints.backend)] = None
    weight: Annotated[int, cells.number(0, HIGHEST_WEIGHT)] = 1
    state: Annotated[BackendState, cells.choice("up", "drain", "down", "maintenance")] = "up"
    drain_until: cells.MomentKey = None
    backup: cells.BackupKey = 0
    max_connections: Annotated[int, cells.number(1, HIGHEST_CONNECTIONS)] = 0

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"address": value}
        return _keys(value, "a string or a table", ("address",), '{ address = "192.0.2.1:80" }')


class PersistenceTable(Table):
    """`persistence`; as a string it is its timeout alone."""

    timeout: Annotated[float, cells.duration("1s", "168h")] = 0.0
    prefix_v4: Annotated[int, cells.number(1, 32)] = 32
    prefix_v6: Annotated[int, cells.number(1, 128)] = 128

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"timeout": value}
        return _keys(value, "a duration or a table", ("timeout",), '{ timeout = "10m", prefix_v4 = 24 }')


class PinTable(Table):
    """An entry of `pin`."""

    client: Annotated[Network | None, cells.text(values.network)] = None
    backend: Annotated[Backend | None, cells.text(endpoints.backend)] = None

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        example = '{ client = "198.51.100.7", backend = "192.0.2.1:80" }'
        return _keys(value, "a table", ("client", "backend"), example)


def _not_too_many(backends: list[BackendTable]) -> list[BackendTable]:
    if len(backends) > MOST_BACKENDS:
        raise ValueError(f"more than {MOST_BACKENDS} backends; split the service in several")
    return backends


class ServiceTable(Table):
    """`[[service]]`."""

    required = ("name", "backends")
    name: Annotated[str, cells.text(values.service_name)] = ""
    listen: Annotated[
        list[Annotated[endpoints.ListenText, cells.text(endpoints.listen)]],
        cells.some("; a service needs at least one listen address"),
        LISTED,
    ] = Field(default_factory=list)
    mark: Annotated[int | None, cells.number(1, cells.HIGHEST_U32)] = None
    interface: Interface | None = None
    scheduler: SchedulerKey = None
    hash: HashKey | None = None
    table_size: cells.TableSizeKey = 0
    return_path: ReturnPathKey = None
    persistence: PersistenceTable | None = None
    pin: list[PinTable] = Field(default_factory=list)
    allow: AllowKey | None = None
    deny: PrefixList | None = None
    refuse: RefusalKey = None
    limits: LimitsTable | None = None
    when_empty: WhenEmptyKey = None
    sorry_server: Annotated[
        list[Annotated[Backend, cells.text(endpoints.sorry_server)]],
        cells.some("; leave the key out for none"),
        LISTED,
    ] = Field(default_factory=list)
    offload: bool | None = None
    log: LogKey = None
    ssh: bool = False
    backends: Annotated[list[BackendTable], AfterValidator(_not_too_many)] = Field(default_factory=list)
    on_down: OnDownKey = None
    health: HealthKey = None


class DefaultsTable(Table):
    """`[defaults]`: what services take that do not say otherwise."""

    scheduler: SchedulerKey = None
    hash: HashKey | None = None
    return_path: ReturnPathKey = None
    persistence: PersistenceTable | None = None
    allow: AllowKey | None = None
    deny: PrefixList | None = None
    refuse: RefusalKey = None
    limits: LimitsTable | None = None
    when_empty: WhenEmptyKey = None
    offload: bool | None = None
    log: LogKey = None
    on_down: OnDownKey = None
    health: HealthKey = None
