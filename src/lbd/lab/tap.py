"""An observer on the interfaces of a lab host: which packets came in and went out, in their order.

It sees a packet coming in before the prerouting hooks and going out after the postrouting hooks, so what
it shows is what is on the wire: see packet(7).
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from lbd.lab.namespaces import Lab

Direction = Literal["in", "out"]

ETH_P_ALL = 3  # include/uapi/linux/if_ether.h
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
# include/uapi/asm-generic/socket.h; the socket module has no names for these. FORCE: past net.core.rmem_max.
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35

# Room for about ten thousand packets between two reads: the kernel counts some 800 bytes for a small one.
RECEIVE_BUFFER = 8 << 20
# What is remembered, so that a tap that is left running stays bounded.
REMEMBERED = 20_000
# Ethernet, IPv4 with options or IPv6, and the TCP flags are well within this.
SNAPSHOT = 128

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}
WITH_PORTS = {"tcp", "udp", "sctp"}
# Bits of TCP's 14th byte, in the order in which the kernel's log shows them.
FLAGS = {0x20: "URG", 0x10: "ACK", 0x08: "PSH", 0x04: "RST", 0x02: "SYN", 0x01: "FIN"}


@dataclass(frozen=True, slots=True)
class Packet:
    """The parts of an IP packet that tell a connection's path; ports are 0 where there are none.

    `protocol` is "tcp", "udp", "sctp", "icmp", "icmp6" or the number; `flags` as in "ACK SYN", only of TCP.
    """

    source: str
    destination: str
    protocol: str
    sport: int = 0
    dport: int = 0
    flags: str = ""
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class Seen(Packet):
    """A packet, and when (seconds since 1970, by the kernel), where and in which direction it passed."""

    time: float = 0.0
    interface: str = ""
    direction: Direction = "in"

    def __str__(self) -> str:
        """Return it as one line, for people and for the message of a failed wait."""
        way = f"{self.direction:3} {self.interface} {self.protocol}"
        ports = (f":{self.sport}", f":{self.dport}") if self.sport or self.dport else ("", "")
        return f"{way} {self.source}{ports[0]} -> {self.destination}{ports[1]} {self.flags}".rstrip()


class Tap(AbstractContextManager["Tap"]):
    """Sees the IP packets of a host's interfaces (all of them, if none are named) while the context is open.

    The kernel queues them until they are asked for, so there is no thread; use a tap from one thread.
    """

    def __init__(self, lab: Lab, host: str, interfaces: Collection[str] = ()) -> None:
        self._interfaces = frozenset(interfaces)
        self._seen: deque[Seen] = deque(maxlen=REMEMBERED)
        with lab.inside(host):
            # One socket for all interfaces keeps their order.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.setblocking(False)

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def read(self, seconds: float = 0.0) -> list[Seen]:
        """Return what has passed since the last read, waiting up to `seconds` for the first packet."""
        new: list[Seen] = []
        deadline = time.monotonic() + seconds
        while not new and select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            new = self._queued()
        self._seen.extend(new)
        return new

    @property
    def seen(self) -> tuple[Seen, ...]:
        """Everything that has passed since the tap was opened or cleared, oldest first."""
        self.read()
        return tuple(self._seen)

    def clear(self) -> None:
        """Forget what has passed."""
        self.read()
        self._seen.clear()

    def wait_for(self, predicate: Callable[[Seen], bool], seconds: float = 2.0) -> Seen:
        """Return the first packet that fits, of those already seen or of the next `seconds`.

        Raises TimeoutError, with what was seen instead, when there is none.
        """
        deadline = time.monotonic() + seconds
        candidates = list(self.seen)
        while True:
            for seen in candidates:
                if predicate(seen):
                    return seen
            left = deadline - time.monotonic()
            if left <= 0:
                shown = "\n".join(map(str, self._seen)) or "nothing at all"
                raise TimeoutError(f"no such packet within {seconds} s; seen:\n{shown}")
            candidates = self.read(left)

    def _queued(self) -> list[Seen]:
        new = []
        for _ in range(REMEMBERED):  # a flood must not keep the reader here
            try:
                frame, notes, _, address = self._socket.recvmsg(SNAPSHOT, socket.CMSG_SPACE(16))
            except BlockingIOError:
                break
            interface, ethertype, kind = address[:3]
            if self._interfaces and interface not in self._interfaces:
                continue
            packet = parse(ethertype, frame[14:])
            if packet is not None:
                direction: Direction = "out" if kind == socket.PACKET_OUTGOING else "in"
                new.append(Seen(*_fields(packet), _stamp(notes), interface, direction))
        return new


def parse(ethertype: int, data: bytes) -> Packet | None:
    """Return the packet in `data` (from its IP header on, 60 bytes of it are enough), or None if it has none.

    IPv6 extension headers are not followed: such a packet shows the number of the first one. Later
    fragments have no ports.
    """
    try:
        if ethertype == ETH_P_IP:
            first, fragment, ttl, number, source, destination = struct.unpack_from("!B5xHBB2x4s4s", data)
            start = (first & 0x0F) * 4
            head = fragment & 0x1FFF == 0
        elif ethertype == ETH_P_IPV6:
            number, ttl, source, destination = struct.unpack_from("!6xBB16s16s", data)
            start, head = 40, True
        else:
            return None
        protocol = PROTOCOLS.get(number, str(number))
        sport, dport, flags = 0, 0, ""
        if protocol in WITH_PORTS and head:
            sport, dport = struct.unpack_from("!HH", data, start)
            flags = _flags(data[start + 13]) if protocol == "tcp" else ""
    except (struct.error, IndexError):
        return None
    return Packet(str(ip_address(source)), str(ip_address(destination)), protocol, sport, dport, flags, ttl)


def _flags(bits: int) -> str:
    return " ".join(name for bit, name in FLAGS.items() if bits & bit)


def _fields(packet: Packet) -> tuple[str, str, str, int, int, str, int]:
    p = packet
    return p.source, p.destination, p.protocol, p.sport, p.dport, p.flags, p.ttl


def _stamp(notes: list[tuple[int, int, bytes]]) -> float:
    for level, kind, data in notes:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("ll", data)
            return float(seconds + nanoseconds / 1e9)
    return time.time()
