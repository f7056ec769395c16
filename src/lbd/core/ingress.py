"""Services without connection tracking: direct return, and stateless translation, where packets enter.

Every packet of such a service walks the ingress chain of its interface, so backends are chosen by hash
alone. The slots hold a number for a backend, which is in the packet's mark while the same rule looks up what
it stands for. With direct return the packet goes on as it is to the backend as a neighbour: the backend has
the listen address on its loopback interface, and answers the client itself. Stateless translation rewrites
the destination, and the source of replies, and needs each backend to be behind one listen address only.

    chain tcp_if_eth0_4_direct_maglev_251 {
        meta mark set ip daddr . tcp dport . jhash ... map @ends_tcp_if_eth0_4
            fwd ip to meta mark map @address4 device meta mark map @leaves_by
        drop
    }
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from zlib import crc32

from lbd.core.draft import Draft
from lbd.core.observed import Link, Observed
from lbd.core.schedule import pick
from lbd.core.settings import WHOLE_MARK, Family, Protocol
from lbd.core.shape import Reading, address_type, common, ip, readings, verdicts
from lbd.core.state import Chain, FieldType, Hook, Map, Table
from lbd.core.virtual import Target, Virtual

# Before all other filters of an ingress; only tc comes earlier.
FIRST = -450


@dataclass(frozen=True, slots=True)
class Ingress:
    """The services of this kind in nftables' terms.

    `empty` are those that no backend can take: the table of tracked connections refuses theirs. `unsafe`
    says what is left out and why, `sysctls` what the kernel must be told to let replies pass.
    """

    table: Table | None = None
    empty: tuple[Virtual, ...] = ()
    unsafe: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)


def is_tracked(virtual: Virtual) -> bool:
    """Tell whether a service is one of tracked connections, and none for here."""
    return virtual.service.return_path.kind not in ("direct", "stateless")


def build(virtuals: Iterable[Virtual], observed: Observed) -> Ingress:
    """Return the table of the netdev family for the services of this kind, and what goes with it."""
    mine = [virtual for virtual in virtuals if not is_tracked(virtual)]
    if not mine:
        return Ingress()
    unsafe = tuple(dict.fromkeys(word for virtual in mine for word in _unsafe(virtual, observed)))
    usable = [_usable(virtual, observed) for virtual in mine]
    full = [virtual for virtual in usable if virtual.targets]
    builder = _Builder(observed.links)
    for virtual in full:
        builder.add(virtual)
    empty = tuple(virtual for virtual in usable if not virtual.targets)
    return Ingress(builder.table() if full else None, empty, unsafe, builder.sysctls)


def _unsafe(virtual: Virtual, observed: Observed) -> Iterator[str]:
    said = f'service "{virtual.service.name}"'
    if virtual.where.interface not in observed.interfaces:
        yield f"{said}: interface {virtual.where.interface} does not exist"
    for target in virtual.targets:
        link = observed.links.get(target.address)
        if link is None:
            yield f"{said}: there is no route to backend {target.address}"
        elif not _has_way(virtual, target, observed):
            yield f"{said}: backend {target.address} is behind a router; direct return needs it on a link"


def _usable(virtual: Virtual, observed: Observed) -> Virtual:
    """Leave out the backends to which there is no way."""
    there = virtual.where.interface in observed.interfaces
    able = {target for target in virtual.stay if there and _has_way(virtual, target, observed)}
    targets = {target: weight for target, weight in virtual.targets.items() if target in able}
    return replace(virtual, targets=targets, stay=frozenset(able))


def _has_way(virtual: Virtual, target: Target, observed: Observed) -> bool:
    link = observed.links.get(target.address)
    return link is not None and (virtual.service.return_path.kind != "direct" or not link.routed)


class _Builder:
    def __init__(self, links: Mapping[str, Link]) -> None:
        self.draft, self.links = Draft(), links
        self.entrances: set[str] = set()
        self.used: dict[tuple[str, Family], Reading] = {}
        self.replies: set[tuple[Protocol, Family]] = set()
        self.sysctls: dict[str, str] = {}
        self.numbers: dict[tuple[str, str], str] = {}

    def add(self, virtual: Virtual) -> None:
        where = virtual.where
        (reading,) = readings({(where.shape, where.family)}, WHOLE_MARK)
        self.used[common(reading), where.family] = reading
        self.entrances.add(where.interface)
        direct = virtual.service.return_path.kind == "direct"
        chain = self._direct(virtual, reading) if direct else self._stateless(virtual, reading)
        counted = replace(verdicts(reading), counter=True)
        self.draft.put(f"services{common(reading)}", counted, where.key, f"goto {chain}")

    def table(self) -> Table:
        """Return what was put together, with a chain for each interface that packets enter by."""
        # A parent of VLANs shows their packets, too, and with a tag they are none of ours.
        rules = ["ether type vlan accept"]
        rules += [f"{r.key} vmap @services{name}" for (name, _), r in sorted(self.used.items())]
        rules += [
            f"meta mark set {ip(family)} saddr . {protocol} sport map @replies_{protocol}{family} "
            f"goto reply_{protocol}{family}"
            for protocol, family in sorted(self.replies)
        ]
        self.draft.chain("services", *rules)
        for device in sorted(self.entrances):
            hook = Hook("filter", "ingress", FIRST, device=device)
            name = f"ingress_{crc32(device.encode()):08x}"
            self.draft.chains[name] = Chain(("goto services",), hook)
        return self.draft.table()

    def _direct(self, virtual: Virtual, reading: Reading) -> str:
        family, name = reading.family, f"{virtual.where.kind}_direct"
        for target in virtual.targets:
            number = self._number(reading, target)
            index = str(self.links[target.address].index)
            self.draft.put("leaves_by", Map(("mark",), ("iface_index",), 0), number, index)
        forward = f"fwd {ip(family)} to meta mark map @address{family} device meta mark map @leaves_by"
        return self._choose(virtual, reading, name, forward)

    def _stateless(self, virtual: Virtual, reading: Reading) -> str:
        protocol, family = virtual.where.protocol, reading.family
        listen = Target(virtual.where.address, virtual.where.ports)
        replies = Map((address_type(family), "inet_service"), ("mark",), 0)
        # Also of those that take no new clients: what they send to their old ones is theirs.
        for target in sorted(virtual.stay, key=lambda target: target.element):
            number = self._number(reading, listen)
            self.draft.put(f"replies_{protocol}{family}", replies, target.element, number)
            for known, end in ((number, listen), (self._number(reading, target), target)):
                self.draft.put("port", Map(("mark",), ("inet_service",), 0), known, str(end.ports))
            self._let_replies_in(self.links[target.address].interface, family)
        self.replies.add((protocol, family))
        self.draft.chain(f"request_{protocol}{family}", *_rewritten(protocol, family, "d"), "drop")
        self.draft.chain(f"reply_{protocol}{family}", *_rewritten(protocol, family, "s"), "drop")
        name = f"{virtual.where.kind}_stateless"
        return self._choose(virtual, reading, name, f"goto request_{protocol}{family}")

    def _choose(self, virtual: Virtual, reading: Reading, name: str, then: str) -> str:
        """Have the slots of a service and the chain that picks one of them."""
        chosen, where = pick(virtual, reading), virtual.where
        types: tuple[FieldType, ...] = (
            *reading.shape.types(reading.family, reading.shape.slot_fields),
            "index",
        )
        typeof = f"{reading.typeof(where.protocol)} . numgen inc mod 65536 : meta mark"
        shape = Map(types, ("mark",), 0, counter=True, typeof=typeof)
        for i, target in enumerate(chosen.slots):
            self.draft.put(
                f"ends_{where.kind}", shape, f"{where.slot_key} . {i}", self._number(reading, target)
            )
        key = f"{reading.slot_key(where.protocol)} . {chosen.expression}"
        rule = f"meta mark set {key} map @ends_{where.kind} {then}"
        return self.draft.chain(f"{name}_{chosen.name}", rule, "drop")

    def _number(self, reading: Reading, target: Target) -> str:
        """Return the number of an endpoint, made of what it is: others that come and go do not change it."""
        end = (target.address, str(target.ports))
        if end not in self.numbers:
            number = crc32(" ".join(end).encode()) or 1
            while (known := f"{number:#010x}") in self.numbers.values():
                number = number % WHOLE_MARK + 1
            self.numbers[end] = known
        number_of = self.numbers[end]
        family = reading.family
        self.draft.put(
            f"address{family}", Map(("mark",), (address_type(family),), 0), number_of, target.address
        )
        return number_of

    def _let_replies_in(self, interface: str, family: Family) -> None:
        """Have replies whose source is already the listen address pass the checks of sources.

        The director may carry that address (accept_local), and does not reach it by the interface of the
        backends (rp_filter = 2, the loose kind). IPv6 has no such checks. See ip-sysctl.rst.
        """
        self.entrances.add(interface)
        if family == 4:  # noqa: PLR2004 - the IP version
            # With slashes, since an interface's name may have dots.
            self.sysctls[f"net/ipv4/conf/{interface}/accept_local"] = "1"
            self.sysctls[f"net/ipv4/conf/{interface}/rp_filter"] = "2"


def _rewritten(protocol: Protocol, family: Family, side: str) -> Iterator[str]:
    """Give the rules that put address and port of a number in the place of a packet's.

    UDP without a checksum must stay without: nft's `udp dport set` would make one that is wrong.
    """
    address = f"{ip(family)} {side}addr set meta mark map @address{family}"
    done = "meta mark set 0 notrack accept"
    if protocol == "udp" and family == 4:  # noqa: PLR2004 - the IP version
        port = {"d": "@th,16,16", "s": "@th,0,16"}[side]
        yield f"{address} udp checksum 0 {port} set meta mark map @port {done}"
        # The address is rewritten by now, if there is a checksum.
        yield f"udp {side}port set meta mark map @port {done}"
    else:
        yield f"{address} {protocol} {side}port set meta mark map @port {done}"
