"""The way of a packet through hooks, chains and rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lbd.core.state import Hook, Point, Table
from lbd.core.trace.effect import MISS, ON, Effects
from lbd.core.trace.flow import Ending, Facts, Flow
from lbd.core.trace.rule import Branch, Field, Hash, Is, Member, Note, Plain, Quota, Term, Translate
from lbd.core.trace.text import parse

# NF_IP_PRI_CONNTRACK of linux/netfilter_ipv4.h: what a chain before it sees belongs to no connection yet.
CONNTRACK = -200

_ENDINGS: Mapping[str, Ending] = {
    "drop": "drop",
    "reset": "reset",
    "unreachable": "unreachable",
    "synproxy": "synproxy",
    "forwarded": "forwarded",
}


class Walk:
    """A table and the facts, walked by one packet."""

    def __init__(self, table: Table, facts: Facts) -> None:
        self._table, self._facts = table, facts
        self._effects = Effects(table, facts)
        self._tracked_families = _tracked_families(table)

    def entrance(self, flow: Flow) -> Iterator[Flow]:
        """Follow a packet through the ingress of its interface, as a table of the netdev family has it."""
        for f in self._chains("ingress", flow):
            # What conntrack is shown is what was made of it.
            yield replace(f, came=f.now)

    def way(self, flow: Flow) -> Iterator[Flow]:
        """Follow a packet through the hooks of a table of the inet family, and give all it may become."""
        own = not flow.now.interface
        for f in self._hook("output" if own else "prerouting", flow):
            there = f.now.destination
            if there not in self._facts.local:
                points: tuple[Point, ...] = ("postrouting",) if own else ("forward", "postrouting")
                yield from self._hooks(points, replace(f, now=replace(f.now, out=self._facts.out(there))))
            elif own:
                # Over the loopback it comes in again, as the same connection.
                for g in self._hook("postrouting", replace(f, now=replace(f.now, out="lo"))):
                    back = replace(g, now=replace(g.now, interface="lo", out=""))
                    yield from self._hooks(("prerouting", "input"), back)
            else:
                yield from self._hook("input", f)

    def _hooks(self, points: Sequence[Point], flow: Flow) -> Iterator[Flow]:
        flows = [flow]
        for point in points:
            flows = [g for f in flows for g in self._hook(point, f)]
        yield from flows

    def _hook(self, point: Point, flow: Flow) -> list[Flow]:
        return [replace(self._tracked(f), settled=True) for f in self._chains(point, flow)]

    def _chains(self, point: Point, flow: Flow) -> list[Flow]:
        """Walk the base chains of a hook, the lowest priority first."""
        hooked = [(chain.hook, name) for name, chain in self._table.chains.items() if chain.hook]
        here = [(hook, name) for hook, name in hooked if hook.point == point]
        if point == "ingress":
            here = [(hook, name) for hook, name in here if hook.device == flow.now.interface]
        here.sort(key=lambda each: each[0].priority)
        flows = [flow]
        for hook, name in here:
            if hook.priority > CONNTRACK:
                flows = [self._tracked(f) for f in flows]
            flows = [g for f in flows for g in self._base_chain(hook, name, f)]
        return flows

    def _tracked(self, flow: Flow) -> Flow:
        if flow.connection or flow.now.family not in self._tracked_families:
            return flow
        return replace(flow, connection=self._facts.connection)

    def _base_chain(self, hook: Hook, name: str, flow: Flow) -> Iterator[Flow]:
        if flow.ending or (hook.type == "nat" and not _is_asked(hook.point, flow)):
            yield flow
            return
        for f, decided in self._rules(name, 0, flow):
            yield replace(f, ending="drop") if hook.policy == "drop" and not decided else f

    def _rules(self, chain: str, start: int, flow: Flow) -> Iterator[tuple[Flow, bool]]:
        """Follow a chain from a rule on; with each packet comes whether the hook is done with it."""
        rules = self._table.chains[chain].rules
        if start == len(rules):
            yield flow, False
            return
        for f, what in self._rule(chain, rules[start], flow):
            word, _, to = what.partition(" ")
            match word:
                case "goto":
                    yield from self._rules(to, 0, f)
                case "jump":
                    for g, decided in self._rules(to, 0, f):
                        if decided:
                            yield g, True
                        else:
                            yield from self._rules(chain, start + 1, g)
                case "return":
                    yield f, False
                case "accept":
                    yield f, True
                case "":
                    yield from self._rules(chain, start + 1, f)
                case _:
                    yield replace(f, ending=_ENDINGS[what]), True

    def _rule(self, chain: str, rule: str, flow: Flow) -> Iterator[tuple[Flow, str]]:
        """Try a rule: each packet with the verdict, "" when there is none."""
        flows, done = [flow], "goes on"
        for statement in parse(rule):
            passed = []
            for f in flows:
                for g, what, said in self._effects.of(statement, f):
                    if what == ON:
                        passed.append(g)
                        done = said or done
                    else:
                        yield g.step(chain, rule, said or what), "" if what == MISS else what
            flows = passed
        for f in flows:
            yield f.step(chain, rule, done), ""


def _is_asked(point: Point, flow: Flow) -> bool:
    """Tell whether chains of type nat are asked: by the first packet of a connection, once for each end."""
    done = flow.source if point in ("input", "postrouting") else flow.settled or flow.translated
    return flow.connection == "new" and not done


def _tracked_families(table: Table) -> frozenset[int]:
    """Return the families whose connections the kernel tracks: those of a rule that needs it, used or not.

    That is nf_ct_netns_get(), which a chain of type nat alone does not call.
    """
    families: set[int] = set()
    for chain in table.chains.values():
        for statement in (each for rule in chain.rules for each in parse(rule)):
            match statement:
                case Translate():
                    families.add(statement.family)
                case (
                    Plain(kind="masquerade" | "synproxy" | "flow")
                    | Is(subject="ct state" | "ct status")
                    | Note(connections=True)
                ):
                    families |= {4, 6}
                case Member() | Branch() | Quota() | Note() if any(map(_of_connection, statement.key)):
                    families |= {4, 6}
    return frozenset(families)


def _of_connection(term: Term) -> bool:
    fields = term.key if isinstance(term, Hash) else (term,)
    return any(isinstance(field, Field) and field.name.startswith("ct ") for field in fields)
