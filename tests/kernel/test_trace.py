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
    NEIGHBOUR4,
    NEIGHBOUR6,
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

# How long something is waited for that is to come, and something that is not.
PATIENCE, QUIET = 10.0, 0.25

# Neighbour discovery alone has this hop limit: RFC 4861.
OF_THE_LINK = 255
SO_NO_CHECK = 11  # include/uapi/asm-generic/socket.h

FOREIGN = "table inet foreign { chain mark { type filter hook prerouting priority -160; } }"


@dataclass(frozen=True)
class Seen:
    """What became of a packet: it arrived with these ends, or how the client was told that it did not."""

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
            return self == Seen("director" if outcome.verdict == "accept" else outcome.verdict)
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
            packet.protocol.endswith("icmp") or int(low) <= self.source_port <= int(high or low)
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
        quiet = all(each.verdict in {"drop", "forwarded"} or _unanswered(each) for each in outcomes)
        arrives = all(
            each.verdict in {"accept", "dnat", "forwarded", "rewritten"} and each.destination not in LOCAL
            for each in outcomes
        )
        for each in outcomes:
            if each.verdict in {"dnat", "rewritten"} and each.destination in HOSTS:
                self._serve(HOSTS[each.destination], each.port, packet.protocol)
        self._serve("director", packet.destination_port, packet.protocol)
        for tap in self.taps.values():
            tap.clear()
        answer = self._ask(packet, QUIET if quiet else PATIENCE)
        arrived = wait_until(lambda: self._arrived(packet), PATIENCE if arrives else 0)
        if answer.server == "director":
            return Seen("director")
        if arrived:
            if not quiet and all(each.verdict in {"dnat", "rewritten"} for each in outcomes):
                assert answer.server in {arrived.host, "somebody"}, answer
            return arrived
        return Seen(self._told(packet, answer.failure))

    def cookies(self):
        """How many SYNs a synproxy of the director has answered."""
        with self.lab.inside("director"):
            # The second column of each processor: net/netfilter/nf_synproxy_core.c.
            lines = Path("/proc/thread-self/net/stat/synproxy").read_text().splitlines()[1:]
        return sum(int(line.split()[1], 16) for line in lines)
