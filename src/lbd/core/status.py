"""What `lbd status` says, as a document (JSON); core/show makes text of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any, Literal

from lbd.core.health import Belief
from lbd.core.observed import WHOLE, BackendName, Observed, Override, name
from lbd.core.rotation import condition, rotation
from lbd.core.settings import Backend, Config, Service
from lbd.core.unanswered import problem
from lbd.core.words import many

State = Literal["converged", "converging", "degraded"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the daemon stands, apart from what the file says.

    `hash` is that of the file in force; `error` is why the file on disk is not it; `problems` is what
    keeps the host from it. `last_drift` is {"time", "operations", "by"} or None. `connections` are those of
    backends where they are counted, `observed` is of what the rules in force were made, `beliefs` is what
    health checks say; `now` is the monotonic time, as theirs. `unanswered` is how many connections wait
    with backends that pass their check (core/unanswered).
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
    observed: Observed = field(default_factory=Observed)
    beliefs: Mapping[BackendName, Belief] = field(default_factory=dict)
    unanswered: Mapping[BackendName, int] = field(default_factory=dict)
    now: float = 0.0


def document(standing: Standing, config: Config | None) -> dict[str, Any]:
    """Return the status document; its keys are a contract (docs/operations.md)."""
    services = [_service(service, standing) for service in (config.services if config else ())]
    open_ones = (
        f'service "{service["name"]}" fails open: too few of its backends are up, and all are used'
        for service in services
        if service["state"] == "panic"
    )
    unanswered = starmap(problem, sorted(standing.unanswered.items()))
    return {
        "state": standing.state,
        "problems": [*standing.problems, *open_ones, *unanswered],
        "config": {"path": standing.path, "hash": standing.hash, "error": standing.error or None},
        "services": services,
        "drift": {"count": standing.drifts, "last": standing.last_drift},
        "kernel": {"elements": standing.elements, "generation": standing.generation},
    }


def _service(service: Service, standing: Standing) -> dict[str, Any]:
    families = {backend.family for backend in (*service.backends, *service.sorry)}
    turns = [rotation(service, family, standing.observed) for family in families]
    taking = {backend for each in turns for backend in each.active}
    taken_by = "up" if taking & set(service.backends) else "sorry" if taking else "empty"
    if any(each.panic for each in turns):
        taken_by = "panic"
    listen = [str(listen) for listen in service.listen] or [f"mark {service.mark:#x}"]
    return {
        "name": service.name,
        "state": taken_by,
        "listen": listen,
        "scheduler": service.scheduler,
        "return_path": str(service.return_path),
        "backends": [_backend(service, b, standing, takes=b in taking) for b in service.backends],
    }


def _backend(service: Service, backend: Backend, standing: Standing, *, takes: bool) -> dict[str, Any]:
    key, observed = (service.name, str(backend)), standing.observed
    found = condition(service, backend, observed)
    state: str = found.state
    reason = found.reason
    belief = standing.beliefs.get(key)
    if state == "idle":
        state = "up"
    elif found.dead and belief:
        reason = belief.reason or "not checked yet"
    elif state == "up" and not takes:
        state, reason = "standby", f"backup = {backend.backup} in the file, and others take connections"
    elif state == "up" and observed.portions.get(key, WHOLE) < WHOLE:
        state, reason = "starting", f"{observed.portions[key]} % of its weight"
    override = observed.overrides.get(key)
    if override and override.reason not in reason:
        # What stands in the file is stronger, and yet this goes on.
        reason = "; ".join(filter(None, [reason, override.reason]))
    said: dict[str, Any] = {
        "address": str(backend),
        "weight": backend.weight,
        "state": state,
        "reason": reason,
    }
    if key in standing.connections:
        said["connections"] = standing.connections[key]
    if key in standing.unanswered:
        said["unanswered"] = standing.unanswered[key]
    if belief:
        said["health"] = _health(belief, standing.now)
    return said | _beside_the_file(key, observed)


def _health(belief: Belief, now: float) -> dict[str, Any]:
    """Return what checks say of a backend, for how many seconds, and how many in a row say otherwise."""
    return {
        "up": belief.up,
        "seconds": round(max(0.0, now - belief.since), 1),
        "against": belief.count,
        "reason": belief.reason,
    }


def _beside_the_file(key: BackendName, observed: Observed) -> dict[str, Any]:
    """Return what is known of a backend that the file does not say, where there is something."""
    override = observed.overrides.get(key)
    said = {
        "share": observed.shares.get(key),
        "portion": observed.portions.get(key),
        "override": override and {"state": override.state, "reason": override.reason},
        "dead": key in observed.dead or None,
        "drained": key in observed.ended or None,
    }
    return {word: value for word, value in said.items() if value is not None}


def known(status: Mapping[str, Any]) -> Observed:
    """Return what a status document says of backends beside the file, as the daemon observed it."""
    backends = [
        ((service["name"], backend["address"]), backend)
        for service in status["services"]
        for backend in service["backends"]
    ]
    return Observed(
        full=frozenset(key for key, backend in backends if backend["state"] == "full"),
        shares={key: backend["share"] for key, backend in backends if "share" in backend},
        portions={key: backend["portion"] for key, backend in backends if "portion" in backend},
        dead=frozenset(key for key, backend in backends if "dead" in backend),
        ended=frozenset(key for key, backend in backends if "drained" in backend),
        overrides={key: Override(**b["override"]) for key, b in backends if "override" in b},
    )


def overridden(config: Config, observed: Observed) -> list[str]:
    """Return a line for each backend of which something else holds than what `config` says."""
    known = {name(service, backend) for service in config.services for backend in service.backends}
    return [
        f"{' '.join(key)}: {override.reason}"
        + ("" if key in known else "; the file does not have it, and once in force it is forgotten")
        for key, override in observed.overrides.items()
    ]


def headline(standing: Standing, config: Config | None) -> str:
    """Return the one line for STATUS= of sd_notify(3)."""
    if config is None:
        return f"no configuration in force: {standing.error}"
    backends = sum(len(service.backends) for service in config.services)
    text = f"{standing.state}: {many(len(config.services), 'service')}, {many(backends, 'backend')}"
    if standing.error:
        text += f"; the file on disk is refused, the last good one is in force: {standing.error}"
    return "; ".join([text, *standing.problems[:1]])
