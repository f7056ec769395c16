"""The tables of the file, key by key: their types, their defaults, what is not built yet.

The only user of pydantic. A table that is wrong in one key goes on with its others, so that one run tells
everything; a key whose feature is not built is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from lbd.core.config import values
from lbd.core.config.findings import Finding, Place
from lbd.core.settings import (
    IP,
    Backend,
    BackendState,
    InterfaceAddress,
    Listen,
    Log,
    Network,
    ReturnPath,
    Scheduler,
    WhenEmpty,
)
from lbd.core.state import MAIN
from lbd.core.words import quote

# A service has 65,536 slots at most: with more backends, shares would be more rounding than weight.
MOST_BACKENDS = 4096
HIGHEST_WEIGHT = 65535
HIGHEST_U16 = 65535
HIGHEST_U32 = 2**32 - 1
# 0 is the kernel's rule for the local table, 32766 and 32767 are those for main and default.
HIGHEST_PRIORITY = 32765
AUDIT = (1.0, 3600.0)


# --- reading single values -----------------------------------------------------------------------


def _text(read: Callable[[str], object]) -> PlainValidator:
    """Take a string and nothing that could be turned into one, and read it."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be a string, not {values.described(value)}")  # noqa: TRY004 - pydantic's way
        return read(value)

    return PlainValidator(validate)


def _choice(*built: str, later: Sequence[str] = ()) -> PlainValidator:
    return _text(lambda word: values.choice(word, built, later))


def _number(low: int, high: int) -> PlainValidator:
    def validate(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {values.described(value)}")  # noqa: TRY004 - pydantic's way
        if not low <= value <= high:
            raise ValueError(
                f"{values.described(value)} is out of range; write a number from {low} to {high}"
            )
        return value

    return PlainValidator(validate)


def _later(*kinds: type, none: object = None) -> PlainValidator:
    """Refuse a key whose feature is not built, except with the value `none`, which asks for nothing."""
    wanted = " or ".join(values.KINDS[kind] for kind in kinds)

    def validate(value: object) -> object:
        if type(value) not in kinds:
            raise ValueError(f"{values.LATER}; and it will be {wanted}, not {values.described(value)}")
        if value != none:
            raise ValueError(values.LATER)
        return value

    return PlainValidator(validate)


def _audit(text: str) -> float:
    seconds = values.duration(text)
    if not AUDIT[0] <= seconds <= AUDIT[1]:
        raise ValueError(f'{text} is out of range; write a duration from "1s" to "1h"')
    return seconds


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


InterfaceName = Annotated[str, _text(values.interface_name)]
SchedulerKey = Annotated[
    Scheduler | None,
    _choice("maglev", "random", "round-robin", later=("source-hash", "least-connections")),
]
ReturnPathKey = Annotated[ReturnPath | None, _text(values.return_path)]
WhenEmptyKey = Annotated[WhenEmpty | None, _choice("reject", "drop", later=("backup",))]
LogKey = Annotated[Log | None, _choice("off", "new", "path")]
Entries = list[dict[str, object]]

LaterText = Annotated[object, _later(str)]
LaterNumber = Annotated[object, _later(int)]
LaterList = Annotated[object, _later(list)]


# --- the tables of the file ----------------------------------------------------------------------


class Table(BaseModel):
    """A table of the file. Every key has a default here; `required` are those it cannot do without."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    required: ClassVar[tuple[str, ...]] = ()


class LaterTable(Table):
    """A table whose feature is not built: refused as a whole when no key of it is."""

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        raise ValueError(values.LATER)


class LimitsTable(LaterTable):
    """`[service.limits]`."""

    new_per_second: LaterNumber = None
    client_new_per_second: LaterNumber = None
    client_connections: LaterNumber = None


class HealthTable(LaterTable):
    """`[service.health]`."""

    type: LaterText = None
    interval: LaterText = None
    timeout: LaterText = None
    rise: LaterNumber = None
    fall: LaterNumber = None
    port: LaterNumber = None
    path: LaterText = None
    host: LaterText = None
    send: LaterText = None
    expect: LaterText = None
    status: Annotated[object, _later(int, str, list)] = None
    command: LaterList = None


class BackendTable(Table):
    """An entry of `backends`; as a string it is its address alone."""

    required = ("address",)
    address: Annotated[Backend | None, _text(values.backend)] = None
    weight: Annotated[int, _number(0, HIGHEST_WEIGHT)] = 1
    state: Annotated[BackendState, _choice("up", "drain", "down", later=("maintenance",))] = "up"
    backup: Annotated[object, _later(bool, none=False)] = False

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"address": value}
        if not isinstance(value, dict):
            raise ValueError(f"must be a string or a table, not {values.described(value)}")  # noqa: TRY004 - as above
        if "address" not in value:
            raise ValueError('the key "address" is missing; write { address = "192.0.2.1:80" }')
        return value


class ServiceTable(Table):
    """`[[service]]`."""

    required = ("name", "listen", "backends")
    name: Annotated[str, _text(values.service_name)] = ""
    listen: Annotated[
        list[Annotated[Listen, _text(values.listen)]], BeforeValidator(_listed), Field(min_length=1)
    ] = Field(default_factory=list)
    interface: InterfaceName | None = None
    scheduler: SchedulerKey = None
    return_path: ReturnPathKey = None
    when_empty: WhenEmptyKey = None
    log: LogKey = None
    backends: Annotated[list[BackendTable], Field(max_length=MOST_BACKENDS)] = Field(default_factory=list)
    hash: LaterList = None
    persistence: Annotated[object, _later(str, dict)] = None
    allow: LaterList = None
    deny: LaterList = None
    on_down: LaterText = None
    mark: LaterNumber = None
    limits: LimitsTable | None = None
    health: HealthTable | None = None


class AddressTable(Table):
    """`[[address]]`."""

    required = ("address", "interface")
    address: Annotated[InterfaceAddress | None, _text(values.interface_address)] = None
    interface: InterfaceName = ""


class RouteTable(Table):
    """`[[route]]`."""

    required = ("to",)
    to: Annotated[
        Network | Literal["default"] | None,
        _text(lambda text: text if text == "default" else values.network(text)),
    ] = None
    via: Annotated[IP | None, _text(values.unicast)] = None
    interface: InterfaceName | None = None
    source: Annotated[IP | None, _text(values.unicast)] = None
    table: Annotated[int, _number(1, HIGHEST_U32)] = MAIN
    metric: Annotated[int, _number(0, HIGHEST_U32)] = 0
    replace: bool = False


class RuleTable(Table):
    """`[[rule]]`."""

    required = ("table", "priority")
    source: Annotated[Network | None, _text(values.network)] = Field(default=None, alias="from")
    to: Annotated[Network | None, _text(values.network)] = None
    interface: InterfaceName | None = None
    table: Annotated[int, _number(1, HIGHEST_U32)] = MAIN
    priority: Annotated[int, _number(1, HIGHEST_PRIORITY)] = 1


class DirectorTable(Table):
    """`[director]`."""

    forwarding: bool | None = None
    return_path: ReturnPathKey = None
    allow_empty: bool = False
    log_target: Annotated[Literal["nflog", "kernel"], _choice("nflog", "kernel")] = "nflog"
    log_group: Annotated[int, _number(0, HIGHEST_U16)] = 76
    audit: Annotated[float, _text(_audit)] = 60.0


class DefaultsTable(Table):
    """`[defaults]`: what services take that do not say otherwise."""

    scheduler: SchedulerKey = None
    return_path: ReturnPathKey = None
    when_empty: WhenEmptyKey = None
    log: LogKey = None


class DropInTable(Table):
    """An included file."""

    service: Entries = Field(default_factory=list)
    address: Entries = Field(default_factory=list)
    route: Entries = Field(default_factory=list)
    rule: Entries = Field(default_factory=list)


class MainTable(DropInTable):
    """The main file."""

    include: list[Annotated[str, _text(values.include_pattern)]] = Field(default_factory=list)
    allow_empty: bool = False
    director: DirectorTable = DirectorTable()
    defaults: DefaultsTable = DefaultsTable()


# --- from data to tables -------------------------------------------------------------------------

T = TypeVar("T", bound=Table)

_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "list_type": "a list",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_INNER: Mapping[str, type[Table]] = {
    "backends": BackendTable,
    "limits": LimitsTable,
    "health": HealthTable,
    "director": DirectorTable,
    "defaults": DefaultsTable,
}


def read(model: type[T], raw: Mapping[str, object], place: Place, found: list[Finding]) -> T:
    """Return what is right in a table; what is wrong goes to `found` and takes the default."""
    found.extend(
        Finding(place, f'the key "{key}" is missing; every [[{place.path[0]}]] has one')
        for key in model.required
        if key not in raw
    )
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
    for detail in wrong:
        path = detail["loc"]
        where = Place(place.file, (*place.path, *path))
        kind, value = detail["type"], detail["input"]
        if kind == "extra_forbidden":
            found.append(Finding(where, _unknown(model, path), part="key"))
        elif kind == "value_error":
            found.append(Finding(where, str(detail["ctx"]["error"])))
        elif kind == "list_type" and isinstance(value, dict) and len(where.path) == 1:
            found.append(Finding(where, f"write [[{path[0]}]] in two brackets; there can be several"))
        elif kind == "too_long":
            found.append(Finding(where, f"more than {MOST_BACKENDS} backends; split the service in several"))
        elif kind == "too_short":
            found.append(Finding(where, "the list is empty; a service needs at least one listen address"))
        else:
            found.append(Finding(where, f"must be {_WANTED[kind]}, not {values.described(value)}"))
    keys = {detail["loc"][0] for detail in wrong}
    return model.model_validate({key: value for key, value in raw.items() if key not in keys})


def _unknown(model: type[Table], path: tuple[str | int, ...]) -> str:
    key = str(path[-1])
    if model is DropInTable and len(path) == 1 and key in MainTable.model_fields:
        return f'"{key}" belongs in the main file, not in an included one'
    inner = _INNER[str(path[0])] if len(path) > 1 else model
    known = [field.alias or name for name, field in inner.model_fields.items()]
    return f"unknown key {quote(key)}{values.did_you_mean(key, known)}"
