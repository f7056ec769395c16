"""How replies come back: which source address the real server sees, and that its answer finds the way."""

import pytest

from lbd.lab.namespaces import Lab
from lbd.lab.topology import experiment
from lbd.lab.traffic import Conversation, ask
from running import CLIENT, SERVERS, VIP, at, backends, service

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("protocol", ["tcp", "udp"])]

BACK = {4: "192.168.2.90", 6: "2001:db8:2::90"}
SNAT = {4: "192.168.2.91", 6: "2001:db8:2::91"}
ROUTED = {4: "203.0.113.5", 6: "2001:db8:5::5"}
WIDTH = {4: 24, 6: 64}


@pytest.fixture(scope="module")
def lab():
    """The default gateway of server1 is the director; that of the others is a router that knows no client."""
    with Lab(experiment(3, gateway=("director", "elsewhere", "elsewhere"), ipv6=True)) as lab:
        for address in ROUTED.values():
            lab.run("server3", ["ip", "route", "add", address, "via", BACK[6 if ":" in address else 4]])
        yield lab


def web(family, protocol, server, return_path):
    """A service with one real server, and an address of the director's for its snat."""
    return service(
        at(VIP[family], 8888, protocol),
        [at(SERVERS[family][server - 1], 9999)],
        return_path=return_path,
    )


def carried(family):
    """The [[address]] that the director has towards its real servers for snat."""
    return f'[[address]]\naddress = "{SNAT[family]}/{WIDTH[family]}"\ninterface = "eth1"\n'


def source_seen(lab, servers, family, protocol, server):
    """The source address that the real server saw of a request that was answered."""
    counted = servers[server, protocol].clients
    before = counted.copy()
    answer = ask(lab, "client", VIP[family], 8888, protocol=protocol)
    assert (answer.server, answer.failure) == (server, "")
    (source,) = counted - before
    return source


@pytest.mark.parametrize("family", [4, 6])
def test_gateway_shows_the_client(lab, director, servers, family, protocol):
    director.apply(web(family, protocol, 1, "gateway"))
    assert source_seen(lab, servers, family, protocol, "server1") == CLIENT[family]


@pytest.mark.parametrize("family", [4, 6])
def test_gateway_gets_no_reply_from_a_server_that_routes_elsewhere(lab, director, servers, family, protocol):
    director.apply(web(family, protocol, 2, "gateway"))
    counted = servers["server2", protocol].clients
    before = counted[CLIENT[family]]
    answer = ask(lab, "client", VIP[family], 8888, protocol=protocol, timeout=0.2)
    assert answer.failure == "timeout"
    # The request of UDP arrives; that of TCP does not get past the handshake.
    assert counted[CLIENT[family]] == before + (protocol == "udp")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("server", [1, 2])
def test_masquerade_shows_the_director(lab, director, servers, family, protocol, server):
    director.apply(web(family, protocol, server, "masquerade"))
    assert source_seen(lab, servers, family, protocol, f"server{server}") == BACK[family]


@pytest.mark.parametrize("family", [4, 6])
def test_snat_shows_an_address_that_the_director_carries(lab, director, servers, family, protocol):
    director.apply(carried(family) + web(family, protocol, 2, f"snat:{SNAT[family]}"))
    assert source_seen(lab, servers, family, protocol, "server2") == SNAT[family]


@pytest.mark.parametrize("family", [4, 6])
def test_snat_shows_an_address_that_is_routed_to_the_director(lab, director, servers, family, protocol):
    director.apply(web(family, protocol, 3, f"snat:{ROUTED[family]}"))
    assert source_seen(lab, servers, family, protocol, "server3") == ROUTED[family]


def test_each_service_has_its_own_return_path(lab, director, servers, protocol):
    paths = {8001: ("gateway", CLIENT[4]), 8002: ("masquerade", BACK[4]), 8003: (f"snat:{SNAT[4]}", SNAT[4])}
    backend = [at(SERVERS[4][0], 9999)]
    director.apply(
        carried(4)
        + "\n".join(
            service(at(VIP[4], port, protocol), backend, name=f"web{port}", return_path=path)
            for port, (path, _) in paths.items()
        )
    )
    counted = servers["server1", protocol].clients
    for port, (_, source) in paths.items():
        before = counted.copy()
        assert ask(lab, "client", VIP[4], port, protocol=protocol).server == "server1"
        assert set(counted - before) == {source}


def test_what_the_director_forwards_beside_its_services_keeps_its_source(lab, director, servers, protocol):
    director.apply(web(4, protocol, 1, "masquerade"))
    lab.run("client", ["ip", "route", "replace", "192.168.2.0/24", "via", VIP[4]])
    counted = servers["server1", protocol].clients
    before = counted.copy()
    assert ask(lab, "client", SERVERS[4][0], 9999, protocol=protocol).server == "server1"
    assert set(counted - before) == {CLIENT[4]}


def test_what_somebody_else_translates_keeps_its_source_beside_every_address(
    lab, director, servers, protocol
):
    every = f"*:8888/{protocol}"
    director.apply(service(every, backends(2)[1:], interface="eth0", return_path="masquerade"))
    dnat = f"meta l4proto {protocol} ip daddr {VIP[4]} th dport 8888 dnat to {SERVERS[4][0]}:9999"
    director.nft(
        "add table ip theirs; add chain ip theirs pre { type nat hook prerouting priority -110; };"
        f"add rule ip theirs pre {dnat}"
    )
    try:
        assert source_seen(lab, servers, 4, protocol, "server1") == CLIENT[4]
    finally:
        director.nft("delete table ip theirs")
    # Theirs gone, ours has it, from the director's own address.
    assert source_seen(lab, servers, 4, protocol, "server2") == BACK[4]


def test_an_open_conversation_outlives_a_change_of_the_return_path(lab, director, protocol):
    director.apply(web(4, protocol, 1, "gateway"))
    with Conversation(lab, "client", VIP[4], 8888, protocol=protocol) as talk:
        for path in ("masquerade", f"snat:{ROUTED[4]}", "gateway"):
            director.apply(web(4, protocol, 1, path))
            assert talk.alive(), path
