"""A strict in-memory host: the kernel as far as a Plan can tell, for tests that need no root.

It refuses what the kernel refuses (adding what is there, deleting what is not or is still referred to)
and commits all or nothing. tests/kernel/test_fake.py holds it against the real kernel with the same plans.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TypeVar

from lbd.core.ops import (
    AddAddress,
    AddChain,
    AddElements,
    AddMap,
    AddPolicyRule,
    AddRoute,
    AddRule,
    AddTable,
    DeleteAddress,
    DeleteChain,
    DeleteElements,
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
    Desired,
    Hook,
    Live,
    LiveChain,
    LiveRoute,
    LiveTable,
    Map,
    Memory,
    RouteKey,
    Rule,
)
from lbd.reconcile import RefusedError

Thing = TypeVar("Thing")


@dataclass
class _Chain:
    hook: Hook | None
    rules: list[str] = field(default_factory=list)


@dataclass
class _Ruleset:
    chains: dict[str, _Chain] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    elements: dict[str, dict[str, str]] = field(default_factory=dict)


def digest(rule: str) -> str:
    """Return what the fake kernel makes of a rule: told apart by content, not to be guessed from the text."""
    return hashlib.sha256(b"compiled " + rule.encode()).hexdigest()[:16]


class FakeHost:
    """A host in memory. `fail` is asked before every operation and may raise, to inject a fault."""

    def __init__(self, sysctls: dict[str, str] | None = None) -> None:
        self.ruleset: _Ruleset | None = None
        self.addresses: dict[Address, bool] = {}
        self.routes: dict[RouteKey, LiveRoute] = {}
        self.rules: dict[Rule, bool] = {}
        self.sysctls = sysctls or {"net.ipv4.ip_forward": "0", "net.ipv6.conf.all.forwarding": "0"}
        self.memory = Memory()
        self.generation = 1
        self.applied: list[str] = []
        self.fail: Callable[[Sequence[NftOp] | HostOp], None] = lambda _: None

    def read(self, desired: Desired) -> Live:
        """Return what is ours, and what stands where `desired` wants something."""
        return Live(
            table=self._table(),
            addresses={a: ours for a, ours in self.addresses.items() if ours or a in desired.addresses},
            routes={
                key: live
                for key, live in self.routes.items()
                if live.protocol == PROTOCOL or key in desired.routes or key in self.memory.routes
            },
            rules={rule: ours for rule, ours in self.rules.items() if ours or rule in desired.rules},
            sysctls=dict(self.sysctls),
            memory=self.memory,
            generation=self.generation,
        )

    def _table(self) -> LiveTable | None:
        if self.ruleset is None:
            return None
        chains = {n: LiveChain(tuple(map(digest, c.rules)), c.hook) for n, c in self.ruleset.chains.items()}
        # How a map was declared cannot be read back from the kernel.
        maps = {name: replace(shape, typeof="") for name, shape in self.ruleset.maps.items()}
        return LiveTable(chains, maps, deepcopy(self.ruleset.elements))

    def commit(self, ops: Sequence[NftOp]) -> int:
        """Do all of `ops`, or none."""
        self.fail(ops)
        draft = deepcopy(self.ruleset)
        for op in ops:
            draft = _step(draft, op)
        if draft is not None:
            _check(draft)
        self.ruleset = draft
        self.applied += map(str, ops)
        self.generation += 1
        return self.generation

    def apply(self, op: HostOp) -> None:  # noqa: C901 - one case per operation
        """Do one operation outside nftables."""
        self.fail(op)
        self.applied.append(str(op))
        match op:
            case Remember(memory):
                self.memory = memory
            case SetSysctl(name, value):
                self.sysctls[name] = value
            case AddAddress(address):
                self.addresses[address] = True
            case DeleteAddress(address):
                self.addresses.pop(address, None)
            case AddPolicyRule(rule):
                self.rules[rule] = True
            case DeletePolicyRule(rule):
                self.rules.pop(rule, None)
            case AddRoute(route, replacing):
                if route.key in self.routes and not replacing:
                    raise RefusedError(f"{route}: File exists")
                self.routes[route.key] = LiveRoute(route, PROTOCOL)
            case RestoreRoute(live):
                self.routes[live.route.key] = live
            case DeleteRoute(route):
                if self.routes.get(route.key, LiveRoute(route, 0)).protocol == PROTOCOL:
                    del self.routes[route.key]


def _refuse(op: NftOp, why: str) -> RefusedError:
    return RefusedError(f"nftables: Could not process rule: {why} ({op})")


def _step(ruleset: _Ruleset | None, op: NftOp) -> _Ruleset | None:  # noqa: C901, PLR0912 - one case per operation
    if isinstance(op, AddTable):
        return ruleset or _Ruleset()
    if ruleset is None:
        raise _refuse(op, "No such file or directory")
    match op:
        case DeleteTable():
            return None
        case AddChain(name, hook):
            # nft's `add` takes an equal chain that is there; a plan never does that.
            if name in ruleset.chains:
                raise _refuse(op, "File exists")
            ruleset.chains[name] = _Chain(hook)
        case FlushChain(name):
            _there(ruleset.chains, name, op).rules.clear()
        case DeleteChain(name):
            if _there(ruleset.chains, name, op).rules:
                raise _refuse(op, "Device or resource busy")
            del ruleset.chains[name]
        case AddRule(name, rule):
            _there(ruleset.chains, name, op).rules.append(rule)
        case AddMap(name, shape):
            if name in ruleset.maps:
                raise _refuse(op, "File exists")
            ruleset.maps[name], ruleset.elements[name] = shape, {}
        case DeleteMap(name):
            _there(ruleset.maps, name, op)
            if any(f"@{name}" in rule.split() for chain in ruleset.chains.values() for rule in chain.rules):
                raise _refuse(op, "Device or resource busy")
            del ruleset.maps[name], ruleset.elements[name]
        case AddElements(name, _, items):
            elements = _there(ruleset.elements, name, op)
            for key, data in items:
                if elements.get(key, data) != data:
                    raise _refuse(op, "File exists")
                elements[key] = data
            if len(elements) > ruleset.maps[name].size:
                raise _refuse(op, "Too many open files in system")
        case DeleteElements(name, _, keys):
            elements = _there(ruleset.elements, name, op)
            for key in keys:
                if elements.pop(key, None) is None:
                    raise _refuse(op, "No such file or directory")
    return ruleset


def _there(things: dict[str, Thing], name: str, op: NftOp) -> Thing:
    if name not in things:
        raise _refuse(op, "No such file or directory")
    return things[name]


def _check(ruleset: _Ruleset) -> None:
    """Refuse a ruleset with loose ends: rules that name no map, elements that go to no chain."""
    named = {
        name
        for chain in ruleset.chains.values()
        for rule in chain.rules
        for name in re.findall(r"@(\w+)", rule)
    }
    gone = {
        data.split()[1]
        for items in ruleset.elements.values()
        for data in items.values()
        if data.startswith("goto ")
    }
    if loose := (named - ruleset.maps.keys()) | (gone - ruleset.chains.keys()):
        raise RefusedError(f"nftables: No such file or directory ({', '.join(sorted(loose))})")
