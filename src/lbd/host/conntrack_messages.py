"""Entries of connection tracking as they stand in messages: nfnetlink_conntrack.h of the kernel.

Nearly all entries are of TCP, UDP and SCTP and of one layout, so what is wanted of them is taken from fixed
places, and only other entries are taken apart attribute by attribute.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from lbd.core.attribution import Sent
from lbd.host import netlink

NEW, GET = 1 << 8 | 0, 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_*

TUPLE_ORIG, TUPLE_REPLY, STATUS, PROTOINFO, ID, ZONE, FILTER, STATUS_MASK = 1, 2, 3, 4, 12, 18, 25, 26
TUPLE_IP, TUPLE_PROTO = 1, 2
PROTO_NUM, PROTO_SRC_PORT, PROTO_DST_PORT = 1, 2, 3
PROTOINFO_TCP, PROTOINFO_TCP_STATE = 1, 1

NESTED = 0x8000
IPS_SEEN_REPLY, IPS_DST_NAT = 1 << 1, 1 << 5
TCP, UDP, SCTP = 6, 17, 132
# Of these a filter knows the ports.
WITH_PORTS = frozenset({TCP, UDP, SCTP})
# CTA_FILTER_*_FLAGS and what they say is to be compared: include/uapi has the first, nf_conntrack_netlink.c
# the second (CTA_FILTER_F_*).
ORIG_FLAGS, REPLY_FLAGS = 1, 2
F_SOURCE, F_DESTINATION, F_PROTOCOL, F_SOURCE_PORT, F_DESTINATION_PORT = 1, 2, 8, 16, 32

# TCP_CONNTRACK_TIME_WAIT and _CLOSE: the entry is still there, nothing will come any more.
OVER = frozenset({7, 8})


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
Key = tuple[bytes, int, bytes, bytes, bytes]


class Tracked(NamedTuple):
    """One entry: where it was sent, its client, whether anything came back, and the kernel's id of it.

    `state` is TCP_CONNTRACK_* of TCP, otherwise 0. `handle` is what a request to delete just this entry says:
    the header of nfnetlink and attributes.
    """

    sent: Sent
    client: str
    answered: bool
    state: int
    id: bytes
    handle: bytes


def matching(to: Sent) -> bytes:
    """Return the attributes that make the kernel look at connections sent in one way, or at a few more.

    Of IPv6 it looks at ports alone: asked for an address it gives those that have another one
    (ctnetlink_filter_match_tuple() from 5.8 to 6.18 at least). The first tuple has no source address, on
    purpose: see host/conntrack_delete.
    """
    ports, four = to.protocol in WITH_PORTS, ":" not in to.address
    source, destination = (1, 2) if four else (3, 4)
    ends = _nest(TUPLE_IP, netlink.attribute(destination, ip_address(to.address).packed))
    back = _nest(TUPLE_IP, netlink.attribute(source, ip_address(to.backend).packed))
    protocol = netlink.attribute(PROTO_NUM, bytes([to.protocol]))
    there, back_from = protocol, protocol
    if ports:
        there += netlink.attribute(PROTO_DST_PORT, struct.pack("!H", to.port))
        back_from += netlink.attribute(PROTO_SRC_PORT, struct.pack("!H", to.backend_port))
    return (
        _nest(TUPLE_ORIG, ends + _nest(TUPLE_PROTO, there))
        + _nest(TUPLE_REPLY, back + _nest(TUPLE_PROTO, back_from))
        + _flags(
            F_DESTINATION * four | F_PROTOCOL | F_DESTINATION_PORT * ports,
            F_SOURCE * four | F_PROTOCOL | F_SOURCE_PORT * ports,
        )
    )


def of_protocol(protocol: int) -> bytes:
    """Return the attributes that make the kernel look at one protocol alone."""
    number = _nest(TUPLE_PROTO, netlink.attribute(PROTO_NUM, bytes([protocol])))
    # Without an address of it the kernel takes a tuple for broken.
    return _nest(TUPLE_ORIG, _nest(TUPLE_IP), number) + _flags(F_PROTOCOL, 0)


def _flags(original: int, reply: int) -> bytes:
    # In the byte order of the host, unlike all else here.
    words = (ORIG_FLAGS, original), (REPLY_FLAGS, reply)
    return _nest(FILTER, *(netlink.attribute(kind, struct.pack("=I", word)) for kind, word in words if word))


def _nest(kind: int, *parts: bytes) -> bytes:
    return netlink.attribute(kind | NESTED, b"".join(parts))


def status(value: int, mask: int) -> bytes:
    """Ask for entries with these bits. Kernels before 6.0 ignore the mask and give all entries."""
    pairs = (STATUS, value), (STATUS_MASK, mask)
    return b"".join(netlink.attribute(kind, struct.pack("!I", word)) for kind, word in pairs)


def key(data: bytes, at: int, size: int) -> Key | tuple[()] | None:
    """Return what the entry at an offset of a read counts for; empty or None for nothing."""
    layout = _LAYOUTS.get(data[at + netlink.HEADER_SIZE])
    quick = _quick(data, at, size, layout) if layout else None
    return _slow(data[at + netlink.HEADER_SIZE : at + size]) if quick is None else quick


_NOTHING: tuple[()] = ()


def _quick(data: bytes, at: int, size: int, layout: _Layout) -> Key | tuple[()] | None:
    """Return what an entry of the usual layout counts for, empty for nothing; None when it has another."""
    if size < layout.fields.size:
        return None
    one, destination, protocol, port, two, source, source_port, three, bits = layout.fields.unpack_from(
        data, at
    )
    if (one, two, three) != layout.headers:
        return None
    if not bits & IPS_DST_NAT:
        return _NOTHING
    if protocol == TCP:
        info = data.find(_TCP_INFO, at + layout.fields.size, at + size)
        if info >= 0 and data[info + len(_TCP_INFO)] in OVER:
            return _NOTHING
    return destination, protocol, port, source, source_port


def _slow(payload: bytes) -> Key | None:
    """Return what any entry counts for: one in a conntrack zone, or of a protocol without ports."""
    found = dict(netlink.attributes(payload, 4))
    if not int.from_bytes(found.get(STATUS, b""), "big") & IPS_DST_NAT:
        return None
    if _state(found) in OVER:
        return None
    return _ends(found)


def _ends(found: dict[int, bytes]) -> Key | None:
    """Return where an entry was addressed and sent, by its attributes."""
    original, reply = (_nested(found.get(kind, b"")) for kind in (TUPLE_ORIG, TUPLE_REPLY))
    ends, back = (_nested(each.get(TUPLE_IP, b"")) for each in (original, reply))
    to, back_from = (_nested(each.get(TUPLE_PROTO, b"")) for each in (original, reply))
    if not ends or not back:
        return None
    # CTA_IP_V4_SRC and _DST are 1 and 2, of IPv6 3 and 4.
    return (
        ends[max(ends)],
        to.get(PROTO_NUM, b"\0")[0],
        to.get(PROTO_DST_PORT, b"\0\0"),
        back[min(back)],
        back_from.get(PROTO_SRC_PORT, b"\0\0"),
    )


def _state(found: dict[int, bytes]) -> int:
    info = _nested(_nested(found.get(PROTOINFO, b"")).get(PROTOINFO_TCP, b""))
    return info.get(PROTOINFO_TCP_STATE, b"\0")[0]


def tracked(data: bytes, at: int, size: int) -> Tracked:
    """Return the entry at an offset of a read."""
    found = dict(netlink.attributes(data[at + netlink.HEADER_SIZE : at + size], 4))
    client = _nested(_nested(found.get(TUPLE_ORIG, b"")).get(TUPLE_IP, b""))
    return Tracked(
        sent(*(_ends(found) or _NOWHERE)),
        _address(client[min(client)]) if client else "",
        bool(int.from_bytes(found.get(STATUS, b""), "big") & IPS_SEEN_REPLY),
        _state(found),
        found.get(ID, b""),
        handle(data, at, size),
    )


_ATTRIBUTE = struct.Struct("=HH")


def handle(data: bytes, at: int, size: int) -> bytes:
    """Return what a request says to delete the entry at an offset of a read: its family and attributes.

    It goes by the tuple of the replies, which says where the entry was sent: one that came in its place, and
    was sent elsewhere, has another. The id alone does not tell them apart, as it is made of the original
    tuple and the place in memory (nf_ct_get_id).
    """
    place, end = at + netlink.HEADER_SIZE + 4, at + size
    parts = [data[place - 4 : place - 3], b"\0\0\0"]
    while place + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if length < _ATTRIBUTE.size:
            break
        whole = length + 3 & ~3
        if kind & ~NESTED in (TUPLE_REPLY, ID, ZONE):
            parts.append(data[place : place + whole])
        place += whole
    return b"".join(parts)


# What an entry without addresses would be, if there were one: nobody's.
_NOWHERE: Key = (bytes(4), 0, b"", bytes(4), b"")


def sent(destination: bytes, protocol: int, port: bytes, source: bytes, source_port: bytes) -> Sent:
    """Return a key as a value."""
    ports = (int.from_bytes(each, "big") for each in (port, source_port))
    return Sent(protocol, _address(destination), next(ports), _address(source), next(ports))


def packed(to: Sent) -> Key:
    """Return where connections were sent as it stands in a message."""
    ends = ip_address(to.address).packed, ip_address(to.backend).packed
    ports = struct.pack("!H", to.port), struct.pack("!H", to.backend_port)
    return ends[0], to.protocol, ports[0], ends[1], ports[1]


def _nested(data: bytes) -> dict[int, bytes]:
    return dict(netlink.attributes(data))


@lru_cache(maxsize=65536)
def _address(packed: bytes) -> str:
    return str(ip_address(packed))
