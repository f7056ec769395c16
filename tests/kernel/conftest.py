"""The experiment with a real director: its daemon, two clients and three real servers, in IPv4 and IPv6."""

import pytest

from director import ONE, service
from lbd.lab.namespaces import Lab
from lbd.lab.servers import Server
from lbd.lab.topology import experiment
from running import Director


@pytest.fixture(scope="module")
def lab():
    """The lab of a test file; the real servers answer lines and datagrams on port 9999."""
    with Lab(experiment(3, clients=2, gateway="director", ipv6=True)) as lab:
        # The kernel answers a client with six "port unreachable" at once and then one a second: icmp(7).
        for name in ("net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"):
            lab.sysctl("director", name, "0")
        yield lab


@pytest.fixture(scope="module")
def servers(lab):
    """The real servers by name and protocol; each counts who asked it."""
    kinds = {"tcp": "lines", "udp": "datagrams"}
    return {
        (f"server{n}", protocol): lab.enter(Server(lab, f"server{n}", 9999, kind))
        for n in (1, 2, 3)
        for protocol, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def director(lab, servers):
    """The daemon of a whole test file: each test applies a file of its own first."""
    with Director(lab) as director:
        yield director.start(service(ONE))
