"""nft aborts when the fields of a rule are more than it has registers: no rule of ours is."""

import itertools
import subprocess
from ipaddress import ip_address, ip_network

import pytest

from lbd.core.plan import diff
from lbd.core.program import Surroundings, build
from lbd.core.settings import (
    EVERY_PORT,
    Access,
    Backend,
    Limits,
    Persistence,
    Pin,
    Ports,
    Rate,
    ReturnPath,
    Service,
)
from lbd.core.shape import Where
from lbd.core.state import Desired, Live
from lbd.core.virtual import Target, Virtual
from netns import inside

pytestmark = pytest.mark.kernel

LISTEN = {4: "192.0.2.1", 6: "2001:db8::1"}
BACKENDS = {4: ("192.0.2.11", "192.0.2.12"), 6: ("2001:db8::11", "2001:db8::12")}
CLIENTS = {4: "198.51.100.0/24", 6: "2001:db8:1::/48"}
ADDRESSES, PORTS = ("source-address", "destination-address"), ("source-port", "destination-port")
RANGE = Ports(80, 90)


def wheres(family):
    """A listen address of every kind there is."""
    for interface in ("", "eth0"):
        for protocol, ports in (
            ("tcp", Ports(80, 80)),
            ("udp", RANGE),
            ("tcp", EVERY_PORT),
            ("any", EVERY_PORT),
        ):
            for address in (LISTEN[family], "") if interface else (LISTEN[family],):
                yield Where(family, protocol, address, ports, interface)
        yield Where(family, "any", interface=interface, mark=7)


def virtuals(where, persistence):
    """Services with all that a rule can have, for each way to hash and each form of a backend's port."""
    forms = {"one": [Ports(9, 9)], "range": [None, Ports(9, 9), Ports(9080, 9090)], "none": [None]}
    for ports in forms.get(where.shape.port, [None, Ports(9, 9)]):
        ends = [Backend(ip_address(address), ports) for address in BACKENDS[where.family]]
        targets = {Target(address, ports): 1 for address in BACKENDS[where.family]}
        clients = ip_network(CLIENTS[where.family])
        for fields in (("source-address",), ADDRESSES if where.protocol == "any" else ADDRESSES + PORTS):
            service = Service(
                "s",
                (),
                tuple(ends),
                hash=fields,
                persistence=persistence,
                pins=(Pin(clients, ends[0]),),
                allow=Access((clients,)),
                limits=Limits(Rate(1, 1), Rate(2, 2), 3),
                return_path=ReturnPath("snat", (ends[0].address,)),
                log="path",
            )
            yield Virtual(where, service, targets, 2, frozenset(targets))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("persistence", [None, Persistence(60.0, 24, 64)], ids=["", "persistent"])
def test_every_rule_fits(family, persistence):
    with inside("link add eth0 type veth peer name far0\n"):
        for virtual in itertools.chain.from_iterable(virtuals(w, persistence) for w in wheres(family)):
            table = build([virtual], Surroundings(mark_mask=0xFF))
            text = "\n".join(map(str, diff(Live(), Desired(table=table)).swap))
            anew = "add table inet lbd\ndelete table inet lbd\n"
            # A process for each: a library that aborts would take the test along.
            done = subprocess.run(
                ["nft", "-f", "-"], input=f"{anew}{text}\n", text=True, capture_output=True, check=False
            )
            assert done.returncode == 0, f"{virtual.where} {virtual.service.hash}: {done.stderr}"
