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
from collections.abc import Iterator, Mapping
from typing import Literal, cast

from lbd.core.state import FLOWTABLE, TABLE, Hook, LiveChain, LiveTable, Map, Point, TableFamily
from lbd.host import netlink
from lbd.host.nft_elements import elements, length_of
from lbd.host.nft_messages import (
    FAMILIES,
    GETCHAIN,
    GETFLOWTABLE,
    GETGEN,
    GETOBJ,
    GETRULE,
    GETSET,
    GETTABLE,
    dump,
    header,
    message_type,
    name_of,
    number,
)

# Attribute numbers (NFTA_CHAIN_*, NFTA_HOOK_*, NFTA_RULE_*, ...). Number 1 is the table's name everywhere.
TABLE_FLAGS = 2
CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE, CHAIN_FLAGS = 3, 4, 5, 7, 10
HOOK_NUMBER, HOOK_PRIORITY, HOOK_DEVICE, HOOK_DEVICES = 1, 2, 3, 4
RULE_CHAIN, RULE_EXPRESSIONS = 2, 4
SET_NAME, SET_FLAGS, SET_KEY_LEN, SET_DATA_TYPE, SET_DATA_LEN, SET_DESC, SET_EXPR = 2, 3, 5, 6, 7, 9, 17
SET_OBJECT_TYPE = 15
DESC_SIZE = 1
OBJECT_NAME, OBJECT_TYPE, OBJECT_DATA, OBJECT_LIMIT = 2, 3, 4, 4
LIMIT_RATE, LIMIT_UNIT, LIMIT_BURST, LIMIT_TYPE, LIMIT_FLAGS = 1, 2, 3, 4, 5
FLOWTABLE_NAME, FLOWTABLE_HOOK, FLOWTABLE_FLAGS = 2, 3, 7
FLOWTABLE_HOOK_NUMBER, FLOWTABLE_HOOK_PRIORITY, FLOWTABLE_HOOK_DEVICES = 1, 2, 3
GEN_ID = 1

DORMANT = 0x1
CHAIN_BINDING = 0x4
POLICY_ACCEPT = 1
FLAG_ANONYMOUS, FLAG_INTERVAL, FLAG_MAP, FLAG_TIMEOUT, FLAG_DYNAMIC = 0x1, 0x4, 0x8, 0x10, 0x20
FLAG_OBJECT, FLAG_CONCAT, FLAG_EXPR = 0x40, 0x80, 0x100
TYPE_VERDICT = 0xFFFFFF00
# The kernel gives struct nft_verdict's size for the length of a verdict.
VERDICT_LENGTH = 16

# What nft reads as a name. The kernel takes any text for one, and so does nft's JSON.
SPELLABLE = re.compile(r"[A-Za-z][A-Za-z0-9/_.-]*")

# After this many reads that were not of one moment our own table is in a storm, and the error says so.
TRIES = 20

POINTS = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}


def generation(sock: socket.socket) -> int:
    """Return the ruleset's generation id; it counts the commits of the network namespace."""
    for body in list(netlink.ask(sock, message_type(GETGEN), 0, header(0))):
        for kind, value in netlink.attributes(body, 4):
            if kind == GEN_ID:
                return int(struct.unpack("!I", value)[0])
    raise OSError(errno.EPROTO, "the kernel tells no ruleset generation")


def read(
    sock: socket.socket,
    schema: Mapping[str, Map],
    *,
    learned: bool = False,
    family: TableFamily = "inet",
) -> tuple[LiveTable | None, int]:
    """Return our table of a family (None when it is not there) and the generation it was read at.

    `schema` tells how the elements of each map are to be decoded; those of learned maps only when `learned`
    asks for them, and without those that go by themselves in a moment. A read is of one moment when nobody
    committed meanwhile. On a host where others commit all the time, two equal reads will do: a change to
    our table would have made them differ, and is announced besides. Raises TimeoutError without either.
    """
    last: LiveTable | None = None
    for attempt in range(TRIES):
        before = generation(sock)
        try:
            table = _read(sock, family, schema, learned=learned)
        except (OSError, KeyError) as error:
            # Something vanished between listing it and reading it.
            if isinstance(error, OSError) and error.errno != errno.ENOENT:
                raise
            continue
        if generation(sock) == before or (attempt and table == last):
            return table, before
        last = table
    raise TimeoutError(f"the ruleset changed {TRIES} times while it was read")


def _read(
    sock: socket.socket, family: TableFamily, schema: Mapping[str, Map], *, learned: bool
) -> LiveTable | None:
    try:
        (found,) = netlink.ask(
            sock, message_type(GETTABLE), 0, header(FAMILIES[family]) + netlink.text(1, TABLE)
        )
    except FileNotFoundError:
        return None
    dormant = number(dict(netlink.attributes(found, 4)), TABLE_FLAGS) & DORMANT
    chains = dict(_chains(sock, family))
    for name, digest in _rules(sock, family):
        if chain := chains.get(name):
            chains[name] = LiveChain((*chain.digests, digest), chain.hook)
    maps = dict(_maps(sock, family, schema))
    # Of what only counts, nothing is told; of what is noted, what somebody wants to know.
    read_of = {
        name: shape
        for name, shape in maps.items()
        if shape.key and (not shape.learned or (learned and shape.data))
    }
    contents = {name: elements(sock, family, name, shape) for name, shape in read_of.items()}
    limits, foreign = _objects(sock, family)
    flowtables, other = _flowtables(sock, family)
    unspeakable = not all(SPELLABLE.fullmatch(name) for name in (*chains, *maps, *limits))
    beyond_repair = bool(dormant) or unspeakable or foreign or other
    return LiveTable(chains, maps, contents, limits, flowtables, beyond_repair)


def _objects(sock: socket.socket, family: TableFamily) -> tuple[dict[str, str], bool]:
    """Return our limits, and whether there is anything else: counters, helpers."""
    limits: dict[str, str] = {}
    foreign = False
    for found in dump(sock, family, GETOBJ):
        if name_of(found[1]) != TABLE:
            continue
        if number(found, OBJECT_TYPE) == OBJECT_LIMIT:
            limits[name_of(found[OBJECT_NAME])] = _limit(dict(netlink.attributes(found[OBJECT_DATA])))
        else:
            foreign = True
    return limits, foreign


def _flowtables(sock: socket.socket, family: TableFamily) -> tuple[dict[str, tuple[str, ...]], bool]:
    """Return the devices of our flowtable, and whether there is one that is none we would make."""
    ours: dict[str, tuple[str, ...]] = {}
    foreign = False
    for found in dump(sock, family, GETFLOWTABLE):
        if name_of(found[1]) != TABLE:
            continue
        hook = dict(netlink.attributes(found.get(FLOWTABLE_HOOK, b"")))
        settings = (
            number(hook, FLOWTABLE_HOOK_NUMBER),
            number(hook, FLOWTABLE_HOOK_PRIORITY),
            number(found, FLOWTABLE_FLAGS),
        )
        if (name := name_of(found[FLOWTABLE_NAME])) != FLOWTABLE or any(settings):
            foreign = True
            continue
        devices = netlink.attributes(hook.get(FLOWTABLE_HOOK_DEVICES, b""))
        # An interface that goes leaves its place; the order is that in which they were named.
        ours[name] = tuple(sorted(name_of(device) for _, device in devices))
    return ours, foreign


def _limit(limit: Mapping[int, bytes]) -> str:
    """Return a limit as nft writes it; one that is not over packets in a second only has to differ."""
    rate, unit = (struct.unpack("!Q", limit[kind])[0] for kind in (LIMIT_RATE, LIMIT_UNIT))
    over = "over " if number(limit, LIMIT_FLAGS) & 1 else ""
    per = "second" if unit == 1 else f"{unit} seconds"
    what = "packets" if number(limit, LIMIT_TYPE) == 0 else "bytes"
    return f"rate {over}{rate}/{per} burst {number(limit, LIMIT_BURST)} {what}"


def _chains(sock: socket.socket, family: TableFamily) -> Iterator[tuple[str, LiveChain]]:
    for found in dump(sock, family, GETCHAIN):
        # An anonymous chain is part of somebody's rule: it goes with the rule, and only so.
        if name_of(found[1]) == TABLE and not number(found, CHAIN_FLAGS) & CHAIN_BINDING:
            yield name_of(found[CHAIN_NAME]), LiveChain((), _hook(found, family))


def _hook(chain: Mapping[int, bytes], family: TableFamily) -> Hook | None:
    if CHAIN_HOOK not in chain:
        return None
    hook = dict(netlink.attributes(chain[CHAIN_HOOK]))
    point, priority = struct.unpack("!I", hook[HOOK_NUMBER])[0], struct.unpack("!i", hook[HOOK_PRIORITY])[0]
    # Somebody may have put a chain into our table that is none we would make.
    kind = cast("Literal['nat', 'filter']", name_of(chain[CHAIN_TYPE]))
    policy: Literal["accept", "drop"] = "accept" if number(chain, CHAIN_POLICY) == POLICY_ACCEPT else "drop"
    where = POINTS.get(point, "?") if family == "inet" else "ingress" if not point else "?"
    devices = [hook[HOOK_DEVICE]] if HOOK_DEVICE in hook else []
    devices = devices or [name for _, name in netlink.attributes(hook.get(HOOK_DEVICES, b""))]
    device = ",".join(sorted(map(name_of, devices))) if family == "netdev" else ""
    return Hook(kind, cast("Point", where), priority, policy, device)


def _rules(sock: socket.socket, family: TableFamily) -> Iterator[tuple[str, str]]:
    for found in dump(sock, family, GETRULE):
        digest = hashlib.sha256(found.get(RULE_EXPRESSIONS, b"")).hexdigest()[:16]
        yield name_of(found[RULE_CHAIN]), digest


def _maps(sock: socket.socket, family: TableFamily, schema: Mapping[str, Map]) -> Iterator[tuple[str, Map]]:
    for found in dump(sock, family, GETSET):
        name = name_of(found[SET_NAME])
        if number(found, SET_FLAGS) & FLAG_ANONYMOUS:
            # Part of somebody's rule: it goes with the rule, and only so.
            continue
        description = dict(netlink.attributes(found.get(SET_DESC, b"")))
        size = number(description, DESC_SIZE)
        want = schema.get(name)
        if want and _shape(found) == _wanted(want):
            yield name, Map(want.key, want.data, size, want.counter, want.interval, want.learned)
        else:
            yield name, Map((), (), size)


def _shape(found: Mapping[int, bytes]) -> tuple[int, int, int, str, bool]:
    """Return flags, key and data length in bytes, what data is, and whether elements count."""
    counts = SET_EXPR in found and b"counter\0" in found[SET_EXPR]
    # How a set says that its elements have expressions or its key several fields differs by nft version.
    flags = number(found, SET_FLAGS) & ~(FLAG_EXPR | FLAG_CONCAT)
    lengths = number(found, SET_KEY_LEN), number(found, SET_DATA_LEN)
    kind = "verdict" if number(found, SET_DATA_TYPE) == TYPE_VERDICT else ""
    if flags & FLAG_OBJECT:
        kind = "limit" if number(found, SET_OBJECT_TYPE) == OBJECT_LIMIT else "object"
    return flags, *lengths, kind, counts


def _wanted(want: Map) -> tuple[int, int, int, str, bool]:
    flags = FLAG_INTERVAL * want.interval
    flags |= {"": 0, "timeout": FLAG_TIMEOUT | FLAG_DYNAMIC, "count": FLAG_DYNAMIC}[want.learned]
    length = length_of(want.key)
    match want.data:
        case "verdict":
            return flags | FLAG_MAP, length, VERDICT_LENGTH, "verdict", want.counter
        case "limit":
            return flags | FLAG_OBJECT, length, 0, "limit", want.counter
        case fields:
            return flags | FLAG_MAP * bool(fields), length, length_of(fields), "", want.counter
