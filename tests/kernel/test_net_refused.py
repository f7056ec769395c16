"""What the kernel refuses, what fails below, and what a large routing table costs."""

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest

import netns
from lbd.core.state import Address, LiveRoute, Route, RouteKey, Rule
from lbd.host.net import Net, NetRefusedError

pytestmark = pytest.mark.kernel

BGP, STATIC = 186, 4
ADDRESS = Address("192.168.18.60/24", "eth0")
ROUTE, ROUTE6 = Route("10.9.0.0/16", "192.168.2.1"), Route("2001:db8:9::/48", "2001:db8:2::1", metric=1024)
RULE = Rule(1000, 100, source="192.168.2.0/24")


@pytest.fixture
def host():
    with netns.inside(netns.DIRECTOR) as namespace:
        yield namespace


@pytest.fixture
def net(host):
    with Net() as door:
        yield door


REFUSED = (
    (
        lambda net: net.add_address(Address("192.0.2.1/24", "eth7")),
        r"192\.0\.2\.1/24 dev eth7: interface eth7 does",
    ),
    (
        lambda net: net.add_route(Route("10.9.0.0/16", "", "eth7")),
        r"add route 10\.9.*: interface eth7 does not",
    ),
    (
        lambda net: net.add_route(Route("10.9.0.0/16", "192.168.77.1")),
        r"via 192\.168\.77\.1: Network is unreachable \(the gateway is on no connected network; Nexthop has",
    ),
    (
        lambda net: net.add_route(Route("2001:db8:9::/48", "2001:db8:77::1", metric=1024)),
        r"No route to host \(the gateway is on no connected network",
    ),
    (
        lambda net: net.add_route(Route("10.9.0.0/16", "192.168.2.1", source="192.0.2.77")),
        r"192\.0\.2\.77: Invalid argument \(Invalid prefsrc address\)",
    ),
    (
        lambda net: net.add_route(Route("2001:db8:9::/48", "2001:db8:2::1", source="2001:db8::7", metric=9)),
        r"Invalid argument \(Invalid source address\)",
    ),
    (
        lambda net: net.add_route(Route("10.9.0.0/16", "192.168.3.1", "down0")),
        r"Network is (down|unreachable) \(",
    ),
    (
        lambda net: net.add_address(Address("2001:db8::1/64", "four0")),
        r"\(is IPv6 disabled on this interface\?",
    ),
)


@pytest.mark.parametrize(("ask", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_the_kernel_refuses_is_said_in_words(host, net, ask, words):
    host.batch("link add down0 type veth peer name far2\naddr add 192.168.3.9/24 dev down0\n")
    host.batch("link add four0 type veth peer name far3\nlink set four0 up\n")
    host.run("sysctl", "-q", "net.ipv6.conf.four0.disable_ipv6=1")
    before = host.state()
    with pytest.raises(NetRefusedError, match=words) as refused:
        ask(net)
    assert not refused.value.permission
    assert host.state() == before


def test_what_is_gone_with_its_interface_is_no_error(net):
    net.delete_address(Address("192.0.2.1/24", "eth7"))
    net.delete_route(Route("10.9.0.0/16", "", "eth7"))
    net.delete_route(Route("10.9.0.0/16", "192.168.2.1", table=4711))
    net.delete_rule(Rule(5, 6, iif="eth7"))


@contextlib.contextmanager
def unprivileged():
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda net: net.add_address(ADDRESS),
        lambda net: net.add_route(ROUTE),
        lambda net: net.delete_route(ROUTE),
        lambda net: net.add_rule(RULE),
    ],
)
def test_without_the_capability_the_refusal_names_it_and_reading_works(net, ask):
    with unprivileged():
        net.read([ADDRESS], [ROUTE.key], [RULE])
        with pytest.raises(NetRefusedError, match=r"Operation not permitted .*CAP_NET_ADMIN") as refused:
            ask(net)
    assert refused.value.permission


def test_a_socket_that_failed_is_opened_again(net):
    net.read([], [], [])
    os.close(net._socket._socket.detach())
    net._socket._socket.close()
    with pytest.raises(NetRefusedError, match=r"cannot read .*: the rtnetlink socket failed"):
        net.read([], [], [])
    net.add_route(ROUTE)
    assert list(net.read([], [], []).routes) == [ROUTE.key]


def test_a_route_that_makes_no_sense_is_refused_in_words(net):
    for via in ("type-12", "192.168.2.1 dev eth1", "here"):
        with pytest.raises(NetRefusedError, match="cannot restore route"):
            net.restore_route(LiveRoute(Route("10.9.0.0/16", via), STATIC))


def test_threads_share_the_one_socket(net):
    net.read([], [], [])
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for _ in range(10):
        thread = threading.Thread(target=net.read, args=([], [], []))
        thread.start()
        thread.join()
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("version", [4, 6])
def test_50_000_foreign_routes_are_passed_over_undecoded(host, net, version):
    if version == 4:
        lines = (f"route add 20.{i >> 8}.{i & 255}.0/24 via 192.168.2.9 proto bgp" for i in range(50000))
        key, gateway = RouteKey("0.0.0.0/0", 254, 0), "192.168.2.1"
    else:
        lines = (f"route add 2001:{i:x}::/48 via 2001:db8:2::9 proto bgp" for i in range(50000))
        key, gateway = RouteKey("::/0", 254, 1024), "2001:db8:2::1"
    host.batch("\n".join(lines), f"-{version}")
    host.ip(f"-{version}", "route", "add", "default", "via", gateway)
    net.add_route(ROUTE)
    net.add_route(ROUTE6)

    def fastest(wished):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            state = net.read([], wished, [])
            times.append(time.perf_counter() - start)
        return state, min(times) * 1000

    state, bare = fastest([])
    assert {ROUTE.key, ROUTE6.key} == set(state.routes)
    state, wished = fastest([key])
    assert state.routes[key].route.via == gateway
    other, same_length = fastest(
        [RouteKey("20.0.7.0/24" if version == 4 else "2001:7::/48", 254, key.metric)]
    )
    assert BGP in {found.protocol for found in other.routes.values()}
    print(f"IPv{version}: none {bare:.1f} ms, default {wished:.1f} ms, one of them {same_length:.1f} ms")
    # pyroute2 takes 6 seconds to decode them.
    assert max(wished, same_length) < 500
