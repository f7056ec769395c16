"""Which checks go on for which backends, over changes of the file."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from lbd.core import health
from lbd.core.agenda import Watch, watch
from lbd.core.health import Belief, Check
from lbd.core.observed import BackendName
from lbd.core.settings import Config


@dataclass(frozen=True, slots=True)
class Row:
    """A backend and its check, which it may share with others; `slow_start` is its service's."""

    name: BackendName
    watch: Watch
    slow_start: float


@dataclass(frozen=True, slots=True)
class Roster:
    """All backends that have a check, and the checks with their backends."""

    rows: tuple[Row, ...] = ()
    watches: Mapping[Check, Watch] = field(default_factory=dict)
    users: Mapping[Watch, list[Row]] = field(default_factory=dict)

    def at_rest(self, resting: AbstractSet[BackendName]) -> set[Watch]:
        """Return the checks that nobody wants while these backends are in maintenance."""
        maybe = {row.watch for row in self.rows if row.name in resting} if resting else set()
        return {each for each in maybe if all(row.name in resting for row in self.users[each])}

    def left_by(self, after: Roster) -> list[Watch]:
        """Return the checks that are not in the roster after this one."""
        return [each for check, each in self.watches.items() if after.watches.get(check) is not each]


def roster(config: Config, before: Roster, kept: Mapping[str, Belief], now: float) -> Roster:
    """Return the roster for a file, given the one before, and what was kept by digests of checks.

    A check that was there goes on as it is. One in the place of another for the same backend takes over
    whether that is up, until its first result.
    """
    wanted = health.checks(config)
    slow = {service.name: service.health.slow_start for service in config.services if service.health}
    was = {row.name: row.watch.belief for row in before.rows}
    watches: dict[Check, Watch] = {}
    rows: list[Row] = []
    users: dict[Watch, list[Row]] = {}
    for name, check in wanted.items():
        each = watches.get(check) or before.watches.get(check)
        if each is None:
            each = watch(check, health.first(check.timing, now))
            if each.digest in kept:
                each.belief = kept[each.digest]
            elif name in was:
                each.belief = health.carried_over(was[name])
        watches[check] = each
        rows.append(row := Row(name, each, slow[name[0]]))
        users.setdefault(each, []).append(row)
    return Roster(tuple(rows), watches, users)
