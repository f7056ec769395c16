"""The emulated machine is fit for tests: its kernel has what the host's may lack, and lbd runs on it."""

import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import lbd
from director import ONE, PORT, VIP, service
from lbd.lab.namespaces import Lab
from lbd.lab.servers import Server
from lbd.lab.topology import experiment
from lbd.lab.traffic import Conversation
from netns import DIRECTOR, inside

pytestmark = pytest.mark.emulated

# For one start of lbd, and for one answer: the machine is slow, and its host may be busy.
PATIENCE = 120.0

FLOWTABLE = """\
table inet fast {
    flowtable f { hook ingress priority 0; devices = { eth0, eth1 }; }
    chain forward { type filter hook forward priority 0; meta l4proto tcp flow add @f; }
}
"""

# Other things that a test may want, in the words of who makes them, and where they are seen then.
FEATURES = {
    "netem": ("tc qdisc add dev eth0 root netem delay 10ms", "tc qdisc show dev eth0", "delay 10ms"),
    "vlan": ("ip link add link eth0 name eth0.7 type vlan id 7", "ip -d link show eth0.7", "id 7"),
    "ipvs": ("modprobe ip_vs", "cat /proc/net/ip_vs", "IP Virtual Server"),
}


@pytest.fixture
def lab():
    """A client, a director and a real server whose gateway is the director."""
    with Lab(experiment(gateway="director")) as lab:
        lab.enter(Server(lab, "server1", 9999))
        yield lab


def test_kernel_is_debians():
    assert platform.release().endswith("-cloud-amd64")


def test_flowtable_can_be_added_between_two_interfaces():
    with inside(DIRECTOR) as host:
        subprocess.run(["nft", "-f", "-"], input=FLOWTABLE, text=True, check=True)
        assert "devices = { eth0, eth1 }" in host.run("nft", "list", "flowtables")


def test_sctp_echoes_over_loopback():
    def sctp():
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)

    with inside("link set lo up"), sctp() as listener, sctp() as client:
        for end in (listener, client):
            end.settimeout(PATIENCE)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.settimeout(PATIENCE)
            client.sendall(b"hello")
            server.sendall(server.recv(64))
            assert client.recv(64) == b"hello"


@pytest.mark.parametrize(("command", "look", "seen"), FEATURES.values(), ids=FEATURES)
def test_kernel_has(command, look, seen):
    with inside(DIRECTOR) as host:
        host.run(*command.split())
        assert seen in host.run(*look.split())


def test_lbd_tells_its_version():
    argv = [sys.executable, "-m", "lbd", "version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout == f"lbd {lbd.__version__}\n"


def test_applied_service_is_carried_by_a_flowtable(lab):
    lab.run("director", ["nft", "-f", "-"], text=FLOWTABLE)
    path = lab.directory("director") / "lbd.toml"
    path.write_text(service(ONE))
    lab.python("director", "lbd", "apply", "-c", str(path), timeout=PATIENCE)
    with Conversation(lab, "client", VIP, PORT, timeout=PATIENCE) as connection:
        assert connection.server == "server1"
        # A connection that has packets both ways is handed to the flowtable.
        with lab.inside("director"):
            assert "[OFFLOAD]" in Path("/proc/thread-self/net/nf_conntrack").read_text()
