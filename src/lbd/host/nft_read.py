"""Our nftables table, read from the kernel: chains, rules, maps and elements as core/state values.

Constants are those of include/uapi/linux/netfilter/nf_tables.h. Only our own table is asked for, so
nobody else's can slow us, bloat us or make us fail (the kernel lists the chains of all tables, and we
skip what is not ours).
"""

from __future__ import annotations

import errno
import hashlib
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Literal, cast

from lbd.core.ops import CATCH_ALL
from lbd.core.state import TABLE, FieldType, Hook, LiveChain, LiveTable, Map, Point
from lbd.host import netlink

INET = 1  # NFPROTO_INET
GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM, GETGEN, GETOBJ, GETFLOWTABLE = 1, 4, 7, 10, 13, 16, 19, 23

# Attribute numbers (NFTA_CHAIN_*, NFTA_HOOK_*, NFTA_RULE_*, ...). Number 1 is the table's name everywhere.
TABLE_FLAGS = 2
CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE, CHAIN_FLAGS = 3, 4, 5, 7, 10
HOOK_NUMBER, HOOK_PRIORITY = 1, 2
RULE_CHAIN, RULE_EXPRESSIONS = 2, 4
SET_NAME, SET_FLAGS, SET_KEY_LEN, SET_DATA_TYPE, SET_DATA_LEN, SET_DESC, SET_EXPR = 2, 3, 5, 6, 7, 9, 17
DESC_SIZE = 1
LIST_SET, LIST_ELEMENTS = 2, 3
ELEMENT_KEY, ELEMENT_DATA = 1, 2
DATA_VALUE, DATA_VERDICT = 1, 2
VERDICT_CODE, VERDICT_CHAIN = 1, 2
GEN_ID = 1

DORMANT = 0x1
CHAIN_BINDING = 0x4
POLICY_ACCEPT = 1
FLAG_ANONYMOUS, FLAG_MAP, FLAG_CONCAT, FLAG_EXPR = 0x1, 0x8, 0x80, 0x100
TYPE_VERDICT = 0xFFFFFF00
# The kernel gives struct nft_verdict's size for the length of a verdict.
VERDICT_LENGTH = 16

# What nft reads as a name. The kernel takes any text for one, and so does nft's JSON.
SPELLABLE = re.compile(r"[A-Za-z][A-Za-z0-9/_.-]*")

# After this many reads that were not of one moment our own table is in a storm, and the error says so.
TRIES = 20

POINTS = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}
VERDICTS = {0: "drop", 1: "accept", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
PROTOCOLS = {6: "tcp", 17: "udp"}
WIDTHS: Mapping[FieldType, int] = {
    "ipv4_addr": 4,
    "ipv6_addr": 16,
    "inet_proto": 1,
    "inet_service": 2,
    "ifname": 16,
    "index": 4,
}


def generation(sock: socket.socket) -> int:
    """Return the ruleset's generation id; it counts the commits of the network namespace."""
    for body in list(netlink.ask(sock, _kind(GETGEN), 0, _family(0))):
        for kind, value in netlink.attributes(body, 4):
            if kind == GEN_ID:
                return int(struct.unpack("!I", value)[0])
    raise OSError(errno.EPROTO, "the kernel tells no ruleset generation")


def read(sock: socket.socket, schema: Mapping[str, Map]) -> tuple[LiveTable | None, int]:
    """Return our table (None when it is not there) and the generation it was read at.

    `schema` tells how the elements of each map are to be decoded. A read is of one moment when nobody
    committed meanwhile. On a host where others commit all the time, two equal reads will do: a change to
    our table would have made them differ, and is announced besides. Raises TimeoutError without either.
    """
    last: LiveTable | None = None
    for attempt in range(TRIES):
        before = generation(sock)
        try:
            table = _read(sock, schema)
        except (OSError, KeyError) as error:
            # Something vanished between listing it and reading it.
            if isinstance(error, OSError) and error.errno != errno.ENOENT:
                raise
            continue
        if generation(sock) == before or (attempt and table == last):
            return table, before
        last = table
    raise TimeoutError(f"the ruleset changed {TRIES} times while it was read")


def _read(sock: socket.socket, schema: Mapping[str, Map]) -> LiveTable | None:
    try:
        (found,) = netlink.ask(sock, _kind(GETTABLE), 0, _family(INET) + netlink.text(1, TABLE))
    except FileNotFoundError:
        return None
    dormant = _number(dict(netlink.attributes(found, 4)), TABLE_FLAGS) & DORMANT
    chains = dict(_chains(sock))
    for name, digest in _rules(sock):
        if chain := chains.get(name):
            chains[name] = LiveChain((*chain.digests, digest), chain.hook)
    maps = dict(_maps(sock, schema))
    elements = {name: _elements(sock, name, shape) for name, shape in maps.items() if shape.key}
    unspeakable = not all(SPELLABLE.fullmatch(name) for name in (*chains, *maps))
    # Counters, helpers, flowtables: lbd makes none.
    objects = [*_dump(sock, GETOBJ), *_dump(sock, GETFLOWTABLE)]
    foreign = any(_name(found[1]) == TABLE for found in objects)
    return LiveTable(chains, maps, elements, beyond_repair=bool(dormant) or unspeakable or foreign)


def _kind(command: int) -> int:
    return netlink.NFNL_SUBSYS_NFTABLES << 8 | command


def _family(family: int) -> bytes:
    return struct.pack("!BBH", family, 0, 0)  # struct nfgenmsg


def _dump(sock: socket.socket, command: int, *filters: bytes) -> Iterator[dict[int, bytes]]:
    payload = _family(INET) + netlink.text(1, TABLE) + b"".join(filters)
    for body in netlink.ask(sock, _kind(command), netlink.DUMP, payload):
        yield dict(netlink.attributes(body, 4))


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="backslashreplace")


def _number(attributes: Mapping[int, bytes], kind: int) -> int:
    return int(struct.unpack("!I", attributes.get(kind, bytes(4)))[0])


def _chains(sock: socket.socket) -> Iterator[tuple[str, LiveChain]]:
    for found in _dump(sock, GETCHAIN):
        # An anonymous chain is part of somebody's rule: it goes with the rule, and only so.
        if _name(found[1]) == TABLE and not _number(found, CHAIN_FLAGS) & CHAIN_BINDING:
            yield _name(found[CHAIN_NAME]), LiveChain((), _hook(found))


def _hook(chain: Mapping[int, bytes]) -> Hook | None:
    if CHAIN_HOOK not in chain:
        return None
    hook = dict(netlink.attributes(chain[CHAIN_HOOK]))
    number, priority = struct.unpack("!I", hook[HOOK_NUMBER])[0], struct.unpack("!i", hook[HOOK_PRIORITY])[0]
    # Somebody may have put a chain into our table that is none we would make.
    kind = cast("Literal['nat', 'filter']", _name(chain[CHAIN_TYPE]))
    policy: Literal["accept", "drop"] = "accept" if _number(chain, CHAIN_POLICY) == POLICY_ACCEPT else "drop"
    return Hook(kind, cast("Point", POINTS.get(number, "?")), priority, policy)


def _rules(sock: socket.socket) -> Iterator[tuple[str, str]]:
    for found in _dump(sock, GETRULE):
        digest = hashlib.sha256(found.get(RULE_EXPRESSIONS, b"")).hexdigest()[:16]
        yield _name(found[RULE_CHAIN]), digest


def _maps(sock: socket.socket, schema: Mapping[str, Map]) -> Iterator[tuple[str, Map]]:
    for found in _dump(sock, GETSET):
        name = _name(found[SET_NAME])
        if _number(found, SET_FLAGS) & FLAG_ANONYMOUS:
            # Part of somebody's rule: it goes with the rule, and only so.
            continue
        description = dict(netlink.attributes(found.get(SET_DESC, b"")))
        size = _number(description, DESC_SIZE)
        want = schema.get(name)
        if want and _shape(found) == _wanted(want):
            yield name, Map(want.key, want.data, size, want.counter)
        else:
            yield name, Map((), (), size)


def _shape(found: Mapping[int, bytes]) -> tuple[int, int, int, bool, bool]:
    """Return flags, key and data length in bytes, whether data is a verdict, whether elements count."""
    counts = SET_EXPR in found and b"counter\0" in found[SET_EXPR]
    # How a set says that its elements have expressions or its key several fields differs by nft version.
    flags = _number(found, SET_FLAGS) & ~(FLAG_EXPR | FLAG_CONCAT)
    lengths = _number(found, SET_KEY_LEN), _number(found, SET_DATA_LEN)
    return flags, *lengths, _number(found, SET_DATA_TYPE) == TYPE_VERDICT, counts


def _wanted(want: Map) -> tuple[int, int, int, bool, bool]:
    flags = FLAG_MAP if want.data else 0
    if want.data == "verdict":
        return flags, _length(want.key), VERDICT_LENGTH, True, want.counter
    return flags, _length(want.key), _length(want.data), False, want.counter


def _length(fields: tuple[FieldType, ...]) -> int:
    return sum(WIDTHS[field] + -WIDTHS[field] % 4 for field in fields)


def _elements(sock: socket.socket, name: str, shape: Map) -> dict[str, str]:
    key = _decoder(shape.key)
    data = _verdict if shape.data == "verdict" else _decoder(shape.data)
    elements: dict[str, str] = {}
    for found in _dump(sock, GETSETELEM, netlink.text(LIST_SET, name)):
        for _, raw in netlink.attributes(found.get(LIST_ELEMENTS, b"")):
            element = dict(netlink.attributes(raw))
            # The element that matches what no other does has no key.
            which = key(element[ELEMENT_KEY]) if ELEMENT_KEY in element else CATCH_ALL
            elements[which] = data(element[ELEMENT_DATA]) if shape.data else ""
    return elements


def _decoder(fields: tuple[FieldType, ...]) -> Callable[[bytes], str]:
    """Return the reader of a data attribute: the fields of a concatenation as nft writes them."""
    # The attribute holds one nested DATA_VALUE: 4 bytes of header, then the fields padded to 4 bytes.
    places, at = [], 4
    for field in fields:
        places.append((FIELDS[field], at, at + WIDTHS[field]))
        at += _length((field,))

    def decode(value: bytes) -> str:
        return " . ".join([read_field(value[start:end]) for read_field, start, end in places])

    return decode


def _verdict(value: bytes) -> str:
    verdict = dict(netlink.attributes(dict(netlink.attributes(value))[DATA_VERDICT]))
    code = struct.unpack("!i", verdict[VERDICT_CODE])[0]
    word = VERDICTS.get(code, f"verdict {code}")
    return f"{word} {_name(verdict[VERDICT_CHAIN])}" if VERDICT_CHAIN in verdict else word


@lru_cache(maxsize=4096)
def _ipv4(value: bytes) -> str:
    return ".".join(map(str, value))


@lru_cache(maxsize=4096)
def _ipv6(value: bytes) -> str:
    return str(IPv6Address(value))


def _protocol(value: bytes) -> str:
    return PROTOCOLS.get(value[0], str(value[0]))


def _port(value: bytes) -> str:
    return str(value[0] << 8 | value[1])


def _index(value: bytes) -> str:
    # numgen and jhash write their number in the host's byte order.
    return str(struct.unpack("=I", value)[0])


FIELDS: Mapping[FieldType, Callable[[bytes], str]] = {
    "ipv4_addr": _ipv4,
    "ipv6_addr": _ipv6,
    "inet_proto": _protocol,
    "inet_service": _port,
    "ifname": _name,
    "index": _index,
}
