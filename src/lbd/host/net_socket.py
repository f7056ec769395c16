"""A blocking rtnetlink socket for pyroute2's messages.

pyroute2's own IPRoute is bound to the thread that made it (each other thread leaks a socket), does not tell
when a dump was interrupted, and decodes all that it receives: 135 us for a route, where looking at its first
bytes takes 0.5 us. See netlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Mapping

from pyroute2.netlink import NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK, nlmsg

from lbd.host.netlink import (
    ACK,
    DUMP,
    DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    READ,
    REQUEST,
    SOL_NETLINK,
    attributes,
)

# The kernel answers at once; longer than this means that something is broken.
TIMEOUT = 5.0
# A dump that somebody else's change ran through is repeated. Where changes never pause, no dump is of one
# moment, and the last one is as good as any: the events of those changes bring the next look.
DUMP_ATTEMPTS = 3
# What a dump says for a table that does not exist, and for a protocol that the kernel was told to leave out.
NOTHING_THERE = (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)

NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")
_LAST = (NLMSG_ERROR, NLMSG_DONE)
_REQUEST_AT = 20  # where an error message repeats the request that it is about

Keep = Callable[[bytes, int], bool]
"""Tells whether the message that begins, with its netlink header, at an offset of a datagram is wanted."""


def _everything(_data: bytes, _at: int) -> bool:
    return True


class KernelError(Exception):
    """The kernel's errno, and what it says about it in words ("" where it says nothing)."""

    def __init__(self, code: int, said: str = "") -> None:
        super().__init__(code, said or os.strerror(code))
        self.code, self.said = code, said


class RouteSocket:
    """Asks one thing at a time; opens itself when needed, and again after it failed.

    Methods raise KernelError for what the kernel refuses and OSError when the socket fails.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._sequence = 0

    def close(self) -> None:
        """Close the socket; the next call opens another."""
        if self._socket:
            self._socket.close()
        self._socket = None

    def change(self, message: nlmsg, kind: int, flags: int = 0) -> None:
        """Do what one request says."""
        self._ask(message, kind, ACK | flags, _everything)

    def get(
        self,
        form: type[nlmsg],
        kind: int,
        fields: Mapping[str, int],
        attrs: Collection[tuple[str, object]] = (),
    ) -> list[nlmsg]:
        """Return what the kernel answers to one question that is not for a list."""
        request = form()
        request.update(fields)
        request["attrs"] = list(attrs)
        kept, _ = self._ask(request, kind, ACK, _everything)
        return [_decoded(form, part) for part in kept]

    def dump(
        self,
        form: type[nlmsg],
        kind: int,
        fields: Mapping[str, int],
        attrs: Collection[tuple[str, object]] = (),
        keep: Keep = _everything,
    ) -> list[nlmsg]:
        """Return what the kernel has, decoded: it filters by `fields` and `attrs`, then we do by `keep`."""
        kept: list[bytes] = []
        for _ in range(DUMP_ATTEMPTS):
            request = form()
            request.update(fields)
            request["attrs"] = list(attrs)
            try:
                kept, of_one_moment = self._ask(request, kind, DUMP, keep)
            except KernelError as error:
                if error.code in NOTHING_THERE:
                    return []
                raise
            if of_one_moment:
                break
        return [_decoded(form, part) for part in kept]

    def _ask(self, message: nlmsg, kind: int, flags: int, keep: Keep) -> tuple[list[bytes], bool]:
        self._sequence += 1
        message["header"]["type"] = kind
        message["header"]["flags"] = REQUEST | flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        try:
            if self._socket is None:
                self._socket = _connect()
            self._socket.send(message.data)
            return self._answer(self._socket, keep)
        except OSError:
            self.close()
            raise

    def _answer(self, sock: socket.socket, keep: Keep) -> tuple[list[bytes], bool]:
        """Return the messages of the answer that pass `keep`, and whether they are of one moment."""
        kept: list[bytes] = []
        seen = 0
        while True:
            data = sock.recv(READ)
            at = 0
            while at < len(data):
                size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
                if sequence == self._sequence:
                    seen |= flags
                    if kind in _LAST:
                        if error := _error(data[at : at + size], kind):
                            raise error
                        return kept, not seen & DUMP_INTR
                    if keep(data, at):
                        kept.append(data[at : at + size])
                at += size + 3 & ~3


def _connect() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    # Words with each error, and filters that are refused where they are not understood.
    sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    sock.settimeout(TIMEOUT)
    return sock


def _error(part: bytes, kind: int) -> KernelError | None:
    code = -int(struct.unpack_from("=i", part, _HEADER.size)[0])
    if not code:
        return None
    after = _REQUEST_AT
    if kind == NLMSG_ERROR:
        after += struct.unpack_from("=I", part, _REQUEST_AT)[0] + 3 & ~3
    said = dict(attributes(part, after)).get(NLMSGERR_ATTR_MSG, b"")
    return KernelError(code, said.rstrip(b"\0").decode(errors="replace"))


def _decoded(form: type[nlmsg], part: bytes) -> nlmsg:
    message = form(part)
    message.decode()
    return message
