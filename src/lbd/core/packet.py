"""Packets as the log rules hand them over, and what they say about the path of a connection.

Headers are those of RFC 791, 8200, 9293 and 768. IPv6 extension headers are not followed: such a packet is
shown without ports.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
TCP, UDP, SCTP = 6, 17, 132
NAMES = {1: "icmp", TCP: "tcp", UDP: "udp", 58: "icmp6", SCTP: "sctp"}
# Bytes: of the headers, of both ports, and before the flags of TCP.
IPV4_LEAST, IPV6_HEADER, PORTS, TCP_FLAGS = 20, 40, 4, 13

Direction = Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet as seen at one hook: `interface` is where it came in, or is about to leave.

    Ports are 0 and flags empty where there are none, as in the later fragments of a packet.
    """

    direction: Direction
    interface: str
    source: str
    destination: str
    protocol: str
    source_port: int = 0
    destination_port: int = 0
    flags: tuple[str, ...] = ()
    ttl: int = 0

    def __str__(self) -> str:
        ends = (self.source, self.source_port), (self.destination, self.destination_port)
        source, destination = (endpoint(address, port) for address, port in ends)
        said = " ".join([self.protocol, *self.flags])
        return f"{self.interface} {source} > {destination} {said}"


def endpoint(address: str, port: int) -> str:
    """Return "192.0.2.1:80", "[2001:db8::1]:80", or the address alone when there is no port."""
    host = f"[{address}]" if ":" in address and port else address
    return f"{host}:{port}" if port else host


def parse(direction: Direction, interface: str, data: bytes) -> Packet | None:
    """Read a packet that begins with its IP header; None when it is none, or cut too short."""
    version = data[0] >> 4 if data else 0
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    header = (data[0] & 0xF) * 4 if version == 4 else IPV6_HEADER  # noqa: PLR2004 - the version field
    later_fragment = False
    if version == 4 and len(data) >= IPV4_LEAST <= header:  # noqa: PLR2004
        later_fragment = bool(int.from_bytes(data[6:8], "big") & 0x1FFF)
        ttl, protocol, source, destination = (
            data[8],
            data[9],
            IPv4Address(data[12:16]),
            IPv4Address(data[16:20]),
        )
    elif version == 6 and len(data) >= IPV6_HEADER:  # noqa: PLR2004
        ttl, protocol = data[7], data[6]
        source, destination = IPv6Address(data[8:24]), IPv6Address(data[24:40])
    else:
        return None
    rest = b"" if later_fragment else data[header:]
    source_port = destination_port = 0
    flags: tuple[str, ...] = ()
    if protocol in (TCP, UDP, SCTP) and len(rest) >= PORTS:
        source_port, destination_port = struct.unpack("!HH", rest[:PORTS])
    if protocol == TCP and len(rest) > TCP_FLAGS:
        flags = tuple(name for bit, name in enumerate(FLAGS) if rest[TCP_FLAGS] >> bit & 1)
    name = NAMES.get(protocol, str(protocol))
    ends = (str(source), str(destination), name, source_port, destination_port)
    return Packet(direction, interface, *ends, flags, ttl)


@dataclass(frozen=True, slots=True)
class End:
    """Where connections go: "any" is every protocol, an empty `address` every one, ports from low to high."""

    protocol: str
    address: str
    low: int
    high: int

    def has(self, protocol: str, address: str, port: int) -> bool:
        """Tell whether a packet's end is this one."""
        same = self.protocol in ("any", protocol) and self.address in ("", address)
        return same and (self.protocol == "any" or self.low <= port <= self.high)


@dataclass(slots=True)
class _Ends:
    """Services by where connections go. One port is looked up, what is wider asked one by one, in order."""

    exact: dict[tuple[str, str, int], tuple[str, ...]] = field(default_factory=dict)
    wide: dict[End, tuple[str, ...]] = field(default_factory=dict)

    def add(self, end: End, name: str) -> None:
        if end.low == end.high and end.address and end.protocol != "any":
            key = (end.protocol, end.address, end.low)
            self.exact[key] = (*self.exact.get(key, ()), name)
        elif name not in self.wide.get(end, ()):
            self.wide[end] = (*self.wide.get(end, ()), name)

    def named(self, protocol: str, address: str, port: int) -> str:
        names = self.exact.get((protocol, address, port), ())
        if not names:
            names = next((n for end, n in self.wide.items() if end.has(protocol, address, port)), ())
        return "/".join(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Paths:
    """Which service a packet belongs to, and which part of its way it is on.

    Before translation a packet shows the listen address, after it the backend's; two services with one
    backend cannot be told apart there, and both are named.
    """

    listens: _Ends = field(default_factory=_Ends)
    backends: _Ends = field(default_factory=_Ends)

    @classmethod
    def of(cls, services: Iterable[tuple[str, End, Iterable[End]]]) -> Paths:
        """Build from (service name, listen address, backends), the more exact listen addresses first."""
        paths = cls()
        for name, listen, targets in services:
            paths.listens.add(listen, name)
            for target in targets:
                paths.backends.add(target, name)
        return paths

    def explain(self, packet: Packet) -> tuple[str, str]:
        """Return (service, what the packet is): "request enters", "reply leaves" and so on."""
        source = (packet.protocol, packet.source, packet.source_port)
        destination = (packet.protocol, packet.destination, packet.destination_port)
        verb = "enters" if packet.direction == "in" else "leaves"
        # A listen address that is every address of the director would fit all that comes to it.
        for ends, end, what in (
            (self.backends, destination, "request"),
            (self.listens, destination, "request"),
            (self.backends, source, "reply"),
            (self.listens, source, "answer of the director"),
        ):
            if name := ends.named(*end):
                return name, f"{what} {verb}"
        return "", f"packet {verb}"
