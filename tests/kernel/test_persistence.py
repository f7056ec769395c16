"""The same client, the same backend: for how long, for whom, and what ends it."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from lbd.lab.namespaces import wait_until
from lbd.lab.traffic import ask
from running import CLIENT, VIP, at, backends, service
from serving import FAMILIES, PROTOCOLS, bare, serve

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("family", FAMILIES)]

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
CLIENT2 = {4: "192.168.18.26", 6: "2001:db8:18::26"}
SERVERS = ("server1", "server2", "server3")

# With chance as the scheduler, that all of so many go one way by themselves is one in three million.
ASKED = 15

_ports = itertools.count(20_000)


@pytest.fixture(scope="module", autouse=True)
def associations(lab, servers):
    for host in SERVERS:
        lab.enter(serve(lab, host, 9999, "sctp"))
        for protocol in PROTOCOLS:
            lab.enter(serve(lab, host, 9998, protocol))


@pytest.fixture
def served(lab, family):
    """Who served so many new connections of a client."""

    def asked(count=ASKED, *, host="client", port=8888, protocol="tcp"):
        answers = (
            ask(lab, host, VIP[family], port, protocol=protocol, source_port=next(_ports))
            for _ in range(count)
        )
        return {answer.server or answer.failure for answer in answers}

    return asked


def web(family, protocol="tcp", *, servers=None, persistence="1h", port="8888", **options):
    """A service that would send each connection elsewhere."""
    options = {"scheduler": "random", "persistence": persistence, **options}
    return service(at(VIP[family], port, protocol), servers or backends(3, family), **options)


def other(family, port, name="other"):
    """Another service with persistence of its own."""
    return service(at(VIP[family], port), backends(2, family), name=name, persistence="5m")


def states(family, **of):
    """The three real servers with keys of their own, by name of the server."""
    return [
        {"address": address, **of.get(name, {})}
        for address, name in zip(backends(3, family), SERVERS, strict=True)
    ]


@protocols
@pytest.mark.parametrize("keeps_port", [False, True])
def test_a_client_stays_with_its_backend(director, served, family, protocol, keeps_port):
    if keeps_port:
        director.apply(web(family, protocol, servers=bare(backends(3, family)), port="9999"))
    else:
        director.apply(web(family, protocol))
    port = 9999 if keeps_port else 8888
    got = [served(host=host, port=port, protocol=protocol) for host in ("client", "client2")]
    assert all(len(each) == 1 and each <= set(SERVERS) for each in got), got


def test_without_it_a_client_goes_everywhere(director, served, family):
    director.apply(web(family).replace('persistence = "1h"\n', ""))
    assert served(30) == set(SERVERS)


@protocols
def test_clients_are_told_apart(director, served, family, protocol):
    """Two clients are each with a backend, and not by rule with the same one."""
    pairs = set()
    for n in range(30):
        # Another port is another listen address, of which no client is known.
        director.apply(web(family, protocol, port=f"{8100 + n}"))
        each = [served(3, host=host, port=8100 + n, protocol=protocol) for host in ("client", "client2")]
        assert [len(of) for of in each] == [1, 1]
        pairs.add(each[0] == each[1])
        if len(pairs) == 2:
            return
    pytest.fail(f"the same in 30 services: {pairs}")


def test_a_prefix_makes_one_client_of_two(director, served, family):
    prefixes = {"timeout": "1h", "prefix_v4": 24, "prefix_v6": 64}
    for n in range(8):
        director.apply(web(family, persistence=prefixes, port=f"{8200 + n}"))
        one, two = (served(3, host=host, port=8200 + n) for host in ("client", "client2"))
        assert one == two
        assert len(one) == 1


@protocols
@pytest.mark.parametrize("behind", ["one port", "the same", "shifted"])
def test_the_ports_of_a_range_are_one(director, served, family, protocol, behind):
    of = {"one port": 9999, "the same": None, "shifted": "9990-10000"}[behind]
    servers = [each if of == 9999 else each.rpartition(":")[0] for each in backends(3, family)]
    servers = [f"{each}:{of}" for each in servers] if behind == "shifted" else servers
    director.apply(web(family, protocol, servers=servers, port="9990-10000"))
    got = served(8, port=9999, protocol=protocol) | served(8, port=9998, protocol=protocol)
    assert len(got) == 1
    assert got <= set(SERVERS)


@pytest.mark.parametrize(
    ("listen", "options"),
    [
        ("{wild}:8888", {"interface": "eth0"}),
        ("{wild}:*", {"interface": "eth0", "ssh": True}),
        ("{wild}:*/any", {"interface": "eth0", "ssh": True}),
        ("{wild}:8800-8899", {"interface": "eth0"}),
        ("{vip}:*", {"ssh": True}),
        ("{vip}:*/any", {"ssh": True}),
        ("{vip}:8888", {"interface": "eth0"}),
        ("{vip}:8800-8899", {"interface": "eth0"}),
    ],
    ids=str,
)
def test_however_the_service_is_addressed(director, served, family, listen, options):
    wild, vip = (("0.0.0.0", VIP[4]), ("[::]", f"[{VIP[6]}]"))[family == 6]
    servers, port = backends(3, family), 8888
    if listen.endswith("/any"):
        servers, port = bare(servers), 9999
    text = service(
        listen.format(wild=wild, vip=vip), servers, scheduler="random", persistence="1h", **options
    )
    director.apply(text)
    (mine,) = served(port=port)
    director.apply(text.replace('"1h"', '"2h"'))
    assert served(port=port) == {mine}
    assert len(served(port=port, host="client2")) == 1


def test_it_outlives_changes_of_others_and_of_the_other_backends(director, served, family):
    director.apply(web(family) + other(family, 8001))
    (mine,) = served()
    for text in (
        web(family),
        web(family) + other(family, 8002, "more") + other(family, 8001),
        web(
            family, servers=[b for b, name in zip(backends(3, family), SERVERS, strict=True) if name == mine]
        ),
        web(family),
        web(family, servers=states(family, **{mine: {"weight": 5}})),
        web(family, scheduler="round-robin"),
        web(family),
    ):
        director.apply(text)
        assert served() == {mine}, text


def test_it_outlives_the_daemon(director, served, family):
    director.apply(web(family))
    (mine,) = served()
    director.stop()
    assert served() == {mine}
    director.start()
    assert served() == {mine}
    director.kill()
    director.start()
    assert served() == {mine}


def test_it_ends_after_its_time(director, served, family):
    director.apply(web(family, persistence="1s"))
    (mine,) = served(5)
    # Only a client that is silent for so long may move, and one in three times it does not.
    for _ in range(20):
        assert wait_until(lambda: not _kept(director), 5)
        if served(1) != {mine}:
            return
    pytest.fail("20 times forgotten, and always sent to the same backend")


def _kept(director):
    return "expires" in director.lab.run("director", ["nft", "list", "table", "inet", "lbd"]).stdout


def test_a_new_connection_begins_the_time_anew(director, served, family):
    director.apply(web(family, persistence="1s"))
    (mine,) = served(3)
    deadline = datetime.now(UTC) + timedelta(seconds=1.5)
    while datetime.now(UTC) < deadline:
        assert served(1) == {mine}


@pytest.mark.parametrize("how", ["down", "gone"])
def test_a_client_of_a_backend_that_goes_moves_at_once(director, served, family, how):
    director.apply(web(family))
    (mine,) = served()
    if how == "down":
        director.apply(web(family, servers=states(family, **{mine: {"state": "down"}})))
    else:
        left = [b for b, name in zip(backends(3, family), SERVERS, strict=True) if name != mine]
        director.apply(web(family, servers=left))
    (now,) = served()
    assert now in set(SERVERS) - {mine}
    # What comes back is not given its old clients.
    director.apply(web(family))
    assert served() == {now}


@protocols
def test_a_client_of_a_drained_backend_stays_and_nobody_comes(director, served, family, protocol):
    director.apply(web(family, protocol))
    (mine,) = served(protocol=protocol)
    director.apply(web(family, protocol, servers=states(family, **{mine: {"state": "drain"}})))
    assert served(protocol=protocol) == {mine}
    # Of another port no client is known.
    text = web(family, protocol, port="8890", servers=states(family, **{mine: {"state": "drain"}}))
    director.apply(text)
    for host in ("client", "client2"):
        assert mine not in served(port=8890, protocol=protocol, host=host)


def test_a_drained_backend_that_is_down_in_a_file_that_is_noticed(director, served, family):
    """No rule changes by that, and nobody asks for a reload."""
    director.apply(web(family))
    (mine,) = served()
    director.apply(web(family, servers=states(family, **{mine: {"state": "drain"}})))
    assert served(3) == {mine}
    text = web(family, servers=states(family, **{mine: {"state": "down"}}))
    director.write(text)
    director.wait_in_force(text)
    assert mine not in served()


def test_the_end_of_a_drain_moves_its_clients(director, served, family):
    director.apply(web(family))
    (mine,) = served()
    text = web(family, servers=states(family, **{mine: {"state": "drain", "drain_until": "WHEN"}}))
    moment = datetime.now(UTC) + timedelta(seconds=2)
    director.apply(text.replace('"WHEN"', moment.isoformat()))
    assert served(3) == {mine}
    assert wait_until(lambda: served(1) != {mine}, 10)
    assert datetime.now(UTC) >= moment
    assert mine not in served()


@protocols
def test_a_pin_comes_before_all(director, served, family, protocol):
    _, two, three = backends(3, family)
    prefix = {4: "192.168.18.24/31", 6: "2001:db8:18::24/127"}[family]  # .25 without .26; ::24 and ::25
    pins = [{"client": prefix, "backend": three}, {"client": CLIENT2[family], "backend": two}]
    for options in ({}, {"pin": pins}):
        director.apply(web(family, protocol, **options))
        assert [len(served(protocol=protocol, host=host)) for host in ("client", "client2")] == [1, 1]
    assert served(protocol=protocol) == {"server3"}
    assert served(protocol=protocol, host="client2") == {"server2"}
    # A pin to a backend that is down is none.
    director.apply(web(family, protocol, pin=pins, servers=states(family, server3={"state": "down"})))
    assert "server3" not in served(protocol=protocol)


def test_a_pin_without_persistence_and_of_one_port(director, served, family):
    pins = [{"client": CLIENT[family], "backend": backends(3, family)[2]}]
    text = web(family, pin=pins).replace('persistence = "1h"\n', "")
    director.apply(text)
    assert served() == {"server3"}
    assert len(served(30, host="client2")) > 1
