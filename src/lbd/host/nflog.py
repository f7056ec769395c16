"""Packets that our log rules hand to user space: an NFLOG group (linux/netfilter/nfnetlink_log.h)."""

from __future__ import annotations

import socket
import struct
from typing import Literal

from lbd.core.packet import Packet, parse
from lbd.host import netlink

PACKET, CONFIG = 4 << 8 | 0, 4 << 8 | 1  # NFNL_SUBSYS_ULOG and NFULNL_MSG_*
CFG_CMD, CFG_MODE, CFG_TIMEOUT = 1, 2, 4
BIND, COPY_PACKET = 1, 2
INDEV, OUTDEV, PAYLOAD = 4, 5, 9

# IPv6 and TCP headers with options; the rest of the packet is nobody's business here.
SNAPLEN = 128

# The kernel collects packets for 1 s unless told otherwise; who watches a connection wants to see it at once.
# In hundredths of a second.
TIMEOUT = 5

# At most this many datagrams are taken at once, so that a flood leaves the event loop its turn.
BATCH = 256


class NfLog:
    """One group, bound for as long as this is open. Only one process in a namespace can have a group."""

    def __init__(self, group: int) -> None:
        """Raise OSError: EPERM when somebody else has the group, and without CAP_NET_ADMIN."""
        self.group = group
        self._sock = netlink.connect(receive_buffer=1 << 20)
        mode = struct.pack("!IBB", SNAPLEN, COPY_PACKET, 0)
        try:
            self._config(netlink.attribute(CFG_CMD, bytes([BIND])))
            self._config(netlink.attribute(CFG_MODE, mode))
            self._config(netlink.attribute(CFG_TIMEOUT, struct.pack("!I", TIMEOUT)))
        except OSError:
            self._sock.close()
            raise
        self._sock.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._sock.fileno()

    def close(self) -> None:
        """Give the group back."""
        self._sock.close()

    def drain(self) -> list[Packet]:
        """Return what has come, without waiting. What the kernel had to throw away is not told."""
        packets: list[Packet] = []
        for data in filter(None, netlink.queued(self._sock, BATCH)):
            read = (_packet(message.payload) for message in netlink.messages(data) if message.kind == PACKET)
            packets += [packet for packet in read if packet]
        return packets

    def _config(self, attributes: bytes) -> None:
        payload = struct.pack("!BBH", socket.AF_UNSPEC, 0, self.group) + attributes
        list(netlink.ask(self._sock, CONFIG, 0, payload))


def _packet(payload: bytes) -> Packet | None:
    found = dict(netlink.attributes(payload, 4))
    direction: Literal["in", "out"] = "out" if OUTDEV in found else "in"
    index = found.get(OUTDEV) or found.get(INDEV) or b"\0\0\0\0"
    try:
        interface = socket.if_indextoname(struct.unpack("!I", index)[0])
    except OSError:
        interface = "?"
    return parse(direction, interface, found.get(PAYLOAD, b""))
