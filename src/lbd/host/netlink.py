"""Netlink messages, as bytes: just what reading nftables, packets and the kernel's news takes.

pyroute2 decodes every attribute of every message, which is what routes want and what 40,000 set elements
do not; libnftables reads whole rulesets and starts over whenever anybody changes one. See netlink(7) and
include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Literal, NamedTuple

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10

REQUEST, ACK, DUMP, DUMP_INTR = 0x1, 0x4, 0x300, 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3

SO_RCVBUFFORCE = 33
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1

# rtnetlink's address families by IP version and back, and the destination that it does not write down.
FAMILY = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
VERSION: Mapping[int, Literal[4, 6]] = {FAMILY[4]: 4, FAMILY[6]: 6}
EVERYTHING = {FAMILY[4]: "0.0.0.0/0", FAMILY[6]: "::/0"}

# A dump message is at most 32 KiB since Linux 4.4 (netlink_dump), so one read takes one message batch.
READ = 65536

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
HEADER_SIZE = _HEADER.size


def connect(protocol: int = NETLINK_NETFILTER, *, receive_buffer: int = 0) -> socket.socket:
    """Open a blocking netlink socket; `receive_buffer`, in bytes, is the kernel's default when it is 0."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    if receive_buffer:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:
            # Without CAP_NET_ADMIN the system's limit holds (net.core.rmem_max).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.bind((0, 0))
    return sock


def queued(sock: socket.socket, most: int) -> Iterator[bytes | None]:
    """Give the datagrams that wait at a non-blocking socket, `most` at most; None where some were lost.

    ENOBUFS is how the kernel says that it had more than the buffer takes; what fitted is still there.
    """
    for _ in range(most):
        try:
            yield sock.recv(READ)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield None


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded to 4 bytes."""
    size = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + b"\0" * (-size % 4)


def text(kind: int, value: str) -> bytes:
    """Return a string attribute."""
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, flags: int, payload: bytes, sequence: int = 0) -> bytes:
    """Return one message with its header."""
    return _HEADER.pack(HEADER_SIZE + len(payload), kind, flags, sequence, 0) + payload


class Message(NamedTuple):
    """One message as it arrived; `port` is the sender's port id, 0 from the kernel itself."""

    kind: int
    flags: int
    sequence: int
    port: int
    payload: bytes


def messages(data: bytes) -> Iterator[Message]:
    """Split a datagram into its messages."""
    at = 0
    while at + HEADER_SIZE <= len(data):
        size, kind, flags, sequence, port = _HEADER.unpack_from(data, at)
        if size < HEADER_SIZE:
            return
        yield Message(kind, flags, sequence, port, data[at + HEADER_SIZE : at + size])
        at += size + 3 & ~3


def attributes(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """Split a run of attributes: (type without its flag bits, payload) of each."""
    end = len(data)
    while at + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[at + 4 : at + size]
        at += size + 3 & ~3


_sequence = count(1)


def ask(sock: socket.socket, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
    """Send a request and give the payload of each answer until the kernel says it is done.

    Raises OSError with the kernel's errno. Whether a dump is of one moment is for the caller to find out.
    """
    # An answer that an earlier caller did not read to its end is still queued: ours has our number.
    sequence = next(_sequence) & 0xFFFFFFFF
    # The acknowledgement ends the answer of a request that is not a dump; a dump ends with DONE.
    sock.send(message(kind, REQUEST | flags | (0 if flags & DUMP else ACK), payload, sequence))
    while True:
        for got in messages(sock.recv(READ)):
            if got.sequence != sequence:
                continue
            if got.kind not in (NLMSG_ERROR, NLMSG_DONE):
                yield got.payload
                continue
            code = int.from_bytes(got.payload[:4], sys.byteorder, signed=True)
            if code:
                raise OSError(-code, os.strerror(-code))
            return
