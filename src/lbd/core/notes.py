"""What is right in a file, and worth saying all the same: shares off their weights, what costs, what adds nothing.

Shares are counted in the slots that the kernel would get. Those depend on the weights and their order alone,
so services with the same weights are looked at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, inf, log, log10

from lbd.core.desired import virtuals_of
from lbd.core.observed import Observed
from lbd.core.schedule import hashed, pick
from lbd.core.settings import WHOLE_MARK, Config, Service
from lbd.core.shape import readings
from lbd.core.slots import reduce
from lbd.core.virtual import Target, Virtual
from lbd.core.words import many

# Below, a share is as even as connections are.
WORTH_SAYING = 0.05

# With so many different weights in a file, each with a table of its own, `lbd check` would take seconds.
MOST_POOLS = 1000

# A chain for each of 10,000 services that take turns is loaded in 26 s (Linux 6.18, nft 1.0.6), and a chain
# for each of a hundred takes nothing that anybody would notice.
MANY_TURNS = 100
SECONDS_OF_10000 = 26

# More on a terminal nobody reads; as JSON there are all.
MOST_LINES = 20


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know about a service, or with "" about the file as a whole."""

    service: str
    message: str

    def __str__(self) -> str:
        return f'service "{self.service}": {self.message}' if self.service else self.message


def notes(config: Config) -> tuple[Note, ...]:
    """Return what is worth saying of a valid configuration, in the order of the services."""
    observed, shares = Observed(), _Shares()
    found: list[Note] = []
    turns = 0
    for service in config.services:
        virtuals = list(virtuals_of(service, observed))
        said = (shares.of(service, virtuals), _persistence(service, virtuals))
        found.extend(Note(service.name, message) for message in said if message)
        if service.scheduler == "round-robin":
            turns += sum(len(virtual.targets) > 1 for virtual in virtuals)
    if turns > MANY_TURNS:
        message = (
            f'{turns:,} listen addresses of scheduler "round-robin" have a chain each, and loading them grows '
            f'with the square: about {SECONDS_OF_10000} s for 10,000; with "random" services share chains'
        )
        found.append(Note("", message))
    if shares.too_many:
        message = f"there are more than {MOST_POOLS:,} different sets of weights; the rest was not looked at"
        found.append(Note("", message))
    return tuple(found)


def lines(found: Sequence[Note]) -> Iterator[str]:
    """Give notes as text for a person, not more than are read."""
    for note in found[:MOST_LINES]:
        yield f"note: {note}"
    if len(found) > MOST_LINES:
        yield f"note: {many(len(found) - MOST_LINES, 'note')} more; `lbd check -o json` has all"


@dataclass(frozen=True, slots=True)
class _Off:
    """The share that is furthest off: whose, what it gets and what the weights ask for (1 is all).

    `reduced` tells that weights are too far apart for slots, and that more slots would not help.
    """

    position: int
    gets: float
    asked: float
    slots: int
    reduced: bool

    @property
    def distance(self) -> float:
        """How far off it is, the same for half and for twice as much."""
        return abs(log(self.gets / self.asked)) if self.gets else inf


class _Shares:
    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], _Off | None] = {}
        self.too_many = False

    def of(self, service: Service, virtuals: Sequence[Virtual]) -> str:
        """Return what is to say about shares, "" if they are as the weights ask for."""
        # Those of least-connections are made anew all the time, of what is open.
        if service.scheduler == "least-connections":
            return ""
        offs = [(off, virtual) for virtual in virtuals if (off := self._off(virtual)) is not None]
        if not offs:
            return ""
        off, virtual = max(offs, key=lambda each: each[0].distance)
        target = _in_order(virtual)[off.position]
        return (
            f"backend {_said(target)} with weight {virtual.targets[target]:,} of "
            f"{sum(virtual.targets.values()):,} gets {_percent(off.gets)} instead of {_percent(off.asked)} of "
            f"new connections: {_why(service, off)}"
        )

    def _off(self, virtual: Virtual) -> _Off | None:
        if len(virtual.targets) < 2:  # noqa: PLR2004 - one has all
            return None
        service = virtual.service
        weights = tuple(virtual.targets[target] for target in _in_order(virtual))
        by_table = service.scheduler in ("maglev", "source-hash")
        table = (service.table_size, 0 if service.table_size else virtual.total) if by_table else ()
        key = (by_table, table, weights)
        if key not in self._known:
            if len(self._known) >= MOST_POOLS:
                self.too_many = True
                return None
            self._known[key] = _furthest(virtual)
        return self._known[key]


def _furthest(virtual: Virtual) -> _Off | None:
    """Return the share that is furthest off, None if none is by more than is worth saying."""
    where, targets = virtual.where, virtual.targets
    (reading,) = readings({(where.shape, where.family)}, WHOLE_MARK)
    slots = pick(virtual, reading).slots
    has, reduced = Counter(slots), reduce(targets)
    total, all_reduced = sum(targets.values()), sum(reduced.values())
    worst: _Off | None = None
    for position, target in enumerate(_in_order(virtual)):
        asked = targets[target] / total
        off = _Off(
            position,
            has[target] / len(slots),
            asked,
            len(slots),
            reduced=abs(reduced[target] / all_reduced / asked - 1) > WORTH_SAYING,
        )
        if abs(off.gets / asked - 1) > WORTH_SAYING and (worst is None or off.distance > worst.distance):
            worst = off
    return worst


def _in_order(virtual: Virtual) -> list[Target]:
    """Return the backends in the order in which a maglev table has them take their turns."""
    return sorted(virtual.targets, key=lambda target: target.element)


def _why(service: Service, off: _Off) -> str:
    if off.reduced:
        return f"the weights are too far apart for {off.slots:,} slots"
    if service.table_size:
        return f"table_size = {service.table_size} is small for these weights; take a larger one, or lbd's choice"
    return f"it is of {off.slots:,} slots; a larger table_size comes nearer"


def _persistence(service: Service, virtuals: Sequence[Virtual]) -> str:
    kept = service.persistence
    if kept is None or service.scheduler not in ("maglev", "source-hash"):
        return ""
    for virtual in virtuals:
        whole = kept.prefix(virtual.where.family) == (32 if virtual.where.family == 4 else 128)  # noqa: PLR2004 - IP versions
        # Clients that share a prefix are kept together, and a hash of their addresses does not.
        if not whole or hashed(virtual) != ("source-address",):
            return ""
    return (
        f'scheduler "{service.scheduler}" hashes the source address alone, and sends a client to the same '
        "backend anyway; persistence adds nothing to that until backends change"
    )


def _said(target: Target) -> str:
    address = f"[{target.address}]" if ":" in target.address else target.address
    return f"{address}:{target.ports}" if target.ports else address


def _percent(share: float) -> str:
    """Return a share with three digits that count: "0.00153 %", "33.3 %", "0 %"."""
    percent = share * 100
    decimals = max(0, 2 - floor(log10(percent))) if percent else 0
    number = f"{percent:.{decimals}f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} %"
