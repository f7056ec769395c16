"""The director answers SYNs: data passes in both directions, and a flood makes nothing."""

import itertools

import pytest

from lbd.lab.namespaces import wait_until
from lbd.lab.raw import syn_flood
from lbd.lab.tap import Tap
from lbd.lab.traffic import Conversation, ask
from running import CLIENT, SERVERS, VIP, at, backends, service
from serving import BACK, FAMILIES, NETWORKS, ROUTED, connections, forget_connections, route

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("family", FAMILIES)]

carried = pytest.mark.parametrize("carried", [True, False], ids=["carried", "routed"])
FLOOD = 2000


@pytest.fixture(scope="module", autouse=True)
def routes(lab):
    """What is routed to the director has to be local to it for the kernel to answer in its name."""
    route(lab, "client", "client2")
    for network in NETWORKS.values():
        lab.run("director", ["ip", "route", "add", "local", network, "dev", "lo"])
    yield
    for network in NETWORKS.values():
        lab.run("director", ["ip", "route", "del", "local", network, "dev", "lo"])


def web(family, carried, count=1, **options):
    address = (VIP if carried else ROUTED)[family]
    options = {"limits": {"synproxy": True}, **options}
    return address, service(at(address, 8888), backends(count, family), **options)


@carried
def test_data_passes_in_both_directions(lab, director, servers, family, carried):
    address, text = web(family, carried)
    director.apply(text)
    before = servers["server1", "tcp"].clients.copy()
    with Conversation(lab, "client", address, 8888) as talk:
        assert talk.server == "server1"
        assert all(talk.say() == "server1" for _ in range(20))
    assert servers["server1", "tcp"].clients - before == {CLIENT[family]: 21}


@carried
def test_connections_are_spread_and_quick(lab, director, family, carried):
    address, text = web(family, carried, 3, scheduler="round-robin")
    director.apply(text)
    answers = [ask(lab, "client", address, 8888) for _ in range(30)]
    assert [answer.failure for answer in answers] == [""] * 30
    assert {answer.server for answer in answers} == {"server1", "server2", "server3"}
    # With the wrong options they stood for 1.7 s each.
    assert sum(answer.seconds for answer in answers) < 5


def test_a_range_of_ports(lab, director, family):
    director.apply(service(at(VIP[family], "8800-8899"), backends(1, family), limits={"synproxy": True}))
    assert ask(lab, "client", VIP[family], 8888).server == "server1"


def test_with_masquerade_the_director_is_the_source(lab, director, servers, family):
    _, text = web(family, carried=True, return_path="masquerade")
    director.apply(text)
    before = servers["server1", "tcp"].clients.copy()
    assert ask(lab, "client", VIP[family], 8888).server == "server1"
    assert servers["server1", "tcp"].clients - before == {BACK[family]: 1}


def spoofed(family):
    """Addresses of nobody, from networks that the director has no route to."""
    numbers = itertools.islice(itertools.count(1), FLOOD)
    if family == 4:
        return [(f"198.51.{100 + (n >> 8)}.{n & 255}", 1024 + n) for n in numbers]
    return [(f"2001:db8:51::{n:x}", 1024 + n) for n in numbers]


@carried
def test_a_flood_makes_no_connection_and_reaches_no_server(lab, director, family, carried):
    address, text = web(family, carried)
    director.apply(text)
    forget_connections(lab)
    with Tap(lab, "server1", ["eth0"]) as tap, Tap(lab, "director", ["eth0"]) as front:
        sent = syn_flood(lab, "client", address, 8888, spoofed(family))
        assert sent == FLOOD
        # All that were sent came in, so that what did not happen cannot still happen.
        last = spoofed(family)[-1][0]
        front.wait_for(lambda p: p.direction == "in" and p.source == last)
        assert ask(lab, "client", address, 8888).server == "server1"
        reached = {p.source for p in tap.seen if "SYN" in p.flags and p.destination == SERVERS[family][0]}
        assert reached == {CLIENT[family]}
    assert connections(lab) < 10


def test_without_it_a_flood_makes_connections(lab, director, family):
    """The same is told apart: otherwise the test above would hold for nothing."""
    address, text = web(family, carried=True, limits={})
    director.apply(text)
    forget_connections(lab)
    syn_flood(lab, "client", address, 8888, spoofed(family))
    assert wait_until(lambda: connections(lab) > FLOOD / 2, 5)
    forget_connections(lab)


def test_what_nobody_began_is_not_taken_up(lab, director, family):
    """A packet in the middle of a connection that nobody knows is not sent to a server."""
    _, text = web(family, carried=True)
    director.apply(text)
    with Conversation(lab, "client", VIP[family], 8888) as talk, Tap(lab, "server1", ["eth0"]) as tap:
        forget_connections(lab)
        tap.clear()
        assert not talk.alive(0.3)
        assert not [p for p in tap.seen if p.direction == "in" and p.destination_port == 9999]


def test_allow_limits_and_synproxy_together(lab, director, family):
    limits = {"synproxy": True, "client_connections": 100}
    _, text = web(family, carried=True, limits=limits, allow=[CLIENT[family]])
    director.apply(text)
    assert ask(lab, "client", VIP[family], 8888).server == "server1"
    assert ask(lab, "client2", VIP[family], 8888, timeout=0.5).failure
