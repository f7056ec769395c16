"""A packet on its way through the hooks: what is known beside the table, and what became of it so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal

from lbd.core.trace.fields import Packet

# "reset" and "unreachable" are the two ways to refuse. "accept": no rule had a say. "forwarded" is sent on to
# a neighbour as it came, "rewritten" goes on with other ends and without a connection.
Ending = Literal["dnat", "drop", "reset", "unreachable", "accept", "synproxy", "forwarded", "rewritten"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules ask about and the table does not say.

    `local` are the director's addresses. `routes` lead to interfaces, the longest prefix wins. `learned` are
    the elements that packets have put into maps, by map. `over` are the limit objects that are passed, and
    the sets in which this client is over its limit. `connection` is what connection tracking says of the
    packet.
    """

    local: frozenset[str] = frozenset()
    routes: tuple[tuple[IPv4Network | IPv6Network, str], ...] = ()
    learned: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    over: frozenset[str] = frozenset()
    connection: Literal["new", "established", "invalid"] = "new"

    def out(self, address: str) -> str:
        """Return the interface that leads to an address, "" if none does."""
        to = ip_address(address)
        fits = [(net.prefixlen, name) for net, name in self.routes if net.version == to.version and to in net]
        return max(fits)[1] if fits else ""


@dataclass(frozen=True, slots=True)
class Noted:
    """An element that the packet makes or keeps alive, with the data it has then ("" in a set)."""

    map: str
    key: str
    data: str


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that was tried, and what it did."""

    chain: str
    rule: str
    did: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a packet, in `share` of the cases.

    `destination` and `port` are where it goes, as translated or as it came. `source` is what takes the place
    of the source address: "" for nothing, an address, or "masquerade"; `source_ports` is "" for the kernel's
    choice. `neighbour` and `device`, the index of an interface, are where "forwarded" sends it.
    """

    verdict: Ending
    destination: str
    port: int
    source: str
    source_ports: str
    noted: tuple[Noted, ...]
    steps: tuple[Step, ...]
    share: Fraction
    neighbour: str = ""
    device: int = 0


@dataclass(frozen=True, slots=True)
class Flow:
    """A packet as it is now and as it came, in `share` of the cases.

    `connection` is conntrack's word for it, "" before conntrack has seen it. The destination is translated
    once or never: `settled` says that this is over, `translated` that it was done. `rewritten`: packet by
    packet, and what came is for conntrack what was made of it.
    """

    now: Packet
    came: Packet
    share: Fraction = Fraction(1)
    connection: str = ""
    settled: bool = False
    translated: bool = False
    rewritten: bool = False
    ending: Ending | None = None
    source: str = ""
    source_ports: str = ""
    neighbour: str = ""
    device: int = 0
    noted: tuple[Noted, ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def ct_dnat(self) -> bool:
        """Whether the connection has IPS_DST_NAT: not when it was translated to what it was."""
        now, came = self.now, self.came
        return (now.destination, now.destination_port) != (came.destination, came.destination_port)

    @property
    def outcome(self) -> Outcome:
        """Return how it ended, once it has passed the last hook."""
        return Outcome(
            verdict=self.ending or self._passed,
            destination=self.now.destination,
            port=self.now.destination_port,
            source=self.source,
            source_ports=self.source_ports,
            noted=self.noted,
            steps=self.steps,
            share=self.share,
            neighbour=self.neighbour,
            device=self.device,
        )

    @property
    def _passed(self) -> Ending:
        return "dnat" if self.translated else "rewritten" if self.rewritten else "accept"

    def step(self, chain: str, rule: str, did: str) -> Flow:
        """Return it with a rule more behind it."""
        return replace(self, steps=(*self.steps, Step(chain, rule, did)))
