"""SCTP by raw sockets: one INIT and its INIT ACK, for kernels that can translate SCTP but not speak it.

Chunks and the checksum are those of RFC 9260. Connection tracking drops a packet with a wrong checksum,
and so does this.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from lbd.lab.namespaces import Lab

HEADER = 12
INIT, INIT_ACK = 1, 2
# The parameter of an INIT ACK that the other side has to give back: the responder's name is in it.
STATE_COOKIE = 7

LONGEST = 4096
WINDOW, STREAMS = 1500, 1

# CRC32c (Castagnoli), bits reversed: RFC 9260, appendix A.
POLYNOMIAL = 0x82F63B78


@dataclass(frozen=True, slots=True)
class Chunk:
    """The first chunk of a packet, with the ports and the verification tag of its header."""

    source_port: int
    destination_port: int
    tag: int
    kind: int
    value: bytes

    def packed(self) -> bytes:
        """Return the packet, without an IP header."""
        chunk = struct.pack("!BBH", self.kind, 0, 4 + len(self.value)) + self.value
        chunk += bytes(-len(chunk) % 4)
        head = struct.pack("!HHI", self.source_port, self.destination_port, self.tag)
        return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


def crc32c(data: bytes) -> int:
    """Return the checksum of a packet whose own checksum is zeros."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def parse(packet: bytes) -> Chunk | None:
    """Return what an SCTP packet begins with; None for one that is too short or has a wrong checksum."""
    if len(packet) < HEADER + 4:
        return None
    (checksum,) = struct.unpack_from("<I", packet, 8)
    if crc32c(packet[:8] + bytes(4) + packet[HEADER:]) != checksum:
        return None
    source, destination, tag = struct.unpack_from("!HHI", packet)
    kind, _, length = struct.unpack_from("!BBH", packet, HEADER)
    return Chunk(source, destination, tag, kind, packet[HEADER + 4 : HEADER + length])


def client(address: str, source: str = "") -> socket.socket:
    """Return a socket of the current namespace to ask `address` with, from `source` if that is given."""
    connection = _raw(":" in address)
    connection.bind((source, 0))
    return connection


def greet(connection: socket.socket, address: str, port: int, source_port: int, deadline: float) -> str:
    """Send an INIT and return the name in its INIT ACK; raises OSError when none comes in time."""
    # Connected, it hears only what comes from that address, and what ICMP says of it.
    connection.connect((address, 0))
    tag = int.from_bytes(os.urandom(4), "big") or 1
    connection.send(Chunk(source_port, port, 0, INIT, _initiation(tag)).packed())
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = parse(_payload(connection.family, connection.recv(LONGEST)))
        if chunk and (chunk.kind, chunk.tag, chunk.source_port, chunk.destination_port) == (
            INIT_ACK,
            tag,
            port,
            source_port,
        ):
            return _cookie(chunk.value).decode()


class SctpServer(AbstractContextManager["SctpServer"]):
    """Answers INITs to a port of a host, on its IPv4 and IPv6 addresses, while the context is open.

    `clients` counts the INITs by source address as the server saw it.
    """

    def __init__(self, lab: Lab, host: str, port: int, *, name: str = "") -> None:
        self.name, self.port = name or host, port
        self.clients: Counter[str] = Counter()
        with ExitStack() as stack:
            self._selector = stack.enter_context(selectors.DefaultSelector())
            with lab.inside(host):
                for six in (False, True):
                    listener = stack.enter_context(_raw(six))
                    self._selector.register(listener, selectors.EVENT_READ)
            self._bell = os.eventfd(0, os.EFD_NONBLOCK)
            stack.callback(os.close, self._bell)
            self._selector.register(self._bell, selectors.EVENT_READ)
            self._thread = threading.Thread(target=self._serve, name=f"{self.name}:{port}/sctp", daemon=True)
            stack.callback(self._join)
            self._thread.start()
            self._stack = stack.pop_all()

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _join(self) -> None:
        os.eventfd_write(self._bell, 1)
        if self._thread.ident is not None:
            self._thread.join()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._bell:
                    return
                assert isinstance(key.fileobj, socket.socket)
                self._answer(key.fileobj)

    def _answer(self, listener: socket.socket) -> None:
        data, peer = listener.recvfrom(LONGEST)
        chunk = parse(_payload(listener.family, data))
        if chunk is None or (chunk.kind, chunk.destination_port) != (INIT, self.port):
            return
        self.clients[peer[0]] += 1
        (tag,) = struct.unpack_from("!I", chunk.value)
        cookie = self.name.encode()
        value = _initiation(tag ^ 1 or 2) + struct.pack("!HH", STATE_COOKIE, 4 + len(cookie)) + cookie
        answer = Chunk(chunk.destination_port, chunk.source_port, tag, INIT_ACK, value)
        try:
            listener.sendto(answer.packed(), (peer[0], 0))
        except OSError:  # no route back to this client
            return


def _raw(six: bool) -> socket.socket:
    return socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)


def _payload(family: int, data: bytes) -> bytes:
    """Return an SCTP packet as a raw socket gives it, without the IP header that only IPv4 shows."""
    return data[(data[0] & 0xF) * 4 :] if family == socket.AF_INET and data else data


def _initiation(tag: int) -> bytes:
    """Return the fixed part of INIT and INIT ACK: tag, window, streams, and a first sequence number."""
    return struct.pack("!IIHHI", tag, WINDOW, STREAMS, STREAMS, tag)


def _cookie(value: bytes) -> bytes:
    """Return the state cookie of an INIT ACK, which is its only parameter."""
    kind, length = struct.unpack_from("!HH", value, 16)
    return value[20 : 16 + length] if kind == STATE_COOKIE else b""
