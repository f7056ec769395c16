"""Which backends take new connections now, and why the others do not: the file, and what is observed.

Everything that depends on it asks here: the rules, the shares of least-connections, the status.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lbd.core.observed import WHOLE, Observed, name
from lbd.core.settings import Backend, Family, Service

# "up" may take new connections; "idle" has no weight now. "down" and "maintenance" have nobody.
State = Literal["up", "idle", "full", "drain", "down", "maintenance"]

# These take no new clients, and keep those who are with them by persistence.
KEEPING: frozenset[State] = frozenset({"idle", "full", "drain"})


@dataclass(frozen=True, slots=True)
class Condition:
    """What a backend may do, and why it is not "up". `dead`: it is down because checks say so."""

    state: State
    reason: str = ""
    dead: bool = False


def condition(service: Service, backend: Backend, observed: Observed) -> Condition:
    """Return what a backend may do, whatever the others do."""
    own = _own(service, backend, observed)
    if own.state in ("up", "idle", "full") and name(service, backend) in observed.dead:
        return Condition("down", "", dead=True)
    return own


def _own(service: Service, backend: Backend, observed: Observed) -> Condition:
    """Return what a backend may do if it is alive."""
    key = name(service, backend)
    override = observed.overrides.get(key)
    by_file = f"state = {backend.state!r} in the file"
    found = Condition("up")
    if backend.state in ("down", "maintenance"):
        found = Condition(backend.state, by_file)
    elif override and override.state == "maintenance":
        found = Condition("maintenance", override.reason)
    elif override or backend.state == "drain":
        reason = override.reason if override and backend.state != "drain" else by_file
        if key in observed.expired:
            found = Condition("down", "its time to drain is over")
        elif key in observed.ended:
            untracked = service.return_path.kind in ("direct", "stateless")
            left = "its connections are not tracked" if untracked else "no connection is left"
            found = Condition("down", f"drained, {left}; {reason}")
        else:
            found = Condition("drain", reason)
    elif not backend.weight:
        found = Condition("idle", "weight = 0 in the file")
    elif key in observed.full:
        found = Condition("full", f"max_connections = {backend.max_connections} in the file")
    elif not observed.portions.get(key, WHOLE):
        found = Condition("idle", "its agent says 0%")
    return found


@dataclass(frozen=True, slots=True)
class Rotation:
    """The backends of a service and family that take new connections.

    `away` would, if they were what they are in the file: a maglev table has slots to give away for them.
    `panic`: too few are up, and all are used.
    """

    active: tuple[Backend, ...]
    away: tuple[Backend, ...] = ()
    panic: bool = False


def rotation(service: Service, family: Family, observed: Observed) -> Rotation:
    """Return who takes new connections: the first pool, by priority, that has enough who can."""
    mine = [b for b in service.backends if b.family == family]
    # Those that would if they were alive: what panic goes back to.
    if observed.overrides or observed.full or observed.portions:
        able = [b for b in mine if _own(service, b, observed).state == "up"]
    else:
        able = [b for b in mine if b.in_rotation]
    for pool in sorted({backend.backup for backend in able}):
        members = [b for b in able if b.backup == pool]
        alive = members
        if observed.dead:
            alive = [b for b in members if name(service, b) not in observed.dead]
        if alive and len(alive) * WHOLE >= _panic(service) * len(members):
            return Rotation(tuple(alive), _away(mine, pool, alive))
    if able and _panic(service):
        pool = min(backend.backup for backend in able)
        members = [b for b in able if b.backup == pool]
        return Rotation(tuple(members), _away(mine, pool, members), panic=True)
    return Rotation(tuple(b for b in service.sorry if b.family == family))


def _panic(service: Service) -> int:
    return service.health.panic if service.health else 0


def _away(mine: list[Backend], pool: int, active: list[Backend]) -> tuple[Backend, ...]:
    uses = frozenset(active)
    return tuple(b for b in mine if b.backup == pool and b.weight and b not in uses)


def weight(service: Service, backend: Backend, observed: Observed) -> int:
    """Return the share of new connections for a backend in use, beside those of the others of the service."""
    key, share = name(service, backend), max(1, backend.weight)
    if service.scheduler == "least-connections" and observed.shares:
        share = observed.shares.get(key, share) or 1
    # In per cent, so that those who start slowly have a part of what they will have.
    return share * observed.portions.get(key, WHOLE) if observed.portions else share
