"""Counting and finding the connections that the kernel tracks: dumps of its table.

A table of 100,000 entries is 20 MB of netlink. Between two reads of 32 KiB or so the interpreter is free for
other threads.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Collection, Iterator

from lbd.core.attribution import Sent
from lbd.host import conntrack_messages as messages
from lbd.host import netlink
from lbd.host.conntrack_messages import GET, IPS_DST_NAT, IPS_SEEN_REPLY, NEW, STATUS, TCP, Key, Tracked

# A dump that stands still this long, in seconds, will not go on: the thread is wanted for others.
PATIENCE = 10.0

# How a kernel says that it has no such filter.
NO_FILTER = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


def count(only: Sent | None = None) -> Counter[Sent]:
    """Count the open connections whose destination was translated, in the namespace of the calling thread.

    The dump is not of one moment: an entry that comes or goes meanwhile may be counted or not, and when the
    kernel resizes its table, some twice. `only` asks for those of one kind, which the kernel picks out from
    5.8 on. Raises OSError, TimeoutError among them.
    """
    keys: Counter[Key] = Counter()
    for data, spans in _dump(_request(only)):
        # From a list it is counted in C, and so for one read at a time: other threads wait for it.
        keys.update([key for at, size in spans if (key := messages.key(data, at, size))])
    found: Counter[Sent] = Counter()
    for (destination, protocol, port, source, source_port), number in keys.items():
        found[messages.sent(destination, protocol, port, source, source_port)] += number
    return found if only is None else Counter({only: found[only]})


def handles(wanted: Collection[Sent]) -> Iterator[bytes]:
    """Give the handles of the open connections that were sent in one of these ways. Raises as `count`."""
    keys = frozenset(messages.packed(sent) for sent in wanted)
    only = next(iter(wanted)) if len(wanted) == 1 else None
    for data, spans in _dump(_request(only)):
        for at, size in spans:
            if messages.key(data, at, size) in keys:
                yield messages.handle(data, at, size)


def untranslated(protocol: int, only: Sent | None = None) -> Iterator[Tracked]:
    """Give the entries of a protocol that go to where they were addressed. Raises as `count`.

    `only` asks for those of one address and port, which is both where they were sent and the backend.
    """
    for family in netlink.FAMILY.values():
        if only and netlink.FAMILY[6 if ":" in only.address else 4] != family:
            continue
        attributes = messages.matching(only) if only else messages.of_protocol(protocol)
        for found in _picked(family, 0, IPS_DST_NAT, attributes):
            at = found.sent
            home = at.address == at.backend and at.port == at.backend_port
            if home and at.protocol == protocol and (only is None or at == only):
                yield found


def unanswered() -> Iterator[Tracked]:
    """Give the translated TCP connections to which no reply has come. Raises as `count`."""
    for family in netlink.FAMILY.values():
        for found in _picked(family, IPS_DST_NAT, IPS_SEEN_REPLY, messages.of_protocol(TCP)):
            if found.sent.protocol == TCP:
                yield found


def answered(sent: Sent) -> Iterator[Tracked]:
    """Give the connections of one kind that were answered, also those that are over. Raises as `count`."""
    family = netlink.FAMILY[6 if ":" in sent.address else 4]
    for found in _picked(family, IPS_DST_NAT | IPS_SEEN_REPLY, 0, messages.matching(sent)):
        if found.sent == sent:
            yield found


def _request(only: Sent | None = None) -> bytes:
    """Ask for translated connections, of both families unless for `only` some."""
    family = 0 if only is None else netlink.FAMILY[6 if ":" in only.address else 4]
    attributes = b"" if only is None else messages.matching(only)
    return struct.pack("!BBH", family, 0, 0) + messages.status(IPS_DST_NAT, IPS_DST_NAT) + attributes


def _picked(family: int, having: int, lacking: int, attributes: bytes) -> Iterator[Tracked]:
    """Give the entries with some bits of their status set and others not; `attributes` say what else."""
    request = struct.pack("!BBH", family, 0, 0) + messages.status(having, having | lacking) + attributes
    for data, spans in _dump(request):
        for at, size in spans:
            payload = data[at + netlink.HEADER_SIZE : at + size]
            # Not every kernel filters by what it was asked to.
            status = int.from_bytes(dict(netlink.attributes(payload, 4)).get(STATUS, b""), "big")
            if status & (having | lacking) == having:
                yield messages.tracked(data, at, size)


def _dump(request: bytes) -> Iterator[tuple[bytes, list[tuple[int, int]]]]:
    """Give what the kernel sends, one read at a time, and where the entries in it begin and their sizes."""
    with netlink.connect() as sock:
        sock.settimeout(PATIENCE)
        _send(sock, request)
        data = sock.recv(netlink.READ)
        if _refused(data) in NO_FILTER:
            # Filters on replies were broken at first. The family alone is understood by all.
            _send(sock, request[:4])
            data = sock.recv(netlink.READ)
        while True:
            spans: list[tuple[int, int]] = []
            last = _walk(data, spans)
            yield data, spans
            if last:
                return
            data = sock.recv(netlink.READ)


def _send(sock: socket.socket, request: bytes) -> None:
    sock.send(netlink.message(GET, netlink.REQUEST | netlink.DUMP, request, 1))


def _refused(data: bytes) -> int:
    """Return the errno with which a request was refused, 0 when it was not."""
    _, kind = _BEGINNING.unpack_from(data)
    return -int.from_bytes(data[16:20], sys.byteorder, signed=True) if kind == netlink.NLMSG_ERROR else 0


_BEGINNING = struct.Struct("=IH")


def _walk(data: bytes, spans: list[tuple[int, int]]) -> bool:
    """Note where the entries of a read are; return whether it was the last. Raises OSError for a refusal."""
    at, last = 0, False
    while at + netlink.HEADER_SIZE <= len(data):
        size, kind = _BEGINNING.unpack_from(data, at)
        if size < netlink.HEADER_SIZE:
            break
        if kind == NEW:
            spans.append((at, size))
        elif kind in (netlink.NLMSG_ERROR, netlink.NLMSG_DONE):
            code = int.from_bytes(data[at + 16 : at + 20], sys.byteorder, signed=True)
            if code:
                raise OSError(-code, os.strerror(-code))
            last = True
        at += size + 3 & ~3
    return last
