"""What health checks say of backends, as a part of what is observed of the host."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lbd.core.health import next_step, portion
from lbd.core.observed import WHOLE, BackendName, Observed, Override
from lbd.core.roster import Row
from lbd.core.rotation import rotation
from lbd.core.settings import Config, Service


def merged(rows: Iterable[Row], observed: Observed, now: float) -> Observed:
    """Return what was observed, with what the checks say. What an operator said of a backend goes before."""
    dead: set[BackendName] = set()
    portions: dict[BackendName, int] = {}
    overrides = dict(observed.overrides)
    for row in rows:
        belief = row.watch.belief
        if not belief.up:
            dead.add(row.name)
            continue
        if belief.agent:
            overrides.setdefault(row.name, Override(belief.agent, f"its agent says {belief.agent}"))
        if (share := portion(belief, row.slow_start, now)) != WHOLE:
            portions[row.name] = share
    return replace(observed, dead=frozenset(dead), portions=portions, overrides=overrides)


def step_due(rows: Iterable[Row], now: float) -> float | None:
    """Return when a portion changes next by time alone: rows of backends that start slowly."""
    steps = (next_step(row.watch.belief, row.slow_start, now) for row in rows if row.watch.belief.up)
    return min((step for step in steps if step is not None), default=None)


def resting(observed: Observed) -> frozenset[BackendName]:
    """Return the backends that are in maintenance by what an operator said: nobody checks them."""
    return frozenset(name for name, said in observed.overrides.items() if said.state == "maintenance")


def panicking(config: Config, observed: Observed) -> dict[str, tuple[int, int]]:
    """Return the services of which too few backends are up, so that all are used: (dead, all) by name."""
    return {
        service.name: _dead(service, observed)
        for service in config.services
        if service.health and service.health.panic and observed.dead and _panics(service, observed)
    }


def _panics(service: Service, observed: Observed) -> bool:
    families = {backend.family for backend in service.backends}
    return any(rotation(service, family, observed).panic for family in families)


def _dead(service: Service, observed: Observed) -> tuple[int, int]:
    names = [(service.name, str(backend)) for backend in service.backends]
    return sum(name in observed.dead for name in names), len(names)
