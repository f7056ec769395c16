"""Addresses, routes and policy rules against a real kernel, in a network namespace of each test's own."""

import pytest

import netns
from lbd.core.plan import satisfies
from lbd.core.state import PROTOCOL, Address, LiveRoute, Route, RouteKey, Rule
from lbd.host.net import Net, NetRefusedError

pytestmark = pytest.mark.kernel


@pytest.fixture
def host():
    with netns.inside(netns.DIRECTOR) as namespace:
        yield namespace


@pytest.fixture
def net(host):
    with Net() as door:
        yield door


def live(net, key):
    return net.read([], [key], []).routes.get(key)


ADDRESSES = (Address("192.168.18.60/24", "eth0"), Address("2001:db8:18::60/64", "eth0"))


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_an_address_is_ours_from_adding_to_deleting(net, address):
    net.add_address(address)
    assert net.read([], [], []).addresses == {address: True}
    net.add_address(address)
    net.delete_address(address)
    assert net.read([address], [], []).addresses == {}
    net.delete_address(address)


def test_an_ipv6_address_answers_and_is_a_source_at_once(host, net):
    net.add_address(ADDRESSES[1])
    assert "tentative" not in host.ip("addr", "show", "to", "2001:db8:18::60")
    net.add_route(Route("2001:db8:9::/48", "2001:db8:2::1", source="2001:db8:18::60", metric=1024))


@pytest.mark.parametrize("address", ["192.168.18.58/24", "2001:db8:18::58/64"])
def test_a_foreign_address_is_seen_and_left_alone(host, net, address):
    before = host.state()
    wished = Address(address, "eth0")
    assert net.read([wished], [], []).addresses == {wished: False}
    with pytest.raises(NetRefusedError, match=r"eth0: File exists .*not ours"):
        net.add_address(wished)
    net.delete_address(wished)
    assert host.state() == before


def test_an_address_takes_no_foreign_one_with_it(host, net):
    ours = Address("192.168.7.1/24", "eth0")
    net.add_address(ours)
    host.ip("addr", "add", "192.168.7.2/24", "dev", "eth0")
    with pytest.raises(NetRefusedError, match=r"would delete 192\.168\.7\.2/24 with it.*promote_secondaries"):
        net.delete_address(ours)
    host.ip("addr", "add", "192.168.8.1/24", "dev", "eth0")
    net.add_address(Address("192.168.8.2/24", "eth0"))
    net.delete_address(Address("192.168.8.2/24", "eth0"))
    host.run("sysctl", "-q", "net.ipv4.conf.eth0.promote_secondaries=1")
    net.delete_address(ours)
    shown = host.ip("addr", "show", "dev", "eth0")
    assert "192.168.7.1" not in shown
    assert "192.168.8.2" not in shown
    assert "192.168.7.2/24" in shown
    assert "192.168.8.1/24" in shown


ROUTES = (
    Route("10.9.0.0/16", "192.168.2.1"),
    Route("0.0.0.0/0", "192.168.2.1", "eth1"),
    Route("10.9.0.0/16", "", "eth1"),
    Route("10.9.0.0/16", "192.168.2.1", source="192.168.18.58"),
    Route("10.9.0.0/16", "192.168.2.1", table=100),
    Route("0.0.0.0/0", "192.168.2.1", table=70000, metric=7),
    Route("10.9.8.7/32", "192.168.2.1", "eth1", "192.168.2.90", 100, 50),
    Route("2001:db8:9::/48", "2001:db8:2::1", metric=1024),
    Route("::/0", "2001:db8:2::1", "eth1", metric=1024),
    Route("2001:db8:9::/48", "", "eth1", metric=1024),
    Route("2001:db8:9::/48", "2001:db8:2::1", source="2001:db8:18::58", metric=1024),
    Route("::/0", "2001:db8:2::1", table=70000, metric=7),
)


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_route_is_ours_from_adding_to_deleting(net, route):
    net.add_route(route)
    state = net.read([], [], [])
    assert list(state.routes) == [route.key]
    assert state.routes[route.key].protocol == PROTOCOL
    assert satisfies(state.routes[route.key].route, route)
    assert net.read([], [route.key], []).routes == state.routes
    net.add_route(route)
    net.delete_route(state.routes[route.key].route)
    assert net.read([], [route.key], []).routes == {}
    net.delete_route(route)


def test_our_route_is_replaced_by_another_next_hop(net):
    net.add_route(Route("10.9.0.0/16", "192.168.2.1"))
    with pytest.raises(NetRefusedError, match=r"File exists .*via 192\.168\.2\.1 dev eth1, of protocol 76"):
        net.add_route(Route("10.9.0.0/16", "192.168.2.2"))
    net.add_route(Route("10.9.0.0/16", "192.168.2.2"), replace=True)
    assert net.read([], [], []).routes == {
        RouteKey("10.9.0.0/16", 254, 0): LiveRoute(Route("10.9.0.0/16", "192.168.2.2", "eth1"), PROTOCOL)
    }


FOREIGN = {
    "default, by hand": "default via 192.168.2.1",
    "default, of a DHCP client": "default via 192.168.2.1 dev eth1 proto dhcp src 192.168.2.90 metric 100",
    "default, gateway on no network": "default via 172.31.1.1 dev eth1 onlink proto static",
    "network on the link": "10.9.0.0/16 dev eth1 proto static scope link",
    "IPv4 by way of IPv6": "10.9.0.0/16 via inet6 2001:db8:2::1 dev eth1 proto bgp",
    "several next hops": "default proto bgp nexthop via 192.168.2.1 dev eth1 weight 1"
    " nexthop via 192.168.18.1 dev eth0 weight 3",
    "several next hops, one without gateway": "10.9.0.0/16 proto bgp"
    " nexthop via 192.168.2.1 dev eth1 weight 1 nexthop dev eth0 weight 1",
    "blackhole": "blackhole 10.9.0.0/16 proto static",
    "IPv6 default": "default via 2001:db8:2::1 dev eth1 proto static metric 1024",
    "IPv6 default of the router": "default via fe80::1 dev eth1 proto ra metric 100",
    "IPv6, several next hops": "2001:db8:9::/48 proto bgp metric 1024"
    " nexthop via 2001:db8:2::1 dev eth1 weight 1 nexthop via 2001:db8:18::1 dev eth0 weight 2",
    "IPv6, unreachable": "unreachable 2001:db8:9::/48 proto static metric 50",
}


@pytest.mark.parametrize("words", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_route_is_replaced_and_restored(host, net, words):
    family = "-6" if "db8:9" in words or "default via 2001" in words or "fe80" in words else "-4"
    host.ip(family, "route", "add", *words.split())
    before = host.routes("table", "all", family=family)
    six = family == "-6"
    to = {"10.9.0.0/16", "2001:db8:9::/48"} & set(words.split())
    metric = int(words.split("metric ")[1].split()[0]) if "metric" in words else 0
    key = RouteKey(to.pop() if to else ("::/0" if six else "0.0.0.0/0"), 254, metric)
    found = live(net, key)
    wish = Route(key.to, "2001:db8:18::9" if six else "192.168.18.9", metric=metric)
    assert found.protocol != PROTOCOL
    assert not satisfies(found.route, wish)
    with pytest.raises(NetRefusedError, match="File exists"):
        net.add_route(wish)
    net.delete_route(wish)
    net.delete_route(found.route)
    assert host.routes("table", "all", family=family) == before

    net.add_route(wish, replace=True)
    assert live(net, key).protocol == PROTOCOL
    assert len(host.routes("default" if key.to.endswith("/0") else key.to, family=family)) == 1
    net.restore_route(found)
    assert live(net, key) == found
    assert host.routes("table", "all", family=family) == before


def test_of_two_routes_with_one_key_the_one_in_use_is_seen(host, net):
    host.ip("route", "add", "10.9.0.0/16", "via", "192.168.2.1")
    host.ip("route", "append", "10.9.0.0/16", "via", "192.168.2.2")
    assert live(net, RouteKey("10.9.0.0/16", 254, 0)).route.via == "192.168.2.1"


def test_only_the_exact_key_is_a_wished_route(host, net):
    for words in (
        "10.9.0.0/24",
        "10.9.0.0/16 metric 5",
        "10.9.0.0/16 table 100",
        "10.0.0.0/8",
        "10.8.0.0/16",
    ):
        host.ip("route", "add", *words.split(), "via", "192.168.2.1")
    assert live(net, RouteKey("10.9.0.0/16", 254, 0)) is None
    assert live(net, RouteKey("10.9.0.0/16", 254, 5)) is not None
    assert net.read([], [RouteKey("10.9.0.0/16", 254, 0), RouteKey("10.9.0.0/16", 99, 0)], []).routes == {}


def test_a_route_of_ours_goes_whatever_its_scope(host, net):
    host.ip("route", "add", "10.9.0.0/16", "dev", "eth1", "scope", "global", "proto", str(PROTOCOL))
    for found in net.read([], [], []).routes.values():
        net.delete_route(found.route)
    assert host.routes("10.9.0.0/16") == []


RULES = (
    Rule(1000, 100, source="192.168.2.0/24"),
    Rule(0, 70000, to="10.9.0.0/16", iif="eth0"),
    Rule(1000, 100, 6, source="2001:db8:2::/64"),
    Rule(1000, 254, 6, iif="eth1"),
)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_is_ours_from_adding_to_deleting(net, rule):
    net.add_rule(rule)
    assert net.read([], [], []).rules == {rule: True}
    net.add_rule(rule)
    assert net.read([], [], [rule]).rules == {rule: True}
    net.delete_rule(rule)
    assert net.read([], [], [rule]).rules == {}
    net.delete_rule(rule)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_foreign_rule_is_seen_and_left_alone(host, net, family):
    wished = Rule(1000, 100, abs(int(family)), iif="eth0")

    def add(*words):
        host.ip(family, "rule", "add", *words, "iif", "eth0", "lookup", "100", "priority", "1000")

    for more in ("fwmark 5", "not", "ipproto tcp", "oif eth1", "suppress_prefixlength 8", "tos 0x10"):
        add(*more.split())
    assert net.read([], [], [wished]).rules == {}
    add("protocol", "static")
    before = host.state()
    assert net.read([], [], [wished]).rules == {wished: False}
    assert net.read([], [], [Rule(1000, 101, abs(int(family)), iif="eth0")]).rules == {}
    net.delete_rule(wished)
    assert host.state() == before
    net.add_rule(wished)
    assert net.read([], [], [wished]).rules == {wished: True}
    net.delete_rule(wished)
    assert host.state() == before


def test_nothing_foreign_changes_when_ours_comes_and_goes(host, net):
    host.ip("route", "add", "default", "via", "192.168.2.1")
    host.ip("-6", "route", "add", "default", "via", "2001:db8:2::1")
    host.ip("route", "add", "10.9.0.0/16", "via", "192.168.2.1", "metric", "5")
    host.ip(
        "rule", "add", "from", "192.168.2.0/24", "lookup", "100", "priority", "1000", "protocol", "static"
    )
    before = host.state()
    routes = [route for route in ROUTES if not route.to.endswith("/0")]
    for address in ADDRESSES:
        net.add_address(address)
    for route in routes:
        net.add_route(route, replace=True)
    for rule in RULES:
        net.add_rule(rule)
    assert host.state() != before
    state = net.read([], [], [])
    for rule in state.rules:
        net.delete_rule(rule)
    for found in state.routes.values():
        net.delete_route(found.route)
    for address in state.addresses:
        net.delete_address(address)
    assert host.state() == before
