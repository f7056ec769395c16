"""Tables of services to values, with what they take from [defaults]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from lbd.core.config import health
from lbd.core.config.access import Listed, contradictions, listed
from lbd.core.config.findings import Finding, Place, keys_of
from lbd.core.config.lists import Lists
from lbd.core.config.tables import (
    BackendTable,
    DefaultsTable,
    DirectorTable,
    LimitsTable,
    PersistenceTable,
    PinTable,
    ServiceTable,
    Table,
    read,
)
from lbd.core.config.written import Written
from lbd.core.probes import Health
from lbd.core.settings import (
    Access,
    Backend,
    Family,
    HashField,
    Limits,
    Listen,
    Persistence,
    Pin,
    Rate,
    ReturnPath,
    Scheduler,
    Service,
)

PORT_FIELDS: tuple[HashField, ...] = ("source-port", "destination-port")
HASH_FIELDS: tuple[HashField, ...] = get_args(HashField)
BOTH: tuple[Family, ...] = (4, 6)
# The kinds of return path that leave no connections to keep or to reset.
UNTRACKED = frozenset({"direct", "stateless"})
# Every service has one of them.
_LISTEN = frozenset({"listen", "mark"})
_KNOWN = frozenset(ServiceTable.model_fields)


@dataclass(frozen=True, slots=True)
class Common:
    """What services take that do not say otherwise, and where the file says it. `wrong` could not be read."""

    table: DefaultsTable
    return_path: ReturnPath
    allow: Listed | None
    deny: Listed | None
    limits: Limits
    health: Health | None
    places: Mapping[str, Place]
    wrong: frozenset[str]


def common(raw: Mapping[str, object], director: DirectorTable, lists: Lists, found: list[Finding]) -> Common:
    """Return what the table [defaults] says; `return_path` may also be in [director], which was read."""
    place, above = Place(0, ("defaults",)), Place(0, ("director",))
    table = read(DefaultsTable, raw, place, found)
    allow = None if table.allow is None else listed(table.allow, lists, place / "allow", found)
    deny = None if table.deny is None else listed(table.deny, lists, place / "deny", found)
    if allow and deny:
        found.extend(contradictions(allow, deny, tell_in_deny=True))
    limits = _limits(table.limits, place / "limits", found)
    return Common(
        table,
        table.return_path or director.return_path or ReturnPath(),
        allow,
        deny,
        limits,
        _health(table.health, place / "health", lists, found),
        places={"return_path": above / "return_path"} | {key: place / key for key in raw},
        wrong=unread(DefaultsTable, place, found)
        | (unread(DirectorTable, above, found) & {"return_path"} - raw.keys()),
    )


def unread(model: type[Table], place: Place, found: list[Finding]) -> frozenset[str]:
    """Return the keys of a table of the main file that may be meant to be other than they were read as.

    Those are all of them if it is no table, or if one key has a name that nobody knows.
    """
    known, told = frozenset(model.model_fields), keys_of(found, place)
    return known if told - known or any(finding.place == place for finding in found) else told


def service(
    place: Place, raw: Mapping[str, object], common: Common, lists: Lists, found: list[Finding]
) -> Written:
    """Return the `[[service]]` at `place`, as far as it is right."""
    before = len(found)
    table = read(ServiceTable, raw, place, found)
    defaults = common.table
    if not raw.keys() & _LISTEN:
        found.append(Finding(place, 'the key "listen" is missing; every [[service]] has it, or "mark"'))
    elif raw.keys() >= _LISTEN:
        message = '"mark" stands in the place of "listen"; keep one of them'
        found.append(Finding(place / "mark", message, also=place / "listen"))
    backends = tuple(_backend(each.address, each) for each in table.backends if each.address)
    # "*" is of the families that there are backends for, which are not known when one was not read.
    doubtful = "backends" in keys_of(found[before:], place)
    families = () if doubtful else tuple(sorted({each.family for each in backends})) or BOTH
    pairs = [(i, each) for i, entry in enumerate(table.listen) for each in entry.listens(families)]
    listens = tuple(each for _, each in pairs)
    scheduler = table.scheduler or defaults.scheduler or "maglev"
    allow, deny = _access(place, table, common, lists, found)
    limits = _limits(table.limits, place / "limits", found) if "limits" in raw else common.limits
    checks = _health(table.health, place / "health", lists, found) if "health" in raw else common.health
    path = table.return_path or common.return_path
    made = Service(
        name=table.name,
        listen=listens,
        backends=backends,
        interface=table.interface,
        mark=table.mark,
        scheduler=scheduler,
        hash=_hash(table.hash, defaults.hash, scheduler, ports=_has_ports(table.mark, listens)),
        table_size=table.table_size,
        return_path=path,
        persistence=_persistence(table.persistence or defaults.persistence),
        pins=() if doubtful else tuple(_pins(place / "pin", table.pin, backends, found)),
        allow=allow,
        deny=deny,
        refusal=table.refuse or defaults.refuse or "drop",
        limits=limits,
        when_empty=table.when_empty or defaults.when_empty or "reject",
        sorry=tuple(table.sorry_server),
        offload=bool(defaults.offload if table.offload is None else table.offload),
        log=table.log or defaults.log or "off",
        ssh=table.ssh,
        health=checks,
        on_down=table.on_down or (None if path.kind in UNTRACKED else defaults.on_down),
    )
    given = frozenset(raw)
    return Written(
        place,
        made,
        given,
        wrong=_wrong(keys_of(found[before:], place), given, common),
        entries=tuple(i for i, _ in pairs),
        inherited=common.places,
    )


def _wrong(told: frozenset[str], given: frozenset[str], common: Common) -> frozenset[str]:
    """Return the keys that may have been meant to be something else than they were read as."""
    wrong = told | (common.wrong - given) | (frozenset(ServiceTable.required) - given)
    if given.isdisjoint(_LISTEN):
        wrong |= _LISTEN
    if given - _KNOWN:
        # What has a name that nobody knows may be any of those that are not there.
        wrong |= _KNOWN - given
    return wrong


def _has_ports(mark: int | None, listens: Sequence[Listen]) -> bool:
    return mark is None and all(listen.protocol != "any" for listen in listens)


def _hash(
    own: list[HashField] | None, default: list[HashField] | None, scheduler: Scheduler, *, ports: bool
) -> tuple[HashField, ...]:
    """Return what is hashed, always in one order: which connections go where should not depend on it."""
    chosen = own
    if chosen is None and scheduler == "maglev" and (ports or not set(default or ()) & set(PORT_FIELDS)):
        chosen = default
    if chosen is not None:
        return tuple(field for field in HASH_FIELDS if field in chosen)
    return ("source-address", "source-port") if ports and scheduler != "source-hash" else ("source-address",)


def _backend(written: Backend, table: BackendTable) -> Backend:
    return Backend(
        written.address,
        written.ports,
        table.weight,
        table.state,
        table.backup,
        table.drain_until,
        table.max_connections,
    )


def _persistence(table: PersistenceTable | None) -> Persistence | None:
    return None if table is None else Persistence(table.timeout, table.prefix_v4, table.prefix_v6)


def _pins(
    place: Place, pins: Sequence[PinTable], backends: Sequence[Backend], found: list[Finding]
) -> list[Pin]:
    by_text = {str(each): each for each in reversed(backends)} if pins else {}
    made = []
    for i, pin in enumerate(pins):
        backend = by_text.get(str(pin.backend))
        if backend is None:
            message = f"{pin.backend} is not one of the backends; write one as it stands there"
            found.append(Finding(place / i / "backend", message))
        elif pin.client is not None:
            made.append(Pin(pin.client, backend))
    return made


def _access(
    place: Place, table: ServiceTable, common: Common, lists: Lists, found: list[Finding]
) -> tuple[Access | None, Access]:
    own_allow = None if table.allow is None else listed(table.allow, lists, place / "allow", found)
    own_deny = None if table.deny is None else listed(table.deny, lists, place / "deny", found)
    allow, deny = own_allow or common.allow, own_deny or common.deny
    if allow and deny and (own_allow or own_deny):
        found.extend(contradictions(allow, deny, tell_in_deny=own_deny is not None))
    return allow.access if allow else None, deny.access if deny else Access()


def _health(
    raw: Mapping[str, object] | None, place: Place, lists: Lists, found: list[Finding]
) -> Health | None:
    return None if raw is None else health.health(raw, place, lists, found)


def _limits(table: LimitsTable | None, place: Place, found: list[Finding]) -> Limits:
    if table is None:
        return Limits()
    rates: list[Rate | None] = []
    for kind in ("new", "client_new"):
        per_second, burst = getattr(table, f"{kind}_per_second"), getattr(table, f"{kind}_burst")
        if burst is not None and per_second is None:
            message = f'a burst is what may come beyond a rate; write "{kind}_per_second", too'
            found.append(Finding(place / f"{kind}_burst", message))
        rates.append(None if per_second is None else Rate(per_second, burst or per_second))
    return Limits(rates[0], rates[1], table.client_connections, table.synproxy)
