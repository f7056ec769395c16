"""One table of nf_tables in memory: each operation of a transaction, and what it is refused for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lbd.core.ops import (
    CATCH_ALL,
    AddChain,
    AddElements,
    AddFlowtable,
    AddLimit,
    AddMap,
    AddRule,
    AddTable,
    DeleteChain,
    DeleteElements,
    DeleteFlowtable,
    DeleteLimit,
    DeleteMap,
    DeleteTable,
    FlushChain,
    HostOp,
    NftOp,
)
from lbd.core.state import Hook, Map
from lbd.reconcile import RefusedError
from lbd.testing import fields

Thing = TypeVar("Thing")

# What a rule or the data of an element names.
TARGET = re.compile(r"\b(?:goto|jump) ([\w.-]+)")
# "@th,16,16" is a place in a packet.
MAP = re.compile(r"(?<!flow add )@(\w+)\b(?!,)")
FLOWTABLE = re.compile(r"\bflow add @(\w+)")


@dataclass
class Chain:
    """A chain: its rules are the text they were added as."""

    hook: Hook | None
    rules: list[str] = field(default_factory=list)


@dataclass
class Ruleset:
    """All that a table has."""

    chains: dict[str, Chain] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    elements: dict[str, dict[str, str]] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)
    flowtables: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def copy(self) -> Ruleset:
        """Return another that changes by itself."""
        return Ruleset(
            {name: Chain(chain.hook, list(chain.rules)) for name, chain in self.chains.items()},
            dict(self.maps),
            {name: dict(items) for name, items in self.elements.items()},
            dict(self.limits),
            dict(self.flowtables),
        )

    def targets(self) -> set[str]:
        """Return the chains that a rule or an element goes to."""
        rules = (rule for chain in self.chains.values() for rule in chain.rules)
        data = (
            data
            for name, items in self.elements.items()
            if self.maps[name].data in ("verdict", ())
            for data in set(items.values())
        )
        return {name for text in (*rules, *data) for name in TARGET.findall(text)}

    def names(self, name: str, what: re.Pattern[str] = MAP) -> bool:
        """Tell whether a rule names a map, or a flowtable."""
        return any(name in what.findall(rule) for chain in self.chains.values() for rule in chain.rules)

    def limited(self, name: str) -> bool:
        """Tell whether an element names a limit."""
        held = (self.elements[map_name] for map_name, shape in self.maps.items() if shape.data == "limit")
        return any(name in items.values() for items in held)


def refuse(op: NftOp | HostOp, why: str) -> RefusedError:
    """Return the refusal of an operation, in the kernel's words."""
    return RefusedError(f"{why} ({op})")


def step(  # noqa: C901, PLR0912, PLR0915 - one case for each operation
    ruleset: Ruleset | None, op: NftOp, held: set[str]
) -> Ruleset | None:
    """Do one operation of a transaction; `held` are the chains that something went to before it."""
    if isinstance(op, AddTable):
        return ruleset or Ruleset()
    if ruleset is None:
        raise refuse(op, "No such file or directory")
    match op:
        case DeleteTable():
            return None
        case AddChain(name, hook):
            # nft's `add` takes an equal chain that is there; a plan never does that.
            if name in ruleset.chains:
                raise refuse(op, "File exists")
            if hook and (hook.point == "ingress") != (op.family == "netdev"):
                raise refuse(op, "Operation not supported")
            ruleset.chains[name] = Chain(hook)
        case FlushChain(name):
            _there(ruleset.chains, name, op).rules.clear()
        case DeleteChain(name):
            # Its rules go with it.
            _there(ruleset.chains, name, op).rules.clear()
            if name in held | ruleset.targets():
                raise refuse(op, "Device or resource busy")
            del ruleset.chains[name]
        case AddRule(name, rule):
            chain = _there(ruleset.chains, name, op)
            for named in MAP.findall(rule):
                _there(ruleset.maps, named, op)
            _reachable(ruleset, rule, op)
            _offloads(ruleset, chain, rule, op)
            chain.rules.append(rule)
        case AddMap(name, shape):
            if name in ruleset.maps:
                raise refuse(op, "File exists")
            ruleset.maps[name], ruleset.elements[name] = shape, {}
        case DeleteMap(name):
            _there(ruleset.maps, name, op)
            if ruleset.names(name):
                raise refuse(op, "Device or resource busy")
            del ruleset.maps[name], ruleset.elements[name]
        case AddElements(name, _, items):
            _add(ruleset, name, items, op)
        case DeleteElements(name, _, keys):
            elements = _there(ruleset.elements, name, op)
            for key in keys:
                if elements.pop(key, None) is None:
                    raise refuse(op, "No such file or directory")
        case AddLimit(name, rate):
            # nft's `add` takes a name that is there, and keeps the rate it had; a plan never does that.
            if name in ruleset.limits:
                raise refuse(op, "File exists")
            ruleset.limits[name] = rate
        case DeleteLimit(name):
            _there(ruleset.limits, name, op)
            if ruleset.limited(name):
                raise refuse(op, "Device or resource busy")
            del ruleset.limits[name]
        case AddFlowtable() | DeleteFlowtable():
            _flowtable(ruleset, op)
    return ruleset


def _flowtable(ruleset: Ruleset, op: AddFlowtable | DeleteFlowtable) -> None:
    tables, name = ruleset.flowtables, op.name
    if isinstance(op, DeleteFlowtable):
        _there(tables, name, op)
        if ruleset.names(name, FLOWTABLE):
            raise refuse(op, "Device or resource busy")
        del tables[name]
        return
    # nft's `add` takes one that is there and gives it more devices; a plan never does that.
    if name in tables:
        raise refuse(op, "File exists")
    if op.family != "inet" or not op.devices or len(set(op.devices)) < len(op.devices):
        raise refuse(op, "Operation not supported")
    tables[name] = op.devices


def _add(ruleset: Ruleset, name: str, items: Sequence[tuple[str, str]], op: NftOp) -> None:
    elements, shape = _there(ruleset.elements, name, op), ruleset.maps[name]
    for key, data in items:
        fits = key == CATCH_ALL or fields.fits(key, shape.key, interval=shape.interval)
        if not (fits and (isinstance(shape.data, str) or fields.fits(data, shape.data))):
            raise refuse(op, f"syntax error at {key} : {data}")
        if elements.get(key, data) != data:
            raise refuse(op, "File exists")
        elements[key] = data
        if shape.data == "limit":
            _there(ruleset.limits, data, op)
    for verdict in {data for _, data in items} if shape.data == "verdict" else ():
        _reachable(ruleset, verdict, op)
    # Of two that overlap the real kernel takes those of which the newer one is around the older one.
    if shape.interval and fields.overlap(elements, shape.key):
        raise refuse(op, "conflicting intervals specified")
    if len(elements) > shape.size:
        raise refuse(op, "Too many open files in system")


def _there(things: dict[str, Thing], name: str, op: NftOp) -> Thing:
    if name not in things:
        raise refuse(op, "No such file or directory")
    return things[name]


def _offloads(ruleset: Ruleset, chain: Chain, rule: str, op: NftOp) -> None:
    """Refuse to put connections into a flowtable that is not there, or at another hook than forward."""
    for name in FLOWTABLE.findall(rule):
        _there(ruleset.flowtables, name, op)
        if not chain.hook or chain.hook.point != "forward":
            raise refuse(op, "Operation not supported")


def _reachable(ruleset: Ruleset, text: str, op: NftOp) -> None:
    """Refuse a way to a chain that is not there, or that has a hook."""
    for name in TARGET.findall(text):
        if _there(ruleset.chains, name, op).hook:
            raise refuse(op, "Operation not supported")
