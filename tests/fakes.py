"""Hosts in memory: with foreign things on them, copied, and compared."""

from copy import copy
from dataclasses import replace

from hypothesis import strategies as st

from lbd.core.desired import FORWARDING, PING_GROUPS
from lbd.core.state import Address, LiveRoute, Rule
from lbd.reconcile import reconcile
from lbd.testing import GATEWAYS_AT, FakeHost
from strategies import ADDRESSES, RULES, routes

# All that a file drawn asks for.
SYSCTLS = (
    *FORWARDING.values(),
    PING_GROUPS,
    *(f"net/ipv4/conf/{name}/{key}" for name in ("eth0", "eth1") for key in ("accept_local", "rp_filter")),
)

STATIC = 4  # RTPROT_STATIC: routes of an administrator


@st.composite
def hosts(draw):
    """A host with things that are not lbd's; some of them are just what a file may ask for."""
    host = FakeHost({name: draw(st.sampled_from("01")) for name in SYSCTLS})
    # With another prefix than the file asks for, IPv6 would refuse for ever.
    at_hand = [Address(str(a.address), a.interface) for a in ADDRESSES if a.address.version == 4]
    host.addresses = dict.fromkeys(draw(st.lists(st.sampled_from(at_hand), max_size=2)), False)
    for route in draw(st.lists(routes(), max_size=2)):
        live = replace(route, interface=route.interface or GATEWAYS_AT)
        host.routes[live.key] = LiveRoute(live, STATIC)
    rules = st.lists(st.sampled_from(RULES), max_size=2)
    host.rules = {
        Rule(r.priority, r.table, r.family, str(r.source or ""), "", r.iif or ""): False for r in draw(rules)
    }
    return host


def clone(host):
    """A host that goes on by itself from here."""
    other = copy(host)
    other.ruleset, other.ingress = (each and each.copy() for each in (host.ruleset, host.ingress))
    other.addresses, other.routes = dict(host.addresses), dict(host.routes)
    other.rules, other.sysctls, other.applied = dict(host.rules), dict(host.sysctls), []
    return other


def state(host):
    """Everything a host is, except how large its maps are: a large one serves where a small one would."""
    tables = _table(host.ruleset), _table(host.ingress)
    return *tables, host.addresses, host.routes, host.rules, host.sysctls


def _table(ruleset):
    return ruleset and (
        {name: (chain.hook, chain.rules) for name, chain in ruleset.chains.items()},
        {name: replace(shape, size=0) for name, shape in ruleset.maps.items()},
        ruleset.elements,
        ruleset.limits,
        ruleset.flowtables,
    )


def asked_for(table):
    """What state() has of a table that is just what a file asks for."""
    return table and (
        {name: (chain.hook, list(chain.rules)) for name, chain in table.chains.items()},
        {name: replace(shape, size=0) for name, shape in table.maps.items()},
        table.elements,
        table.limits,
        table.flowtables,
    )


def wanted(host, wish):
    """What `wish` is on a host that lbd has never touched."""
    fresh = clone(host)
    reconcile(fresh, wish)
    return state(fresh)
