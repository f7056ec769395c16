"""Packets as the log rules hand them over, and what they say about the path of a connection.

Headers are those of RFC 791, 8200, 9293 and 768. IPv6 extension headers are not followed: such a packet is
shown without ports.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
TCP, UDP = 6, 17
NAMES = {1: "icmp", TCP: "tcp", UDP: "udp", 58: "icmp6", 132: "sctp"}
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
    if protocol in (TCP, UDP) and len(rest) >= PORTS:
        source_port, destination_port = struct.unpack("!HH", rest[:PORTS])
    if protocol == TCP and len(rest) > TCP_FLAGS:
        flags = tuple(name for bit, name in enumerate(FLAGS) if rest[TCP_FLAGS] >> bit & 1)
    name = NAMES.get(protocol, str(protocol))
    ends = (str(source), str(destination), name, source_port, destination_port)
    return Packet(direction, interface, *ends, flags, ttl)


@dataclass(frozen=True, slots=True)
class Paths:
    """Which service a packet belongs to, and which part of its way it is on.

    Keys are (protocol, address, port). Before translation a packet shows the listen address, after it the
    backend's; two services with one backend cannot be told apart there, and both are named.
    """

    listens: Mapping[tuple[str, str, int], str] = field(default_factory=dict)
    backends: Mapping[tuple[str, str, int], tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, services: Iterable[tuple[str, str, tuple[str, int], Iterable[tuple[str, int]]]]) -> Paths:
        """Build from (service name, protocol, listen address and port, backends' addresses and ports)."""
        listens: dict[tuple[str, str, int], str] = {}
        backends: dict[tuple[str, str, int], tuple[str, ...]] = {}
        for name, protocol, listen, targets in services:
            listens[protocol, *listen] = name
            for target in targets:
                named = backends.get((protocol, *target), ())
                backends[protocol, *target] = named if name in named else (*named, name)
        return cls(listens, backends)

    def explain(self, packet: Packet) -> tuple[str, str]:
        """Return (service, what the packet is): "request enters", "reply leaves" and so on."""
        source = (packet.protocol, packet.source, packet.source_port)
        destination = (packet.protocol, packet.destination, packet.destination_port)
        verb = "enters" if packet.direction == "in" else "leaves"
        if destination in self.listens:
            return self.listens[destination], f"request {verb}"
        if destination in self.backends:
            return "/".join(self.backends[destination]), f"request {verb}"
        if source in self.backends:
            return "/".join(self.backends[source]), f"reply {verb}"
        if source in self.listens:
            return self.listens[source], f"answer of the director {verb}"
        return "", f"packet {verb}"
