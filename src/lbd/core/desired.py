"""What the file means: from a Config, and what is observed of the host, to the Desired state of the host."""

from __future__ import annotations

from collections.abc import Iterator

from lbd.core import ingress, offload
from lbd.core.observed import Observed
from lbd.core.probes import IcmpProbe
from lbd.core.program import LogTo, Surroundings, build
from lbd.core.rotation import KEEPING, condition, rotation, weight
from lbd.core.settings import (
    IP,
    AddressEntry,
    Backend,
    Config,
    Family,
    Listen,
    Network,
    RouteEntry,
    RuleEntry,
    Service,
)
from lbd.core.shape import FAMILIES, Where
from lbd.core.slots import reduce
from lbd.core.state import Address, Desired, Route, Rule
from lbd.core.virtual import Target, Virtual

PING_GROUPS = "net.ipv4.ping_group_range"
LAST_GROUP = 2**31 - 1  # the kernel takes no number above it

FORWARDING: dict[Family, str] = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}


def desired(config: Config, observed: Observed | None = None) -> Desired:
    """Return the state that `config` asks for."""
    observed = observed or Observed()
    virtuals = [v for service in config.services for v in virtuals_of(service, observed)]
    director = config.director
    around = Surroundings(
        LogTo(director.log_target, director.log_group),
        director.mark_mask,
        tuple(sorted(_neighbours(config, observed), key=str)),
        offload.devices(config, observed),
    )
    routes = {route.key: route for route in map(_route, config.routes)}
    untracked = ingress.build(virtuals, observed)
    tracked = [*filter(ingress.is_tracked, virtuals), *untracked.empty]
    return Desired(
        table=build(tracked, around),
        ingress=untracked.table,
        unsafe=untracked.unsafe,
        lacking=tuple(offload.lacking(config, observed)),
        addresses=frozenset([*map(_interface_address, config.addresses), *map(_silent, config.real_server)]),
        routes=routes,
        replace=frozenset(_route(entry).key for entry in config.routes if entry.replace),
        rules=frozenset(map(_rule, config.rules)),
        sysctls={**_forwarding(config, virtuals), **_silence(config), **_pings(config), **untracked.sysctls},
    )


def virtuals_of(service: Service, observed: Observed) -> Iterator[Virtual]:
    """Give the listen addresses of a service, each with the backends that stand behind it now."""
    for where, listen in wheres(service):
        of_family = {b: _target(b, listen) for b in service.backends if b.family == where.family}
        turns = rotation(service, where.family, observed)
        takers = {of_family.get(b) or _target(b, listen): weight(service, b, observed) for b in turns.active}
        waiting = (
            target
            for b, target in of_family.items()
            if target not in takers and condition(service, b, observed).state in KEEPING
        )
        # All of the file, also those of other pools: the size of a table is not to change with them.
        weights = {target: b.weight for b, target in of_family.items()}
        yield Virtual(
            where=where,
            service=service,
            targets=takers,
            total=sum(reduce(weights).values()),
            stay=frozenset({*takers, *waiting}),
            away={of_family[b]: weight(service, b, observed) for b in turns.away},
        )


def wheres(service: Service) -> Iterator[tuple[Where, Listen | None]]:
    """Give the listen addresses of a service in the terms of nftables; a mark is none of its own."""
    interface = service.interface or ""
    if service.mark is not None:
        families = {backend.family for backend in (*service.backends, *service.sorry)} or set(FAMILIES)
        for family in FAMILIES:
            if family in families:
                yield Where(family, "any", interface=interface, mark=service.mark), None
    for listen in service.listen:
        address = "" if listen.wildcard else str(listen.address)
        yield Where(listen.family, listen.protocol, address, listen.ports, interface), listen


def _target(backend: Backend, listen: Listen | None) -> Target:
    if listen is None:
        return Target(str(backend.address))
    if listen.ports.single:
        return Target(str(backend.address), backend.ports_behind(listen))
    return Target(str(backend.address), backend.ports)


def _neighbours(config: Config, observed: Observed) -> Iterator[tuple[Network, str]]:
    """Give the networks from which replies would not come back: those that a backend is in."""
    backends = {
        backend.address
        for service in config.services
        if service.return_path.kind == "gateway"
        for backend in (*service.backends, *service.sorry)
    }
    for network, interface in observed.neighbours:
        if any(address.version == network.version and address in network for address in backends):
            yield network, interface


def _silence(config: Config) -> dict[str, str]:
    """Keep a real server from telling its network that it has the address of a service with direct return.

    Asked for an address of another interface it says nothing (arp_ignore = 1), and it asks others with an
    address of the interface it asks on (arp_announce = 2). IPv6 does so by itself. See ip-sysctl.rst.
    """
    if not any(address.version == 4 for address in config.real_server):  # noqa: PLR2004 - the IP version
        return {}
    return {"net.ipv4.conf.all.arp_ignore": "1", "net.ipv4.conf.all.arp_announce": "2"}


def _silent(address: IP) -> Address:
    return Address(f"{address}/{address.max_prefixlen}", "lo")


def _forwarding(config: Config, virtuals: list[Virtual]) -> dict[str, str]:
    """Hold forwarding on for the families that a service forwards; False leaves it to the administrator."""
    if config.director.forwarding is False:
        return {}
    # What goes on by hardware address is not forwarded.
    forwarded = (v.where.family for v in virtuals if v.service.return_path.kind != "direct")
    return {FORWARDING[family]: "1" for family in forwarded}


def _pings(config: Config) -> dict[str, str]:
    """Let every group ping, as systemd does, while a check does: the kernel's default is that none may.

    It is about echo requests only, of IPv6 as well, and not about raw sockets. See icmp(7).
    """
    probes = [service.health.probe for service in config.services if service.health]
    return {PING_GROUPS: f"0 {LAST_GROUP}"} if any(isinstance(probe, IcmpProbe) for probe in probes) else {}


def _interface_address(entry: AddressEntry) -> Address:
    return Address(str(entry.address), entry.interface)


def _route(entry: RouteEntry) -> Route:
    return Route(
        to=str(entry.to),
        via=str(entry.via or ""),
        interface=entry.interface or "",
        source=str(entry.source or ""),
        table=entry.table,
        metric=entry.live_metric,
    )


def _rule(entry: RuleEntry) -> Rule:
    return Rule(
        priority=entry.priority,
        table=entry.table,
        family=entry.family,
        source=str(entry.source or ""),
        to=str(entry.to or ""),
        iif=entry.iif or "",
    )
