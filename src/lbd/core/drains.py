"""When a drain has ended: no connection of the backend is left, and none is to be expected.

Time is an argument, in monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lbd.core.observed import BackendName, Observed, name
from lbd.core.overrides import tracked
from lbd.core.rotation import condition
from lbd.core.settings import Config


@dataclass(frozen=True, slots=True)
class Terms:
    """What the end of a drain takes: so many seconds without a connection. Untracked ones are none."""

    quiet: float = 0.0
    tracked: bool = True


def draining(config: Config, observed: Observed) -> dict[BackendName, Terms]:
    """Return the backends that drain, by the file, a command or an agent; those too whose drain has ended.

    A client who has a note of its backend may come back for as long as the note is kept.
    """
    fresh = replace(observed, ended=frozenset())
    overridden = {service for service, _ in observed.overrides}
    found = {}
    for service in config.services:
        for backend in service.backends:
            said = service.name in overridden and name(service, backend) in observed.overrides
            if (said or backend.state == "drain") and condition(service, backend, fresh).state == "drain":
                quiet = service.persistence.timeout if service.persistence else 0.0
                found[name(service, backend)] = Terms(quiet, tracked(service))
    return found


@dataclass(frozen=True, slots=True)
class Drains:
    """The drains that are in force.

    `began` is since when, `connections` what was counted last, `zero` when the first of the samples without
    any was taken. `ended` are in `terms` as well.
    """

    terms: Mapping[BackendName, Terms] = field(default_factory=dict)
    began: Mapping[BackendName, float] = field(default_factory=dict)
    connections: Mapping[BackendName, int] = field(default_factory=dict)
    zero: Mapping[BackendName, float] = field(default_factory=dict)
    ended: frozenset[BackendName] = frozenset()

    @property
    def open(self) -> frozenset[BackendName]:
        """Those that have not ended."""
        return frozenset(self.terms.keys() - self.ended)

    def follow(self, terms: Mapping[BackendName, Terms], now: float) -> Drains:
        """Return what goes on when these are the drains in force; the same object when they were before.

        What cannot be waited for has ended.
        """
        if terms == self.terms:
            return self
        return Drains(
            terms,
            {key: self.began.get(key, now) for key in terms},
            {key: count for key, count in self.connections.items() if key in terms},
            {key: since for key, since in self.zero.items() if key in terms},
            frozenset(key for key in terms if key in self.ended or not terms[key].tracked),
        )

    def step(self, counts: Mapping[BackendName, int], now: float) -> Drains:
        """Return what a count of the open connections, begun at `now`, leads to.

        One count proves nothing: a connection may have been under way while the rules changed.
        """
        connections = {key: counts.get(key, 0) for key in self.open}
        zero = {key: self.zero.get(key, now) for key, count in connections.items() if not count}
        over = {
            key for key, since in zero.items() if key in self.zero and now - since >= self.terms[key].quiet
        }
        return Drains(self.terms, self.began, connections, zero, self.ended | over)
