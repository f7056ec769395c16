"""Clients near the director: the director itself, its real servers, and others of their network."""

import pytest

from lbd.lab.tap import Tap
from lbd.lab.traffic import ask
from running import CLIENT, SERVERS, VIP, at, backends, service
from serving import BACK, FAMILIES, PROTOCOLS, route, serve

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parametrize("family", FAMILIES),
    pytest.mark.parametrize("protocol", PROTOCOLS),
]
paths = pytest.mark.parametrize("path", ["gateway", "masquerade"])

SNAT = {4: ["192.168.2.91", "192.168.2.92"], 6: ["2001:db8:2::91", "2001:db8:2::92"]}


@pytest.fixture(scope="module")
def listeners(lab, servers):
    """The servers on port 9999, also those of SCTP."""
    hosts = ("server1", "server2", "server3")
    return servers | {(host, "sctp"): lab.enter(serve(lab, host, 9999, "sctp")) for host in hosts}


@pytest.fixture
def seen(lab, listeners, family, protocol):
    """Who answered a host that asked the VIP, and from which address the server was asked."""

    def asked(host, port=8888, **options):
        before = {key: server.clients.copy() for key, server in listeners.items()}
        answer = ask(lab, host, VIP[family], port, protocol=protocol, **options)
        if not answer.server:
            return answer.failure, ""
        server = listeners[answer.server, protocol]
        (source,) = server.clients - before[answer.server, protocol]
        return answer.server, source

    return asked


@paths
def test_the_director_is_a_client_of_its_services(director, seen, family, protocol, path):
    director.apply(service(at(VIP[family], 8888, protocol), backends(1, family), return_path=path))
    # Its own VIP as a source would be right, too, but not known to the real server.
    assert [seen("director") for _ in range(3)] == [("server1", BACK[family])] * 3


@paths
def test_a_server_is_a_client_of_a_service_on_its_neighbour(director, seen, family, protocol, path):
    director.apply(service(at(VIP[family], 8888, protocol), backends(1, family), return_path=path))
    # More than once: a redirect of the director's would show from the second on.
    assert [seen("server3") for _ in range(3)] == [("server1", BACK[family])] * 3


@paths
def test_a_server_is_a_client_of_a_service_on_itself(director, seen, family, protocol, path):
    director.apply(service(at(VIP[family], 8888, protocol), backends(1, family), return_path=path))
    assert [seen("server1") for _ in range(3)] == [("server1", BACK[family])] * 3


def test_a_server_is_a_client_of_a_service_that_sends_it_anywhere(director, seen, family, protocol):
    text = service(at(VIP[family], 8888, protocol), backends(3, family), scheduler="round-robin")
    director.apply(text)
    assert sorted(seen("server2") for _ in range(3)) == [
        (name, BACK[family]) for name in ("server1", "server2", "server3")
    ]


def test_a_neighbour_s_own_address_is_kept_for_a_client_elsewhere(director, seen, family, protocol):
    director.apply(service(at(VIP[family], 8888, protocol), backends(1, family)))
    assert seen("client") == ("server1", CLIENT[family])
    assert seen("server3") == ("server1", BACK[family])
    assert seen("client") == ("server1", CLIENT[family])


@pytest.fixture
def tap(lab):
    with Tap(lab, "server1", ["eth0"]) as tap:
        yield tap


def carried(family):
    width = {4: 24, 6: 64}[family]
    return "".join(
        f'[[address]]\naddress = "{address}/{width}"\ninterface = "eth1"\n' for address in SNAT[family]
    )


def test_snat_takes_one_of_several_addresses_by_the_client(lab, director, seen, family, protocol):
    path = f"snat:{','.join(SNAT[family])}"
    director.apply(
        carried(family) + service(at(VIP[family], 8888, protocol), backends(1, family), return_path=path)
    )
    route(lab, "client")
    sources = [f"192.168.18.{n}" if family == 4 else f"2001:db8:18::{n}" for n in range(150, 160)]
    for source in sources:
        width, nodad = (24, []) if family == 4 else (64, ["nodad"])
        words = ["ip", "address", "replace", f"{source}/{width}", "dev", "eth0", *nodad]
        lab.run("client", words)
    used = [{seen("client", source=source) for _ in range(3)} for source in sources]
    # A client has one address, and both are in use.
    assert all(len(each) == 1 for each in used), used
    assert set.union(*used) == {("server1", address) for address in SNAT[family]}


@pytest.mark.parametrize("count", [1, 2])
def test_snat_takes_ports_of_a_range(director, tap, seen, family, protocol, count):
    addresses = SNAT[family][:count]
    path = f"snat:{','.join(addresses)} port 20000-20009"
    director.apply(
        carried(family) + service(at(VIP[family], 8888, protocol), backends(1, family), return_path=path)
    )
    tap.clear()
    for _ in range(5):
        server, source = seen("client")
        assert (server, source in addresses) == ("server1", True)
    ports = {
        p.source_port
        for p in tap.seen
        if p.direction == "in" and p.destination == SERVERS[family][0] and p.protocol == protocol
    }
    assert ports
    assert ports <= set(range(20_000, 20_010))
