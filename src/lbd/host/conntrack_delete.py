"""Ending connections that the kernel tracks: their entries are deleted (nfnetlink_conntrack.h).

A request to delete that the kernel takes neither for one entry nor for a filter empties the whole table: one
with nothing in it, or with attributes alone that this kernel does not know. So every request from here has a
tuple:

- to delete one entry, the tuple of its replies and the kernel's id of it. No kernel takes it for more.
- to delete by filter, one of the original direction without its source address. Kernels that filter (since
  6.7) leave out what the filter does not name. Those that do not, also those that never heard of filters,
  take it for the tuple of one entry, find it incomplete (ctnetlink_parse_tuple() wants both addresses), and
  refuse with EINVAL.

Of IPv6 nothing is deleted by filter: kernels compare its addresses the wrong way round, and would delete just
those of others. See conntrack_messages.matching.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

from lbd.core.attribution import Sent
from lbd.host import netlink
from lbd.host.conntrack import NO_FILTER, PATIENCE
from lbd.host.conntrack_messages import WITH_PORTS, matching

DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_DELETE

# The entry went by itself, or it is the hardware's (flowtables, before Linux 5.18) and stays for now.
NOT_DELETED = frozenset({errno.ENOENT, errno.EBUSY})

# So many requests go with each system call: 10 KiB, well within the buffers of a socket.
BATCH = 64


class NoFilterError(Exception):
    """The kernel cannot delete these by filter: one by one is the way."""


def filters(sent: Sent) -> bool:
    """Tell whether these may be deleted by filter, where the kernel can do so at all.

    Of another protocol with ports a filter cannot name them, and would take others with it.
    """
    return sent.protocol in WITH_PORTS and ":" not in sent.address


def by_filter(sent: Sent) -> None:
    """Delete all connections that were sent in one way. Blocks while the kernel walks its table.

    Raises NoFilterError and OSError.
    """
    if not filters(sent):
        raise NoFilterError
    with netlink.connect() as sock:
        sock.settimeout(PATIENCE)
        try:
            list(netlink.ask(sock, DELETE, 0, struct.pack("!BBH", netlink.FAMILY[4], 0, 0) + matching(sent)))
        except OSError as error:
            if error.errno in NO_FILTER:
                raise NoFilterError from error
            raise


def singly(handles: Iterable[bytes]) -> int:
    """Delete the entries of these handles, and return how many there still were. Blocks; raises OSError."""
    deleted, remaining = 0, iter(handles)
    with netlink.connect(receive_buffer=1 << 18) as sock:
        sock.settimeout(PATIENCE)
        while batch := list(islice(remaining, BATCH)):
            sock.send(b"".join(_requests(batch)))
            refused = list(_refused(sock, len(batch)))
            for code in refused:
                if code not in NOT_DELETED:
                    raise OSError(code, os.strerror(code))
            deleted += len(batch) - len(refused)
    return deleted


def _requests(batch: list[bytes]) -> Iterator[bytes]:
    """Give a request for each; only the last one is acknowledged, the others when they are refused."""
    for number, handle in enumerate(batch, 1):
        flags = netlink.REQUEST | (netlink.ACK if number == len(batch) else 0)
        request = netlink.message(DELETE, flags, handle, number)
        yield request + b"\0" * (-len(request) % 4)


def _refused(sock: socket.socket, last: int) -> Iterator[int]:
    """Give the errno of each request that was refused, up to the answer to the last one."""
    while True:
        for got in netlink.messages(sock.recv(netlink.READ)):
            code = -int.from_bytes(got.payload[:4], sys.byteorder, signed=True)
            if code:
                yield code
            if got.sequence == last:
                return
