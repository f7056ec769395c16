"""Servers that do to a check what it has to survive, and some that behave. Each has threads of its own."""

import os
import socket
import ssl
import threading
import time
from contextlib import AbstractContextManager, suppress

from lbd.lab.servers import reset_on_close

ENDLESS = b"x" * (1 << 16)


def silent(connection):
    """Never say anything, until the other side goes away."""
    while connection.recv(1 << 16):
        pass


def endless(connection):
    """Say something without an end, and without a line."""
    while True:
        connection.sendall(ENDLESS)


def resets(connection):
    """Wait for the question, and reset."""
    connection.recv(1)
    reset_on_close(connection)


def closes(connection):
    """Go away at once."""


def says(answer):
    """Answer with this and go away; a question of the other side is read before."""

    def talk(connection):
        connection.settimeout(0.1)
        with suppress(TimeoutError):
            connection.recv(1 << 16)
        connection.sendall(answer)

    return talk


def trickles(answer):
    """Say this byte by byte."""

    def talk(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in answer:
            connection.sendall(bytes([byte]))
            time.sleep(0.001)
        silent(connection)

    return talk


def over_tls(context, talk):
    """Do that over TLS."""

    def inside(connection):
        with context.wrap_socket(connection, server_side=True) as encrypted:
            talk(encrypted)

    return inside


class Rogue(AbstractContextManager["Rogue"]):
    """A TCP port of a host, in both families; `talk` gets each connection, and `peers` are who came."""

    def __init__(self, lab, host, talk):
        self._talk, self.peers = talk, []
        with lab.inside(host):
            self._listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __exit__(self, *exception):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the one who accepts
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, peer = self._listener.accept()
                self.peers.append(peer[0].removeprefix("::ffff:"))
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, suppress(OSError, ssl.SSLError):
            self._talk(connection)


class Datagrams(AbstractContextManager["Datagrams"]):
    """A UDP port of a host, in both families; `answer` makes the answer to a datagram, None is none."""

    def __init__(self, lab, host, answer):
        self._answer, self.asked = answer, []
        with lab.inside(host):
            self._sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._sock.bind(("::", 0))
        self._sock.settimeout(0.05)
        self.port = self._sock.getsockname()[1]
        self._closing = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __exit__(self, *exception):
        self._closing = True
        self._thread.join()
        self._sock.close()

    def _serve(self):
        while not self._closing:
            with suppress(TimeoutError):
                data, peer = self._sock.recvfrom(1 << 16)
                self.asked.append(data)
                if (answer := self._answer(data)) is not None:
                    self._sock.sendto(answer, peer)


def garbage(_data):
    """Answer with chance."""
    return os.urandom(200)
