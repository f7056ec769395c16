"""Who gets new connections, given who has how many: `full` backends, and the shares of least-connections.

Backends of a service that compete for the same connections (those of a family that core/rotation has in
use) are to have as many open connections for their weight. What is steered is the share of *new* connections,
and what is seen are open ones, some seconds late. So a share is the weight times a correction,

    (mean / load) ** QUICKLY, of loads smoothed over QUICK seconds, times
    (mean / load) ** SLOWLY, of loads smoothed over SLOW seconds, kept within 1/BOUND and BOUND,

where a load is connections for the weight and the mean is that of the backends. The slow part evens out
what lasts: where one backend's connections last r times as long as another's, loads differ by r ** (1/9) and
no more. The quick part damps it: loads follow shares with a lag of the time T that connections last, and
whatever T is, the damping ratio of the loop is at least sqrt((1 + 2) / (1 + 2 + 6)) = 0.58, which overshoots
by a tenth. docs/adr/0012-least-connections-in-user-space.md has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lbd.core.observed import WHOLE, BackendName, Observed, name
from lbd.core.rotation import rotation
from lbd.core.settings import Backend, Config, Service

# The quick part forgets within some ten samples, so that one burst does not move a share at once; the slow
# part is far from it, or the two would swing together.
QUICK, SLOW = 10.0, 100.0
QUICKLY, SLOWLY = 2.0, 6.0

# A correction is at most four times more or less than the weight, and their mean is not below 1: nobody's
# share, not a fresh backend's either, is more than four times what its weight says.
BOUND = 4.0

# So many connections are added to each load. Of N connections that come by chance the square root of N is
# noise, which would be half of a load of four; with ten more it moves the quick part by a third at most.
FEW = 10.0

# Corrections in force stay until a share would change by this part of it. It is above what noise makes of
# hundreds of connections, and a quarter of a share is 1/30 of a load, since there the power is 8.
DEAD_BAND = 0.25

# A step counts as no longer than this, in seconds: where connections end at once, what is smoothed may not
# follow them by more than 1 / (1 + QUICKLY) each time, or it would overshoot.
LONGEST_STEP = 4.0

# Shares are in thousandths of all: core/schedule has 251 slots for them.
SCALE = 1000

NOTHING = Observed()

# A full backend takes connections again below this percentage of its maximum, or it would be in and out with
# every connection.
AGAIN_PERCENT = 90


class Load(NamedTuple):
    """The connections of a backend, smoothed; of one that starts slowly, as many as it would have then."""

    quick: float
    slow: float


def watched(config: Config) -> frozenset[str]:
    """Return the names of the services whose connections have to be counted."""
    return frozenset(service.name for service in config.services if _is_watched(service))


def again_below(backend: Backend) -> int:
    """Return how many connections a full backend has to be below to take others again."""
    return -(-backend.max_connections * AGAIN_PERCENT // 100)


@dataclass(frozen=True, slots=True)
class Balance:
    """What was decided by the last step, and what it was decided from.

    `full` and `shares` are as in core/observed.Observed. `connections` has every backend of watched services.
    """

    full: frozenset[BackendName] = frozenset()
    shares: Mapping[BackendName, int] = field(default_factory=dict)
    connections: Mapping[BackendName, int] = field(default_factory=dict)
    loads: Mapping[BackendName, Load] = field(default_factory=dict)
    # Those in force; 1 where there is none.
    corrections: Mapping[BackendName, float] = field(default_factory=dict)

    def step(
        self,
        config: Config,
        counts: Mapping[BackendName, int],
        seconds: float,
        observed: Observed = NOTHING,
    ) -> Balance:
        """Return what `counts` lead to, `seconds` after the step before. Who is out, `observed` says."""
        connections, full = dict[BackendName, int](), set[BackendName]()
        for service, backend in _backends(config):
            key = name(service, backend)
            connections[key] = counts.get(key, 0)
            if _is_full(backend, connections[key], before=key in self.full):
                full.add(key)
        loads, corrections = dict[BackendName, Load](), dict[BackendName, float]()
        numbers = {**connections, **_whole(connections, observed.portions)}
        groups = list(_groups(config, replace(observed, full=frozenset(full))))
        for group in groups:
            loads |= _smoothed(group, self.loads, numbers, min(seconds, LONGEST_STEP))
            wanted = _wanted(group, loads)
            known = {key: self.corrections.get(key, 1.0) for key in group}
            corrections |= wanted if _is_off(group, wanted, known) else known
        return Balance(frozenset(full), _shares(groups, corrections), connections, loads, corrections)

    def within(self, config: Config, observed: Observed = NOTHING) -> Balance:
        """Return what of it goes for another configuration, or with others out, until there is a count."""
        known = {name(service, backend) for service, backend in _backends(config)}
        limited = {
            name(service, backend) for service, backend in _backends(config) if backend.max_connections
        }
        full = self.full & limited
        groups = _groups(config, replace(observed, full=full))
        corrections = {key: value for key, value in self.corrections.items() if key in known}
        return Balance(
            full,
            _shares(groups, corrections),
            {key: value for key, value in self.connections.items() if key in known},
            {key: value for key, value in self.loads.items() if key in known},
            corrections,
        )

    def same_as(self, other: Balance) -> bool:
        """Tell whether it leads to the same rules."""
        return (self.full, self.shares) == (other.full, other.shares)


# The weights of backends that compete for the same connections, by name.
_Group = Mapping[BackendName, int]


def _backends(config: Config) -> Iterator[tuple[Service, Backend]]:
    for service in config.services:
        if _is_watched(service):
            for backend in service.backends:
                yield service, backend


def _is_watched(service: Service) -> bool:
    return service.scheduler == "least-connections" or any(b.max_connections for b in service.backends)


def _is_full(backend: Backend, number: int, *, before: bool) -> bool:
    most = backend.max_connections
    return bool(most) and number >= (again_below(backend) if before else most)


def _groups(config: Config, observed: Observed) -> Iterator[_Group]:
    """Give the groups of backends that take connections, where there is somebody to choose from."""
    for service in config.services:
        if service.scheduler != "least-connections":
            continue
        for family in sorted({backend.family for backend in service.backends}):
            active = rotation(service, family, observed).active
            group = {name(service, b): b.weight for b in active if b not in service.sorry}
            if len(group) > 1:
                yield group


def _whole(
    connections: Mapping[BackendName, int], portions: Mapping[BackendName, int]
) -> dict[BackendName, float]:
    """Return what backends with a part of their weight would have with all of it.

    Else they would have too few connections, and get back by a correction what is kept from them.
    """
    return {
        key: connections[key] * WHOLE / portion
        for key, portion in portions.items()
        if portion and key in connections
    }


def _smoothed(
    group: _Group, before: Mapping[BackendName, Load], now: Mapping[BackendName, float], seconds: float
) -> dict[BackendName, Load]:
    quick, slow = (-math.expm1(-seconds / constant) for constant in (QUICK, SLOW))
    known = [key for key in group if key in before]
    # A new backend is like the others to what looks far back: it would be sent too many for that long.
    each = sum(before[key].slow for key in known) if known else sum(now[key] for key in group)
    each /= sum(group[key] for key in known or group)
    loads = {}
    for key, weight in group.items():
        load, number = before.get(key) or Load(now[key], each * weight), now[key]
        loads[key] = Load(load.quick + quick * (number - load.quick), load.slow + slow * (number - load.slow))
    return loads


def _wanted(group: _Group, loads: Mapping[BackendName, Load]) -> dict[BackendName, float]:
    """Return the corrections that the loads ask for."""
    total = sum(group.values())
    quick = sum(loads[key].quick for key in group) / total
    slow = sum(loads[key].slow for key in group) / total
    # FEW connections for the mean weight.
    few = FEW * len(group) / total
    corrections, most = dict[BackendName, float](), math.log(BOUND)
    for key, weight in group.items():
        power = QUICKLY * math.log((quick + few) / (loads[key].quick / weight + few))
        power += SLOWLY * math.log((slow + few) / (loads[key].slow / weight + few))
        corrections[key] = math.exp(min(max(power, -most), most))
    mean = sum(group[key] * corrections[key] for key in group) / total
    # One that has far less than many others would get more than BOUND times its part of the whole.
    pull = min(1.0, (BOUND - 1) / (BOUND - mean)) if mean < BOUND else 1.0
    return {key: BOUND - (BOUND - correction) * pull for key, correction in corrections.items()}


def _is_off(group: _Group, wanted: Mapping[BackendName, float], known: Mapping[BackendName, float]) -> bool:
    """Tell whether a share would change by more than the dead band."""
    total, total_known = (sum(group[key] * each[key] for key in group) for each in (wanted, known))
    return any(
        abs(math.log(wanted[key] / total * total_known / known[key])) > math.log1p(DEAD_BAND) for key in group
    )


def _shares(groups: Iterable[_Group], corrections: Mapping[BackendName, float]) -> dict[BackendName, int]:
    """Return the shares of the groups that are not at the weights of the file."""
    shares = {}
    for group in groups:
        parts = {key: weight * corrections.get(key, 1.0) for key, weight in group.items()}
        if parts != group:
            total = sum(parts.values())
            shares.update({key: max(1, round(SCALE * part / total)) for key, part in parts.items()})
    return shares
