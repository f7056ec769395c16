"""A strict in-memory host: the kernel as far as a Plan can tell, for tests that need no root.

It refuses what the kernel refuses (adding what is there, deleting what is not or is still referred to)
and commits all or nothing; of two kernels it is the stricter. tests/kernel/test_fake.py holds it against
the real one with the same plans.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface
from typing import TypeVar

from lbd.core.ops import (
    AddAddress,
    AddChain,
    AddElements,
    AddLimit,
    AddMap,
    AddPolicyRule,
    AddRoute,
    AddRule,
    AddTable,
    DeleteAddress,
    DeleteChain,
    DeleteElements,
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
    Desired,
    FieldType,
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

# Where the fake kernel finds the gateway of a route that names no interface.
GATEWAYS_AT = "eth1"

# What a rule or the data of an element names.
TARGET = re.compile(r"\b(?:goto|jump) ([\w.-]+)")
MAP = re.compile(r"@(\w+)")


@dataclass
class _Chain:
    hook: Hook | None
    rules: list[str] = field(default_factory=list)


@dataclass
class _Ruleset:
    chains: dict[str, _Chain] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    elements: dict[str, dict[str, str]] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)

    def copy(self) -> _Ruleset:
        return _Ruleset(
            {name: _Chain(chain.hook, list(chain.rules)) for name, chain in self.chains.items()},
            dict(self.maps),
            {name: dict(items) for name, items in self.elements.items()},
            dict(self.limits),
        )

    def targets(self) -> set[str]:
        """Return the chains that a rule or an element goes to."""
        rules = (rule for chain in self.chains.values() for rule in chain.rules)
        data = (data for items in self.elements.values() for data in set(items.values()))
        return {name for text in (*rules, *data) for name in TARGET.findall(text)}


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
        if sysctls is None:
            sysctls = {"net.ipv4.ip_forward": "0", "net.ipv6.conf.all.forwarding": "0"}
        self.sysctls = sysctls
        self.memory = Memory()
        self.generation = 1
        self.applied: list[str] = []
        self.fail: Callable[[Sequence[NftOp] | HostOp], None] = lambda _: None

    def read(self, desired: Desired, *, learned: bool = False) -> Live:
        """Return what is ours, and what stands where `desired` wants something."""
        return Live(
            table=self._table(learned=learned),
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

    def _table(self, *, learned: bool) -> LiveTable | None:
        if self.ruleset is None:
            return None
        chains = {n: LiveChain(tuple(map(digest, c.rules)), c.hook) for n, c in self.ruleset.chains.items()}
        # How a map was declared cannot be read back from the kernel.
        maps = {name: replace(shape, typeof="") for name, shape in self.ruleset.maps.items()}
        hidden = {name for name, shape in maps.items() if shape.learned and not (learned and shape.data)}
        elements = {name: items for name, items in self.ruleset.copy().elements.items() if name not in hidden}
        return LiveTable(chains, maps, elements, dict(self.ruleset.limits))

    def commit(self, ops: Sequence[NftOp]) -> int:
        """Do all of `ops`, or none."""
        self.fail(ops)
        draft = self.ruleset.copy() if self.ruleset else None
        # Before Linux 6.2 a chain cannot go in the transaction that drops its last reference.
        held = draft.targets() if draft else set()
        for op in ops:
            draft = _step(draft, op, held)
        self.ruleset = draft
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
                    raise _refuse(op, "No such file or directory")
                self.sysctls[name] = value
            case AddAddress(address):
                same = [there for there in self.addresses if _same_address(there, address)]
                if same and not self.addresses.get(address):
                    raise _refuse(op, "File exists")
                self.addresses[address] = True
            case DeleteAddress(address):
                _drop_ours(self.addresses, address)
            case AddPolicyRule(rule):
                # The kernel would keep both; a plan never asks for that.
                if not self.rules.get(rule, True):
                    raise _refuse(op, "File exists")
                self.rules[rule] = True
            case DeletePolicyRule(rule):
                _drop_ours(self.rules, rule)
            case AddRoute(route, replacing):
                if route.key in self.routes and not replacing:
                    raise _refuse(op, "File exists")
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


def _refuse(op: NftOp | HostOp, why: str) -> RefusedError:
    return RefusedError(f"{why} ({op})")


def _step(  # noqa: C901, PLR0912 - one case for each operation
    ruleset: _Ruleset | None, op: NftOp, held: set[str]
) -> _Ruleset | None:
    """Do one operation of a transaction; `held` are the chains that something went to before it."""
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
            # Its rules go with it.
            _there(ruleset.chains, name, op).rules.clear()
            if name in held | ruleset.targets():
                raise _refuse(op, "Device or resource busy")
            del ruleset.chains[name]
        case AddRule(name, rule):
            chain = _there(ruleset.chains, name, op)
            for named in MAP.findall(rule):
                _there(ruleset.maps, named, op)
            _reachable(ruleset, rule, op)
            chain.rules.append(rule)
        case AddMap(name, shape):
            if name in ruleset.maps:
                raise _refuse(op, "File exists")
            ruleset.maps[name], ruleset.elements[name] = shape, {}
        case DeleteMap(name):
            _there(ruleset.maps, name, op)
            if any(name in MAP.findall(rule) for chain in ruleset.chains.values() for rule in chain.rules):
                raise _refuse(op, "Device or resource busy")
            del ruleset.maps[name], ruleset.elements[name]
        case AddElements(name, _, items):
            _add(ruleset, name, items, op)
        case AddLimit(name, rate):
            # nft's `add` takes a name that is there, and keeps the rate it had; a plan never does that.
            if name in ruleset.limits:
                raise _refuse(op, "File exists")
            ruleset.limits[name] = rate
        case DeleteLimit(name):
            _there(ruleset.limits, name, op)
            if any(
                name in ruleset.elements[n].values() for n, m in ruleset.maps.items() if m.data == "limit"
            ):
                raise _refuse(op, "Device or resource busy")
            del ruleset.limits[name]
        case DeleteElements(name, _, keys):
            elements = _there(ruleset.elements, name, op)
            for key in keys:
                if elements.pop(key, None) is None:
                    raise _refuse(op, "No such file or directory")
    return ruleset


def _add(ruleset: _Ruleset, name: str, items: Sequence[tuple[str, str]], op: NftOp) -> None:
    elements, shape = _there(ruleset.elements, name, op), ruleset.maps[name]
    for key, data in items:
        fits = _fits(key, shape.key, interval=shape.interval) and (
            isinstance(shape.data, str) or _fits(data, shape.data)
        )
        if not fits:
            raise _refuse(op, f"syntax error at {key} : {data}")
        if elements.get(key, data) != data:
            raise _refuse(op, "File exists")
        elements[key] = data
        if shape.data == "limit":
            _there(ruleset.limits, data, op)
    for verdict in {data for _, data in items} if shape.data == "verdict" else ():
        _reachable(ruleset, verdict, op)
    if len(elements) > shape.size:
        raise _refuse(op, "Too many open files in system")


def _there(things: dict[str, Thing], name: str, op: NftOp) -> Thing:
    if name not in things:
        raise _refuse(op, "No such file or directory")
    return things[name]


def _reachable(ruleset: _Ruleset, text: str, op: NftOp) -> None:
    """Refuse a way to a chain that is not there, or that has a hook."""
    for name in TARGET.findall(text):
        if _there(ruleset.chains, name, op).hook:
            raise _refuse(op, "Operation not supported")


# Fields as the kernel's reader writes them; in another form an element would never be found again.
FIELDS: dict[FieldType, Callable[[str], bool]] = {
    "ipv4_addr": lambda text: str(IPv4Address(text)) == text,
    "ipv6_addr": lambda text: str(IPv6Address(text)) == text,
    "inet_proto": {"tcp", "udp", "sctp"}.__contains__,
    "inet_service": lambda text: str(int(text)) == text and int(text) < 1 << 16,
    "ifname": lambda text: 0 < len(text) < 16,  # noqa: PLR2004 - IFNAMSIZ
    "mark": lambda text: f"{int(text, 16):#010x}" == text,
    "index": lambda text: str(int(text)) == text,
}
PREFIXES: dict[FieldType, type[IPv4Network | IPv6Network]] = {
    "ipv4_addr": IPv4Network,
    "ipv6_addr": IPv6Network,
}


def _fits(text: str, fields: tuple[FieldType, ...], *, interval: bool = False) -> bool:
    words = text.split(" . ") if text else []
    fits = _fits_range if interval else _fits_one
    try:
        return len(words) == len(fields) and all(map(fits, fields, words))
    except ValueError:
        return False


def _fits_one(kind: FieldType, word: str) -> bool:
    return FIELDS[kind](word)


def _fits_range(kind: FieldType, word: str) -> bool:
    if "/" in word:
        network = PREFIXES[kind](word)
        return str(network) == word and network.prefixlen < network.max_prefixlen
    low, dash, high = word.partition("-") if kind == "inet_service" else (word, "", "")
    return FIELDS[kind](low) and (not dash or (FIELDS[kind](high) and int(low) < int(high)))
