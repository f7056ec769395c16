"""The difference between what the host has and what the file asks for, as a value.

A Plan is lists of operations. `before` grows what the new rules need (addresses, routes, policy rules,
sysctls), `swap` is one nftables transaction, `after` shrinks. Applying a prefix of a plan leaves
the host in a state from which the next plan ends in the same place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lbd.core.ops import (
    AddAddress,
    AddChain,
    AddElements,
    AddFlowtable,
    AddLimit,
    AddMap,
    AddPolicyRule,
    AddRoute,
    AddRule,
    AddTable,
    DeleteAddress,
    DeleteChain,
    DeleteElements,
    DeleteFlowtable,
    DeleteLimit,
    DeleteMap,
    DeletePolicyRule,
    DeleteRoute,
    DeleteTable,
    FlushChain,
    HostOp,
    NftOp,
    Remember,
    RestoreRoute,
    SetSysctl,
)
from lbd.core.state import (
    PROTOCOL,
    Address,
    Chain,
    Desired,
    Elements,
    Live,
    LiveChain,
    LiveTable,
    Map,
    Memory,
    Route,
    RouteKey,
    Table,
    TableFamily,
)

# libnftables 1.0.6 takes 3.5 ms for each element that it deletes among 5,000 ranges of one field, longer than
# its worker may take for all; a set of 5,000 is made in 0.1 s.
TAKEN_OUT_MOST = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in order; `unsafe` says what is left out, and why, and `lacking` see Desired.

    `prepare`, `swap`, `collect` and each of `forget` are one nftables transaction. `prepare` fills sets of
    ranges: what a transaction puts into one is found at its very end only, milliseconds after its rules hold.
    `collect` removes what nothing refers to any more: before Linux 6.2 a chain cannot go in the transaction
    that drops its last reference.
    `forget` is what packets have noted and is not true any more; it may go by itself in the same moment.
    """

    before: tuple[HostOp, ...] = ()
    prepare: tuple[NftOp, ...] = ()
    swap: tuple[NftOp, ...] = ()
    collect: tuple[NftOp, ...] = ()
    forget: tuple[DeleteElements, ...] = ()
    after: tuple[HostOp, ...] = ()
    unsafe: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether there is anything to do."""
        return bool(self.before or self.prepare or self.swap or self.collect or self.forget or self.after)

    def lines(self) -> tuple[str, ...]:
        """Return every operation as one line, in the order they are applied."""
        ops = (*self.before, *self.prepare, *self.swap, *self.collect, *self.forget, *self.after)
        return tuple(map(str, ops))


def body(chain: Chain, family: TableFamily = "inet") -> str:
    """Return the text by which Memory.bodies knows what the kernel made of a chain's rules."""
    # The same words are not the same expressions in another family.
    return "\n".join(chain.rules if family == "inet" else (family, *chain.rules))


def diff(live: Live, desired: Desired) -> Plan:
    """Return the plan that leads from `live` to `desired`. Empty when they agree."""
    grow, shrink, unsafe = _Net(live, desired).ops()
    swap, collect = _Table("inet", live.table, live.memory).ops(desired.table)
    prepare = [op for op in swap if live.table and _fills_ranges(op, live.table)]
    swap = [op for op in swap if not (live.table and _fills_ranges(op, live.table))]
    at_ingress = _Table("netdev", live.ingress, live.memory)
    more, later = at_ingress.ops(desired.ingress) if desired.ingress else at_ingress.gone()
    forget = tuple(_untrue(live.table, desired.table)) if live.table else ()
    return Plan(
        tuple(grow),
        tuple(prepare),
        (*swap, *more),
        (*collect, *later),
        forget,
        tuple(shrink),
        (*unsafe, *desired.unsafe),
        desired.lacking,
    )


def _fills_ranges(op: NftOp, live: LiveTable) -> bool:
    """Tell whether an operation is of a set of ranges that is new to the table."""
    if not isinstance(op, AddMap | AddElements):
        return False
    return op.map.interval and not op.map.data and op.name not in live.maps and not live.beyond_repair


def removal(live: Live) -> Plan:
    """Return the plan that takes everything of ours away and puts back what was there."""
    grow, shrink, _ = _Net(live, Desired()).ops()
    there = ((live.table, DeleteTable()), (live.ingress, DeleteTable("netdev")))
    swap = tuple(delete for table, delete in there if table is not None)
    return Plan(before=tuple(grow), swap=swap, after=tuple(shrink))


@dataclass(frozen=True, slots=True)
class _Table:
    """The difference of one of our tables."""

    family: TableFamily
    live: LiveTable | None
    memory: Memory

    def gone(self) -> tuple[list[NftOp], list[NftOp]]:
        """Return what takes the table away, if it is there."""
        return [DeleteTable(self.family)] if self.live is not None else [], []

    def _same_rules(self, live: LiveChain | None, want: Chain) -> bool:
        # What an empty chain is compiled to is known without having seen it.
        known = self.memory.bodies.get(body(want, self.family)) if want.rules else ()
        return live is not None and known == live.digests

    def ops(self, want: Table) -> tuple[list[NftOp], list[NftOp]]:
        """Return the transaction that leads to `want`, and the one that removes what it leaves unused."""
        family, live, swap = self.family, self.live, list[NftOp]()
        if live is not None and live.beyond_repair:
            swap.append(DeleteTable(family))
            live = None
        if live is None:
            swap.append(AddTable(family))
            live = LiveTable()
        rated = {n for n, rate in live.limits.items() if want.limits.get(n, rate) != rate}
        # A map that must be made anew takes the rules that name it with it, in the same transaction. Elements
        # hold the limits they name, also one of another rate than its name says.
        anew = {
            name
            for name, shape in want.maps.items()
            if not _serves(live.maps.get(name), shape)
            or _is_slow(shape, live.elements.get(name, {}), want.elements[name])
            or (shape.data == "limit" and not rated.isdisjoint(live.elements.get(name, {}).values()))
        }
        gone = [name for name in live.maps if name in anew or name not in want.maps]
        flows = [n for n, devices in want.flowtables.items() if live.flowtables.get(n) != devices]
        ended = [n for n, devices in live.flowtables.items() if want.flowtables.get(n) != devices]
        rewrite = {
            name
            for name, chain in want.chains.items()
            if not self._same_rules(live.chains.get(name), chain) or _names_any(chain, anew.union(flows))
        }
        rehook = {name for name, chain in want.chains.items() if _rehook(live.chains.get(name), chain)}
        foreign = [name for name in live.chains if name not in want.chains]
        told = [name for name, shape in want.maps.items() if not shape.learned]

        flush = (*sorted(rewrite & live.chains.keys()), *foreign)
        swap += [FlushChain(name, family) for name in flush]
        for name in told:
            old, new = live.elements.get(name, {}), want.elements[name]
            if name not in anew and (stale := tuple(k for k, v in old.items() if new.get(k) != v)):
                swap.append(DeleteElements(name, want.maps[name], stale, family))
        swap += [DeleteChain(name, family) for name in sorted(rehook)]
        swap += [DeleteChain(name, family) for name in foreign if live.chains[name].hook]
        swap += [DeleteMap(name, family) for name in gone]
        swap += [DeleteFlowtable(name, family) for name in ended]
        swap += [DeleteLimit(n, family) for n, rate in live.limits.items() if want.limits.get(n) != rate]
        swap += [AddLimit(n, rate, family) for n, rate in want.limits.items() if live.limits.get(n) != rate]
        swap += [AddFlowtable(name, want.flowtables[name], family) for name in flows]
        fresh = [name for name in want.chains if name not in live.chains or name in rehook]
        swap += [AddChain(name, want.chains[name].hook, family) for name in fresh]
        swap += [AddMap(name, want.maps[name], family) for name in want.maps if name in anew]
        for name in told:
            old = {} if name in anew else live.elements.get(name, {})
            if items := tuple((k, v) for k, v in want.elements[name].items() if old.get(k) != v):
                swap.append(AddElements(name, want.maps[name], items, family))
        for name, chain in want.chains.items():
            if name in rewrite | rehook:
                swap += [AddRule(name, rule, family) for rule in chain.rules]
        return swap, [DeleteChain(name, family) for name in foreign if not live.chains[name].hook]


def _untrue(live: LiveTable, want: Table) -> Iterator[DeleteElements]:
    """Find what packets have noted and must not hold any longer; empty when what they noted was not read."""
    for learned in want.learned:
        parts = [live.elements.get(name, {}) for name in learned.maps]
        # A note of which a part is missing already leads nowhere, and goes as a whole soon.
        whole = set(parts[0]).intersection(*parts[1:])
        stale = []
        for key in sorted(whole):
            data = " . ".join(part[key] for part in parts)
            if data not in learned.allowed.get(key.split(" . ")[0], ()):
                stale.append(key)
        if stale:
            yield from (DeleteElements(name, want.maps[name], tuple(stale)) for name in learned.maps)


def _serves(live: Map | None, want: Map) -> bool:
    """Tell whether a live map will do; how it was declared (typeof) cannot be read back, its shape can."""
    return (
        live is not None and live.size >= want.size // 2 and live == replace(want, size=live.size, typeof="")
    )


def _is_slow(shape: Map, live: Elements, want: Elements) -> bool:
    """Tell whether a map is made anew faster than elements are taken out of it."""
    if not shape.interval or len(shape.key) > 1:
        return False
    return sum(want.get(key) != data for key, data in live.items()) > TAKEN_OUT_MOST


def _rehook(live: LiveChain | None, want: Chain) -> bool:
    return live is not None and live.hook != want.hook


def _names_any(chain: Chain, names: set[str]) -> bool:
    return any(name in names for rule in chain.rules for name in re.findall(r"@(\w+)", rule))


class _Net:
    """The difference outside nftables: addresses, routes, policy rules and sysctls."""

    def __init__(self, live: Live, desired: Desired) -> None:
        self.live, self.desired = live, desired
        self.sysctls, self.routes = dict(live.memory.sysctls), dict(live.memory.routes)
        self.stand: set[RouteKey] = set()  # where a route of ours is to stand
        self.unsafe: list[str] = []

    def ops(self) -> tuple[list[HostOp], list[HostOp], list[str]]:
        live, want = self.live, self.desired
        addresses = sorted(want.addresses - live.addresses.keys())
        gone = [a for a, ours in live.addresses.items() if ours and a not in want.addresses]
        # IPv6 takes an address with another prefix for the same one: the old has to go first.
        first = [old for old in gone if any(_same_ipv6(old, new) for new in addresses)]
        rules = sorted(want.rules - live.rules.keys())
        add_routes = list(self._add_routes())
        set_sysctls = list(self._hold_sysctls())
        # Settings first: a real server must be silent about an address before it has it.
        grow: list[HostOp] = [*set_sysctls, *map(DeleteAddress, first), *map(AddAddress, addresses)]
        grow += [*add_routes, *(AddPolicyRule(rule) for rule in rules)]
        held = replace(live.memory, sysctls=dict(self.sysctls), routes=dict(self.routes))
        if held != live.memory:
            # What was there is written down before it is changed, or a crash would lose it.
            grow.insert(0, Remember(held))

        shrink: list[HostOp] = [
            DeletePolicyRule(rule) for rule, ours in live.rules.items() if ours and rule not in want.rules
        ]
        shrink += self._drop_routes()
        shrink += [DeleteAddress(address) for address in gone if address not in first]
        # And last: it stays silent for as long as it has it.
        shrink += self._release_sysctls()
        left = replace(live.memory, sysctls=dict(self.sysctls), routes=dict(self.routes))
        if left != held:
            shrink.append(Remember(left))
        return grow, shrink, self.unsafe

    def _hold_sysctls(self) -> Iterator[HostOp]:
        for name, value in self.desired.sysctls.items():
            now = self.live.sysctls.get(name)
            if now is None:
                self.unsafe.append(f"sysctl {name} does not exist here; is the protocol disabled?")
            elif now != value:
                self.sysctls.setdefault(name, now)
                yield SetSysctl(name, value)

    def _release_sysctls(self) -> Iterator[HostOp]:
        for name in sorted(self.sysctls.keys() - self.desired.sysctls.keys()):
            value = self.sysctls.pop(name)
            if self.live.sysctls.get(name) not in (None, value):
                yield SetSysctl(name, value)

    def _add_routes(self) -> Iterator[HostOp]:
        for key, route in self.desired.routes.items():
            now = self.live.routes.get(key)
            ours = now is not None and now.protocol == PROTOCOL
            # What is there, or would be without us, decides: so it does not matter what came before.
            foreign = self.routes.get(key) if now is None or ours else now
            if foreign and satisfies(foreign.route, route):
                continue
            if foreign and key not in self.desired.replace:
                self.unsafe.append(
                    f"{route} is not set: {foreign.route} is there and not ours; "
                    "say `replace = true` in that [[route]] to take its place"
                )
                continue
            self.stand.add(key)
            if now is None:
                yield AddRoute(route)
            elif not ours:
                self.routes[key] = now
                yield AddRoute(route, replace=True)
            elif now.route != replace(route, interface=route.interface or now.route.interface):
                # Of our own routes the kernel chooses only an interface that is not stated.
                yield AddRoute(route, replace=True)

    def _drop_routes(self) -> Iterator[HostOp]:
        """Take ours away where it is not to stand, and put back what it stood in the place of."""
        for key in sorted({*self.live.routes, *self.routes} - self.stand):
            now, before = self.live.routes.get(key), self.routes.pop(key, None)
            if now and now.protocol != PROTOCOL:
                continue
            if before:
                yield RestoreRoute(before)
            elif now:
                yield DeleteRoute(now.route)


def _same_ipv6(one: Address, other: Address) -> bool:
    here, there = one.address.split("/")[0], other.address.split("/")[0]
    return one.interface == other.interface and here == there and ":" in here


def satisfies(live: Route, want: Route) -> bool:
    """Tell whether a live route does what `want` asks; what `want` leaves open may be anything."""
    return all(
        asked in ("", found)
        for asked, found in (
            (want.via, live.via),
            (want.interface, live.interface),
            (want.source, live.source),
        )
    )
