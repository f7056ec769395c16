"""Offload: established connections pass without the rules where the kernel can, and else with them."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from lbd.core.ops import AddChain, AddFlowtable, AddRule, AddTable, DeleteFlowtable, FlushChain
from lbd.core.state import Desired, Hook
from lbd.host import netlink, nft_read
from lbd.host.director import Director as Host
from lbd.host.nft import Nft
from lbd.host.store import Store
from lbd.lab.namespaces import wait_until
from lbd.lab.traffic import Conversation, ask
from lbd.reconcile import RefusedError, remove
from lbd.testing import FakeHost
from netns import DIRECTOR, inside
from running import CLIENT, PATIENCE, SERVERS, VIP, at, backends, service

pytestmark = [pytest.mark.kernel, pytest.mark.emulated]

FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])

LACKING = 'this kernel has no flowtables (NF_FLOW_TABLE): connections of service "web" are not offloaded'


# What somebody may do to it, in the words of nft.
GONE = "flush chain inet lbd offload_forward; delete flowtable inet lbd offloaded"


@cache
def offloads():
    """Whether this kernel has flowtables."""
    with inside():
        door = Nft()
        found = door.can_offload()
        door.close()
    return found


@pytest.fixture
def flowtables():
    if not offloads():
        pytest.skip("this kernel has no flowtables: make test-emulated")


def web(family=4, protocol="tcp", devices=("eth0", "eth1"), **options):
    names = ", ".join(f'"{device}"' for device in devices)
    options = {"offload": True, **options}
    return f"[director]\ndevices = [{names}]\n" + service(
        at(VIP[family], 8888, protocol), backends(1, family), **options
    )


def test_probe_changes_nothing():
    with inside(DIRECTOR) as host, netlink.connect() as sock:
        host.run("nft", "add table inet theirs; add chain inet theirs c")
        before = host.run("nft", "list", "ruleset"), nft_read.generation(sock)
        door = Nft()
        try:
            can = door.can_offload()
            assert (host.run("nft", "list", "ruleset"), nft_read.generation(sock)) == before
            worker = door.pid
            assert door.can_offload() == can
            # The same worker commits afterwards, and for real.
            door.commit([AddTable()])
            assert door.pid == worker
            assert door.read({})[0] is not None
        finally:
            door.close()
        made = subprocess.run(
            ["nft", "add flowtable inet theirs f { hook ingress priority 0; devices = { eth0 }; }"],
            check=False,
            capture_output=True,
        )
        assert can == (made.returncode == 0)


# Where the kernel cannot.


def test_without_flowtables_the_service_works_and_what_is_lacking_is_told(lab, director, servers):
    if offloads():
        pytest.skip("this kernel has flowtables")
    since = len(director.lines)
    director.apply(web())
    assert ask(lab, "client", VIP[4], 8888).server == "server1"
    status = director.status()
    assert status["problems"] == [LACKING]
    assert not director.table().flowtables
    # Told once, and as no failure; nothing is tried again.
    assert director.reload() == {"ok": True, "operations": 0}
    assert [line for line in director.lines[since:] if "NF_FLOW_TABLE" in line] == [LACKING]
    assert not [line for line in director.lines[since:] if "not converged" in line]
    assert LACKING in director.lbd("status").stdout


def test_without_flowtables_a_start_is_ready_and_apply_ends_with_0(lab, director):
    if offloads():
        pytest.skip("this kernel has flowtables")
    director.apply(web())
    planned = director.lbd("plan", "--exit-code")
    assert (planned.returncode, planned.stdout) == (0, f"left out: {LACKING}\n")
    director.stop()
    try:
        assert director.lbd("apply", "--remove").returncode == 0
        applied = director.lbd("apply")
        assert applied.returncode == 0, applied.stderr
        assert applied.stdout.endswith(f"\nleft out: {LACKING}\n")
        assert applied.stderr == ""
    finally:
        since = len(director.lines)
        director.start()
    director.wait_line("ready after", since=since)


# Where it can.


def offloaded(lab, address, protocol="tcp"):
    """The entries of connection tracking that the flowtable has, of connections to an address."""
    with lab.inside("director"):
        text = Path("/proc/thread-self/net/nf_conntrack").read_text()
    whole = address if ":" not in address else _whole(address)
    return [
        line
        for line in text.splitlines()
        if "[OFFLOAD]" in line and f" dst={whole} " in line and f" {protocol} " in line
    ]


def _whole(address):
    """An IPv6 address as conntrack writes it."""
    head, tail = address.split("::")
    words = head.split(":") + ["0"] * (8 - len((head + ":" + tail).split(":"))) + tail.split(":")
    return ":".join(word.zfill(4) for word in words)


def count(director):
    """The packets that passed the forward hook behind lbd's chain."""
    listed = director.lab.run("director", ["nft", "list", "chain", "inet", "theirs", "f"]).stdout
    return int(re.search(r"packets (\d+)", listed)[1])


@pytest.fixture
def counted(director):
    """A counter of somebody else's, of packets that are forwarded on the path of the rules."""
    director.nft(
        "add table inet theirs; "
        "add chain inet theirs f { type filter hook forward priority 10; }; "
        "add rule inet theirs f meta l4proto { tcp, udp } counter"
    )
    yield lambda: count(director)
    director.nft("delete table inet theirs")


def talk_until_offloaded(lab, talk, family, protocol="tcp"):
    def seen():
        assert talk.alive(PATIENCE)
        return offloaded(lab, VIP[family], protocol)

    assert wait_until(seen, PATIENCE), "the connection was not offloaded"


@PROTOCOLS
@FAMILIES
@pytest.mark.usefixtures("flowtables", "servers")
def test_a_long_connection_is_offloaded_and_goes_on(lab, director, counted, family, protocol):
    director.apply(web(family, protocol))
    assert director.status()["problems"] == []
    assert director.table().flowtables == {"offloaded": ("eth0", "eth1")}
    with Conversation(lab, "client", VIP[family], 8888, protocol=protocol, timeout=PATIENCE) as talk:
        assert talk.server == "server1"
        talk_until_offloaded(lab, talk, family, protocol)
        before = counted()
        assert all(talk.alive(PATIENCE) for _ in range(20))
        assert counted() == before, "packets of the connection passed the rules"
        (entry,) = offloaded(lab, VIP[family], protocol)
        client, server = CLIENT[family], SERVERS[family][0]
        for address in (client, server) if family == 4 else (_whole(client), _whole(server)):
            assert f"src={address} " in entry


@pytest.mark.parametrize("return_path", ["masquerade", "gateway"])
def test_every_return_path_is_offloaded(flowtables, lab, director, servers, return_path):
    director.apply(web(return_path=return_path))
    with Conversation(lab, "client", VIP[4], 8888, timeout=PATIENCE) as talk:
        talk_until_offloaded(lab, talk, 4)


def test_listen_address_of_an_interface_with_a_range(flowtables, lab, director, servers):
    director.apply(web(interface="eth0").replace(":8888", ":8880-8890"))
    with Conversation(lab, "client", VIP[4], 8888, timeout=PATIENCE) as talk:
        talk_until_offloaded(lab, talk, 4)


def test_a_service_that_does_not_ask_is_not_offloaded(flowtables, lab, director, servers):
    director.apply(web() + service(at(VIP[4], 8889), backends(1), name="other"))
    with Conversation(lab, "client", VIP[4], 8889, timeout=PATIENCE) as talk:
        assert all(talk.alive(PATIENCE) for _ in range(5))
        assert not [line for line in offloaded(lab, VIP[4]) if "dport=8889" in line]


def test_connections_outlive_other_devices_and_the_end_of_offload(
    flowtables, lab, director, servers, counted
):
    director.apply(web())
    with Conversation(lab, "client", VIP[4], 8888, timeout=PATIENCE) as talk:
        talk_until_offloaded(lab, talk, 4)
        director.apply(web(devices=("eth0",)))
        assert director.table().flowtables == {"offloaded": ("eth0",)}
        assert all(talk.alive(PATIENCE) for _ in range(5))
        director.apply(web())
        talk_until_offloaded(lab, talk, 4)
        director.apply(web(offload=False))
        assert not director.table().flowtables
        before = counted()
        assert all(talk.alive(PATIENCE) for _ in range(5))
        assert counted() >= before + 10
        assert not offloaded(lab, VIP[4])


def test_devices_that_come_and_go_are_followed(flowtables, lab, director, servers):
    director.apply(web(devices=("eth0", "eth1", "spare")))
    told = "interface spare does not exist: connections through it are not offloaded"
    assert director.status()["problems"] == [told]
    director.ip("link", "add", "spare", "type", "dummy")
    try:
        director.wait_status(lambda status: not status["problems"])
        assert director.table().flowtables == {"offloaded": ("eth0", "eth1", "spare")}
        with Conversation(lab, "client", VIP[4], 8888, timeout=PATIENCE) as talk:
            talk_until_offloaded(lab, talk, 4)
            director.ip("link", "del", "spare")
            director.wait_status(lambda status: status["problems"] == [told])
            assert director.table().flowtables == {"offloaded": ("eth0", "eth1")}
            assert talk.alive(PATIENCE)
    finally:
        director.lab.run("director", ["ip", "link", "del", "spare"], check=False)


@pytest.mark.parametrize(
    "change",
    [
        GONE,
        "add flowtable inet lbd theirs { hook ingress priority 0; devices = { lo }; }",
        f"{GONE}; add flowtable inet lbd offloaded {{ hook ingress priority 5; devices = {{ eth0 }}; }}",
    ],
    ids=["taken away", "one more", "another priority"],
)
def test_drift_is_repaired(flowtables, lab, director, servers, change):
    director.apply(web())
    since = len(director.lines)
    director.nft(change)
    director.wait_line("drift repaired", since=since)
    table = director.table()
    assert table.flowtables == {"offloaded": ("eth0", "eth1")}
    assert len(table.chains["offload_forward"].digests) == 1
    assert not table.beyond_repair
    with Conversation(lab, "client", VIP[4], 8888, timeout=PATIENCE) as talk:
        talk_until_offloaded(lab, talk, 4)


# The fake kernel against the real one.

START = [
    AddTable(),
    AddFlowtable("offloaded", ("eth0",)),
    AddChain("forward", Hook("filter", "forward", 0)),
    AddChain("input", Hook("filter", "input", 0)),
    AddRule("forward", "flow add @offloaded"),
]
NEW = AddFlowtable("offloaded", ("eth0", "eth1"))

CASES = {
    "delete one that a rule names": ([DeleteFlowtable("offloaded")], False),
    "delete one and its rule": ([FlushChain("forward"), DeleteFlowtable("offloaded")], True),
    "make it anew": (
        [
            FlushChain("forward"),
            DeleteFlowtable("offloaded"),
            NEW,
            AddRule("forward", "flow add @offloaded"),
        ],
        True,
    ),
    "make it anew below its rule": ([DeleteFlowtable("offloaded"), NEW], False),
    "delete one that is not there": ([DeleteFlowtable("nope")], False),
    "name one that is not there": ([AddRule("forward", "flow add @nope")], False),
    "name it at another hook": ([AddRule("input", "flow add @offloaded")], False),
    "one over a device twice": ([AddFlowtable("more", ("eth1", "eth1"))], False),
}


@pytest.mark.parametrize(("ops", "taken"), CASES.values(), ids=CASES)
def test_both_kernels_take_and_refuse_the_same(flowtables, tmp_path, ops, taken):
    with inside(DIRECTOR):
        real, fake = Host(Store(tmp_path)), FakeHost()
        try:
            for host in (real, fake):
                host.commit(START)
            assert [_taken(host, ops) for host in (real, fake)] == [taken, taken]
            tables = [host.read(Desired()).table for host in (real, fake)]
            assert tables[0].flowtables == tables[1].flowtables
            assert not tables[0].beyond_repair
            assert not remove(real).problems
        finally:
            real.close()


def _taken(host, ops):
    try:
        host.commit(ops)
    except RefusedError:
        return False
    return True


def test_our_words_are_nfts(flowtables):
    """Of every kind of listen address, on a kernel that takes them."""
    golden = Path(__file__).parents[1] / "core/golden/program/offload.txt"
    lines = [line for line in golden.read_text().splitlines() if line.startswith("add ") and " lbd" in line]
    with inside(DIRECTOR) as host:
        host.run("nft", "; ".join(lines))
        assert "flow add @offloaded" in host.run("nft", "list", "ruleset")
