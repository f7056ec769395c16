"""The process that speaks to nftables, so that nothing it does can stop or end the daemon.

libnftables may block for as long as others change rulesets, and has been seen to crash on what it lists.
It runs here, behind a socket, and is killed and started again when it does not answer (host/nft).

Requests and answers are pickled tuples behind a 4-byte length: ("commit", text), ("read", schema, learned,
family) and ("probe",) are answered by ("ok", value), ("refused", why, is_permission) or, for a read that
never finds a quiet moment, ("busy", why).
"""

from __future__ import annotations

import errno
import pickle
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

import nftables

from lbd.core.words import NEEDS_CAPABILITY
from lbd.host import netlink, nft_read

LENGTH = struct.Struct("=I")

# What a kernel with flowtables takes, whatever else there is. It is two modules: the table, and what a rule
# does with it.
PROBE = """\
add table inet lbd_probe
add flowtable inet lbd_probe f { hook ingress priority 0; devices = { lo }; }
add chain inet lbd_probe c { type filter hook forward priority 0; }
add rule inet lbd_probe c flow add @f
"""
# How nft tells that we may not ask.
DENIED = "Operation not permitted"


def send(sock: socket.socket, value: object) -> None:
    """Send one value."""
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    sock.sendall(LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> Any:
    """Return the next value; EOFError when the other side is gone, TimeoutError as the socket is set."""
    size = LENGTH.unpack(_exactly(sock, LENGTH.size))[0]
    return pickle.loads(_exactly(sock, size))  # noqa: S301 - both ends are this program, on a socket of their own


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = sock.recv(min(size - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


class Worker:
    """One libnftables context and one netlink socket, both kept open for as long as the process lives."""

    def __init__(self) -> None:
        self.nft = nftables.Nftables()
        self.sock = netlink.connect()
        self.can_offload: bool | None = None

    def answer(self, request: tuple[Any, ...]) -> tuple[Any, ...]:
        """Do what is asked; every failure of the kernel or of nft is an answer."""
        try:
            if request[0] == "commit":
                return self._commit(request[1])
            if request[0] == "probe":
                return self._probe()
            _, schema, learned, family = request
            return ("ok", nft_read.read(self.sock, schema, learned=learned, family=family))
        except TimeoutError as error:
            return ("busy", str(error))
        except OSError as error:
            denied = error.errno in (errno.EPERM, errno.EACCES)
            hint = f" ({NEEDS_CAPABILITY})" if denied else ""
            return ("refused", f"nftables: {error.strerror}{hint}", denied)

    def _commit(self, text: str) -> tuple[Any, ...]:
        before = nft_read.generation(self.sock)
        operations = text.split("\n")
        # In one line: libnftables shows the first line of what it was given, whichever it complains about.
        code, _, said = self.nft.cmd("; ".join(operations))
        if code:
            return ("refused", _reason(said, operations), DENIED in said)
        after = nft_read.generation(self.sock)
        return ("ok", after if after == before + 1 else 0)

    def _probe(self) -> tuple[Any, ...]:
        """Ask the kernel for a flowtable without committing it: it checks all, and takes all back."""
        if self.can_offload is None:
            # Of its own, so that a commit is never a dry run.
            nft = nftables.Nftables()
            nft.set_dry_run(True)
            code, _, said = nft.cmd(PROBE)
            if DENIED in said:
                return ("refused", f"nftables: {DENIED} ({NEEDS_CAPABILITY})", True)
            self.can_offload = not code
        return ("ok", self.can_offload)


def _reason(said: str, operations: Sequence[str]) -> str:
    """Return nft's message in one line: the complaint, and the operation that its marks (^^^) point at."""
    complaint, _, marks = (*said.splitlines(), "", "", "")[:3]
    reason = complaint.rpartition("Error: ")[2] or "no reason given"
    at = marks.find("^")
    for operation in operations:
        if 0 <= at < len(operation):
            return f"nftables: {reason} ({operation[:200]})"
        at -= len(operation) + len("; ")
    return f"nftables: {reason}"


def main() -> None:
    """Serve the socket whose number is the only argument, until the other side goes away."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    worker = Worker()
    try:
        while True:
            send(sock, worker.answer(receive(sock)))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return


if __name__ == "__main__":
    main()
