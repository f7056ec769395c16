"""The text of a rule to values: what the program says to nft, read back so that core/trace can follow it.

Only the constructs that the program uses are known. Anything else raises ValueError: a rule that is half
understood would make a trace that lies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

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
    Verdict,
)
from lbd.core.trace.words import CHAIN, Words

# Fields of a packet and its connection, as nft calls them.
_FIELDS = (
    ("ip", "saddr"),
    ("ip", "daddr"),
    ("ip6", "saddr"),
    ("ip6", "daddr"),
    *((protocol, port) for protocol in ("tcp", "udp", "sctp") for port in ("sport", "dport")),
    ("th", "dport"),
    ("meta", "mark"),
    ("meta", "l4proto"),
    ("meta", "nfproto"),
    ("iifname",),
    ("oifname",),
    ("ct", "original", "ip", "daddr"),
    ("ct", "original", "ip6", "daddr"),
    ("ct", "original", "proto-dst"),
)
MASKED = ("ip saddr", "ip6 saddr", "meta mark")
_WRITTEN = (
    *(f"{family} {end}" for family in ("ip", "ip6") for end in ("saddr", "daddr")),
    *(f"{protocol} {port}" for protocol in ("tcp", "udp") for port in ("sport", "dport")),
)
# Bits of the transport header, as offset and length.
_PORT_AT: Mapping[int, str] = {0: "th sport", 16: "th dport"}

# What a field or condition may be compared with in the rule itself.
_LITERALS: Mapping[str, frozenset[str]] = {
    "meta l4proto": frozenset({"tcp", "udp", "sctp"}),
    "meta nfproto": frozenset({"ipv4", "ipv6"}),
    "ct state": frozenset({"new", "established", "invalid", "untracked"}),
    "ct status": frozenset({"dnat"}),
    "fib saddr type": frozenset({"local"}),
    "fib daddr type": frozenset({"local"}),
    "ether type": frozenset({"vlan"}),
    "udp checksum": frozenset({"0"}),
    "tcp flags & ( fin|syn|rst|ack ) ==": frozenset({"syn"}),
}

_PORTS = re.compile(r"[0-9]+(-[0-9]+)?")
# "192.0.2.1:1-2" and "[2001:db8::1]:1-2"; an address of IPv6 alone has no brackets.
_WITH_PORTS = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<four>[^:]+)):(?P<ports>[0-9-]+)")


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[Statement, ...]:
    """Return what a rule does, in order. Raises ValueError for anything that is not known."""
    words = Words(text)
    found: list[Statement] = []
    while words.left:
        if found and isinstance(found[-1], Verdict | Branch | Translate | Forward):
            raise words.unknown()
        found.append(_statement(words))
    if not found:
        raise words.unknown()
    return tuple(found)


@lru_cache(maxsize=4096)
def verdict(text: str) -> Verdict:
    """Return the verdict that an element of a map has. Raises ValueError for anything else."""
    words = Words(text)
    found = _statement(words)
    if words.left or not isinstance(found, Verdict):
        raise words.unknown()
    return found


def _statement(words: Words) -> Statement:
    known = _BEGINNINGS.get(words.left[0])
    if known is not None:
        del words.left[0]
        return known(words)
    for subject, values in _LITERALS.items():
        if subject not in _SINGLE and words.given(*subject.split()):
            return Is(subject, _values(words, values))
    key = _key(words)
    if words.given("vmap"):
        return Branch(key, words.name())
    if words.left and words.left[0].startswith("@"):
        return Member(key, words.name())
    if words.given("set"):
        return _set(words, key)
    subject = key[0].name if len(key) == 1 and isinstance(key[0], Field) and not key[0].mask else ""
    if subject not in _LITERALS:
        raise words.unknown()
    return Is(subject, _values(words, _LITERALS[subject]))


# These begin like a key, which may follow them instead.
_SINGLE = ("meta l4proto", "meta nfproto")


def _values(words: Words, allowed: frozenset[str]) -> frozenset[str]:
    braces = words.given("{")
    found = set()
    while True:
        if not words.left or words.left[0] not in allowed:
            raise words.unknown()
        found.add(words.left.pop(0))
        if not words.given(","):
            break
    if braces:
        words.need("}")
    return frozenset(found)


def _key(words: Words) -> Key:
    key = [_term(words)]
    while words.given("."):
        key.append(_term(words))
    return tuple(key)


def _term(words: Words) -> Term:
    if words.given("numgen", "random") or words.given("numgen", "inc"):
        words.need("mod")
        return Choice(words.number())
    if words.given("jhash"):
        fields = [_field(words)]
        while words.given("."):
            fields.append(_field(words))
        words.need("mod")
        modulus = words.number()
        # Without a seed the kernel takes one by chance, and nobody knows which.
        words.need("seed")
        return Hash(tuple(fields), modulus, words.number())
    return _field(words)


def _field(words: Words) -> Field:
    bracket = words.given("(")
    name = next((" ".join(field) for field in _FIELDS if words.given(*field)), None)
    if name is None:
        raise words.unknown()
    mask = ""
    if words.given("&"):
        if name not in MASKED:
            raise words.unknown()
        mask = str(words.number()) if name == "meta mark" else words.address()
    if bracket:
        words.need(")")
    return Field(name, mask)


def _lookup(words: Words) -> Lookup:
    key = _key(words)
    words.need("map")
    if not words.given("{"):
        return Lookup(key, words.name())
    inline = []
    while not words.given("}"):
        number = str(words.number())
        words.need(":")
        inline.append((number, words.address()))
        if not words.begins("}"):
            words.need(",")
    return Lookup(key, "", tuple(inline))


def _set(words: Words, key: Key) -> Statement:
    match key:
        case (Field("meta mark", ""),):
            simple = words.left and words.left[0].isdecimal()
            return Set("meta mark", str(words.number()) if simple else _lookup(words))
        case (Field(name, ""),) if name in _WRITTEN:
            return Set(name, _lookup(words))
    raise words.unknown()


def _raw(words: Words) -> Statement:
    words.need(",")
    name = _PORT_AT.get(words.number())
    if name is None:
        raise words.unknown()
    words.need(",", "16", "set")
    return Set(name, _lookup(words))


def _forward(words: Words) -> Statement:
    family = 4 if words.given("ip") else 6 if words.given("ip6") else 0
    words.need("to")
    address = _lookup(words)
    words.need("device")
    device = _lookup(words)
    if not family or address.inline or device.inline:
        raise words.unknown()
    return Forward(family, address, device)


def _translate(kind: Literal["dnat", "snat"]) -> Callable[[Words], Statement]:
    def read(words: Words) -> Statement:
        family = 4 if words.given("ip") else 6 if words.given("ip6") else 0
        words.need("to")
        if not family or not words.left:
            raise words.unknown()
        if written := _WITH_PORTS.fullmatch(words.left[0]):
            del words.left[0]
            return Translate(kind, family, written["six"] or written["four"], written["ports"])
        # Only an address has a colon or a dot inside of a word, and no field has.
        literal = re.search(r".[.:].", words.left[0])
        address: Lookup | str = words.address() if literal else _lookup(words)
        if not words.given(":"):
            return Translate(kind, family, address)
        numeric = words.left and _PORTS.fullmatch(words.left[0])
        return Translate(kind, family, address, words.match(_PORTS)[0] if numeric else _lookup(words))

    return read


def _rate(words: Words) -> None:
    words.match(re.compile(r"[0-9]+/second"))
    words.need("burst")
    words.number()
    words.need("packets")


def _limit(words: Words) -> Statement:
    if words.given("rate"):
        _rate(words)
        return Plain("rate")
    words.need("name")
    looked = _lookup(words)
    if looked.inline:
        raise words.unknown()
    return Quota(looked.key, looked.name)


def _note(words: Words) -> Statement:
    name = words.name()
    words.need("{")
    key, data, limited, connections = _key(words), None, False, False
    if words.given("timeout"):
        words.match(re.compile(r"[0-9]+m?s"))
    if words.given("limit", "rate", "over"):
        _rate(words)
        limited = True
    elif words.given("ct", "count", "over"):
        words.number()
        limited = connections = True
    elif words.given(":"):
        data = _field(words)
    words.need("}")
    return Note(name, key, data, limited, connections)


def _log(words: Words) -> Statement:
    words.need("prefix")
    words.match(re.compile(r'"[^"]*"'))
    if not words.given("level", "debug"):
        words.need("group")
        words.number()
    return Plain("log")


def _flow(words: Words) -> Statement:
    words.need("add")
    words.name()
    return Plain("flow")


def _synproxy(words: Words) -> Statement:
    words.need("mss")
    words.number()
    return Plain("synproxy")


def _reject(words: Words) -> Statement:
    return Verdict("reset" if words.given("with", "tcp", "reset") else "unreachable")


_BEGINNINGS: Mapping[str, Callable[[Words], Statement]] = {
    "accept": lambda _: Verdict("accept"),
    "drop": lambda _: Verdict("drop"),
    "return": lambda _: Verdict("return"),
    "goto": lambda words: Verdict(f"goto {words.match(CHAIN)[0]}"),
    "jump": lambda words: Verdict(f"jump {words.match(CHAIN)[0]}"),
    "reject": _reject,
    "dnat": _translate("dnat"),
    "snat": _translate("snat"),
    "masquerade": lambda _: Plain("masquerade"),
    "notrack": lambda _: Plain("notrack"),
    "synproxy": _synproxy,
    "log": _log,
    "flow": _flow,
    "fwd": _forward,
    "@th": _raw,
    "limit": _limit,
    "update": _note,
    "add": _note,
}
