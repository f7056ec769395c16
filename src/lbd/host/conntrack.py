"""Counting the connections that the kernel tracks: a dump of its table (nfnetlink_conntrack.h).

A table of 100,000 entries is 20 MB of netlink. Nearly all of it is TCP, UDP and SCTP entries of one layout,
so what is wanted of them is taken from fixed places, and only other entries are taken apart attribute by
attribute. Between two reads of 32 KiB or so the interpreter is free for other threads.
"""

from __future__ import annotations

import os
import struct
import sys
from collections import Counter
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from lbd.core.attribution import Sent
from lbd.host import netlink

NEW, GET = 1 << 8 | 0, 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_*

TUPLE_ORIG, TUPLE_REPLY, STATUS, PROTOINFO, STATUS_MASK = 1, 2, 3, 4, 26
TUPLE_IP, TUPLE_PROTO = 1, 2
PROTO_NUM, PROTO_SRC_PORT, PROTO_DST_PORT = 1, 2, 3
PROTOINFO_TCP, PROTOINFO_TCP_STATE = 1, 1

NESTED = 0x8000
IPS_DST_NAT = 1 << 5
TCP = 6

# TCP_CONNTRACK_TIME_WAIT and _CLOSE: the entry is still there, nothing will come any more.
OVER = frozenset({7, 8})

# A dump that stands still this long, in seconds, will not go on: the thread is wanted for others.
PATIENCE = 10.0


class _Layout(NamedTuple):
    """Where things are in an entry with ports, counted from the netlink header.

    `fields` gives the header of the first tuple, original destination, protocol and port, the header of the
    second tuple, reply source and port, the header of the status and its last byte.
    """

    fields: struct.Struct
    headers: tuple[bytes, bytes, bytes]


def _layout(address: int) -> _Layout:
    """Return the layout for addresses of so many bytes."""
    ip = 4 + 2 * (4 + address)
    proto = 4 + 3 * 8  # number, source and destination port, each in 8 bytes
    fields = struct.Struct(
        f"=20x 4s 4x {4 + address}x 4x {address}s 8x B 3x 8x 4x 2s 2x"
        f" 4s 4x 4x {address}s {4 + address}x 8x 4x 4x 2s 2x 8x 4s 3x B"
    )
    words = ((4 + ip + proto, TUPLE_ORIG | NESTED), (4 + ip + proto, TUPLE_REPLY | NESTED), (8, STATUS))
    one, two, three = (struct.pack("=HH", *word) for word in words)
    return _Layout(fields, (one, two, three))


_LAYOUTS = {netlink.FAMILY[4]: _layout(4), netlink.FAMILY[6]: _layout(16)}

# The beginning of what is told of a TCP connection, whose state comes next: it is behind attributes that not
# every kernel has, so it is looked for.
_TCP_INFO = b"".join(
    struct.pack("=HH", *word)
    for word in ((48, PROTOINFO | NESTED), (44, PROTOINFO_TCP | NESTED), (5, PROTOINFO_TCP_STATE))
)

# Original destination, protocol and port, reply source and port: bytes as in the message.
_Key = tuple[bytes, int, bytes, bytes, bytes]


def count() -> Counter[Sent]:
    """Count the open connections whose destination was translated, in the namespace of the calling thread.

    The dump is not of one moment: an entry that comes or goes meanwhile may be counted or not, and when the
    kernel resizes its table, some twice. Raises OSError, TimeoutError among them.
    """
    keys: Counter[_Key] = Counter()
    with netlink.connect() as sock:
        sock.settimeout(PATIENCE)
        sock.send(netlink.message(GET, netlink.REQUEST | netlink.DUMP, _request(), 1))
        while not _read(sock.recv(netlink.READ), keys):
            pass
    found: Counter[Sent] = Counter()
    for (destination, protocol, port, source, source_port), number in keys.items():
        ends = _address(destination), _number(port), _address(source), _number(source_port)
        found[Sent(protocol, *ends)] += number
    return found


def _request() -> bytes:
    """Ask for both families; kernels before 6.0 ignore the mask and give all entries."""
    bit = struct.pack("!I", IPS_DST_NAT)
    wanted = netlink.attribute(STATUS, bit) + netlink.attribute(STATUS_MASK, bit)
    return struct.pack("!BBH", 0, 0, 0) + wanted


def _read(data: bytes, keys: Counter[_Key]) -> bool:
    """Count the entries of one read; return whether it was the last. Raises OSError for a refusal."""
    entries: list[_Key] = []
    at, last = 0, False
    while at + netlink.HEADER_SIZE <= len(data):
        size, kind = _BEGINNING.unpack_from(data, at)
        if size < netlink.HEADER_SIZE:
            break
        if kind == NEW:
            layout = _LAYOUTS.get(data[at + netlink.HEADER_SIZE])
            key = _quick(data, at, size, layout) if layout else None
            if key is None:
                key = _slow(data[at + netlink.HEADER_SIZE : at + size])
            if key:
                entries.append(key)
        elif kind in (netlink.NLMSG_ERROR, netlink.NLMSG_DONE):
            code = int.from_bytes(data[at + 16 : at + 20], sys.byteorder, signed=True)
            if code:
                raise OSError(-code, os.strerror(-code))
            last = True
        at += size + 3 & ~3
    # In C, and so for one read at a time: other threads wait for it.
    keys.update(entries)
    return last


_BEGINNING = struct.Struct("=IH")
_NOTHING: tuple[()] = ()


def _quick(data: bytes, at: int, size: int, layout: _Layout) -> _Key | tuple[()] | None:
    """Return what an entry of the usual layout counts for, empty for nothing; None when it has another."""
    if size < layout.fields.size:
        return None
    one, destination, protocol, port, two, source, source_port, three, status = layout.fields.unpack_from(
        data, at
    )
    if (one, two, three) != layout.headers:
        return None
    if not status & IPS_DST_NAT:
        return _NOTHING
    if protocol == TCP:
        info = data.find(_TCP_INFO, at + layout.fields.size, at + size)
        if info >= 0 and data[info + len(_TCP_INFO)] in OVER:
            return _NOTHING
    return destination, protocol, port, source, source_port


def _slow(payload: bytes) -> _Key | None:
    """Return what any entry counts for: one in a conntrack zone, or of a protocol without ports."""
    found = dict(netlink.attributes(payload, 4))
    if not int.from_bytes(found.get(STATUS, b""), "big") & IPS_DST_NAT:
        return None
    state = _nested(_nested(found.get(PROTOINFO, b"")).get(PROTOINFO_TCP, b"")).get(
        PROTOINFO_TCP_STATE, b"\0"
    )
    original, reply = (_nested(found.get(kind, b"")) for kind in (TUPLE_ORIG, TUPLE_REPLY))
    ends, back = (_nested(each.get(TUPLE_IP, b"")) for each in (original, reply))
    to, back_from = (_nested(each.get(TUPLE_PROTO, b"")) for each in (original, reply))
    if state[0] in OVER or not ends or not back:
        return None
    # CTA_IP_V4_SRC and _DST are 1 and 2, of IPv6 3 and 4.
    return (
        ends[max(ends)],
        to.get(PROTO_NUM, b"\0")[0],
        to.get(PROTO_DST_PORT, b"\0\0"),
        back[min(back)],
        back_from.get(PROTO_SRC_PORT, b"\0\0"),
    )


def _nested(data: bytes) -> dict[int, bytes]:
    return dict(netlink.attributes(data))


@lru_cache(maxsize=65536)
def _address(packed: bytes) -> str:
    return str(ip_address(packed))


def _number(port: bytes) -> int:
    return int.from_bytes(port, "big")
