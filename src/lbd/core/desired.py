"""What the file means: from a Config to the Desired state of the host."""

from __future__ import annotations

from collections.abc import Iterable

from lbd.core.program import Family, LogTo, Target, Virtual, build
from lbd.core.program import Listen as Endpoint
from lbd.core.settings import AddressEntry, Config, Listen, RouteEntry, RuleEntry, Service
from lbd.core.slots import reduce
from lbd.core.state import Address, Desired, Route, Rule

FORWARDING: dict[Family, str] = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}


def desired(config: Config) -> Desired:
    """Return the state that `config` asks for."""
    virtuals = [virtual for service in config.services for virtual in _virtuals(service)]
    routes = {route.key: route for route in map(_route, config.routes)}
    return Desired(
        table=build(virtuals, LogTo(config.director.log_target, config.director.log_group)),
        addresses=frozenset(map(_interface_address, config.addresses)),
        routes=routes,
        replace=frozenset(_route(entry).key for entry in config.routes if entry.replace),
        rules=frozenset(map(_rule, config.rules)),
        sysctls=_sysctls(config, virtuals),
    )


def _virtuals(service: Service) -> Iterable[Virtual]:
    for listen in service.listen:
        family = _family(listen)
        backends = {
            Target(str(backend.address), backend.port_behind(listen)): backend
            for backend in service.backends
            if backend.address.version == family
        }
        path = service.return_path
        yield Virtual(
            listen=Endpoint(family, listen.protocol, str(listen.address), listen.port),
            targets={target: b.weight for target, b in backends.items() if b.in_rotation},
            total=sum(reduce({target: b.weight for target, b in backends.items()}).values()),
            interface=service.interface or "",
            scheduler=service.scheduler,
            when_empty=service.when_empty,
            source={"gateway": "", "masquerade": "masquerade", "snat": str(path.source)}[path.kind],
            log=service.log,
        )


def _family(listen: Listen) -> Family:
    return 4 if listen.address.version == 4 else 6  # noqa: PLR2004 - the family is its own number


def _sysctls(config: Config, virtuals: list[Virtual]) -> dict[str, str]:
    """Hold forwarding on for the families that a service forwards; False leaves it to the administrator."""
    if config.director.forwarding is False:
        return {}
    return {FORWARDING[virtual.listen.family]: "1" for virtual in virtuals}


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
