"""Random valid configurations, small and from few values, so that two of them have much in common.

They are also good for a real kernel: a host with the interfaces and addresses of NETWORKS, all up, takes
every one of them. Every other address here is on no network of the host.
"""

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import strategies as st

from lbd.core.desired import desired
from lbd.core.settings import (
    AddressEntry,
    Backend,
    Config,
    Director,
    Listen,
    ReturnPath,
    RouteEntry,
    RuleEntry,
    Service,
)

# Interface to the addresses that it must have for the routes to be possible.
NETWORKS = {
    "eth0": ("198.51.100.1/24", "2001:db8:1::1/64"),
    "eth1": ("192.168.2.1/24", "2001:db8:2::1/64"),
}

LISTENS = tuple(
    Listen(ip_address(address), port, protocol)
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1")
    for port in (53, 80)
    for protocol in ("tcp", "udp")
)
BACKENDS = {
    4: tuple(map(ip_address, ("10.0.0.1", "10.0.0.2", "10.0.0.3"))),
    6: tuple(map(ip_address, ("fd00::1", "fd00::2", "fd00::3"))),
}
SNAT = {4: ip_address("198.51.100.9"), 6: ip_address("2001:db8:1::9")}

# One address twice with another prefix, and one on two interfaces.
ADDRESSES = tuple(
    AddressEntry(ip_interface(address), interface)
    for address, interface in (
        ("192.0.2.1/32", "eth0"),
        ("192.0.2.1/24", "eth0"),
        ("192.0.2.1/32", "eth1"),
        ("203.0.113.1/32", "eth0"),
        ("2001:db8::1/128", "eth0"),
        ("2001:db8::1/64", "eth0"),
        ("2001:db8::2/128", "eth1"),
    )
)

DESTINATIONS = tuple(
    map(ip_network, ("10.8.0.0/16", "10.9.0.0/16", "0.0.0.0/0", "2001:db8:9::/48", "2001:db8:a::/48"))
)
# What a route may say of its way, by family: (via, interface, source).
WAYS = {
    4: (
        (ip_address("192.168.2.254"), None, None),
        (ip_address("192.168.2.254"), "eth1", None),
        (ip_address("192.168.2.253"), "eth1", None),
        (ip_address("192.168.2.254"), "eth1", ip_address("192.168.2.1")),
        (None, "eth1", None),
    ),
    6: (
        (ip_address("2001:db8:2::fe"), "eth1", None),
        (ip_address("2001:db8:2::fd"), "eth1", None),
        (ip_address("2001:db8:2::fe"), "eth1", ip_address("2001:db8:2::1")),
        (None, "eth1", None),
    ),
}
RULES = tuple(
    RuleEntry(priority, table, 6 if source and ":" in source else 4, source and ip_network(source), None, iif)
    for priority in (1000, 1001)
    for table in (100, 101)
    for source, iif in (("10.0.0.0/24", None), (None, "eth0"), ("fd00::/64", None))
)


def _backend(family):
    return st.builds(
        Backend,
        address=st.sampled_from(BACKENDS[family]),
        port=st.sampled_from((None, 8080)),
        # A few times the weight makes the next size of a maglev table.
        weight=st.sampled_from((1, 1, 1, 2, 6, 0)),
        state=st.sampled_from(("up", "up", "up", "drain", "down")),
    )


def _backends(family):
    # Without and with the port of a listen address, two entries may be one backend: not drawn.
    return st.lists(_backend(family), min_size=1, max_size=3, unique_by=lambda b: (b.address, b.port))


@st.composite
def _service(draw, name, listens):
    families = sorted({listen.address.version for listen in listens})
    backends = ()
    if draw(st.integers(0, 5)):
        backends = tuple(backend for family in families for backend in draw(_backends(family)))
    paths = [ReturnPath(), ReturnPath("masquerade")]
    if len(families) == 1:
        paths.append(ReturnPath("snat", SNAT[families[0]]))
    return Service(
        name=name,
        listen=tuple(listens),
        backends=backends,
        interface=draw(st.sampled_from((None, None, "eth0", "eth1"))),
        scheduler=draw(st.sampled_from(("random", "random", "round-robin", "maglev"))),
        return_path=draw(st.sampled_from(paths)),
        when_empty=draw(st.sampled_from(("reject", "drop"))),
        log=draw(st.sampled_from(("off", "off", "new", "path"))),
    )


@st.composite
def _services(draw):
    groups = {}
    for listen in draw(st.lists(st.sampled_from(LISTENS), unique=True, max_size=4)):
        groups.setdefault(draw(st.integers(1, 3)), []).append(listen)
    return tuple(draw(_service(f"s{number}", listens)) for number, listens in groups.items())


@st.composite
def _route(draw):
    to = draw(st.sampled_from(DESTINATIONS))
    way = draw(st.sampled_from(WAYS[to.version]))
    table, metric = draw(st.sampled_from(((254, 0), (254, 0), (254, 50), (100, 0))))
    return RouteEntry(to, *way, table, metric, replace=draw(st.booleans()))


@st.composite
def configs(draw):
    """A valid Config: core/config.parse makes the same of `toml(config)`."""
    return Config(
        director=Director(
            forwarding=draw(st.sampled_from((None, None, True, False))),
            log_target=draw(st.sampled_from(("nflog", "nflog", "kernel"))),
            log_group=draw(st.sampled_from((76, 76, 77))),
        ),
        services=draw(_services()),
        addresses=tuple(
            draw(
                st.lists(
                    st.sampled_from(ADDRESSES), max_size=3, unique_by=lambda a: (a.address.ip, a.interface)
                )
            )
        ),
        routes=tuple(draw(st.lists(_route(), max_size=3, unique_by=lambda r: (r.to, r.table, r.metric)))),
        rules=tuple(draw(st.lists(st.sampled_from(RULES), max_size=2, unique=True))),
    )


def desireds():
    """A Desired that some file asks for."""
    return configs().map(desired)


def routes():
    """A Route that some file asks for."""
    return _route().map(lambda entry: next(iter(desired(Config(routes=(entry,))).routes.values())))


def toml(config: Config) -> str:
    """Return a file that says `config`."""
    director = config.director
    blocks = [
        _block(
            "[director]",
            allow_empty=True,
            forwarding=director.forwarding,
            log_target=director.log_target,
            log_group=director.log_group,
        )
    ]
    blocks += [
        _block(
            "[[service]]",
            name=service.name,
            listen=list(map(str, service.listen)),
            interface=service.interface,
            scheduler=service.scheduler,
            return_path=str(service.return_path),
            when_empty=service.when_empty,
            log=service.log,
            backends=[{"address": str(b), "weight": b.weight, "state": b.state} for b in service.backends],
        )
        for service in config.services
    ]
    blocks += [_block("[[address]]", address=str(a.address), interface=a.interface) for a in config.addresses]
    blocks += [
        _block(
            "[[route]]",
            to=str(route.to),
            via=route.via and str(route.via),
            interface=route.interface,
            source=route.source and str(route.source),
            table=route.table,
            metric=route.metric,
            replace=route.replace,
        )
        for route in config.routes
    ]
    blocks += [
        _block(
            "[[rule]]",
            **{"from": rule.source and str(rule.source)},
            interface=rule.iif,
            table=rule.table,
            priority=rule.priority,
        )
        for rule in config.rules
    ]
    return "\n".join(blocks)


def _block(head, **keys):
    lines = [f"{key} = {_value(value)}" for key, value in keys.items() if value is not None]
    return "\n".join([head, *lines, ""])


def _value(value):
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return f'"{value}"'
        case dict():
            return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(map(_value, value)) + "]"
