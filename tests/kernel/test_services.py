"""What a service can listen on: protocols, ports, ranges, addresses, interfaces and marks."""

import pytest

from lbd.lab.raw import ping
from lbd.lab.tap import Tap
from lbd.lab.traffic import ask
from running import CLIENT, SERVERS, VIP, at, backends, service
from serving import BACK, FAMILIES, PROTOCOLS, ROUTED, bare, route, serve

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("family", FAMILIES)]

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)


@pytest.fixture(scope="module")
def listeners(lab, servers):
    """The servers on port 9999, also those of SCTP."""
    hosts = ("server1", "server2", "server3")
    return servers | {(host, "sctp"): lab.enter(serve(lab, host, 9999, "sctp")) for host in hosts}


@pytest.fixture(scope="module", autouse=True)
def routes(lab):
    route(lab, "client", "client2")


@pytest.fixture
def who(lab, family, listeners):
    """Who answers a client that asks a port of an address (the VIP), or why nobody does."""

    def asked(port, protocol="tcp", *, address="", host="client", timeout=2.0):
        answer = ask(lab, host, address or VIP[family], port, protocol=protocol, timeout=timeout)
        return answer.server or answer.failure

    return asked


@protocols
def test_a_protocol_is_served_and_its_server_sees_the_client(director, listeners, who, family, protocol):
    director.apply(service(at(VIP[family], 8888, protocol), backends(1, family)))
    server = listeners["server1", protocol]
    before = server.clients.copy()
    # Clients take an answer from the listen address only.
    assert who(8888, protocol) == "server1"
    assert server.clients - before == {CLIENT[family]: 1}


@protocols
def test_an_address_that_the_director_does_not_carry_is_served(director, who, family, protocol):
    director.apply(service(at(ROUTED[family], 8888, protocol), backends(1, family)))
    assert who(8888, protocol, address=ROUTED[family]) == "server1"


def test_one_service_has_a_port_of_two_protocols(lab, director, who, family):
    listen = [at(VIP[family], 53), at(VIP[family], 53, "udp")]
    director.apply(service(listen, bare(backends(1, family)), name="dns"))
    with serve(lab, "server1", 53, "tcp", "by-tcp"), serve(lab, "server1", 53, "udp", "by-udp"):
        assert (who(53, "tcp"), who(53, "udp")) == ("by-tcp", "by-udp")


@protocols
def test_ports_of_a_list_are_served_and_those_beside_it_are_not(director, who, family, protocol):
    director.apply(service(at(VIP[family], "80,443,8000-8002", protocol), backends(1, family)))
    assert [who(port, protocol) for port in (80, 443, 8000, 8001, 8002)] == ["server1"] * 5
    assert [who(port, protocol) for port in (79, 442, 7999, 8003)] == ["refused"] * 4


@protocols
def test_a_range_without_ports_behind_it_keeps_the_port(lab, director, who, family, protocol):
    director.apply(service(at(VIP[family], "9998-10000", protocol), bare(backends(1, family))))
    with serve(lab, "server1", 9998, protocol, "lower"), serve(lab, "server1", 10_000, protocol, "upper"):
        assert [who(port, protocol) for port in (9998, 9999, 10_000)] == ["lower", "server1", "upper"]


@protocols
def test_a_range_is_shifted(lab, director, who, family, protocol):
    shifted = [at(address, "9000-9010") for address in SERVERS[family][:2]]
    director.apply(service(at(VIP[family], "8000-8010", protocol), shifted, scheduler="round-robin"))
    with serve(lab, "server1", 9005, protocol), serve(lab, "server2", 9005, protocol):
        assert {who(8005, protocol), who(8005, protocol)} == {"server1", "server2"}
        assert who(8006, protocol, timeout=0.1) not in ("server1", "server2")
    with serve(lab, "server1", 9000, protocol, "first"), serve(lab, "server2", 9000, protocol, "first"):
        assert who(8000, protocol) == "first"
    with serve(lab, "server1", 9010, protocol, "last"), serve(lab, "server2", 9010, protocol, "last"):
        assert who(8010, protocol) == "last"


@protocols
def test_every_port_of_a_protocol(lab, director, who, family, protocol):
    options = {"ssh": True} if protocol == "tcp" else {}
    director.apply(service(at(VIP[family], "*", protocol), bare(backends(1, family)), **options))
    assert who(9999, protocol) == "server1"
    with serve(lab, "server1", 1, protocol, "low"), serve(lab, "server1", 65_535, protocol, "high"):
        assert (who(1, protocol), who(65_535, protocol)) == ("low", "high")
    other = "udp" if protocol == "tcp" else "tcp"
    assert who(9999, other) == "refused"


@protocols
def test_every_port_to_one_port(director, who, family, protocol):
    options = {"ssh": True} if protocol == "tcp" else {}
    listen = at(ROUTED[family], "*", protocol)
    director.apply(service(listen, backends(3, family), scheduler="random", **options))
    got = {who(1000 + 4001 * n, protocol, address=ROUTED[family]) for n in range(16)}
    assert got <= {"server1", "server2", "server3"}
    assert len(got) > 1


@pytest.mark.parametrize("carried", [True, False])
def test_any_protocol(lab, director, who, family, carried):
    address = (VIP if carried else ROUTED)[family]
    text = service(at(address, "*", "any"), bare(backends(1, family)), ssh=True)
    director.apply(text)
    assert [who(9999, protocol, address=address) for protocol in PROTOCOLS] == ["server1"] * 3
    with Tap(lab, "server1", ["eth0"]) as tap:
        # The client's socket takes an answer from the listen address only.
        assert ping(lab, "client", address)
        request = tap.wait_for(lambda p: p.direction == "in" and p.protocol.startswith("icmp"))
    assert (request.source, request.destination) == (CLIENT[family], SERVERS[family][0])


def test_a_service_has_several_addresses(director, who, family):
    listen = [at(each, 8888) for each in (VIP[4], VIP[6], ROUTED[4], ROUTED[6])]
    director.apply(service([*listen, at(VIP[family], 8889)], [*backends(1, 4), *backends(1, 6)]))
    assert who(8888) == who(8889) == who(8888, address=ROUTED[family]) == "server1"


@protocols
def test_every_address_of_the_director_and_no_other(lab, director, who, family, protocol):
    director.apply(service(f"*:8888/{protocol}", [*backends(1, 4), *backends(1, 6)], interface="eth0"))
    assert who(8888, protocol) == "server1"
    assert who(8888, protocol, address=BACK[family]) == "server1"
    with serve(lab, "server2", 8888, protocol):
        # Forwarded on its way to another host.
        assert who(8888, protocol, address=SERVERS[family][1]) == "server2"
    # It enters elsewhere.
    assert who(8888, protocol, host="server3") == "refused"


@pytest.mark.parametrize("ports", ["8888-8890", "*", "*/any"])
def test_every_address_with_other_ports(lab, director, who, family, ports):
    text = service(f"*:{ports}", [*bare(backends(1, 4)), *bare(backends(1, 6))], interface="eth0", ssh=True)
    director.apply(text)
    with serve(lab, "server1", 8889):
        assert who(8889) == who(8889, address=BACK[family]) == "server1"
    with serve(lab, "server2", 8889):
        assert who(8889, address=SERVERS[family][1]) == "server2"


@protocols
def test_the_interface_decides_between_two_services(director, who, family, protocol):
    listen = at(VIP[family], 8888, protocol)
    one, two, three = backends(3, family)
    director.apply(
        service(listen, [one], name="front", interface="eth0")
        + service(listen, [two], name="back", interface="eth1")
    )
    assert who(8888, protocol) == "server1"
    assert who(8888, protocol, host="server3") == "server2"
    director.apply(
        service(listen, [one], name="front", interface="eth0") + service(listen, [three], name="rest")
    )
    assert who(8888, protocol) == "server1"
    assert who(8888, protocol, host="server2") == "server3"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_more_exact_listen_address_takes_it(lab, director, who, family, protocol):
    def layer(ports, server, protocol=protocol, address=VIP[family], **options):
        name = f"s{len(layers)}"
        return service(
            at(address, ports, protocol),
            bare(backends(3, family))[server : server + 1],
            name=name,
            ssh=True,
            **options,
        )

    layers = []
    with (
        serve(lab, "server1", 8005, protocol),
        serve(lab, "server2", 8005, protocol),
        serve(lab, "server3", 8005, protocol),
    ):
        wild = "0.0.0.0" if family == 4 else "::"
        for ports, server, kind, address, options in (
            ("*", 0, "any", wild, {"interface": "eth0"}),
            ("8005", 1, protocol, wild, {"interface": "eth0"}),
            ("*", 2, "any", VIP[family], {}),
            ("*", 0, protocol, VIP[family], {}),
            ("*", 1, protocol, VIP[family], {"interface": "eth0"}),
            ("8000-8010", 2, protocol, VIP[family], {}),
            ("8005", 0, protocol, VIP[family], {}),
            ("8005", 1, protocol, VIP[family], {"interface": "eth0"}),
        ):
            layers.insert(0, layer(ports, server, kind, address, **options))
            for text in ("\n".join(layers), "\n".join(reversed(layers))):
                director.apply(text)
                assert who(8005, protocol) == f"server{server + 1}", layers[0]


@pytest.fixture
def marked(director):
    """A table of somebody else's that marks what is for the routed addresses, before lbd's nat looks."""
    director.nft(
        "add table inet theirs; add chain inet theirs pre "
        "{ type filter hook prerouting priority -150; policy accept; };"
        f"add rule inet theirs pre ip daddr {ROUTED[4]} meta mark set 0x107;"
        f"add rule inet theirs pre ip6 daddr {ROUTED[6]} meta mark set 0x107"
    )
    yield
    director.nft("delete table inet theirs")


@protocols
def test_a_mark_names_a_service(director, marked, who, family, protocol):
    servers = [*bare(backends(1, 4)), *bare(backends(1, 6))]
    text = service([], servers, mark=0x107).replace("listen = []\n", "")
    director.apply(text)
    assert who(9999, protocol, address=ROUTED[family]) == "server1"
    # What has no mark is nobody's.
    assert who(9999, protocol) == "refused"
    # Of the mark only some bits may count, and only what enters at an interface.
    masked = text.replace("mark = 263", 'mark = 7\ninterface = "eth0"')
    director.apply(f"[director]\nmark_mask = 255\n{masked}")
    assert who(9999, protocol, address=ROUTED[family]) == "server1"


def test_a_mark_comes_behind_an_address(lab, director, marked, who, family):
    one, two = bare(backends(2, family))
    mark = service([], [one], mark=0x107).replace("listen = []\n", "")
    director.apply(mark + service(at(ROUTED[family], 9999), [two], name="exact"))
    with serve(lab, "server1", 9998):
        assert who(9998, address=ROUTED[family]) == "server1"
    assert who(9999, address=ROUTED[family]) == "server2"
    assert ping(lab, "client", ROUTED[family])
