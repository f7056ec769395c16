"""An observer on the interfaces of a lab host: which packets came in and went out, in their order.

It sees a packet coming in before the prerouting hooks and going out after the postrouting hooks, so what
it shows is what is on the wire: see packet(7).
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

from lbd.core.packet import Direction, Packet, parse
from lbd.host.netlink import SO_RCVBUFFORCE
from lbd.lab.namespaces import Lab

ETH_P_ALL = 3  # include/uapi/linux/if_ether.h
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD

# Room for about ten thousand packets between two reads: the kernel counts some 800 bytes for a small one.
RECEIVE_BUFFER = 8 << 20
# What is remembered, so that a tap that is left running stays bounded.
REMEMBERED = 20_000
# Ethernet, IPv4 with options or IPv6, and the TCP flags are well within this.
SNAPSHOT = 128


class Tap(AbstractContextManager["Tap"]):
    """Sees the IP packets of a host's interfaces (all of them, if none are named) while the context is open.

    The kernel queues them until they are asked for, so there is no thread; use a tap from one thread.
    """

    def __init__(self, lab: Lab, host: str, interfaces: Collection[str] = ()) -> None:
        self._interfaces = frozenset(interfaces)
        self._seen: deque[Packet] = deque(maxlen=REMEMBERED)
        with lab.inside(host):
            # One socket for all interfaces keeps their order.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.setblocking(False)

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def read(self, seconds: float = 0.0) -> list[Packet]:
        """Return what has passed since the last read, waiting up to `seconds` for the first packet."""
        new: list[Packet] = []
        deadline = time.monotonic() + seconds
        while not new and select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            new = self._queued()
        self._seen.extend(new)
        return new

    @property
    def seen(self) -> tuple[Packet, ...]:
        """Everything that has passed since the tap was opened or cleared, oldest first."""
        self.read()
        return tuple(self._seen)

    def clear(self) -> None:
        """Forget what has passed."""
        self.read()
        self._seen.clear()

    def wait_for(self, predicate: Callable[[Packet], bool], seconds: float = 2.0) -> Packet:
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
                shown = "\n".join(f"{seen.direction} {seen}" for seen in self._seen) or "nothing at all"
                raise TimeoutError(f"no such packet within {seconds} s; seen:\n{shown}")
            candidates = self.read(left)

    def _queued(self) -> list[Packet]:
        new = []
        for _ in range(REMEMBERED):  # a flood must not keep the reader here
            try:
                frame, address = self._socket.recvfrom(SNAPSHOT)
            except BlockingIOError:
                break
            interface, ethertype, kind = address[:3]
            if self._interfaces and interface not in self._interfaces:
                continue
            direction: Direction = "out" if kind == socket.PACKET_OUTGOING else "in"
            packet = parse(direction, interface, frame[14:]) if ethertype in (ETH_P_IP, ETH_P_IPV6) else None
            if packet:
                new.append(packet)
        return new
