"""The text of a rule to values: what core/program says to nft, read back so that core/trace can follow it.

Only the constructs that the program uses are known. Anything else raises ValueError: a rule that is half
understood would make a trace that lies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Literal

from lbd.core.trace.rule import (
    Branch,
    Choice,
    Field,
    Hash,
    Is,
    Key,
    Lookup,
    Member,
    Note,
    Plain,
    Quota,
    Statement,
    Term,
    Translate,
    Verdict,
)

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

# What a field or condition may be compared with in the rule itself.
_LITERALS: Mapping[str, frozenset[str]] = {
    "meta l4proto": frozenset({"tcp", "udp", "sctp"}),
    "meta nfproto": frozenset({"ipv4", "ipv6"}),
    "ct state": frozenset({"new", "established", "invalid", "untracked"}),
    "ct status": frozenset({"dnat"}),
    "fib saddr type": frozenset({"local"}),
    "fib daddr type": frozenset({"local"}),
    "tcp flags & ( fin|syn|rst|ack ) ==": frozenset({"syn"}),
}

_TOKEN = re.compile(r'"[^"]*"|[{}(),]|[^\s{}(),"]+')
_NAMED = re.compile(r"@([A-Za-z][\w-]*)")
_CHAIN = re.compile(r"[A-Za-z][\w-]*")
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")
_PORTS = re.compile(r"[0-9]+(-[0-9]+)?")
# "192.0.2.1:1-2" and "[2001:db8::1]:1-2"; an address of IPv6 alone has no brackets.
_WITH_PORTS = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<four>[^:]+)):(?P<ports>[0-9-]+)")


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[Statement, ...]:
    """Return what a rule does, in order. Raises ValueError for anything that is not known."""
    words = _Words(text)
    found: list[Statement] = []
    while words.left:
        if found and isinstance(found[-1], Verdict | Branch | Translate):
            raise words.unknown()
        found.append(_statement(words))
    if not found:
        raise words.unknown()
    return tuple(found)


@lru_cache(maxsize=4096)
def verdict(text: str) -> Verdict:
    """Return the verdict that an element of a map has. Raises ValueError for anything else."""
    words = _Words(text)
    found = _statement(words)
    if words.left or not isinstance(found, Verdict):
        raise words.unknown()
    return found


class _Words:
    """The words of a rule, taken from the front."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.left = _TOKEN.findall(text)

    def unknown(self) -> ValueError:
        place = f"at {' '.join(self.left[:4])!r}" if self.left else "at its end"
        return ValueError(f"a rule is not understood {place}: {self._text}")

    def begins(self, *words: str) -> bool:
        return tuple(self.left[: len(words)]) == words

    def given(self, *words: str) -> bool:
        """Take words if they come next."""
        if not self.begins(*words):
            return False
        del self.left[: len(words)]
        return True

    def need(self, *words: str) -> None:
        if not self.given(*words):
            raise self.unknown()

    def match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.fullmatch(self.left[0]) if self.left else None
        if found is None:
            raise self.unknown()
        del self.left[0]
        return found

    def number(self) -> int:
        return int(self.match(_NUMBER)[0], 0)

    def name(self) -> str:
        return self.match(_NAMED)[1]

    def address(self) -> str:
        try:
            address = str(ip_address(self.left[0]))
        except (ValueError, IndexError):
            raise self.unknown() from None
        del self.left[0]
        return address


def _statement(words: _Words) -> Statement:
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
    subject = key[0].name if len(key) == 1 and isinstance(key[0], Field) and not key[0].mask else ""
    if subject not in _LITERALS:
        raise words.unknown()
    return Is(subject, _values(words, _LITERALS[subject]))


# These begin like a key, which may follow them instead.
_SINGLE = ("meta l4proto", "meta nfproto")


def _values(words: _Words, allowed: frozenset[str]) -> frozenset[str]:
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


def _key(words: _Words) -> Key:
    key = [_term(words)]
    while words.given("."):
        key.append(_term(words))
    return tuple(key)


def _term(words: _Words) -> Term:
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


def _field(words: _Words) -> Field:
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


def _lookup(words: _Words) -> Lookup:
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


def _translate(kind: Literal["dnat", "snat"]) -> Callable[[_Words], Statement]:
    def read(words: _Words) -> Statement:
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


def _rate(words: _Words) -> None:
    words.match(re.compile(r"[0-9]+/second"))
    words.need("burst")
    words.number()
    words.need("packets")


def _limit(words: _Words) -> Statement:
    if words.given("rate"):
        _rate(words)
        return Plain("rate")
    words.need("name")
    looked = _lookup(words)
    if looked.inline:
        raise words.unknown()
    return Quota(looked.key, looked.name)


def _note(words: _Words) -> Statement:
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


def _log(words: _Words) -> Statement:
    words.need("prefix")
    words.match(re.compile(r'"[^"]*"'))
    if not words.given("level", "debug"):
        words.need("group")
        words.number()
    return Plain("log")


def _flow(words: _Words) -> Statement:
    words.need("add")
    words.name()
    return Plain("flow")


def _synproxy(words: _Words) -> Statement:
    words.need("mss")
    words.number()
    return Plain("synproxy")


def _reject(words: _Words) -> Statement:
    return Verdict("reset" if words.given("with", "tcp", "reset") else "unreachable")


_BEGINNINGS: Mapping[str, Callable[[_Words], Statement]] = {
    "accept": lambda _: Verdict("accept"),
    "drop": lambda _: Verdict("drop"),
    "return": lambda _: Verdict("return"),
    "goto": lambda words: Verdict(f"goto {words.match(_CHAIN)[0]}"),
    "jump": lambda words: Verdict(f"jump {words.match(_CHAIN)[0]}"),
    "reject": _reject,
    "dnat": _translate("dnat"),
    "snat": _translate("snat"),
    "masquerade": lambda _: Plain("masquerade"),
    "notrack": lambda _: Plain("notrack"),
    "synproxy": _synproxy,
    "log": _log,
    "flow": _flow,
    "limit": _limit,
    "update": _note,
    "add": _note,
}
