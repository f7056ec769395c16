"""Random valid configurations, small and from few values, so that two of them have much in common.

They are also good for a real kernel: a host with the interfaces and addresses of NETWORKS, all up, takes
every one of them. Every other address here is on no network of the host.
"""

from datetime import timedelta
from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import strategies as st

from lbd.core.desired import desired
from lbd.core.observed import Link, Observed, Override, expired
from lbd.core.settings import WHOLE_MARK, AddressEntry, Config, Director, RouteEntry, RuleEntry
from services import DEADLINE, ENDS, services

# Interface to the addresses that it must have for the routes to be possible.
NETWORKS = {
    "eth0": ("198.51.100.1/24", "2001:db8:1::1/64"),
    "eth1": ("192.168.2.1/24", "2001:db8:2::1/64"),
}

# What the host may tell of the networks around it.
NEIGHBOURS = tuple(
    (ip_network(network), interface)
    for network, interface in (("10.0.0.0/24", "eth1"), ("10.0.0.0/8", "eth0"), ("fd00::/64", "eth1"))
)

OVERRIDES = (Override("drain", "by root"), Override("maintenance", "by root"))

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


@st.composite
def _route(draw):
    to = draw(st.sampled_from(DESTINATIONS))
    way = draw(st.sampled_from(WAYS[to.version]))
    table, metric = draw(st.sampled_from(((254, 0), (254, 0), (254, 50), (100, 0))))
    return RouteEntry(to, *way, table, metric, replace=draw(st.booleans()))


@st.composite
def configs(draw):
    """A valid Config: core/config.parse makes the same of `written.sources(config)`."""
    devices = draw(st.sampled_from(((), ("eth0", "eth1"))))
    return Config(
        director=Director(
            forwarding=draw(st.sampled_from((None, None, True, False))),
            log_target=draw(st.sampled_from(("nflog", "nflog", "kernel"))),
            log_group=draw(st.sampled_from((76, 76, 77))),
            mark_mask=draw(st.sampled_from((WHOLE_MARK, 0xFF))),
            devices=devices,
            removed_percent=draw(st.sampled_from((50, 50, 80))),
            removed_from=draw(st.sampled_from((10, 10, 3))),
        ),
        services=draw(services(devices)),
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


@st.composite
def observations(draw, config, *, offloads=True):
    """What a host may tell, on which `config` is in force; `offloads` if its kernel has flowtables."""
    names = [(service.name, str(backend)) for service in config.services for backend in service.backends]
    some = st.lists(st.sampled_from(names), unique=True, max_size=2) if names else st.just([])
    checked = {service.name for service in config.services if service.health}
    return Observed(
        expired=expired(config, draw(st.sampled_from((DEADLINE - timedelta(seconds=1), DEADLINE)))),
        neighbours=frozenset(draw(st.lists(st.sampled_from(NEIGHBOURS), unique=True, max_size=3))),
        full=frozenset(draw(some)),
        links={
            str(address): draw(
                st.sampled_from((Link("eth1", 2), Link("eth1", 2), Link("eth0", 1, routed=True)))
            )
            for family in (4, 6)
            for address in ENDS[family][: draw(st.integers(1, 3))]
        },
        interfaces=frozenset(draw(st.sampled_from((("eth0", "eth1"), ("eth0", "eth1"), ("eth0",))))),
        offloads=offloads and draw(st.booleans()),
        shares={name: draw(st.integers(1, 3)) for name in draw(some)},
        dead=frozenset(name for name in draw(some) if name[0] in checked),
        overrides={name: draw(st.sampled_from(OVERRIDES)) for name in draw(some)},
        ended=frozenset(draw(some)),
        portions={name: draw(st.sampled_from((0, 10, 75))) for name in draw(some) if name[0] in checked},
    )


@st.composite
def desireds(draw, *, offloads=True):
    """A Desired that some file asks for, on some host."""
    config = draw(configs())
    return desired(config, draw(observations(config, offloads=offloads)))


def routes():
    """A Route that some file asks for."""
    return _route().map(lambda entry: next(iter(desired(Config(routes=(entry,))).routes.values())))
