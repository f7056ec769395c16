"""The kernel's news of the network: what arrives, what is passed over, and when it is too much."""

import select
import time
from pathlib import Path

import pytest

import netns
from lbd.core.state import PROTOCOL, Address, RouteKey
from lbd.host.net import Net
from lbd.host.net_events import NetEvents

pytestmark = pytest.mark.kernel


@pytest.fixture
def host():
    with netns.inside(netns.DIRECTOR) as namespace:
        yield namespace


def collect(events, wanted, seconds=5.0):
    """Drain until `wanted` holds for what came so far; return all of it."""
    got = []
    end = time.monotonic() + seconds
    while not wanted(got):
        assert time.monotonic() < end, f"only {got}"
        select.select([events], [], [], 0.1)
        got += events.drain()
    return got


def quiet(events, host):
    """Let pass what is under way: the next thing to arrive is a mark of ours."""
    host.ip("rule", "add", "lookup", "99", "priority", "9999")
    return collect(events, lambda got: any("priority 9999" in event.what for event in got))[:-1]


@pytest.fixture
def events(host):
    watched = [RouteKey("0.0.0.0/0", 254, 0), RouteKey("2001:db8:9::/48", 100, 7)]
    with NetEvents(watched) as door:
        yield door


NEWS = (
    ("link", False, "eth1", ("link", "set", "eth1", "down")),
    ("address", False, "192.168.18.61/24", ("addr", "add", "192.168.18.61/24", "dev", "eth0")),
    ("address", False, "2001:db8:18::61/64", ("addr", "add", "2001:db8:18::61/64", "dev", "eth0", "nodad")),
    ("route", True, "10.9.0.0/16", ("route", "add", "10.9.0.0/16", "via", "192.168.2.1", "proto", "76")),
    (
        "route",
        False,
        "0.0.0.0/0 table 254",
        ("route", "add", "default", "via", "192.168.2.1", "proto", "bgp"),
    ),
    (
        "route",
        False,
        "2001:db8:9::/48 table 100 metric 7",
        ("route", "add", "2001:db8:9::/48", "via", "2001:db8:2::1", "table", "100", "metric", "7"),
    ),
    ("rule", False, "priority 7 lookup 70000", ("rule", "add", "lookup", "70000", "priority", "7")),
    (
        "rule",
        True,
        "priority 8 lookup 100",
        ("-6", "rule", "add", "lookup", "100", "priority", "8", "protocol", "76"),
    ),
)


@pytest.mark.parametrize(
    ("kind", "ours", "what", "words"), NEWS, ids=[f"{news[0]} {news[2]}" for news in NEWS]
)
def test_news_of_each_kind_arrives(host, events, kind, ours, what, words):
    host.ip(*words)
    arrived = collect(events, lambda got: any(event.kind == kind and what in event.what for event in got))
    event = next(event for event in arrived if event.kind == kind and what in event.what)
    assert event.ours == ours
    assert event.what.endswith("new or changed")
    if kind in ("route", "rule"):
        assert event.portid
    undone = [{"add": "del"}.get(word, word) for word in words if word != "nodad"]
    if undone != list(words):
        host.ip(*undone)
        collect(events, lambda got: any(what in event.what and event.what.endswith("gone") for event in got))


def test_news_of_our_own_address_says_so(events):
    with Net() as net:
        net.add_address(Address("192.168.18.60/24", "eth0"))
    collect(events, lambda got: any(event.kind == "address" and event.ours for event in got))


@pytest.mark.parametrize(
    ("path", "what"), [("ipv4/ip_forward", "IPv4 all = 1"), ("ipv6/conf/all/forwarding", "IPv6 all = 1")]
)
def test_news_of_forwarding_arrives(events, path, what):
    Path("/proc/sys/net", path).write_text("1")
    arrived = collect(events, lambda got: any(event.what.startswith(what) for event in got))
    assert next(event.kind for event in arrived if event.what.startswith(what)) == "forwarding"


def test_routes_that_do_not_concern_us_are_no_news(host, events):
    quiet(events, host)
    for words in ("10.9.0.0/16", "10.8.0.0/16 table 100", "default table 100", "default metric 5"):
        host.ip("route", "add", *words.split(), "via", "192.168.2.1", "proto", "bgp")
    host.ip("route", "add", "10.7.0.0/16", "via", "192.168.2.1", "proto", str(PROTOCOL))
    arrived = collect(events, bool)
    assert [event.what.split()[0] for event in arrived] == ["10.7.0.0/16"]
    events.watched = frozenset([RouteKey("10.6.0.0/16", 254, 0)])
    host.ip("route", "add", "default", "via", "192.168.2.1")
    host.ip("route", "add", "10.6.0.0/16", "via", "192.168.2.1")
    arrived = collect(events, bool)
    assert [event.what.split()[0] for event in arrived] == ["10.6.0.0/16"]


def test_lost_news_is_said_once_and_the_socket_goes_on(host):
    key = RouteKey("0.0.0.0/0", 254, 0)
    with NetEvents([key], receive_buffer=1) as events:  # the kernel makes it its least, some 2 KiB
        lines = (f"route add 10.9.{i}.0/24 via 192.168.2.1 proto {PROTOCOL}" for i in range(200))
        host.batch("\n".join(lines))
        got = events.drain()
        assert [event.kind for event in got].count("lost") == 1
        assert len(got) < 200
        assert events.drain() == ()
        host.ip("route", "add", "default", "via", "192.168.2.1")
        assert [event.kind for event in collect(events, bool)] == ["route"]


def test_a_storm_of_foreign_routes_costs_little_and_drain_is_bounded(host, events):
    quiet(events, host)
    count = 3000
    lines = "\n".join(f"route add 20.{i >> 8}.{i & 255}.0/24 via 192.168.2.9 proto bgp" for i in range(count))
    host.batch(lines)
    start = time.process_time()
    assert events.drain() == ()
    assert select.select([events], [], [], 0)[0], "one drain() took all of a storm"
    assert events.drain() == ()
    spent = (time.process_time() - start) / count * 1e6
    assert not select.select([events], [], [], 0)[0]
    print(f"{spent:.1f} us of CPU for each foreign route")
    assert spent < 50
