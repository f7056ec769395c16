"""Which hosts there are and how they are wired, as values, and the `ip` commands that make them.

Pure: nothing here starts a process. `namespaces.Lab` runs the commands. Interfaces of the same segment
share a bridge in a namespace of its own, `WIRE`, so nothing is added to the host that runs the lab.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from itertools import islice
from typing import Literal

from lbd.core.state import Route

Gateway = Literal["elsewhere", "director"]

# The namespace of the bridges. A host cannot have this name.
WIRE = "wire"

# Every host starts from these. A new namespace inherits the IPv4 settings of the host that made it, so
# forwarding and the reverse path filter are written. The IPv6 ones make an address usable at once (no
# duplicate address detection) and keep router solicitations off the wire. Link-local addresses stay: without
# one a router cannot ask for the neighbour of a packet that it forwards (ndisc_send_ns in net/ipv6/ndisc.c).
QUIET: Mapping[str, str] = {
    "net.ipv4.ip_forward": "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv6.conf.all.forwarding": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.accept_ra": "0",
    "net.ipv6.conf.default.router_solicitations": "0",
}


@dataclass(frozen=True, slots=True)
class Interface:
    """A network card: its name in its host, the segment it is plugged into, addresses as "192.0.2.1/24"."""

    name: str
    segment: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace that plays a host. `sysctls` are written before its interfaces exist, over `QUIET`."""

    name: str
    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)

    def address(self, family: Literal[4, 6] = 4) -> str:
        """Return the first address of the host in that family, without its prefix length.

        Raises LookupError when it has none.
        """
        for interface in self.interfaces:
            for address in map(ip_interface, interface.addresses):
                if address.version == family:
                    return str(address.ip)
        raise LookupError(f"host {self.name!r} has no IPv{family} address")


@dataclass(frozen=True, slots=True)
class Topology:
    """All hosts. Raises ValueError for what cannot be built or could not work."""

    hosts: tuple[Host, ...]

    def __post_init__(self) -> None:
        names = [host.name for host in self.hosts]
        _unique("host", [*names, WIRE])
        _unique("address", [a for h in self.hosts for i in h.interfaces for a in i.addresses])
        for host in self.hosts:
            _unique(f"interface of {host.name}", ["lo", *(i.name for i in host.interfaces)])
            for route in host.routes:
                if route.via and not _on_link(host, route.via):
                    raise ValueError(f"{host.name}: gateway {route.via} is in no subnet of its interfaces")

    def __getitem__(self, name: str) -> Host:
        """Return the host of that name; raises LookupError for an unknown one."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LookupError(f"no host {name!r} in the lab, only {', '.join(h.name for h in self.hosts)}")

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments in use, each once, in order of appearance."""
        return tuple(dict.fromkeys(i.segment for h in self.hosts for i in h.interfaces))


def experiment(
    servers: int = 1,
    *,
    clients: int = 1,
    gateway: Gateway | tuple[Gateway, ...] = "elsewhere",
    ipv6: bool = False,
) -> Topology:
    """Return the experiment that lbd comes from: a director between a client and its real servers.

    client .25 and director .58 (eth0) share 192.168.18.0/24; director .90 (eth1), router .1 and server1
    .73 share 192.168.2.0/24. More real servers are server2 at .74 and so on, past the director's .90;
    more clients are client2 at .26 and so on. The default gateway of the real servers is the router,
    which forwards nothing ("elsewhere"), or the director; a tuple says it for each. With `ipv6`, every
    host also has 2001:db8:18:: or 2001:db8:2:: with the same last number, in decimal digits.
    """
    gateways = (gateway,) * servers if isinstance(gateway, str) else gateway
    if len(gateways) != servers:
        raise ValueError(f"{servers} real servers and {len(gateways)} gateways: give one gateway for each")
    if not 1 <= clients <= 33 or not 1 <= servers <= 181:  # noqa: PLR2004 - what fits below .58 and .255
        raise ValueError(f"{clients} clients and {servers} servers: at most 33 and 181 fit, and at least one")

    def card(name: str, segment: Literal["front", "back"], last: int) -> Interface:
        net = {"front": 18, "back": 2}[segment]
        six = (f"2001:db8:{net}::{last}/64",) if ipv6 else ()
        return Interface(name, segment, (f"192.168.{net}.{last}/24", *six))

    def default(via: int) -> tuple[Route, ...]:
        six = (Route("::/0", f"2001:db8:2::{via}"),) if ipv6 else ()
        return (Route("0.0.0.0/0", f"192.168.2.{via}"), *six)

    numbers = islice((last for last in range(73, 255) if last != 90), servers)  # noqa: PLR2004 - the director's
    return Topology(
        (
            *(Host(_nth("client", n), (card("eth0", "front", 25 + n),)) for n in range(clients)),
            Host("director", (card("eth0", "front", 58), card("eth1", "back", 90))),
            Host("router", (card("eth0", "back", 1),)),
            *(
                Host(
                    f"server{n}", (card("eth0", "back", last),), default({"elsewhere": 1, "director": 90}[to])
                )
                for n, (last, to) in enumerate(zip(numbers, gateways, strict=True), 1)
            ),
        )
    )


def wiring(topology: Topology, namespaces: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of `ip -batch` for the wire: a bridge for each segment, a port for each interface.

    `namespaces` maps a host's name to its namespace. The other end of a port is born in the namespace of
    its host, so it never shows anywhere else.
    """
    bridges = {segment: f"segment{n}" for n, segment in enumerate(topology.segments)}
    for bridge in bridges.values():
        yield f"link add {bridge} type bridge mcast_snooping 0"
        yield f"link set {bridge} up"
    cards = [(host, interface) for host in topology.hosts for interface in host.interfaces]
    for n, (host, interface) in enumerate(cards):
        yield f"link add port{n} type veth peer name {interface.name} netns {namespaces[host.name]}"
        yield f"link set port{n} master {bridges[interface.segment]} up"


def setup(host: Host) -> Iterator[str]:
    """Yield the lines of `ip -batch` that bring the interfaces, addresses and routes of a host up."""
    for interface in ("lo", *(i.name for i in host.interfaces)):
        yield f"link set {interface} up"
    for interface, address in ((i.name, a) for i in host.interfaces for a in i.addresses):
        nodad = " nodad" if ip_interface(address).version == 6 else ""  # noqa: PLR2004 - IPv6
        yield f"address add {address} dev {interface}{nodad}"
    for route in host.routes:
        yield " ".join(("route add", route.to, *_words(route)))


def _words(route: Route) -> Iterator[str]:
    options = {"via": route.via, "dev": route.interface, "src": route.source}
    numbers = {"metric": route.metric, "table": route.table}
    yield from (f"{word} {value}" for word, value in {**options, **numbers}.items() if value)


def _nth(name: str, n: int) -> str:
    return name if n == 0 else f"{name}{n + 1}"


def _unique(what: str, values: list[str]) -> None:
    twice = {value for value in values if values.count(value) > 1}
    if twice:
        raise ValueError(f"{what} given twice or reserved: {', '.join(sorted(twice))}")


def _on_link(host: Host, via: str) -> bool:
    return any(ip_address(via) in ip_interface(a).network for i in host.interfaces for a in i.addresses)
