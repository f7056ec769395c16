"""What sockets of the usual kinds do not send: echo requests, and SYNs from addresses of nobody."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable
from ipaddress import ip_address

from lbd.core.packet import TCP
from lbd.lab.namespaces import Lab

# Echo and its answer: RFC 792 and RFC 4443.
ECHO = {socket.AF_INET: (8, 0), socket.AF_INET6: (128, 129)}
PROTOCOL = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
SYN = 0x02
LONGEST = 4096
IPV6_HDRINCL = 36  # include/uapi/linux/in6.h


def ping(lab: Lab, host: str, address: str, timeout: float = 2.0) -> bool:
    """Tell whether an echo request to `address` is answered by that address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.inside(host):
        connection = socket.socket(family, socket.SOCK_RAW, PROTOCOL[family])
    asked, answered = ECHO[family]
    number = int.from_bytes(os.urandom(2), "big")
    with connection:
        connection.connect((address, 0))
        packet = struct.pack("!BBHHH", asked, 0, 0, number, 1) + b"lbd lab "
        if family == socket.AF_INET:  # of IPv6 the kernel fills the checksum in
            packet = packet[:2] + _checksum(packet) + packet[4:]
        deadline = time.monotonic() + timeout
        try:
            connection.send(packet)
            while (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                data = connection.recv(LONGEST)
                data = data[(data[0] & 0xF) * 4 :] if family == socket.AF_INET else data
                if data[0] == answered and data[4:6] == packet[4:6]:
                    return True
        except (TimeoutError, ConnectionError):
            return False
    return False


def syn_flood(lab: Lab, host: str, address: str, port: int, sources: Iterable[tuple[str, int]]) -> int:
    """Send a SYN to `address` from each of `sources`, addresses that need not be the host's; return how many.

    What a full queue of the interface does not take is tried again, so that none is lost here.
    """
    six = ":" in address
    with lab.inside(host):
        if six:
            raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            raw.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
        else:
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sent = 0
    with raw:
        for source, source_port in sources:
            packet = _syn(source, source_port, address, port)
            while True:
                try:
                    raw.sendto(packet, (address, 0))
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    time.sleep(0.001)
            sent += 1
    return sent


def _syn(source: str, source_port: int, destination: str, port: int) -> bytes:
    ends = ip_address(source).packed + ip_address(destination).packed
    tcp = struct.pack("!HHIIBBHHH", source_port, port, source_port, 0, 5 << 4, SYN, 65535, 0, 0)
    if ":" in destination:
        pseudo = ends + struct.pack("!II", len(tcp), TCP)
        head = struct.pack("!IHBB", 6 << 28, len(tcp), TCP, 64) + ends
    else:
        pseudo = ends + struct.pack("!HH", TCP, len(tcp))
        # The kernel fills in total length and checksum: raw(7).
        head = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, TCP, 0) + ends
    return head + tcp[:16] + _checksum(pseudo + tcp) + tcp[18:]


def _checksum(data: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071) of data whose own is zeros."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
