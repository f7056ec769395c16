"""One lbd per network namespace: two of them would undo each other's work for ever.

The claim is a listening socket in the abstract namespace (unix(7)), which belongs to the network namespace
and ends with its process, however that ends.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Collection
from contextlib import suppress

NAME = "\0lbd"

# Whoever holds the name and does not take a connection for so long, in seconds, is no lbd.
PATIENCE = 1


class ClaimedError(Exception):
    """Another lbd works in this network namespace; the message names its process id."""


class Claim:
    """Held from its making until `close`."""

    def __init__(self, trusted: Collection[int]) -> None:
        """Raise ClaimedError when a process of one of the users `trusted` holds it.

        Anybody on the host can take the name, so what a stranger holds is no claim.
        """
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._sock.bind(NAME)
            self._sock.listen()
        except OSError as error:
            self._sock.close()
            if error.errno != errno.EADDRINUSE:
                raise
            pid, uid = _holder()
            if uid in trusted:
                raise ClaimedError(
                    f"another lbd (pid {pid}) works in this network namespace: use `lbd reload`, or stop it"
                ) from None

        threading.Thread(target=self._let_go, daemon=True).start()

    def close(self) -> None:
        """Give the claim up."""
        with suppress(OSError):  # not ours to listen at
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _let_go(self) -> None:
        """Take the connections of those who ask for the holder: 129 of them fill the queue of a socket."""
        with suppress(OSError):
            while True:
                self._sock.accept()[0].close()


def _holder() -> tuple[int, int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", PATIENCE, 0))
        try:
            sock.connect(NAME)
        except (ConnectionRefusedError, BlockingIOError):
            # It ended just now, and whoever asked may ask again; or its queue is full and stays so.
            return 0, -1
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid
