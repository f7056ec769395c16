"""One lbd per network namespace: two of them would undo each other's work for ever.

The claim is a listening socket in the abstract namespace (unix(7)), which belongs to the network namespace
and ends with its process, however that ends.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection

NAME = "\0lbd"


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

    def close(self) -> None:
        """Give the claim up."""
        self._sock.close()


def _holder() -> tuple[int, int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(NAME)
        except ConnectionRefusedError:
            # It ended just now; whoever asked may ask again.
            return 0, -1
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid
