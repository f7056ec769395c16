"""Connections reach the real servers: TCP and UDP, IPv4 and IPv6, through a running director."""

import pytest

from director import ONE
from director import service as five_lines
from lbd.lab.servers import PAGE, Server
from lbd.lab.traffic import ask
from running import CLIENT, VIP, at, backends, service

pytestmark = pytest.mark.kernel

FAMILIES = [4, 6]
PROTOCOLS = ["tcp", "udp"]


def everybody(*, tcp="server1", udp="server2"):
    """One service for each family and protocol on port 8888, and whom each reaches."""
    places = {"server1": 0, "server2": 1, "server3": 2}
    return "\n".join(
        service(
            at(VIP[family], 8888, protocol),
            [backends(3, family)[places[server]]],
            name=f"{protocol}{family}",
        )
        for family in FAMILIES
        for protocol, server in (("tcp", tcp), ("udp", udp))
    )


def test_five_lines_serve(lab, director):
    director.apply(five_lines(ONE))
    assert ask(lab, "client", VIP[4], 8888).server == "server1"
    assert ask(lab, "client2", VIP[4], 8888).server == "server1"


def test_a_page_is_fetched_by_http(lab, director):
    director.apply(service(at(VIP[4], 80), ["192.168.2.73:80"]))
    with Server(lab, "server1", 80, "page"):
        answer = ask(lab, "client", VIP[4], 80, protocol="http")
    assert (answer.server, answer.failure) == ("server1", ""), PAGE


@pytest.mark.parametrize("family", FAMILIES)
def test_services_that_differ_in_family_and_protocol_only_are_kept_apart(lab, director, family):
    director.apply(everybody(tcp="server1", udp="server2"))
    for _ in range(10):
        assert ask(lab, "client", VIP[family], 8888, protocol="tcp").server == "server1"
        assert ask(lab, "client", VIP[family], 8888, protocol="udp").server == "server2"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_client_sees_the_listen_address_and_the_server_sees_the_client(
    lab, director, servers, family, protocol
):
    director.apply(everybody(tcp="server3", udp="server3"))
    before = servers["server3", protocol].clients[CLIENT[family]]
    # The client's socket is connected: it takes an answer from the listen address only.
    assert ask(lab, "client", VIP[family], 8888, protocol=protocol).server == "server3"
    assert servers["server3", protocol].clients[CLIENT[family]] == before + 1


def test_a_service_listens_on_every_address_and_port_of_its_list(lab, director):
    addresses = [at(VIP[4], 8001), at(VIP[4], 8002, "udp"), at(VIP[6], 8003)]
    director.apply(service(addresses, [*backends(1, 4), *backends(1, 6)]))
    assert ask(lab, "client", VIP[4], 8001).server == "server1"
    assert ask(lab, "client", VIP[4], 8002, protocol="udp").server == "server1"
    assert ask(lab, "client", VIP[6], 8003).server == "server1"
    # What is not listed is the director's own, and nobody listens there.
    assert ask(lab, "client", VIP[4], 8003).failure == "refused"
    assert ask(lab, "client", VIP[4], 8001, protocol="udp").failure == "refused"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_without_a_port_has_the_one_that_was_asked(lab, director, family):
    address = backends(1, family)[0].rpartition(":")[0]
    director.apply(service([at(VIP[family], 9999), at(VIP[family], 7)], [address]))
    assert ask(lab, "client", VIP[family], 9999).server == "server1"
    with Server(lab, "server1", 7, name="echo"):
        assert ask(lab, "client", VIP[family], 7).server == "echo"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_connections_that_enter_at_the_interface_are_served(lab, director, family, protocol):
    def serve(interface):
        listen = at(VIP[family], 8888, protocol)
        # The servers are clients, too, here: with plain NAT they would answer each other directly.
        text = service(listen, backends(1, family), interface=interface, return_path="masquerade")
        director.apply(text)

    def answer(host):
        return ask(lab, host, VIP[family], 8888, protocol=protocol)

    serve("eth0")
    assert answer("client").server == "server1"
    assert answer("server3").failure == "refused"
    serve("eth1")
    assert answer("client").failure == "refused"
    assert answer("server3").server == "server1"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_service_without_backends_rejects_at_once(lab, director, family, protocol):
    listen = at(VIP[family], 8888, protocol)
    director.apply(service(listen, []))
    # A server of the director's own on that port must not be reached either.
    kind = {"tcp": "lines", "udp": "datagrams"}[protocol]
    with Server(lab, "director", 8888, kind):
        answer = ask(lab, "client", VIP[family], 8888, protocol=protocol)
    assert answer.failure == "refused"
    assert answer.seconds < 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_service_without_backends_drops_where_the_file_says_so(lab, director, family, protocol):
    listen = at(VIP[family], 8888, protocol)
    director.apply(service(listen, [], when_empty="drop"))
    answer = ask(lab, "client", VIP[family], 8888, protocol=protocol, timeout=0.2)
    assert answer.failure == "timeout"


def test_a_service_that_is_taken_out_of_the_file_is_the_director_s_own_port_again(lab, director):
    gone = service(at(VIP[4], 8889), backends(1), name="gone")
    director.apply(five_lines(ONE) + gone)
    assert ask(lab, "client", VIP[4], 8889).server == "server1"
    director.apply(five_lines(ONE))
    assert ask(lab, "client", VIP[4], 8889).failure == "refused"
    with Server(lab, "director", 8889):
        assert ask(lab, "client", VIP[4], 8889).server == "director"
