"""The tracer and the kernel say the same of a packet: the cases of trace_cases on real links."""

import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lbd.core.trace import trace
from lbd.host.director import Director
from lbd.host.store import Store
from lbd.lab.namespaces import wait_until
from lbd.lab.raw import ping
from lbd.lab.tap import Tap
from lbd.lab.traffic import Answer, ask
from lbd.reconcile import reconcile, remove
from serving import forget_connections, route, serve
from trace_cases import CASES
from trace_cases.words import (
    BACK4,
    BACK6,
    BACK_INDEX,
    CLIENT4,
    CLIENT6,
    LOCAL,
    OTHER4,
    OTHER6,
    after,
)

pytestmark = pytest.mark.kernel

# What packets of a client alone do not show, and why.
NOT_SHOWN = {
    "a client that is over a limit has sent many packets before": [
        "over the limit",
        "over the limit, refused",
        "over the limit, ipv6",
        "over the rate of a client",
        "over the connections of a client",
        "over the connections of a client, refused",
        "over the connections of a client, ipv6",
        "over the limits on a range",
        "over the limit on every port",
        "over the limits with a mark",
        "over the limits on every address",
        "another service is over its limit",
        "allowed and over the limit",
    ],
    "a packet that does not begin a connection is none that a client sends first": [
        "established",
        "synproxy, answer to a cookie",
        "synproxy, answer that conntrack does not take",
        "synproxy, established",
        "direct, later packets",
        "stateless, later packets",
    ],
}

HOSTS = {
    **dict.fromkeys((CLIENT4, CLIENT6), "client"),
    **dict.fromkeys((OTHER4, OTHER6), "client2"),
    **dict.fromkeys(LOCAL, "director"),
    "192.168.2.1": "router",
    **{f"{net}{72 + n}": f"server{n}" for net in ("192.168.2.", "2001:db8:2::") for n in (1, 2, 3)},
}
ELSEWHERE = ("client", "client2", "server1", "server2", "server3")
NAMES = {"ipv6-icmp": "icmp6"}

# Addresses of pools, which the director has beside its own and takes for nothing else.
POOL = ("192.168.2.91/24", "192.168.2.92/24", "192.168.2.93/24", "2001:db8:2::91/64")

# How long is waited for what is to come, and for an answer to what is dropped or seen to arrive unanswered.
PATIENCE, QUIET, BRIEF = 10.0, 0.25, 0.02

# Neighbour discovery alone has this hop limit: RFC 4861.
OF_THE_LINK = 255
SO_NO_CHECK = 11  # include/uapi/asm-generic/socket.h

# Of a ping, which does not say whose answer it is.
ANSWERED = "somebody"

FOREIGN = "table inet foreign { chain marks { type filter hook prerouting priority -160; }; }"


@dataclass(frozen=True)
class Seen:
    """What became of a packet: it "arrived" with these ends, or else as a verdict says."""

    end: str
    host: str = ""
    destination: str = ""
    port: int = 0
    source: str = ""
    source_port: int = 0

    def is_of(self, outcome, packet):
        """Whether the tracer said so."""
        to = outcome.neighbour or outcome.destination
        if outcome.verdict in {"drop", "reset", "unreachable"} or to in LOCAL:
            return self == Seen(outcome.verdict)
        if (self.end, self.host, self.destination, self.port) != (
            "arrived",
            HOSTS[to],
            outcome.destination,
            outcome.port,
        ):
            return False
        if outcome.source == "masquerade":
            return self.source == (BACK4 if packet.family == 4 else BACK6)
        low, _, high = (outcome.source_ports or str(packet.source_port)).partition("-")
        return self.source == (outcome.source or packet.source) and (
            "icmp" in packet.protocol or int(low) <= self.source_port <= int(high or low)
        )


class Bench:
    """A director that takes one file after another, and hosts around it on which is seen what arrives."""

    def __init__(self, lab):
        self.lab, self.servers, self.mark = lab, {}, 0
        self.taps = {host: lab.enter(Tap(lab, host)) for host in (*ELSEWHERE, "director", "router")}
        with lab.inside("director"):
            assert socket.if_nametoindex("eth1") == BACK_INDEX
            self.director = Director(Store(lab.directory("director") / "state"))
        lab.run("director", ["nft", FOREIGN])

    def apply(self, wanted):
        """Have a director with these rules and nothing from before."""
        forget_connections(self.lab)
        with self.lab.inside("director"):
            assert not remove(self.director).refused
            outcome = reconcile(self.director, wanted)
        assert not outcome.refused + outcome.left

    def send(self, packet, outcomes):
        """Send a packet, for which one of these outcomes is awaited, and return what became of it."""
        self._mark(packet.mark)
        if packet.destination in LOCAL:
            self._serve("director", packet.destination_port, packet.protocol)
        answered = [
            each for each in outcomes if each.verdict in {"dnat", "rewritten"} and not _is_reply(each)
        ]
        for each in answered:
            self._serve(HOSTS[each.destination], each.port, packet.protocol)
        for tap in self.taps.values():
            tap.clear()
        answer = self._ask(packet, max(map(_patience, outcomes)))
        arrives = any(each.verdict == "forwarded" or each.destination not in LOCAL for each in outcomes)
        arrived = wait_until(lambda: self._arrived(packet), PATIENCE if arrives else 0.0)
        if arrived:
            assert not answered or answer.server in {arrived.host, ANSWERED}
            return arrived
        return Seen(self._told(packet, answer))

    def cookies(self):
        """How many SYNs a synproxy of the director has answered."""
        with self.lab.inside("director"):
            # The second column of each processor: net/netfilter/nf_synproxy_core.c.
            lines = Path("/proc/thread-self/net/stat/synproxy").read_text().splitlines()[1:]
        return sum(int(line.split()[1], 16) for line in lines)

    def _mark(self, mark):
        """Have a table of somebody else mark what comes in."""
        if mark != self.mark:
            rule = f"add rule inet foreign marks meta mark set {mark}" if mark else ""
            self.lab.run("director", ["nft", f"flush chain inet foreign marks; {rule}"])
            self.mark = mark

    def _serve(self, host, port, protocol):
        key = host, port, protocol
        if protocol in {"tcp", "udp", "sctp"} and key not in self.servers:
            self.servers[key] = self.lab.enter(serve(self.lab, host, port, protocol))

    def _ask(self, packet, seconds):
        host, to = HOSTS[packet.source], packet.destination
        if "icmp" in packet.protocol:
            return Answer(ANSWERED) if ping(self.lab, host, to, seconds) else Answer(failure="no answer")
        if not packet.checksum:
            return self._ask_without_checksum(packet, seconds)
        ends = {"source": packet.source, "source_port": packet.source_port}
        return ask(
            self.lab, host, to, packet.destination_port, protocol=packet.protocol, timeout=seconds, **ends
        )

    def _ask_without_checksum(self, packet, seconds):
        with self.lab.inside(HOSTS[packet.source]), socket.socket(type=socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
            client.bind((packet.source, packet.source_port))
            client.connect((packet.destination, packet.destination_port))
            client.settimeout(seconds)
            client.send(b"hello\n")
            with suppress(TimeoutError):
                return Answer(client.recv(100).split()[0].decode())
        return Answer(failure="timeout")

    def _arrived(self, packet):
        """What came to a host, other than an answer to the client."""
        asked = packet.destination, packet.destination_port
        for host in ELSEWHERE:
            for seen in self._came(host, packet):
                if (seen.source, seen.source_port) != asked and seen.flags in {(), ("SYN",)}:
                    ends = (seen.destination, seen.destination_port, seen.source, seen.source_port)
                    return Seen("arrived", host, *ends)
        return None

    def _came(self, host, packet):
        """What came to a host of the protocol of a packet."""
        name = NAMES.get(packet.protocol, packet.protocol)
        return [
            seen
            for seen in self.taps[host].seen
            if (seen.direction, seen.protocol) == ("in", name) and seen.ttl != OF_THE_LINK
        ]

    def _told(self, packet, answer):
        """What a client was told, whose packet came to no other host."""
        came = self._came(HOSTS[packet.source], packet)
        if answer.server:
            assert answer.server in {"director", ANSWERED}
            return "accept"
        if answer.failure == "refused":
            return "reset" if any("RST" in seen.flags for seen in came) else "unreachable"
        if answer.failure == "no answer":
            return "unreachable" if came else "drop"
        # What the director's own rules drop of its own fails at once for UDP.
        return "drop" if answer.failure in {"timeout", "Operation not permitted"} else answer.failure


def _is_reply(outcome):
    return outcome.verdict == "rewritten" and bool(outcome.source)


def _patience(outcome):
    if outcome.verdict == "drop":
        return QUIET
    return BRIEF if outcome.verdict == "forwarded" or _is_reply(outcome) else PATIENCE


@pytest.fixture(scope="module")
def bench(lab):
    route(lab, "client", "client2")
    lab.run("router", ["ip", "route", "add", "192.168.18.0/24", "via", BACK4])
    for address in POOL:
        later = ["preferred_lft", "0", "nodad"] if ":" in address else []
        lab.run("director", ["ip", "address", "add", address, "dev", "eth1", *later])
    for name in ("all", "eth1"):
        lab.sysctl("director", f"net.ipv4.conf.{name}.send_redirects", "0")
    bench = Bench(lab)
    yield bench
    with lab.inside("director"):
        bench.director.close()


def test_what_is_not_shown_is_a_case():
    names = [name for listed in NOT_SHOWN.values() for name in listed]
    assert len(names) == len(set(names))
    assert set(names) <= {case.name for case in CASES}


SHOWN = [case for case in CASES if not any(case.name in names for names in NOT_SHOWN.values())]


@pytest.mark.parametrize("case", SHOWN, ids=lambda case: case.name)
def test_kernel_does_what_the_tracer_says(case, bench):
    wanted = case.desired
    bench.apply(wanted)
    facts = case.facts(wanted)
    for packet in (*case.before, case.packet):
        # What the director opens in a client's name begins with a client, and a cookie for it.
        if not packet.interface and packet.source not in LOCAL:
            packet = replace(packet, interface="eth0")  # noqa: PLW2901
        outcomes, cookies = trace(wanted, packet, facts), bench.cookies()
        proxied = {each.verdict for each in outcomes} == {"synproxy"}
        if proxied:
            outcomes = trace(wanted, replace(packet, interface=""), facts)
        seen = bench.send(packet, outcomes)
        said = [each for each in outcomes if seen.is_of(each, packet)]
        assert said, f"{seen}, and the tracer says one of {[replace(o, steps=()) for o in outcomes]}"
        assert (bench.cookies() > cookies) == proxied
        facts = after(said[0], facts)
