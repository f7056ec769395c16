"""Direct return and stateless translation: clients, a director and real servers, on real links."""

import pytest

from lbd.lab.namespaces import Lab, wait_until
from lbd.lab.servers import Server
from lbd.lab.topology import Host, Interface, Topology, experiment
from lbd.lab.traffic import Conversation, ask
from running import VIP as ROUTED
from running import Director, at, backends, service

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])

VIP = {4: "192.168.18.58", 6: "2001:db8:18::58"}
LENGTH = {4: 32, 6: 128}
SYSCTLS = ("net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce")
ALL = {"server1", "server2", "server3"}


def answering(lab, address, protocol, count=24, client="client"):
    """Who answers so many clients, told apart by their ports, in turn."""
    asked = (ask(lab, client, address, 8888, protocol=protocol, source_port=11_000 + n) for n in range(count))
    return [answer.server or answer.failure for answer in asked]


# Direct return: all hosts on one link, the director among them.


def neighbour(name, last):
    return Host(name, (Interface("eth0", "front", (f"192.168.18.{last}/24", f"2001:db8:18::{last}/64")),))


@pytest.fixture(scope="module")
def link():
    servers = [neighbour(f"server{n}", 72 + n) for n in (1, 2, 3)]
    with Lab(Topology((neighbour("client", 25), neighbour("director", 90), *servers))) as lab:
        for n in (1, 2, 3):
            for kind in ("lines", "datagrams"):
                lab.enter(Server(lab, f"server{n}", 8888, kind))
        yield lab


@pytest.fixture(scope="module")
def real_servers(link):
    """The real servers have the address of the service, from a file of lbd's own."""
    servers = [link.enter(Director(link, f"server{n}")) for n in (1, 2, 3)]
    for server in servers:
        server.write(f'[real_server]\ndirect = ["{VIP[4]}", "{VIP[6]}"]\n')
        done = server.lbd("apply")
        assert done.returncode == 0, done.stderr
    return servers


@pytest.fixture(scope="module")
def direct(link, real_servers):
    with Director(link) as director:
        yield director.start(direct_file())


def direct_file(count=3, **options):
    listens = [at(VIP[family], 8888, protocol) for family in (4, 6) for protocol in ("tcp", "udp")]
    servers = [f"192.168.18.{72 + n}" for n in range(1, count + 1)]
    servers += [f"[2001:db8:18::{72 + n}]" for n in range(1, count + 1)]
    # Beside an address of its own on the link, which its questions for neighbours come from.
    carried = "".join(
        f'[[address]]\naddress = "{VIP[family]}/{LENGTH[family]}"\ninterface = "eth0"\n' for family in (4, 6)
    )
    return service(listens, servers, interface="eth0", return_path="direct", **options) + carried


@FAMILIES
@PROTOCOLS
def test_real_servers_answer_the_client_themselves(link, direct, family, protocol):
    direct.apply(direct_file())
    seen = answering(link, VIP[family], protocol)
    assert set(seen) == ALL
    assert seen == answering(link, VIP[family], protocol), "the same client has the same server"


@FAMILIES
def test_direct_return_takes_no_forwarding_and_tracks_nothing(link, direct, family):
    direct.apply(direct_file())
    assert set(answering(link, VIP[family], "tcp", 12)) <= ALL
    assert link.run("director", ["sysctl", "-n", "net.ipv4.ip_forward"]).stdout.strip() == "0"
    assert link.run("director", ["sysctl", "-n", "net.netfilter.nf_conntrack_count"]).stdout.strip() == "0"


@FAMILIES
@PROTOCOLS
def test_source_hash_sends_a_client_to_one_real_server(link, direct, family, protocol):
    direct.apply(direct_file(scheduler="source-hash"))
    assert len(set(answering(link, VIP[family], protocol, 12))) == 1


@FAMILIES
def test_a_real_server_that_goes_takes_only_its_own_clients_along(link, direct, family):
    direct.apply(direct_file())
    before = answering(link, VIP[family], "tcp", 40)
    direct.apply(direct_file(2))
    after = answering(link, VIP[family], "tcp", 40)
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert "server3" not in after
    assert moved.count("server3") == before.count("server3")
    # A table of 251 slots for three: a few others move besides.
    assert len(moved) - moved.count("server3") <= 6


@FAMILIES
def test_without_a_real_server_clients_are_refused(link, direct, family):
    text = direct_file().replace("backends = [", "backends = [] #")
    direct.apply(text)
    assert answering(link, VIP[family], "tcp", 2) == ["refused"] * 2
    direct.apply(direct_file())
    assert set(answering(link, VIP[family], "tcp", 12)) <= ALL


def test_interface_that_is_gone_is_told_and_taken_up_when_it_is_back(link, direct):
    direct.apply(direct_file())
    link.run("director", ["ip", "link", "add", "extra", "type", "veth", "peer", "name", "far"])
    other = direct_file().replace('interface = "eth0"\nreturn', 'interface = "later0"\nreturn', 1)
    direct.write(other)
    status = direct.wait_status(lambda s: any("later0 does not exist" in p for p in s["problems"]))
    assert status["state"] == "degraded"
    link.run("director", ["ip", "link", "set", "extra", "name", "later0"])
    link.run("director", ["ip", "link", "set", "later0", "up"])
    direct.wait_status(lambda s: s["state"] == "converged")
    assert "later0" in link.run("director", ["nft", "list", "table", "netdev", "lbd"]).stdout
    direct.apply(direct_file())
    link.run("director", ["ip", "link", "del", "later0"])


def test_table_at_ingress_is_repaired(link, direct):
    direct.apply(direct_file())
    mark = len(direct.lines)
    direct.nft("delete table netdev lbd")
    direct.wait_line("drift repaired", since=mark)
    assert set(answering(link, VIP[4], "tcp", 12)) <= ALL


def test_removing_takes_the_ingress_away_and_a_real_server_answers_for_itself_again(link, real_servers):
    with Director(link, "server3") as server:
        before = server.lbd("plan").stdout
        assert "nothing to do" in before
        assert server.lbd("apply", "--remove").returncode == 0
        assert VIP[4] not in server.ip("address", "show", "dev", "lo")
        assert all(link.run("server3", ["sysctl", "-n", name]).stdout.strip() == "0" for name in SYSCTLS)
        assert server.lbd("apply").returncode == 0
        assert VIP[4] in server.ip("address", "show", "dev", "lo")


# Stateless translation: the experiment, its real servers behind the director.


@pytest.fixture(scope="module")
def behind():
    with Lab(experiment(3, clients=2, gateway="director", ipv6=True)) as lab:
        for n in (1, 2, 3):
            for kind in ("lines", "datagrams"):
                lab.enter(Server(lab, f"server{n}", 9999, kind))
        yield lab


@pytest.fixture(scope="module")
def stateless(behind):
    with Director(behind) as director:
        yield director.start(stateless_file())


def stateless_file(count=3, **options):
    listens = [at(ROUTED[family], 8888, protocol) for family in (4, 6) for protocol in ("tcp", "udp")]
    servers = [each for family in (4, 6) for each in backends(count, family)]
    return service(listens, servers, interface="eth0", return_path="stateless", **options)


@FAMILIES
@PROTOCOLS
def test_stateless_translation_goes_there_and_back(behind, stateless, family, protocol):
    stateless.apply(stateless_file())
    seen = answering(behind, ROUTED[family], protocol)
    assert set(seen) == ALL
    assert seen == answering(behind, ROUTED[family], protocol)


@FAMILIES
def test_stateless_translation_tracks_nothing(behind, stateless, family):
    stateless.apply(stateless_file())
    assert set(answering(behind, ROUTED[family], "tcp", 12)) <= ALL
    tracked = behind.run("director", ["sysctl", "-n", "net.netfilter.nf_conntrack_count"]).stdout
    assert tracked.strip() == "0"


@FAMILIES
def test_conversation_outlives_everything_that_others_do(behind, stateless, family):
    stateless.apply(stateless_file())
    with Conversation(behind, "client", ROUTED[family], 8888) as talk:
        # Of ports of its own: replies of a stateless service's backends are all that service's.
        more = service(at("192.168.18.59", 80), backends(1, port=9998), name="more")
        stateless.apply(stateless_file() + more)
        assert talk.alive()
        stateless.apply(stateless_file())
        assert talk.alive()


def test_nothing_is_left_of_the_ingress_when_no_service_needs_it(behind, stateless):
    stateless.apply(stateless_file())
    assert "netdev lbd" in behind.run("director", ["nft", "list", "tables"]).stdout
    stateless.apply(service(at(ROUTED[4], 8888), backends(2)))
    assert "netdev lbd" not in behind.run("director", ["nft", "list", "tables"]).stdout
    assert wait_until(lambda: set(answering(behind, ROUTED[4], "tcp", 6)) <= ALL, 5.0)
