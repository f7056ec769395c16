"""What one statement of a rule does to a packet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

from lbd.core.state import Table
from lbd.core.trace.elements import Elements
from lbd.core.trace.fields import hashed, value, written
from lbd.core.trace.flow import Facts, Flow, Noted
from lbd.core.trace.rule import (
    Branch,
    Choice,
    Field,
    Forward,
    Hash,
    Is,
    Key,
    Lookup,
    Member,
    Note,
    Plain,
    Quota,
    Set,
    Statement,
    Term,
    Translate,
)
from lbd.core.trace.text import verdict

# What a statement can do other than end the rule with a verdict: let it go on, or end it without one.
ON, MISS = "", "does not match"

# A packet, what comes next (a verdict, ON or MISS), and words for it ("" when that says it).
Effect = tuple[Flow, str, str]


class Effects:
    """A table and the facts, asked by the statements that one packet meets."""

    def __init__(self, table: Table, facts: Facts) -> None:
        self._table, self._facts = table, facts
        self._elements: dict[str, Elements] = {}

    def of(self, statement: Statement, flow: Flow) -> Iterator[Effect]:
        """Do a statement: all that may become of a packet, in shares."""
        match statement:
            case Member() | Branch() | Quota():
                for data, f in self._data(Lookup(statement.key, statement.name), flow):
                    yield f, *self._found(statement, data)
            case Is(subject, values):
                yield flow, ON if self._subject(subject, flow) in values else MISS, ""
            case Note():
                yield self._note(statement, flow)
            case Translate():
                yield from self._translate(statement, flow)
            case Set(name, to):
                for data, f in self._either(to, flow):
                    yield (f, MISS, "") if data is None else _set(name, data, f)
            case Forward():
                yield from self._forward(statement, flow)
            case Plain():
                yield _plain(statement, flow)
            case _:
                yield flow, statement.text, ""

    def _found(self, statement: Member | Branch | Quota, data: str | None) -> tuple[str, str]:
        if data is None:
            return MISS, ""
        match statement:
            case Branch():
                return verdict(data).text, ""
            case Quota() if data not in self._facts.over:
                return MISS, f"under limit {data}"
            case _:
                return ON, ""

    def _note(self, note: Note, flow: Flow) -> Effect:
        keys = list(self._keys(note.key, flow))
        data = "" if note.data is None else self._field(note.data, flow)
        if len(keys) != 1 or data is None:
            return flow, MISS, ""
        key = " . ".join(keys[0])
        # An element that is there keeps its data, and only its time begins anew.
        kept = self._facts.learned.get(note.name, {}).get(key, data)
        f = replace(flow, noted=(*flow.noted, Noted(note.name, key, kept)))
        if note.limited and note.name not in self._facts.over:
            return f, MISS, f"counted in {note.name}, under its limit"
        return f, ON, f"noted in {note.name}"

    def _translate(self, nat: Translate, flow: Flow) -> Iterator[Effect]:
        if nat.family != flow.now.family:
            yield flow, MISS, ""
            return
        for target, f in self._either(nat.address, flow):
            for ports, g in self._either(nat.ports, f):
                if target is None or ports is None:
                    yield g, MISS, ""
                else:
                    address, _, port = target.partition(" . ")
                    to = f"{nat.kind} to {address}" + (f" . {port or ports}" if port or ports else "")
                    yield _translated(nat.kind, address, port or ports, g), "accept", to

    def _forward(self, forward: Forward, flow: Flow) -> Iterator[Effect]:
        if forward.family != flow.now.family:
            yield flow, MISS, ""
            return
        for neighbour, f in self._data(forward.address, flow):
            for device, g in self._data(forward.device, f):
                if neighbour is None or device is None:
                    yield g, MISS, ""
                else:
                    to = replace(g, neighbour=neighbour, device=int(device))
                    yield to, "forwarded", f"fwd to {neighbour} by interface {device}"

    def _either(self, wanted: Lookup | str, flow: Flow) -> Iterator[tuple[str | None, Flow]]:
        if isinstance(wanted, str):
            yield wanted, flow
        else:
            yield from self._data(wanted, flow)

    def _data(self, lookup: Lookup, flow: Flow) -> Iterator[tuple[str | None, Flow]]:
        """Give what a map has for a packet, None for nothing, each with its share of the packet."""
        elements = self._of(lookup)
        found = [elements.find(key) for key in self._keys(lookup.key, flow)] or [None]
        for data in dict.fromkeys(found):
            yield data, replace(flow, share=flow.share * Fraction(found.count(data), len(found)))

    def _of(self, lookup: Lookup) -> Elements:
        name = lookup.name
        if not name:
            return Elements(None, dict(lookup.inline))
        if name not in self._elements:
            shape, learned = self._table.maps[name], self._facts.learned.get(name, {})
            self._elements[name] = Elements(shape, learned if shape.learned else self._table.elements[name])
        return self._elements[name]

    def _keys(self, key: Key, flow: Flow) -> Iterator[tuple[str, ...]]:
        """Give the keys that a packet may have, all as likely; none if it has not all the fields."""
        words: list[tuple[str, ...]] = [()]
        for term in key:
            choices = self._term(term, flow)
            words = [(*before, choice) for before in words for choice in choices]
        yield from words

    def _term(self, term: Term, flow: Flow) -> Sequence[str]:
        match term:
            case Choice(modulus):
                return [str(i) for i in range(modulus)]
            case Hash(fields, modulus, seed):
                values = [text for each in fields if (text := self._field(each, flow)) is not None]
                if len(values) < len(fields):
                    return []
                return [str(hashed([each.name for each in fields], values, modulus, seed))]
            case Field():
                text = self._field(term, flow)
                return [] if text is None else [text]

    def _field(self, field: Field, flow: Flow) -> str | None:
        if not field.name.startswith("ct "):
            return value(field, flow.now)
        return value(field, flow.came) if flow.connection in ("new", "established") else None

    def _subject(self, subject: str, flow: Flow) -> str | None:
        match subject:
            case "ct state":
                return flow.connection or "invalid"
            case "ct status":
                return "dnat" if flow.ct_dnat and flow.connection in ("new", "established") else None
            case "fib saddr type":
                return "local" if flow.now.source in self._facts.local else None
            case "fib daddr type":
                return "local" if flow.now.destination in self._facts.local else None
            case "tcp flags & ( fin|syn|rst|ack ) ==":
                return "syn" if _begins(flow) else None
            case _:
                return self._field(Field(subject), flow)


def _begins(flow: Flow) -> bool:
    return flow.now.protocol == "tcp" and flow.now.flags & {"fin", "syn", "rst", "ack"} == {"syn"}


def _translated(kind: str, address: str, ports: str, flow: Flow) -> Flow:
    if kind == "snat":
        return replace(flow, source=address, source_ports=ports, now=replace(flow.now, source=address))
    port = int(ports) if ports else flow.now.destination_port
    return replace(flow, translated=True, now=replace(flow.now, destination=address, destination_port=port))


def _set(name: str, text: str, flow: Flow) -> Effect:
    now = written(name, text, flow.now)
    if now is None:
        return flow, MISS, ""
    if name.endswith("saddr"):
        flow = replace(flow, source=text)
    elif name.endswith("sport"):
        flow = replace(flow, source_ports=text)
    return replace(flow, now=now, rewritten=flow.rewritten or name != "meta mark"), ON, f"{name} set {text}"


def _plain(plain: Plain, flow: Flow) -> Effect:
    match plain.kind:
        case "masquerade":
            return replace(flow, source="masquerade"), "accept", "masquerade"
        case "notrack":
            # What conntrack already knows stays known.
            return (flow if flow.connection else replace(flow, connection="untracked")), ON, "notrack"
        case "synproxy":
            # It takes the beginning of a connection and the answer to a cookie; the rest passes by.
            asked = flow.now.protocol == "tcp" and flow.now.flags & {"syn", "ack"}
            return flow, "synproxy" if asked else MISS, ""
        case "log":
            return flow, ON, "logged"
        case "flow":
            return flow, ON if flow.connection == "established" else MISS, ""
        case "rate":
            return flow, ON, ""
