"""The packet program: a few fixed chains, and every service as elements of their maps.

A new connection walks `prerouting`, which looks its destination up in the services maps and goes to the
chain of the service's class; the class chain picks a slot (by random number or by hash) and looks
(listen address, port, slot) up for the backend. All services of one class share one chain, because
nf_tables checks every chain again when a rule is added: rules must not grow with services.

    services4    { 192.168.18.58 . tcp . 8888 : goto tcp4_random_2 }
    slots_tcp4   { 192.168.18.58 . 8888 . 0 : 192.168.2.73 . 9999,  192.168.18.58 . 8888 . 1 : ... }
    chain tcp4_random_2 { dnat ip to ip daddr . tcp dport . numgen random mod 2 map @slots_tcp4; drop }

nat chains see only the first packet of a connection; what follows costs what conntrack costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from lbd.core import maglev
from lbd.core.settings import Log, Protocol, Scheduler, WhenEmpty
from lbd.core.slots import reduce, share
from lbd.core.state import Chain, FieldType, Hook, Map, Point, Table

Family = Literal[4, 6]

FAMILIES: tuple[Family, ...] = (4, 6)
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")

# Numbers of linux/netfilter_ipv4.h (NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC, NF_IP_PRI_MANGLE).
DSTNAT, SRCNAT, MANGLE = -100, 100, -150

# A path line is for a person to read: more than this is cut in the kernel, per direction and protocol.
LOG_RATE = "limit rate 200/second burst 200 packets"

# The smallest map: the kernel takes 16 bytes an element for the buckets of an empty one.
SMALLEST = 1024


@dataclass(frozen=True, slots=True)
class Listen:
    """Where a service listens: one address, protocol and port; `address` in normal form."""

    family: Family
    protocol: Protocol
    address: str
    port: int

    @property
    def element(self) -> str:
        """Return the key in the maps by address, protocol and port."""
        return f"{self.address} . {self.protocol} . {self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a share of a service's connections goes."""

    address: str
    port: int

    @property
    def element(self) -> str:
        """Return the value in the slot maps."""
        return f"{self.address} . {self.port}"


@dataclass(frozen=True, slots=True)
class Virtual:
    """One listen address of a service with its live backends, all of one family and protocol.

    `total` is the sum of the reduced weights of all backends in the file, live or not: the size of a
    maglev table follows it, so that a backend that dies does not change the table's size (which would
    move every client).
    """

    listen: Listen
    targets: Mapping[Target, int]
    total: int
    interface: str = ""
    scheduler: Scheduler = "maglev"
    when_empty: WhenEmpty = "reject"
    source: str = ""  # "", "masquerade", or the address of snat
    log: Log = "off"


@dataclass(frozen=True, slots=True)
class LogTo:
    """Where `log` lines go: an NFLOG group, or the kernel log."""

    target: Literal["nflog", "kernel"] = "nflog"
    group: int = 76


def _ip(family: Family) -> str:
    return "ip" if family == 4 else "ip6"  # noqa: PLR2004 - the family is its own number


def _address(family: Family) -> FieldType:
    return "ipv4_addr" if family == 4 else "ipv6_addr"  # noqa: PLR2004


def _schema() -> dict[str, Map]:
    maps: dict[str, Map] = {}
    for family in FAMILIES:
        service: tuple[FieldType, ...] = (_address(family), "inet_proto", "inet_service")
        maps[f"services{family}"] = Map(service, "verdict", 0, counter=True)
        maps[f"services_if{family}"] = Map(("ifname", *service), "verdict", 0, counter=True)
        maps[f"masquerade{family}"] = Map(service, (), 0)
        maps[f"snat{family}"] = Map(service, (_address(family),), 0)
        maps[f"log_new{family}"] = Map(service, (), 0)
        maps[f"log_path{family}"] = Map(service, (), 0)
        for protocol in PROTOCOLS:
            target: tuple[FieldType, ...] = (_address(family), "inet_service")
            packet = f"{_ip(family)} daddr . {protocol} dport"
            typeof = f"{packet} . numgen inc mod 65536 : {packet}"
            maps[f"slots_{protocol}{family}"] = Map(
                (*target, "index"), target, 0, counter=True, typeof=typeof
            )
    return maps


# Every map the program can have, by name; `size` is given by what is in them.
SCHEMA: Mapping[str, Map] = _schema()


@dataclass(slots=True)
class _Builder:
    elements: dict[str, dict[str, str]] = field(default_factory=lambda: {name: {} for name in SCHEMA})
    classes: dict[str, str] = field(default_factory=dict)  # chain name to its dnat rule

    def add(self, virtual: Virtual) -> None:
        listen = virtual.listen
        maps, family, key = self.elements, listen.family, listen.element
        verdict = f"goto {self._class(virtual)}"
        if virtual.interface:
            maps[f"services_if{family}"][f"{virtual.interface} . {key}"] = verdict
        else:
            maps[f"services{family}"][key] = verdict
        if virtual.source == "masquerade":
            maps[f"masquerade{family}"][key] = ""
        elif virtual.source:
            maps[f"snat{family}"][key] = virtual.source
        if virtual.log != "off":
            maps[f"log_{virtual.log}{family}"][key] = ""

    def _class(self, virtual: Virtual) -> str:
        """Put the slots of `virtual` into their map and return the chain that reads them."""
        if not virtual.targets:
            return f"when_empty_{virtual.when_empty}"
        listen = virtual.listen
        slots, chain, pick = schedule(virtual)
        name = f"slots_{listen.protocol}{listen.family}"
        prefix = f"{listen.address} . {listen.port} . "
        self.elements[name].update((f"{prefix}{i}", target.element) for i, target in enumerate(slots))
        ip = _ip(listen.family)
        key = f"{ip} daddr . {listen.protocol} dport"
        self.classes[chain] = f"dnat {ip} to {key} . {pick} map @{name}"
        return chain


def schedule(virtual: Virtual) -> tuple[list[Target], str, str]:
    """Return the slots of a service, the name of its class chain, and how nft picks a slot."""
    listen = virtual.listen
    kind = f"{listen.protocol}{listen.family}"
    if len(virtual.targets) == 1:
        # A hash modulo 1 is refused by the kernel (ERANGE), and nothing is to be chosen.
        return list(virtual.targets), f"{kind}_one", "numgen inc mod 1"
    if virtual.scheduler == "maglev":
        size = maglev.table_size(virtual.total)
        by_name = {target.element: target for target in virtual.targets}
        # Reduced, since beside a weight of 65,535 one of 1 would get no slot at all.
        weights = {target.element: weight for target, weight in reduce(virtual.targets).items()}
        slots = [by_name[name] for name in maglev.table(weights, size)]
        key = f"{_ip(listen.family)} saddr . {listen.protocol} sport"
        return slots, f"{kind}_maglev_{size}", f"jhash {key} mod {size} seed {maglev.SEED:#x}"
    slots = share(virtual.targets)
    if virtual.scheduler == "random":
        return slots, f"{kind}_random_{len(slots)}", f"numgen random mod {len(slots)}"
    # Turns are counted by the rule, so a service that takes turns needs a rule of its own.
    where = listen.address.replace(".", "_").replace(":", "-")
    return slots, f"{kind}_turns_{where}_{listen.port}", f"numgen inc mod {len(slots)}"


def build(virtuals: Iterable[Virtual], log_to: LogTo | None = None) -> Table:
    """Return the whole table for the given services. Listen addresses must be unique."""
    builder = _Builder()
    for virtual in virtuals:
        builder.add(virtual)
    elements = builder.elements
    chains = {
        "prerouting": Chain(tuple(_entrance()), Hook("nat", "prerouting", DSTNAT)),
        "postrouting": Chain(tuple(_return_path()), Hook("nat", "postrouting", SRCNAT)),
        # A TCP reset only answers TCP; `reject` says port unreachable in either family.
        "when_empty_reject": Chain(("meta l4proto tcp reject with tcp reset", "reject")),
        "when_empty_drop": Chain(("drop",)),
    }
    # A slot that is not there (a packet between two generations) must not fall through to the
    # director's own ports: dropped, the client tries again.
    chains |= {name: Chain((dnat, "drop")) for name, dnat in sorted(builder.classes.items())}
    chains |= _log_chains(elements, log_to or LogTo())
    maps = {name: _sized(shape, len(elements[name])) for name, shape in SCHEMA.items()}
    return Table(chains, maps, elements)


def _sized(shape: Map, count: int) -> Map:
    # A declared size makes the dump right and the map half as large. Doubled, so that it seldom grows.
    size = max(SMALLEST, 1 << (2 * count - 1).bit_length()) if count else SMALLEST
    return Map(shape.key, shape.data, size, shape.counter, shape.typeof)


def _entrance() -> Iterable[str]:
    for family in FAMILIES:
        key = f"{_ip(family)} daddr . meta l4proto . th dport"
        yield f"iifname . {key} vmap @services_if{family}"
        yield f"{key} vmap @services{family}"


def _original(family: Family, protocol: Protocol) -> tuple[str, str]:
    """Match a protocol, and name the listen address a connection came to, whatever NAT made of it.

    nft 1.0.6 takes `ct original proto-dst` only behind a match on the protocol.
    """
    key = f"ct original {_ip(family)} daddr . meta l4proto . ct original proto-dst"
    return f"meta l4proto {protocol}", key


def _return_path() -> Iterable[str]:
    for family, protocol in product(FAMILIES, PROTOCOLS):
        match, key = _original(family, protocol)
        yield f"{match} ct status dnat {key} @masquerade{family} masquerade"
        yield f"{match} ct status dnat snat {_ip(family)} to {key} map @snat{family}"


# The prefixes of the experiment that lbd comes from; the short ones go with NFLOG, for others to read.
PREFIX = {
    ("kernel", "prerouting"): "<<<<< PER IN:",
    ("kernel", "postrouting"): ">>>>> POST OUT:",
    ("nflog", "prerouting"): "lbd in",
    ("nflog", "postrouting"): "lbd out",
}


def _log_chains(elements: Mapping[str, Mapping[str, str]], log_to: LogTo) -> dict[str, Chain]:
    """Return the chains that show packets: per packet, hence only there when a service asks for them."""
    rules: dict[Point, list[str]] = {"prerouting": [], "postrouting": []}
    for point, family, protocol in product(rules, FAMILIES, PROTOCOLS):
        prefix = PREFIX[log_to.target, point]
        action = f'log prefix "{prefix}" '
        action += f"group {log_to.group}" if log_to.target == "nflog" else "level debug"
        match, key = _original(family, protocol)
        if elements[f"log_path{family}"]:
            rules[point].append(f"{match} {key} @log_path{family} {LOG_RATE} {action}")
        if point == "prerouting" and elements[f"log_new{family}"]:
            rules[point].append(f"{match} ct state new {key} @log_new{family} {LOG_RATE} {action}")
    return {
        f"log_{point}": Chain(tuple(texts), Hook("filter", point, MANGLE))
        for point, texts in rules.items()
        if texts
    }
