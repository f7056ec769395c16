"""What a director is: the values that the file asks for, that the kernel has, and that a plan moves between.

Everything here is plain data in the kernel's own terms. `Desired` is built from the file (core/desired),
`Live` is read by the host (host/), and core/plan is the difference of the two.

Elements of nftables maps are text, written exactly as nft reads them ("192.0.2.1 . tcp . 80" and
"goto tcp4_one"); the reader of the kernel decodes into the same text, so both sides compare as
dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Our routes, rules and addresses carry this number (RTPROT_*, FRA_PROTOCOL, IFA_PROTO), which is free in
# /etc/iproute2/rt_protos. It is "L" in ASCII.
PROTOCOL = 76

TABLE = "lbd"

# Our flowtable: one for all services. "offload" alone is a word of nft's own.
FLOWTABLE = "offloaded"

# The main routing table (RT_TABLE_MAIN).
MAIN = 254

# A map's key and data are made of these nft types.
FieldType = Literal[
    "ipv4_addr",
    "ipv6_addr",
    "inet_proto",
    "inet_service",
    "ifname",
    "iface_index",
    "mark",
    "index",
]

Point = Literal["ingress", "prerouting", "input", "forward", "output", "postrouting"]

# Our tables: connections are balanced in one, packets that no connection is tracked of in the other.
TableFamily = Literal["inet", "netdev"]

Elements = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain sits; `priority` is the number, since names differ by family and nft version.

    `policy` is what becomes of a packet that no rule decides. `device` is the interface of an ingress.
    """

    type: Literal["nat", "filter"]
    point: Point
    priority: int
    policy: Literal["accept", "drop"] = "accept"
    device: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain as we want it: its rules are nft text, one rule each."""

    rules: tuple[str, ...]
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class Map:
    """A declared map or set. `data` is "verdict", "limit", field types, or () for a set; `size` in elements.

    `interval`: a field of a key may be a range or a prefix. `learned`: packets make the elements, and what
    they are is not the file's to say; they go after a time, or when what they count is none any more.
    """

    key: tuple[FieldType, ...]
    data: tuple[FieldType, ...] | Literal["verdict", "limit"]
    size: int
    counter: bool = False
    interval: bool = False
    learned: Literal["", "timeout", "count"] = ""
    # Slot maps name the packet fields they are used with (`typeof`), because nft only then accepts a
    # rule added in a later transaction. Empty: declared by `type`.
    typeof: str = ""


@dataclass(frozen=True, slots=True)
class Learned:
    """What the elements of learned maps may be, which packets put in.

    Elements of the same key in `maps` belong together; `allowed` has, by the first field of a key, what
    their data may be, joined by " . ".
    """

    maps: tuple[str, ...]
    allowed: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Table:
    """Our nftables table as the file asks for it. `elements` has an entry for each of `maps`.

    `limits` are named objects, as "rate over 10/second burst 20 packets". `flowtables` has the devices of
    each, in order.
    """

    chains: Mapping[str, Chain] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)
    elements: Mapping[str, Elements] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    learned: tuple[Learned, ...] = ()
    flowtables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LiveChain:
    """A chain as the kernel has it: each rule is a digest of its compiled expressions."""

    digests: tuple[str, ...]
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class LiveTable:
    """Our table as read from the kernel. A map that we cannot decode has `Map.key == ()` and no elements.

    `beyond_repair`: somebody did to it what is only undone by making it anew.
    """

    chains: Mapping[str, LiveChain] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)
    elements: Mapping[str, Elements] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    flowtables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    beyond_repair: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """An interface address: `address` is "192.0.2.1/24", normal form, host bits kept."""

    address: str
    interface: str

    def __str__(self) -> str:
        return f"address {self.address} dev {self.interface}"


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """A unicast route.

    `to` is a network in normal form ("0.0.0.0/0" or "::/0" for the default route). `metric` 0 is IPv4's
    default and the kernel turns 0 into 1024 for IPv6, so core/desired writes 1024 there. An empty
    `via`, `interface` or `source` is not stated; the kernel then chooses and any live value satisfies it.
    """

    to: str
    via: str = ""
    interface: str = ""
    source: str = ""
    table: int = MAIN
    metric: int = 0

    @property
    def key(self) -> RouteKey:
        """What the kernel holds to be the same route (`ip route replace` replaces by it)."""
        return RouteKey(self.to, self.table, self.metric)

    def __str__(self) -> str:
        words = [("via", self.via), ("dev", self.interface), ("src", self.source)]
        words += [
            ("table", "" if self.table == MAIN else str(self.table)),
            ("metric", str(self.metric or "")),
        ]
        return " ".join(["route", self.to, *(f"{word} {value}" for word, value in words if value)])


@dataclass(frozen=True, slots=True, order=True)
class RouteKey:
    """The identity of a route in the kernel: destination, table and metric."""

    to: str
    table: int
    metric: int


@dataclass(frozen=True, slots=True)
class LiveRoute:
    """A route in the kernel and whose it is (`protocol` as in rt_protos; ours is PROTOCOL)."""

    route: Route
    protocol: int


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """A policy routing rule. `source` and `to` are networks in normal form, or "" for all."""

    priority: int
    table: int
    family: Literal[4, 6] = 4
    source: str = ""
    to: str = ""
    iif: str = ""

    def __str__(self) -> str:
        words = [("from", self.source or "all"), ("to", self.to), ("iif", self.iif)]
        said = " ".join(f"{word} {value}" for word, value in words if value)
        return f"rule {self.priority}: {said} lookup {self.table} (IPv{self.family})"


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole state the file asks for. `replace` names the routes that may take a foreign one's place.

    `ingress` is the table of the netdev family, None when no service needs it. `unsafe` says what of the
    file is left out as things are, and why; `lacking` what is done in another way, because this host cannot.
    """

    table: Table = field(default_factory=Table)
    ingress: Table | None = None
    unsafe: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    addresses: frozenset[Address] = frozenset()
    routes: Mapping[RouteKey, Route] = field(default_factory=dict)
    replace: frozenset[RouteKey] = frozenset()
    rules: frozenset[Rule] = frozenset()
    # Only what lbd holds: sysctl name ("net.ipv4.ip_forward") to value. Others are left alone.
    sysctls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the kernel cannot tell and lbd must know: kept in the state directory.

    `sysctls` and `routes` are what was there before lbd changed it, to be put back. `bodies` maps the
    text of a chain body that we wrote to the digests that the kernel had for it right after.
    """

    sysctls: Mapping[str, str] = field(default_factory=dict)
    routes: Mapping[RouteKey, LiveRoute] = field(default_factory=dict)
    bodies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Live:
    """What the host has, as far as it concerns lbd.

    `table` and `ingress` are None when our table does not exist. `addresses` and `rules` map to whether they
    are ours; foreign ones are there only to know that what is desired is there. `routes` holds ours and any
    foreign route with a key the file asks for; `sysctls` has those that the file asks for or lbd has changed.
    `generation` is the ruleset's generation id at the read.
    """

    table: LiveTable | None = None
    ingress: LiveTable | None = None
    addresses: Mapping[Address, bool] = field(default_factory=dict)
    routes: Mapping[RouteKey, LiveRoute] = field(default_factory=dict)
    rules: Mapping[Rule, bool] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    generation: int = 0
