"""A strict in-memory host: the kernel as far as a Plan can tell, for tests that need no root.

It refuses what the kernel refuses (adding what is there, deleting what is not or is still referred to)
and commits all or nothing; of two kernels it is the stricter. tests/kernel/test_fake.py holds it against
the real one with the same plans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_interface
from typing import TypeVar

from lbd.core.observed import Observed
from lbd.core.ops import (
    AddAddress,
    AddPolicyRule,
    AddRoute,
    DeleteAddress,
    DeletePolicyRule,
    DeleteRoute,
    HostOp,
    NftOp,
    Remember,
    RestoreRoute,
    SetSysctl,
)
from lbd.core.settings import Config
from lbd.core.state import (
    PROTOCOL,
    Address,
    Desired,
    Live,
    LiveChain,
    LiveRoute,
    LiveTable,
    Memory,
    RouteKey,
    Rule,
    TableFamily,
)
from lbd.reconcile import RefusedError
from lbd.testing.ruleset import Ruleset, refuse, step

Thing = TypeVar("Thing")

# Where the fake kernel finds the gateway of a route that names no interface.
GATEWAYS_AT = "eth1"


class FakeHost:
    """A host in memory. `fail` is asked before every operation and may raise, to inject a fault."""

    def __init__(self, sysctls: dict[str, str] | None = None) -> None:
        self.ruleset: Ruleset | None = None
        self.ingress: Ruleset | None = None
        self.addresses: dict[Address, bool] = {}
        self.routes: dict[RouteKey, LiveRoute] = {}
        self.rules: dict[Rule, bool] = {}
        if sysctls is None:
            sysctls = {
                "net.ipv4.ip_forward": "0",
                "net.ipv6.conf.all.forwarding": "0",
                "net.ipv4.ping_group_range": "1 0",
            }
        self.sysctls = sysctls
        self.memory = Memory()
        self.generation = 1
        self.applied: list[str] = []
        self.fail: Callable[[Sequence[NftOp] | HostOp], None] = lambda _: None
        self.observed = Observed()

    def observe(self, _config: Config) -> Observed:
        """Return what a test says of this host."""
        return self.observed

    def read(self, desired: Desired, *, learned: bool = False) -> Live:
        """Return what is ours, and what stands where `desired` wants something."""
        return Live(
            table=_table(self.ruleset, "inet", learned=learned),
            ingress=_table(self.ingress, "netdev", learned=False),
            addresses={a: ours for a, ours in self.addresses.items() if ours or a in desired.addresses},
            routes={
                key: live
                for key, live in self.routes.items()
                if live.protocol == PROTOCOL or key in desired.routes or key in self.memory.routes
            },
            rules={rule: ours for rule, ours in self.rules.items() if ours or rule in desired.rules},
            sysctls={
                name: value
                for name, value in self.sysctls.items()
                if name in desired.sysctls or name in self.memory.sysctls
            },
            memory=self.memory,
            generation=self.generation,
        )

    def commit(self, ops: Sequence[NftOp]) -> int:
        """Do all of `ops`, or none."""
        self.fail(ops)
        before = {"inet": self.ruleset, "netdev": self.ingress}
        drafts = {family: ruleset and ruleset.copy() for family, ruleset in before.items()}
        # Before Linux 6.2 a chain cannot go in the transaction that drops its last reference.
        held = {family: ruleset.targets() if ruleset else set() for family, ruleset in before.items()}
        for op in ops:
            drafts[op.family] = step(drafts[op.family], op, held[op.family])
        self.ruleset, self.ingress = drafts["inet"], drafts["netdev"]
        self.applied += map(str, ops)
        self.generation += 1
        return self.generation

    def apply(self, op: HostOp) -> None:  # noqa: C901, PLR0912 - one case for each operation
        """Do one operation outside nftables."""
        try:
            self.fail(op)
        except RefusedError:
            if isinstance(op, Remember):
                self.memory = op.memory
            raise
        match op:
            case Remember(memory):
                self.memory = memory
            case SetSysctl(name, value):
                if name not in self.sysctls:
                    raise refuse(op, "No such file or directory")
                self.sysctls[name] = value
            case AddAddress(address):
                same = [there for there in self.addresses if _same_address(there, address)]
                if same and not self.addresses.get(address):
                    raise refuse(op, "File exists")
                self.addresses[address] = True
            case DeleteAddress(address):
                _drop_ours(self.addresses, address)
            case AddPolicyRule(rule):
                # The kernel would keep both; a plan never asks for that.
                if not self.rules.get(rule, True):
                    raise refuse(op, "File exists")
                self.rules[rule] = True
            case DeletePolicyRule(rule):
                _drop_ours(self.rules, rule)
            case AddRoute(route, replacing):
                if route.key in self.routes and not replacing:
                    raise refuse(op, "File exists")
                way = replace(route, interface=route.interface or GATEWAYS_AT)
                self.routes[route.key] = LiveRoute(way, PROTOCOL)
            case RestoreRoute(live):
                self.routes[live.route.key] = live
            case DeleteRoute(route):
                if route.key in self.routes and self.routes[route.key].protocol == PROTOCOL:
                    del self.routes[route.key]
        self.applied.append(str(op))


def _same_address(one: Address, other: Address) -> bool:
    """Tell whether the kernel holds two addresses to be the same: IPv6 does not look at the prefix."""
    if one == other:
        return True
    here, there = ip_interface(one.address), ip_interface(other.address)
    return one.interface == other.interface and here.version == 6 and here.ip == there.ip  # noqa: PLR2004


def _drop_ours(things: dict[Thing, bool], thing: Thing) -> None:
    if things.get(thing):
        del things[thing]


def _table(ruleset: Ruleset | None, family: TableFamily, *, learned: bool) -> LiveTable | None:
    if ruleset is None:
        return None
    chains = {
        name: LiveChain(tuple(digest(rule, family) for rule in chain.rules), chain.hook)
        for name, chain in ruleset.chains.items()
    }
    # How a map was declared cannot be read back from the kernel.
    maps = {name: replace(shape, typeof="") for name, shape in ruleset.maps.items()}
    hidden = {name for name, shape in maps.items() if shape.learned and not (learned and shape.data)}
    elements = {name: items for name, items in ruleset.copy().elements.items() if name not in hidden}
    return LiveTable(chains, maps, elements, dict(ruleset.limits), dict(ruleset.flowtables))


def digest(rule: str, family: TableFamily = "inet") -> str:
    """Return what the fake kernel makes of a rule: told apart by content, not to be guessed from the text."""
    return hashlib.sha256(f"compiled {family} {rule}".encode()).hexdigest()[:16]
