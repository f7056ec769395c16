"""Small servers for the lab; each answers with its own name, so that clients can count who served.

A server is a thread of this process with a socket of its host's namespace.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from ipaddress import IPv6Address, ip_address
from typing import Literal

from lbd.lab.namespaces import Lab

# Answer each line or datagram with the server's name in front, or serve a page by HTTP and close.
Kind = Literal["lines", "page", "datagrams"]

PAGE = "the page is served\n"

# A request is a line or an HTTP header; whoever sends more without an end is cut off.
LONGEST = 65536
BACKLOG = 512


class Server(AbstractContextManager["Server"]):
    """A port of a host, on all its IPv4 and IPv6 addresses, while the context is open.

    `clients` counts the requests by source address as the server saw it; its sum is the requests served.
    Closing resets connections that are still open.
    """

    def __init__(self, lab: Lab, host: str, port: int, kind: Kind = "lines", *, name: str = "") -> None:
        self.name = name or host
        self.clients: Counter[str] = Counter()
        self._kind = kind
        self._buffers: dict[socket.socket, bytes] = {}
        with ExitStack() as stack:
            with lab.inside(host):
                self._listener = stack.enter_context(_listen(port, kind))
            self._selector = stack.enter_context(selectors.DefaultSelector())
            self._bell = os.eventfd(0, os.EFD_NONBLOCK)
            stack.callback(os.close, self._bell)
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._selector.register(self._bell, selectors.EVENT_READ)
            self._thread = threading.Thread(target=self._serve, name=f"{self.name}:{port}", daemon=True)
            # Before the start, which a Ctrl-C may end when the thread runs already.
            stack.callback(self._join)
            self._thread.start()
            self._stack = stack.pop_all()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and reset what is open; a second time is harmless."""
        self._stack.close()

    def _join(self) -> None:
        os.eventfd_write(self._bell, 1)
        if self._thread.ident is not None:
            self._thread.join()

    def _serve(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.fd == self._bell:
                        return
                    self._ready(key.fileobj)
        finally:
            for connection in list(self._buffers):
                reset_on_close(connection)
                self._drop(connection)

    def _ready(self, ready: object) -> None:
        if ready is not self._listener:
            assert isinstance(ready, socket.socket)
            self._read(ready)
        elif self._kind == "datagrams":
            self._echo()
        else:
            connection, _ = self._listener.accept()
            connection.settimeout(1.0)  # a client that does not read must not hold the others up
            self._buffers[connection] = b""
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(LONGEST)
            peer = connection.getpeername()[0] if data else ""
            buffer = self._buffers[connection] + data
            end = b"\n" if self._kind == "lines" else b"\r\n\r\n"
            while end in buffer:
                request, _, buffer = buffer.partition(end)
                self._count(peer)
                connection.sendall(self._answer(request))
                data = data if self._kind == "lines" else b""
        except OSError:  # reset, or not reading: that is the client's affair
            data, buffer = b"", b""
        self._buffers[connection] = buffer
        if not data or len(buffer) > LONGEST:
            self._drop(connection)

    def _answer(self, request: bytes) -> bytes:
        if self._kind == "lines":
            return self.name.encode() + b" " + request + b"\n"
        head = (
            "HTTP/1.1 200 OK",
            f"Server: {self.name}",
            "Content-Type: text/plain",
            f"Content-Length: {len(PAGE)}",
            "Connection: close",
        )
        return "\r\n".join((*head, "", PAGE)).encode()

    def _echo(self) -> None:
        data, notes, _, peer = self._listener.recvmsg(LONGEST, socket.CMSG_SPACE(20))
        # The answer leaves from the address that was asked, by the route of its own choice (index 0).
        source = [(level, kind, value[:16] + bytes(4)) for level, kind, value in notes]
        self._count(peer[0])
        try:
            self._listener.sendmsg([self.name.encode(), b" ", data], source, 0, peer)
        except OSError:  # no route back to this client
            return

    def _count(self, peer: str) -> None:
        address = ip_address(peer)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        self.clients[str(mapped or address)] += 1

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._buffers[connection]
        connection.close()


def reset_on_close(connection: socket.socket) -> None:
    """Make `close` send a reset, so that no side waits for the other and the port is free: socket(7)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _listen(port: int, kind: Kind) -> socket.socket:
    datagrams = kind == "datagrams"
    listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # IPv4 arrives as ::ffff:a.b.c.d
    if datagrams:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    if not datagrams:
        listener.listen(BACKLOG)
    return listener
