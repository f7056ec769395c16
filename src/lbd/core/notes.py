"""What is right in a file, and worth saying: shares that are off, what costs, what adds nothing.

Shares are counted in the slots that the kernel would get. How many each backend has depends on the weights
and their order alone, so services with the same weights are looked at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, inf, log, log10

from lbd.core import health
from lbd.core.desired import virtuals_of, wheres
from lbd.core.maglev import SIZES
from lbd.core.observed import Observed
from lbd.core.probes import AgentProbe, ExecProbe, Health, IcmpProbe, UdpProbe
from lbd.core.rotation import rotation
from lbd.core.schedule import hashed, pick
from lbd.core.settings import WHOLE_MARK, Backend, Config, Family, Service
from lbd.core.shape import readings
from lbd.core.slots import MOST, reduce
from lbd.core.virtual import Target, Virtual
from lbd.core.words import many

# Below, a share is as even as connections are.
WORTH_SAYING = 0.05

# How many different sets of weights are looked at, and of how many slots: a million are made in a second.
MOST_POOLS = 1000
MOST_SLOTS = 1_000_000

# A chain for each of 10,000 services that take turns is loaded in 26 s (Linux 6.18, nft 1.0.6), and a chain
# for each of a hundred takes nothing that anybody would notice.
MANY_TURNS = 100
SECONDS_OF_10000 = 26

# What is not in the file: notes are about the file alone.
NOTHING = Observed()

ADDRESS_BITS: dict[Family, int] = {4: 32, 6: 128}

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
    shares = _Shares()
    found: list[Note] = []
    turns = 0
    for service in config.services:
        said = (shares.of(service), _persistence(service), *_checks(service))
        found.extend(Note(service.name, message) for message in said if message)
        turns += _turns(service)
    if turns > MANY_TURNS:
        message = (
            f'{turns:,} listen addresses with scheduler "round-robin" have a chain each, and the time to '
            f"load them grows with the square of their number: about {SECONDS_OF_10000} s for 10,000; with "
            '"random" services share chains'
        )
        found.append(Note("", message))
    if shares.too_many:
        looked_at = many(len(shares.known), "set")
        message = (
            f"weights differ much between services; shares were looked at for the first {looked_at} of them"
        )
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
        self.known: dict[tuple[object, ...], _Off | None] = {}
        self.slots = 0
        self.too_many = False

    def of(self, service: Service) -> str:
        """Return what is to say about shares, "" if they are as the weights ask for."""
        # Those of least-connections are made anew all the time, of what is open.
        if service.scheduler == "least-connections":
            return ""
        families = {where.family for where, _ in wheres(service)}
        offs = [(off, family) for family in sorted(families) if (off := self._off(service, family))]
        if not offs:
            return ""
        off, family = max(offs, key=lambda each: each[0].distance)
        virtual = _virtual(service, family)
        target = _in_order(virtual)[off.position]
        weight, weights = virtual.targets[target], sum(virtual.targets.values())
        return (
            f"backend {_said(target)} with weight {weight:,} of {weights:,} gets {_percent(off.gets)} of new "
            f"connections instead of {_percent(off.asked)}: {_why(service, off)}"
        )

    def _off(self, service: Service, family: Family) -> _Off | None:
        active = rotation(service, family, NOTHING).active
        if len(active) < 2:  # noqa: PLR2004 - one has all
            return None
        key = _alike(service, family, active)
        if key not in self.known:
            if len(self.known) >= MOST_POOLS or self.slots >= MOST_SLOTS:
                self.too_many = True
                return None
            virtual = _virtual(service, family)
            (reading,) = readings({(virtual.where.shape, family)}, WHOLE_MARK)
            slots = pick(virtual, reading).slots
            self.slots += len(slots)
            self.known[key] = _furthest(virtual, slots)
        return self.known[key]


def _alike(service: Service, family: Family, active: Sequence[Backend]) -> tuple[object, ...]:
    """Return what decides how many slots the backends in use have, without working that out."""
    weights = [backend.weight for backend in active]
    if len(set(weights)) > 1:
        virtual = _virtual(service, family)
        weights = [virtual.targets[target] for target in _in_order(virtual)]
    if service.scheduler not in ("maglev", "source-hash"):
        return tuple(weights), "list"
    if service.table_size:
        return tuple(weights), service.table_size
    # Those out of rotation count for lbd's choice of the size, and have slots to give away.
    return tuple(weights), tuple(sorted(b.weight for b in service.backends if b.family == family))


def _virtual(service: Service, family: Family) -> Virtual:
    """Return the first listen address of a family; behind the others shares are the same."""
    virtuals = virtuals_of(service, NOTHING)
    return next(virtual for virtual in virtuals if virtual.where.family == family)


def _furthest(virtual: Virtual, slots: Sequence[Target]) -> _Off | None:
    """Return the share that is furthest off, None if none is by more than is worth saying."""
    targets = virtual.targets
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
    """Return the backends in the order in which a maglev table gives out what is left over."""
    return sorted(virtual.targets, key=lambda target: target.element)


def _why(service: Service, off: _Off) -> str:
    if off.reduced:
        return f"weights are scaled to {MOST:,} in all, and these are too far apart for that"
    if service.table_size:
        return f"table_size = {service.table_size} is small for these weights; a larger one comes nearer"
    if off.slots == SIZES[-1]:
        return f"the table has {off.slots:,} slots, and none has more"
    return f"the table has {off.slots:,} slots; a larger table_size comes nearer"


def _turns(service: Service) -> int:
    """Return how many chains a service has of its own to take turns."""
    if service.scheduler != "round-robin":
        return 0
    return sum(len(rotation(service, where.family, NOTHING).active) > 1 for where, _ in wheres(service))


def _persistence(service: Service) -> str:
    kept = service.persistence
    if kept is None or service.scheduler not in ("maglev", "source-hash"):
        return ""
    for where, _ in wheres(service):
        # Clients that share a prefix are kept together, and a hash of their addresses does not.
        whole = kept.prefix(where.family) == ADDRESS_BITS[where.family]
        if not whole or hashed(Virtual(where, service, {}, 0)) != ("source-address",):
            return ""
    return (
        f'scheduler "{service.scheduler}" hashes the source address alone, and sends a client to the same '
        "backend anyway; persistence adds nothing to that until backends change"
    )


def _checks(service: Service) -> Iterator[str]:
    checks, backends = service.health, service.backends
    if checks is None or not backends:
        return
    yield _port_asked(service, checks)
    if isinstance(checks.probe, UdpProbe) and checks.probe.expect is None:
        yield (
            'a check of type "udp" without "expect" takes silence for good: only an error that comes back '
            "fails it"
        )
    if checks.address and len(backends) > 1 and len({health.target(service, each) for each in backends}) == 1:
        yield f"all {len(backends)} backends are checked at {checks.address}, and go up and down together"
    path = service.return_path.kind
    if checks.slow_start and path in ("direct", "stateless"):
        yield (
            f'slow_start changes shares {health.STEPS} times, and with return_path = "{path}" each change '
            "sends some open connections to another backend"
        )


def _port_asked(service: Service, checks: Health) -> str:
    """Return which port is asked, where that may be another than was meant, "" where it is clear."""
    if checks.port is not None or isinstance(checks.probe, IcmpProbe | ExecProbe):
        return ""
    if isinstance(checks.probe, AgentProbe):
        port = health.target(service, service.backends[0]).port
        return f'agents are asked at port {port}, that of the service; write "port" if they listen on another'
    for backend in service.backends:
        ports = {listen.ports for listen in service.listen if listen.family == backend.family}
        if backend.ports is None and len(ports) > 1:
            port = health.target(service, backend).port
            return (
                f"checks ask port {port} of {backend} alone, and the service has {len(ports)} ports; "
                f"write port = {port}, or another, to say which"
            )
    return ""


def _said(target: Target) -> str:
    address = f"[{target.address}]" if ":" in target.address else target.address
    return f"{address}:{target.ports}" if target.ports else address


def _percent(share: float) -> str:
    """Return a share with three digits that count: "0.00153 %", "33.3 %", "0 %"."""
    percent = share * 100
    decimals = max(0, 2 - floor(log10(percent))) if percent else 0
    number = f"{percent:.{decimals}f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} %"
