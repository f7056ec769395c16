"""The packet program: a few fixed chains, and every service as elements of their maps.

A new connection walks `services`, which looks its destination up in the services maps, the most exact kind
of listen address first, and goes to the chain of the service's class (core/schedule) or, if the service has
lists or limits, to what has to be passed before (core/guard). All services of one class share one chain,
because nf_tables checks every chain again when a rule is added: rules must not grow with services. A map,
and the rule that reads it, are there when a service needs them.

    services4    { 192.168.18.58 . tcp . 8888 : goto tcp4_random_2 }
    slots_tcp4   { 192.168.18.58 . 8888 . 0 : 192.168.2.73 . 9999,  192.168.18.58 . 8888 . 1 : ... }
    chain tcp4_random_2 { dnat ip to ip daddr . tcp dport . numgen random mod 2 map @slots_tcp4; drop }

nat chains see only the first packet of a connection; what follows costs what conntrack costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lbd.core import guard, offload, persistence, return_path, schedule, synproxy
from lbd.core.draft import Draft
from lbd.core.settings import WHOLE_MARK, Network
from lbd.core.shape import Reading, common, prefix, readings, verdicts
from lbd.core.state import Chain, Hook, Map, Point, Table
from lbd.core.virtual import Virtual

# Numbers of linux/netfilter_ipv4.h (NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC, NF_IP_PRI_MANGLE).
DSTNAT, SRCNAT, MANGLE = -100, 100, -150

# A path line is for a person to read: more than this is cut in the kernel, per direction and protocol.
LOG_RATE = "limit rate 200/second burst 200 packets"


@dataclass(frozen=True, slots=True)
class LogTo:
    """Where `log` lines go: an NFLOG group, or the kernel log."""

    target: Literal["nflog", "kernel"] = "nflog"
    group: int = 76


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the program takes from the director and not from a service.

    `neighbours` are networks with the interface that leads to them without a router. `devices` are the
    interfaces to offload between, if the kernel can.
    """

    log_to: LogTo = LogTo()
    mark_mask: int = WHOLE_MARK
    neighbours: tuple[tuple[Network, str], ...] = ()
    devices: tuple[str, ...] = ()


def build(virtuals: Iterable[Virtual], around: Surroundings | None = None) -> Table:
    """Return the whole table for the given services. Listen addresses must be unique."""
    around = around or Surroundings()
    virtuals = tuple(virtuals)
    shapes = {(virtual.where.shape, virtual.where.family) for virtual in virtuals}
    used = list(readings(shapes, around.mark_mask))
    by_shape = {(reading.shape, reading.family): reading for reading in used}
    draft, salt = Draft(), persistence.salt(virtuals)
    _frame(draft)
    for virtual in virtuals:
        reading = by_shape[virtual.where.shape, virtual.where.family]
        _add(draft, virtual, reading, salt)
        if virtual.service.offload and around.devices:
            offload.add(draft, virtual, reading)
    for reading in used:
        guard.chains(draft, reading)
    _neighbours(draft, around)
    synproxy.chains(draft, used)
    offload.chains(draft, used, around.devices)
    _hooks(draft, used)
    _join_shown(draft)
    _log(draft, used, around.log_to)
    return draft.table()


def _frame(draft: Draft) -> None:
    """Have what is always there, so that the table can be read without knowing the file."""
    # A TCP reset only answers TCP; `reject` says port unreachable in either family.
    draft.chain("refuse_reject", "meta l4proto tcp reject with tcp reset", "reject")
    draft.chain("refuse_drop", "drop")


def _add(draft: Draft, virtual: Virtual, reading: Reading, salt: int) -> None:
    service, key = virtual.service, virtual.where.key
    chain = f"refuse_{service.when_empty}"
    keeps = virtual.stay and (service.persistence or schedule.pinned(virtual))
    if virtual.targets or keeps:
        chain = schedule.add(draft, virtual, reading, salt)
        return_path.add(draft, virtual, reading, salt)
    if guard.needed(service):
        chain = guard.add(draft, virtual, reading, chain)
    counted = replace(verdicts(reading), counter=True)
    draft.put(f"services{common(reading)}", counted, key, f"goto {chain}")
    if service.limits.synproxy and virtual.targets:
        synproxy.add(draft, virtual, reading)
    if service.log != "off":
        shown = _shown(reading)
        types = shown.shape.types(reading.family, shown.shape.fields)
        logged = Map(types, (), 0, interval=shown.shape.interval)
        where = replace(virtual.where, interface=virtual.where.interface * shown.shape.interface)
        draft.put(f"log_{service.log}{common(shown)}", logged, where.key)


def _shown(reading: Reading) -> Reading:
    """Return by which fields packets are shown: replies do not enter where requests do.

    Where there is no address, the interface (or the mark) is all that tells a service's packets from others,
    and only requests have it.
    """
    shape = reading.shape
    return replace(reading, shape=replace(shape, interface=shape.interface and not shape.address))


def _join_shown(draft: Draft) -> None:
    """Make one of ranges of ports that overlap, which services on different interfaces may have.

    Without the interface they are in one set, and nftables refuses a set of ranges that overlap.
    """
    for name, shape in draft.maps.items():
        if name.startswith("log_") and shape.interval:
            draft.elements[name] = dict.fromkeys(_joined(draft.elements[name]), "")


def _joined(keys: Iterable[str]) -> Iterator[str]:
    spans: dict[str, list[tuple[int, int]]] = {}
    for key in keys:
        before, _, ports = key.rpartition(" . ")
        first, _, last = ports.partition("-")
        spans.setdefault(before, []).append((int(first), int(last)))
    for before, ranges in spans.items():
        joined: list[tuple[int, int]] = []
        for low, high in sorted(ranges):
            if joined and low <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], high))
            else:
                joined.append((low, high))
        yield from (f"{before} . {low}-{high}" for low, high in joined)


def _neighbours(draft: Draft, around: Surroundings) -> None:
    for network, interface in around.neighbours:
        name = f"neighbours{network.version}"
        if name in draft.maps:
            draft.elements[name][f"{prefix(network)} . {interface}"] = ""


def _hooks(draft: Draft, used: Sequence[Reading]) -> None:
    entrance = [f"{r.guard}{r.key} vmap @services{common(r)}" for r in used]
    leave = [rule for reading in used for rule in return_path.rules(draft, reading)]
    draft.chain("services", *entrance)
    # What a synproxy answers is a connection only once it goes on to the backend, through output.
    proxied = tuple(synproxy.passed(draft, used))
    draft.chains["prerouting"] = Chain((*proxied, "goto services"), Hook("nat", "prerouting", DSTNAT))
    # What the director itself opens does not pass prerouting.
    draft.chains["output"] = Chain(("goto services",), Hook("nat", "output", DSTNAT))
    # Also where nothing is to be translated: without a rule about connections the kernel tracks none, and
    # then does not ask a hook of type nat at all, not even to refuse.
    draft.chain("leave", *leave)
    leaving = ("ct status dnat goto leave",)
    draft.chains["postrouting"] = Chain(leaving, Hook("nat", "postrouting", SRCNAT))


# The prefixes of the experiment that lbd comes from; the short ones go with NFLOG, for others to read.
PREFIX = {
    ("kernel", "prerouting"): "<<<<< PER IN:",
    ("kernel", "postrouting"): ">>>>> POST OUT:",
    ("nflog", "prerouting"): "lbd in",
    ("nflog", "postrouting"): "lbd out",
}


def _log(draft: Draft, used: Sequence[Reading], log_to: LogTo) -> None:
    """Have the chains that show packets: per packet, hence only there when a service asks for them."""
    points: tuple[Point, ...] = ("prerouting", "postrouting")
    for point in points:
        prefix = PREFIX[log_to.target, point]
        action = f'log prefix "{prefix}" '
        action += f"group {log_to.group}" if log_to.target == "nflog" else "level debug"
        rules = []
        for reading in dict.fromkeys(map(_shown, used)):
            match, key = reading.original_guard, reading.original
            if f"log_path{common(reading)}" in draft.maps:
                rules.append(f"{match}{key} @log_path{common(reading)} {LOG_RATE} {action}")
            if point == "prerouting" and f"log_new{common(reading)}" in draft.maps:
                rules.append(f"{match}ct state new {key} @log_new{common(reading)} {LOG_RATE} {action}")
        if rules:
            draft.chains[f"log_{point}"] = Chain(tuple(rules), Hook("filter", point, MANGLE))
