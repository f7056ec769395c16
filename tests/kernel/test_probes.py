"""Checks of the network against real servers on another host, good ones and bad ones."""

import asyncio
import os
import resource
import socket
import subprocess
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from lbd.core.health import Result, Target
from lbd.core.probes import AgentProbe, DnsProbe, IcmpProbe, TcpProbe, UdpProbe
from lbd.host.probe import OwnTroubleError, run
from lbd.lab.namespaces import Lab, wait_until
from lbd.lab.topology import experiment
from rogues import Datagrams, Rogue, closes, endless, garbage, resets, says, silent, trickles
from running import SERVERS

pytestmark = pytest.mark.kernel

HOST = "server1"
FAMILIES = pytest.mark.parametrize("family", [4, 6])
ADDRESS = {family: addresses[0] for family, addresses in SERVERS.items()}
SOURCE = {4: "192.168.2.91", 6: "2001:db8:2::91"}
CLOSED = 9
PING = IcmpProbe()
PORTS = "net.ipv4.ip_local_port_range"
RANGE = "net.ipv4.ping_group_range"


@pytest.fixture(scope="module")
def lab():
    with Lab(experiment(1, ipv6=True)) as lab:
        for name in ("net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"):
            lab.sysctl(HOST, name, "0")
        lab.sysctl("director", RANGE, "0 2147483647")
        for address, length in ((SOURCE[4], 24), (SOURCE[6], 64)):
            lab.run("director", ["ip", "address", "add", f"{address}/{length}", "dev", "eth1", "nodad"])
        yield lab


@pytest.fixture
def rogue(lab):
    """Make a server of the other host do something; it is closed with the test."""
    opened = []

    def start(talk, kind=Rogue):
        opened.append(kind(lab, HOST, talk))
        return opened[-1]

    yield start
    for server in opened:
        server.__exit__()


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def nothing_is_left(lab):
    """No check leaves a descriptor behind, whatever it met."""
    before = descriptors()
    yield
    assert wait_until(lambda: descriptors() <= before, 2.0), "a descriptor is left open"


def checked(lab, probe, port=0, family=4, *, within=2.0, source="", address=""):
    """Check from the director; "timeout" stands for a check that its caller has to end."""

    async def bounded():
        target = Target(probe, address or ADDRESS[family], port, source)
        try:
            async with asyncio.timeout(within):
                return await run(target, within)
        except TimeoutError:
            return "timeout"
        finally:
            await asyncio.sleep(0)  # what is closed is closed on the next turn of the loop

    with lab.inside("director"):
        return asyncio.run(bounded())


def said(lab, probe, port=0, family=4, **options):
    """Return why a check fails; it is one short line."""
    result = checked(lab, probe, port, family, **options)
    assert isinstance(result, Result), result
    assert not result.passed
    assert result.reason.isprintable()
    assert 0 < len(result.reason) < 400
    return result.reason


def sockets(lab, host="director"):
    return lab.run(host, ["ss", "-tanH"]).stdout


# TCP.


@FAMILIES
def test_a_connect_is_enough_and_the_server_is_not_bothered(lab, rogue, family):
    server = rogue(silent)
    before = sockets(lab)
    assert checked(lab, TcpProbe(), server.port, family) == Result(True)
    assert sockets(lab) == before
    # A second one, that is seen, shows that the first was not: they are accepted in order.
    assert checked(lab, TcpProbe(expect=b"x"), server.port, family, within=0.2) == "timeout"
    assert wait_until(lambda: server.peers, 1.0)
    assert len(server.peers) == 1


@FAMILIES
def test_a_closed_port_refuses(lab, family):
    assert said(lab, TcpProbe(), CLOSED, family) == "connection refused"
    assert said(lab, TcpProbe(b"x", b"y"), CLOSED, family) == "connection refused"
    assert said(lab, AgentProbe(), CLOSED, family) == "connection refused"


@FAMILIES
def test_a_full_backlog_is_no_answer(lab, family):
    with lab.inside(HOST):
        listener = socket.create_server(
            (ADDRESS[family], 0), family=socket.AF_INET6 if family == 6 else socket.AF_INET, backlog=0
        )
    with listener, lab.inside("director"), socket.create_connection(listener.getsockname()[:2]):
        assert checked(lab, TcpProbe(), listener.getsockname()[1], family, within=0.3) == "timeout"


@FAMILIES
def test_it_comes_from_its_source(lab, rogue, family):
    server = rogue(says(b"hello"))
    probe = TcpProbe(expect=b"hello")
    assert checked(lab, probe, server.port, family, source=SOURCE[family]) == Result(True)
    assert server.peers == [SOURCE[family]]


@FAMILIES
@pytest.mark.parametrize("probe", [TcpProbe(), UdpProbe(b"x"), DnsProbe("example.test"), PING], ids=repr)
def test_a_source_that_is_not_here_is_our_own_trouble(lab, family, probe):
    source = {4: "192.0.2.200", 6: "2001:db8::200"}[family]
    with pytest.raises(OwnTroubleError, match=r"the source address is not on this host"):
        checked(lab, probe, 0 if probe is PING else 53, family, source=source)


@pytest.mark.parametrize("probe", [TcpProbe(), UdpProbe(b"x"), DnsProbe("example.test"), PING], ids=repr)
def test_no_descriptors_left_are_our_own_trouble(lab, probe):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    port = 0 if probe is PING else 53

    async def starved():
        next_one = os.dup(0)
        os.close(next_one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, hard))
        try:
            await run(Target(probe, ADDRESS[4], port), 1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    checked(lab, probe, port, within=0.2)  # loads what it needs
    with lab.inside("director"), pytest.raises(OwnTroubleError, match="too many open files"):
        asyncio.run(starved())


@FAMILIES
def test_no_route_is_the_targets(lab, family):
    away = {4: "203.0.113.1", 6: "2001:db8:ffff::1"}[family]
    lab.run("director", ["ip", "route", "replace", "unreachable", away])
    for probe in (TcpProbe(), UdpProbe(b"x"), DnsProbe("example.test"), PING):
        port = 0 if probe is PING else 53
        assert said(lab, probe, port, family, address=away) == "no route to host", probe


@FAMILIES
@pytest.mark.parametrize(
    "talk", [says(b"+PONG\r\n"), trickles(b"..." + b"+PONG\r\n"), says(b"x" * 60_000 + b"+PONG\r\n")]
)
def test_what_is_expected_comes(lab, rogue, family, talk):
    before = sockets(lab)
    assert checked(lab, TcpProbe(b"PING\r\n", b"+PONG\r\n"), rogue(talk).port, family) == Result(True)
    assert "TIME-WAIT" not in sockets(lab).replace(before, "")


def test_what_is_sent_arrives_when_nothing_is_expected(lab, rogue):
    gone, came = threading.Event(), []

    def talk(connection):
        gone.wait(2.0)
        # A reset would make an error of the end.
        came.append(connection.recv(100))
        came.append(connection.recv(100))

    server = rogue(talk)
    assert checked(lab, TcpProbe(b"hello"), server.port) == Result(True)
    gone.set()
    assert wait_until(lambda: came == [b"hello", b""], 1.0)


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (says(b"-ERR\r\n\x1b[31m\xff"), 'answered "-ERR\\r\\n\\x1b[31m\\xff", without "+PONG"'),
        (closes, 'closed without an answer, not with "+PONG"'),
        (resets, "connection reset"),
        (endless, f'no "+PONG" in the first 65536 bytes, which begin with "{"x" * 64}..."'),
    ],
)
def test_what_is_expected_does_not_come(lab, rogue, talk, reason):
    # One that closes before it has read resets the connection, where it can be seen.
    assert said(lab, TcpProbe(b"PING", b"+PONG"), rogue(talk).port) in {reason, "connection reset"}


@pytest.mark.parametrize("probe", [TcpProbe(b"", b"x"), AgentProbe()])
def test_one_that_says_nothing_takes_as_long_as_the_caller_lets_it(lab, rogue, probe):
    began = time.monotonic()
    assert checked(lab, probe, rogue(silent).port, within=0.2) == "timeout"
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("probe", [TcpProbe(b"", b"y"), AgentProbe()])
def test_one_without_an_end_costs_little(lab, rogue, probe):
    server = rogue(endless)
    checked(lab, probe, server.port)
    tracemalloc.start()
    try:
        began = time.monotonic()
        said(lab, probe, server.port)
        assert time.monotonic() - began < 1.0
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# HAProxy's agent.


@FAMILIES
@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (b"75%\n", Result(True, weight=75)),
        (b"ready 50%\r\nmore", Result(True, weight=50, agent="")),
        (b"drain", Result(True, agent="drain")),
        (b"maint\r", Result(True, agent="maintenance")),
        (b"down #disk full\n", Result(False, "the agent says down: disk full")),
        (b"\n", Result(False, "an empty line")),
        (b"", Result(False, "closed without an answer")),
        (b"HTTP/1.1 400 Bad Request\r\n", Result(False, 'no word of an agent in "HTTP/1.1 400 Bad Request"')),
    ],
)
def test_an_agent_says_how_its_backend_feels(lab, rogue, family, answer, result):
    assert checked(lab, AgentProbe(), rogue(says(answer)).port, family) == result


def test_an_agent_may_be_asked_something(lab, rogue):
    asked = []

    def talk(connection):
        asked.append(connection.recv(100))
        trickles(b"up\n")(connection)

    assert checked(lab, AgentProbe(b"web1\n"), rogue(talk).port) == Result(True, agent="")
    assert asked == [b"web1\n"]


def test_an_agent_that_talks_nonsense_fails(lab, rogue):
    assert said(lab, AgentProbe(), rogue(says(os.urandom(4000).replace(b"\n", b"").replace(b"\r", b""))).port)
    assert said(lab, AgentProbe(), rogue(endless).port).startswith('no line, but "xxx')
    assert said(lab, AgentProbe(b"x"), rogue(resets).port) == "connection reset"


# UDP.


@FAMILIES
def test_a_datagram_is_answered(lab, rogue, family):
    server = rogue(lambda data: b"you said " + data, Datagrams)
    assert checked(lab, UdpProbe(b"hi", b"said hi"), server.port, family) == Result(True)
    assert checked(lab, UdpProbe(b"hi"), server.port, family) == Result(True)
    assert checked(lab, UdpProbe(b"hi", b""), server.port, family, source=SOURCE[family]) == Result(True)
    assert server.asked == [b"hi"] * 3
    assert said(lab, UdpProbe(b"hi", b"+"), server.port, family) == 'answered "you said hi", without "+"'
    assert checked(lab, UdpProbe(b"", b""), server.port, family) == Result(True)
    assert server.asked[-1] == b""


@FAMILIES
def test_a_closed_port_says_so(lab, family):
    for probe in (UdpProbe(b"x"), UdpProbe(b"x", b"y"), DnsProbe("example.test")):
        assert said(lab, probe, CLOSED, family) == "connection refused"


def test_silence_is_an_answer_only_when_none_is_expected(lab, rogue):
    server = rogue(lambda _: None, Datagrams)
    began = time.monotonic()
    assert checked(lab, UdpProbe(b"x"), server.port, within=0.5) == Result(True)
    assert 0.35 < time.monotonic() - began < 0.5
    assert checked(lab, UdpProbe(b"x", b"y"), server.port, within=0.2) == "timeout"
    assert checked(lab, DnsProbe("example.test"), server.port, within=0.2) == "timeout"


@FAMILIES
def test_a_router_that_knows_no_way_is_believed(lab, rogue, family):
    server = rogue(lambda _: None, Datagrams)
    how = {4: "icmp type host-unreachable", 6: "icmpv6 type addr-unreachable"}[family]
    rules = f"""table inet away {{ chain c {{ type filter hook input priority 0;
        udp dport {server.port} reject with {how};
        icmp type echo-request reject with icmp type host-unreachable;
        icmpv6 type echo-request reject with icmpv6 type addr-unreachable;
    }}; }}"""
    lab.run(HOST, ["nft", "-f", "-"], text=rules)
    try:
        assert said(lab, UdpProbe(b"x"), server.port, family) == "no route to host"
        assert said(lab, UdpProbe(b"x", b"y"), server.port, family) == "no route to host"
        assert said(lab, PING, 0, family) == "no route to host"
    finally:
        lab.run(HOST, ["nft", "delete", "table", "inet", "away"])


@pytest.mark.parametrize(
    ("family", "how", "reason"),
    [
        (4, "icmp type admin-prohibited", "no route to host"),
        (6, "icmpv6 type admin-prohibited", "prohibited on the way"),
    ],
)
def test_a_firewall_of_the_target_is_the_targets(lab, rogue, family, how, reason):
    server = rogue(lambda _: None, Datagrams)
    rule = f"th dport {server.port} reject with {how}"
    rules = f"table inet wall {{ chain c {{ type filter hook input priority 0; {rule}; }}; }}"
    lab.run(HOST, ["nft", "-f", "-"], text=rules)
    try:
        for probe in (TcpProbe(), UdpProbe(b"x"), DnsProbe("example.test")):
            assert said(lab, probe, server.port, family) == reason
    finally:
        lab.run(HOST, ["nft", "delete", "table", "inet", "wall"])


def test_a_rule_of_this_host_is_our_own_trouble(lab):
    rules = "table inet own { chain c { type filter hook output priority 0; udp dport 7777 drop; }; }"
    lab.run("director", ["nft", "-f", "-"], text=rules)
    try:
        with pytest.raises(OwnTroubleError, match=r"^not permitted: does a rule of this host drop it"):
            checked(lab, UdpProbe(b"x"), 7777)
    finally:
        lab.run("director", ["nft", "delete", "table", "inet", "own"])


def test_the_answer_of_another_is_none(lab, rogue):
    with lab.inside(HOST), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        # Every port that the check may have is told the right answer, by the wrong one.
        def answer(_data):
            for port in (40000, 40001):
                other.sendto(b"y", ("192.168.2.90", port))

        server = rogue(answer, Datagrams)
        before = lab.sysctl("director", PORTS)
        lab.sysctl("director", PORTS, "40000 40001")
        try:
            assert checked(lab, UdpProbe(b"x", b"y"), server.port, within=0.3) == "timeout"
        finally:
            lab.sysctl("director", PORTS, before)
    assert server.asked


# DNS.


@pytest.fixture(scope="module")
def names(lab):
    """A name server: dnsmasq, with the names of its command line."""
    lab.popen(
        HOST,
        [
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file="),
            *("--no-resolv", "--no-hosts", "--local=/test/", "--log-facility=-", "--port=5353"),
            "--host-record=www.example.test,192.0.2.9,2001:db8::9",
            "--host-record=two.example.test,192.0.2.10",
            "--host-record=two.example.test,192.0.2.11",
            "--cname=alias.example.test,www.example.test",
            "--mx-host=example.test,mail.example.test,10",
            "--txt-record=example.test,v=spf1 -all",
        ],
        stderr=subprocess.DEVNULL,
    )
    assert wait_until(lambda: checked(lab, DnsProbe("www.example.test"), 5353) == Result(True), 10.0)
    return 5353


@FAMILIES
@pytest.mark.parametrize(
    "probe",
    [
        DnsProbe("www.example.test"),
        DnsProbe("WWW.example.TEST."),
        DnsProbe("www.example.test", "A", ("192.0.2.9",)),
        DnsProbe("www.example.test", "AAAA", ("2001:DB8:0::9",)),
        DnsProbe("two.example.test", "A", ("192.0.2.11", "192.0.2.10")),
        DnsProbe("alias.example.test", "A", ("192.0.2.9",)),
        DnsProbe("alias.example.test", "CNAME", ("www.example.test",)),
        DnsProbe("example.test", "MX", ("10 mail.example.test",)),
        DnsProbe("example.test", "TXT", ("v=spf1 -all",)),
    ],
    ids=lambda probe: f"{probe.record}-{probe.query}",
)
def test_a_name_server_answers(lab, names, family, probe):
    assert checked(lab, probe, names, family) == Result(True)


@FAMILIES
@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (DnsProbe("nobody.example.test"), "NXDOMAIN"),
        (DnsProbe("two.example.test", "AAAA"), "no AAAA record"),
        (DnsProbe("www.example.test", "A", ("192.0.2.1",)), "has 192.0.2.9, not 192.0.2.1"),
        (DnsProbe("www.example.org"), "REFUSED"),
    ],
)
def test_a_name_server_answers_something_else(lab, names, family, probe, reason):
    assert said(lab, probe, names, family) == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (garbage, "200 bytes that are no answer of a name server"),
        (lambda _: b"", "0 bytes that are no answer of a name server"),
        (lambda data: data, "an answer to another question"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:2] + b"\x80" + data[3:], "an answer to another question"),
        (lambda data: data[:2] + b"\x84\x00" + data[4:], "no A record"),
        (lambda data: data[:2] + b"\x84\x00" + data[4:] + bytes(500), "no A record"),
        (lambda data: data[:2] + b"\x84\x02" + data[4:], "SERVFAIL"),
        (lambda data: data[:2] + b"\x80\x00\xff\xff\xff\xff" + data[8:] + os.urandom(20_000), None),
    ],
)
def test_a_name_server_that_talks_nonsense_fails(lab, rogue, answer, reason):
    found = said(lab, DnsProbe("www.example.test"), rogue(answer, Datagrams).port)
    assert reason in (found, None)


def test_a_name_that_cannot_be_asked_for_fails(lab):
    assert said(lab, DnsProbe("x" * 64 + ".test"), 53).startswith("cannot ask for xxx")
    assert said(lab, DnsProbe("example.test", "NONSENSE"), 53).startswith("cannot ask for example.test NONS")


# Ping.


@FAMILIES
def test_a_host_answers_a_ping(lab, family):
    assert checked(lab, PING, 0, family) == Result(True)
    assert checked(lab, PING, 0, family, source=SOURCE[family]) == Result(True)


def test_a_host_that_ignores_pings_does_not_answer(lab):
    lab.sysctl(HOST, "net.ipv4.icmp_echo_ignore_all", "1")
    try:
        assert checked(lab, PING, within=0.2) == "timeout"
    finally:
        lab.sysctl(HOST, "net.ipv4.icmp_echo_ignore_all", "0")


def test_a_reply_to_something_else_is_none(lab):
    lab.sysctl(HOST, "net.ipv4.icmp_echo_ignore_all", "1")
    with lab.inside(HOST):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.settimeout(2.0)

    async def both():
        answering = asyncio.to_thread(_answer_wrongly, raw)
        return (await asyncio.gather(run(Target(PING, ADDRESS[4]), 2.0), answering))[0]

    try:
        with raw, lab.inside("director"):
            assert asyncio.run(both()) == Result(False, "answers to something else")
    finally:
        lab.sysctl(HOST, "net.ipv4.icmp_echo_ignore_all", "0")


def _answer_wrongly(raw):
    """Send the reply to a ping, but for one bit of it, many times."""
    data, peer = raw.recvfrom(1000)
    request = bytearray(data[20:])
    request[0], request[-1] = 0, request[-1] ^ 1
    request[2:4] = bytes(2)
    words = sum(int.from_bytes(request[i : i + 2], "big") for i in range(0, len(request), 2))
    request[2:4] = (0xFFFF - (words % 0xFFFF)).to_bytes(2, "big")
    for _ in range(30):
        raw.sendto(bytes(request), peer)


def test_a_kernel_that_allows_no_pings_is_our_own_trouble(lab):
    lab.sysctl("director", RANGE, "1 0")
    try:
        with pytest.raises(OwnTroubleError, match=r"^net.ipv4.ping_group_range does not include group 0"):
            checked(lab, PING)
    finally:
        lab.sysctl("director", RANGE, "0 2147483647")


def test_a_kernel_that_allows_pings_a_little_later_is_no_trouble(lab):
    lab.sysctl("director", RANGE, "1 0")
    later = threading.Timer(0.2, lab.sysctl, ("director", RANGE, "0 2147483647"))
    later.start()
    try:
        assert checked(lab, PING) == Result(True)
    finally:
        later.join()
