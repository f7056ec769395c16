"""How much a service takes: new connections of all clients and of each, and open ones of each."""

import itertools
import time
from contextlib import ExitStack

import pytest

from lbd.lab.namespaces import wait_until
from lbd.lab.traffic import Conversation, ask
from running import VIP, at, backends, service
from serving import FAMILIES, PROTOCOLS, forget_connections, serve

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("family", FAMILIES)]

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

_ports = itertools.count(20_000)
# What a service has taken is remembered while it is in the file, under its name and rate.
_names = (f"web{n}" for n in itertools.count())


@pytest.fixture(scope="module", autouse=True)
def associations(lab, servers):
    lab.enter(serve(lab, "server1", 9999, "sctp"))


@pytest.fixture
def taken(lab, family):
    """How many of so many new connections were served, at once; and what became of the others."""

    def asked(count, *, host="client", port=8888, protocol="tcp", timeout=1.0):
        answers = [
            ask(lab, host, VIP[family], port, protocol=protocol, timeout=timeout, source_port=next(_ports))
            for _ in range(count)
        ]
        failures = {answer.failure for answer in answers if answer.failure}
        return sum(bool(answer.server) for answer in answers), failures

    return asked


def web(family, limits, protocol="tcp", port="8888", **options):
    listen = [at(VIP[family], each, protocol) for each in (port if isinstance(port, list) else [port])]
    options = {"refuse": "reject", "name": next(_names), **options}
    return service(listen, backends(1, family), limits=limits, **options)


def few(got, burst, per_second, began):
    """Whether as many were taken as a burst, and what was earned since, allow."""
    return burst <= got <= burst + per_second * (time.monotonic() - began) + 1


@protocols
def test_new_connections_of_all_clients(director, taken, family, protocol):
    director.apply(web(family, {"new_per_second": 2, "new_burst": 20}, protocol))
    began = time.monotonic()
    one, why = taken(15, protocol=protocol)
    two, why_two = taken(15, host="client2", protocol=protocol)
    assert few(one + two, 20, 2, began), (one, two)
    assert (one, why, why_two) == (15, set(), {"refused"})
    # It comes back with time.
    assert wait_until(lambda: taken(1, protocol=protocol)[0], 5)


def test_refused_silently_where_the_file_says_so(director, taken, family):
    director.apply(web(family, {"new_per_second": 1, "new_burst": 3}, refuse="drop"))
    got, why = taken(8, timeout=0.05)
    assert (3 <= got <= 5, why) == (True, {"timeout"})


def test_listen_addresses_share_what_a_service_takes(director, taken, family):
    director.apply(web(family, {"new_per_second": 2, "new_burst": 20}, port=["8888", "8889", "8900-8910"]))
    began = time.monotonic()
    got = sum(taken(10, port=port)[0] for port in (8888, 8889, 8905))
    assert few(got, 20, 2, began), got


def test_services_do_not_share_it(director, taken, family):
    limits = {"new_per_second": 2, "new_burst": 10}
    director.apply(web(family, limits) + web(family, limits, port="8889"))
    assert taken(20)[0] < 15
    assert taken(10, port=8889)[0] == 10


@protocols
def test_new_connections_of_each_client(director, taken, family, protocol):
    director.apply(web(family, {"client_new_per_second": 2, "client_new_burst": 10}, protocol))
    for host in ("client", "client2"):
        began = time.monotonic()
        got, why = taken(20, host=host, protocol=protocol)
        assert few(got, 10, 2, began), (host, got)
        assert why == {"refused"}
    assert wait_until(lambda: taken(1, protocol=protocol)[0], 5)


def test_the_ports_of_a_range_are_one_for_a_client(director, taken, family):
    director.apply(web(family, {"client_new_per_second": 2, "client_new_burst": 10}, port="8800-8899"))
    began = time.monotonic()
    assert few(sum(taken(2, port=8800 + n)[0] for n in range(10)), 10, 2, began)


def test_both_limits(director, taken, family):
    limits = {"new_per_second": 2, "new_burst": 15, "client_new_per_second": 2, "client_new_burst": 10}
    director.apply(web(family, limits))
    one, _ = taken(12)
    two, _ = taken(12, host="client2")
    assert 10 <= one < 12
    assert two < 10


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_open_connections_of_each_client(lab, director, taken, family, protocol):
    director.apply(web(family, {"client_connections": 3}, protocol))

    def talk(host):
        return Conversation(lab, host, VIP[family], 8888, protocol=protocol, source_port=next(_ports))

    with ExitStack() as stack:
        talks = [stack.enter_context(talk(host)) for host in ("client", "client2") for _ in range(3)]
        assert taken(2, protocol=protocol) == (0, {"refused"})
        assert taken(2, host="client2", protocol=protocol) == (0, {"refused"})
        assert all(each.alive() for each in talks)
        if protocol == "udp":
            # Nothing ends a flow of UDP but that it is forgotten.
            forget_connections(lab)
        else:
            talks[0].close()
        assert wait_until(lambda: taken(1, protocol=protocol)[0], 10)
        assert all(each.alive() for each in talks[1:] if protocol == "tcp")


def test_a_change_of_the_limit_holds_at_once(director, taken, family):
    director.apply(web(family, {"new_per_second": 1, "new_burst": 5}, name="same"))
    assert taken(10)[0] < 8
    director.apply(web(family, {"new_per_second": 1000}, name="same"))
    assert taken(20) == (20, set())
    director.apply(web(family, {}, name="same"))
    assert taken(20) == (20, set())


@pytest.mark.parametrize(
    "limits", [{"new_per_second": 1, "new_burst": 5}, {"client_new_per_second": 1, "client_new_burst": 5}]
)
@pytest.mark.parametrize(
    ("listen", "options"),
    [
        ("{vip}:*", {"ssh": True}),
        ("{vip}:8800-8899", {"interface": "eth0"}),
        ("{wild}:8888", {"interface": "eth0"}),
        ("{wild}:8800-8899", {"interface": "eth0"}),
        ("{wild}:*", {"interface": "eth0", "ssh": True}),
    ],
    ids=str,
)
def test_however_the_service_is_addressed(director, taken, family, limits, listen, options):
    wild, vip = (("0.0.0.0", VIP[4]), ("[::]", f"[{VIP[6]}]"))[family == 6]
    options = {"refuse": "reject", "name": next(_names), "limits": limits, **options}
    director.apply(service(listen.format(wild=wild, vip=vip), backends(1, family), **options))
    got, why = taken(15)
    assert 5 <= got < 10
    assert why == {"refused"}
