"""Direct return and stateless translation: a client, a director and real servers on real links."""

import pytest

from lbd.lab.namespaces import Lab, wait_until
from lbd.lab.servers import Server
from lbd.lab.topology import Host, Interface, Topology
from lbd.lab.traffic import ask
from running import Director, at, service

pytestmark = pytest.mark.kernel

VIP = {4: "192.168.18.58", 6: "2001:db8:18::58"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])


def host(name, last):
    """A host with one card on the one link that all share."""
    addresses = (f"192.168.18.{last}/24", f"2001:db8:18::{last}/64")
    return Host(name, (Interface("eth0", "front", addresses),))


def real_server(n, family):
    return {4: f"192.168.18.{72 + n}", 6: f"[2001:db8:18::{72 + n}]"}[family]


@pytest.fixture(scope="module")
def lab():
    hosts = [host("client", 25), host("director", 90), *(host(f"server{n}", 72 + n) for n in (1, 2, 3))]
    with Lab(Topology(tuple(hosts))) as lab:
        yield lab


@pytest.fixture(scope="module")
def servers(lab):
    return [
        lab.enter(Server(lab, f"server{n}", 8888, kind)) for n in (1, 2, 3) for kind in ("lines", "datagrams")
    ]


@pytest.fixture(scope="module")
def silent(lab, servers):
    """The real servers have the address of the service, from their own file."""
    for n in (1, 2, 3):
        with Director(lab, f"server{n}") as real:
            real.write(f'[real_server]\ndirect = ["{VIP[4]}", "{VIP[6]}"]\n')
            done = real.lbd("apply")
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def director(lab, silent):
    with Director(lab) as director:
        yield director


def direct(count, **options):
    listens = [at(VIP[f], 8888, p) for f in (4, 6) for p in ("tcp", "udp")]
    backends = [real_server(n, f) for f in (4, 6) for n in range(1, count + 1)]
    # The real servers have the service's address, too: asked from there, they would not answer a neighbour.
    addresses = "".join(f'[[address]]\naddress = "{vip}"\ninterface = "eth0"\n' for vip in (f"{VIP[4]}/32", f"{VIP[6]}/128"))
    return service(listens, backends, interface="eth0", return_path="direct", **options) + addresses


def answering(lab, family, protocol, count=12, first=10_000):
    asked = (
        ask(lab, "client", VIP[family], 8888, protocol=protocol, source_port=first + n) for n in range(count)
    )
    return [answer.server or answer.failure for answer in asked]


@FAMILIES
@PROTOCOLS
def test_real_servers_answer_the_client_themselves(lab, director, family, protocol):
    if director.process is None:
        director.start(direct(3))
    director.apply(direct(3))
    seen = answering(lab, family, protocol, 40)
    assert set(seen) == {"server1", "server2", "server3"}
    assert seen == answering(lab, family, protocol, 40), "the same client has the same server"
