"""Elements of our maps, from the kernel's messages to text as nft reads it.

Constants are those of include/uapi/linux/netfilter/nf_tables.h. How a key and its data are made of fields
is the schema's to say (core/state.Map).
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv6Address

from lbd.core.ops import CATCH_ALL
from lbd.core.state import FieldType, Map, TableFamily
from lbd.host import netlink
from lbd.host.nft_messages import GETSETELEM, dump, name_of, number

LIST_SET, LIST_ELEMENTS = 2, 3
ELEMENT_KEY, ELEMENT_DATA, ELEMENT_FLAGS, ELEMENT_EXPIRATION, ELEMENT_OBJECT, ELEMENT_KEY_END = (
    1,
    2,
    3,
    5,
    9,
    10,
)
INTERVAL_END = 1
DATA_VALUE, DATA_VERDICT = 1, 2
VERDICT_CODE, VERDICT_CHAIN = 1, 2

VERDICTS = {0: "drop", 1: "accept", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
WIDTHS: Mapping[FieldType, int] = {
    "ipv4_addr": 4,
    "ipv6_addr": 16,
    "inet_proto": 1,
    "inet_service": 2,
    "ifname": 16,
    "iface_index": 4,
    "mark": 4,
    "index": 4,
}

# A note of a packet that goes by itself within this many milliseconds may be gone before we say so.
SHORTLY = 5000


def length_of(fields: tuple[FieldType, ...]) -> int:
    """Return how many bytes fields take: one as many as it has, several each padded to four."""
    if len(fields) == 1:
        return WIDTHS[fields[0]]
    return sum(WIDTHS[field] + -WIDTHS[field] % 4 for field in fields)


def elements(sock: socket.socket, family: TableFamily, name: str, shape: Map) -> dict[str, str]:
    """Return the elements of a map of ours, without those that go by themselves in a moment."""
    if shape.interval and len(shape.key) == 1:
        return _ranges(sock, family, name, shape)
    key, between = _decoder(shape.key, ordered=shape.interval), _range_decoder(shape.key)
    data = _data(shape)
    found: dict[str, str] = {}
    for element in _each(sock, family, name):
        if shape.learned and _expires(element) < SHORTLY:
            continue
        # The element that matches what no other does has no key.
        start, end = element.get(ELEMENT_KEY), element.get(ELEMENT_KEY_END)
        which = CATCH_ALL if start is None else key(start)
        if start is not None and end is not None and start != end:
            which = between(start, end)
        found[which] = data(element)
    return found


def _ranges(sock: socket.socket, family: TableFamily, name: str, shape: Map) -> dict[str, str]:
    """Read a map of intervals of one field: the kernel tells where each begins, and where it is over."""
    (field,) = shape.key
    width, edges, data = WIDTHS[field], [], _data(shape)
    for element in _each(sock, family, name):
        begins = not number(element, ELEMENT_FLAGS) & INTERVAL_END
        at = int.from_bytes(element[ELEMENT_KEY][4 : 4 + width], "big")
        edges.append((at, begins, data(element) if begins else ""))
    found: dict[str, str] = {}
    begin: tuple[int, str] | None = None
    # Where one is over and the next begins at the same place, the end comes first; the last may have none.
    for at, begins, held in (*sorted(edges), (1 << 8 * width, False, "")):
        if begin is not None:
            first, last = begin[0].to_bytes(width, "big"), (at - 1).to_bytes(width, "big")
            found[_span(field, first, last)] = begin[1]
        begin = (at, held) if begins else None
    return found


def _each(sock: socket.socket, family: TableFamily, name: str) -> Iterator[dict[int, bytes]]:
    for found in dump(sock, family, GETSETELEM, netlink.text(LIST_SET, name)):
        for _, raw in netlink.attributes(found.get(LIST_ELEMENTS, b"")):
            yield dict(netlink.attributes(raw))


def _expires(element: Mapping[int, bytes]) -> int:
    """Return in how many milliseconds an element goes; a long time when it does not."""
    return int(struct.unpack("!Q", element.get(ELEMENT_EXPIRATION, b"\xff" * 8))[0])


def _data(shape: Map) -> Callable[[Mapping[int, bytes]], str]:
    """Return the reader of what an element holds beside its key."""
    match shape.data:
        case "verdict":
            return lambda element: _verdict(element[ELEMENT_DATA])
        case "limit":
            return lambda element: name_of(element[ELEMENT_OBJECT])
        case ():
            return lambda _: ""
        case fields:
            decode = _decoder(fields)
            return lambda element: decode(element[ELEMENT_DATA])


def _places(fields: tuple[FieldType, ...]) -> list[tuple[FieldType, int, int]]:
    """Return where the fields of a data attribute are.

    The attribute holds one nested DATA_VALUE: 4 bytes of header, then the fields padded to 4 bytes.
    """
    places, at = [], 4
    for field in fields:
        places.append((field, at, at + WIDTHS[field]))
        at += WIDTHS[field] + -WIDTHS[field] % 4
    return places


def _decoder(fields: tuple[FieldType, ...], *, ordered: bool = False) -> Callable[[bytes], str]:
    """Return the reader of a data attribute: the fields of a concatenation as nft writes them.

    `ordered`: numbers are in network order, as nft has them in sets of intervals.
    """
    read = ORDERED if ordered else FIELDS
    places = [(read[field], start, end) for field, start, end in _places(fields)]

    def decode(value: bytes) -> str:
        return " . ".join([read_field(value[start:end]) for read_field, start, end in places])

    return decode


def _range_decoder(fields: tuple[FieldType, ...]) -> Callable[[bytes, bytes], str]:
    """Return the reader of two data attributes, where a range begins and ends."""
    places = _places(fields)

    def decode(start: bytes, end: bytes) -> str:
        return " . ".join([_span(field, start[here:there], end[here:there]) for field, here, there in places])

    return decode


def _span(field: FieldType, first: bytes, last: bytes) -> str:
    """Return a value, a prefix of addresses or a range as nft writes it."""
    if first == last:
        return ORDERED[field](first)
    if field in ("ipv4_addr", "ipv6_addr"):
        low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
        host = (low ^ high).bit_length()
        if low & ((1 << host) - 1) == 0 and high - low == (1 << host) - 1:
            return f"{FIELDS[field](first)}/{8 * len(first) - host}"
    return f"{FIELDS[field](first)}-{FIELDS[field](last)}"


def _verdict(value: bytes) -> str:
    verdict = dict(netlink.attributes(dict(netlink.attributes(value))[DATA_VERDICT]))
    code = struct.unpack("!i", verdict[VERDICT_CODE])[0]
    word = VERDICTS.get(code, f"verdict {code}")
    return f"{word} {name_of(verdict[VERDICT_CHAIN])}" if VERDICT_CHAIN in verdict else word


@lru_cache(maxsize=4096)
def _ipv4(value: bytes) -> str:
    return ".".join(map(str, value))


@lru_cache(maxsize=4096)
def _ipv6(value: bytes) -> str:
    return str(IPv6Address(value))


def _protocol(value: bytes) -> str:
    return PROTOCOLS.get(value[0], str(value[0]))


def _port(value: bytes) -> str:
    return str(value[0] << 8 | value[1])


def _index(value: bytes) -> str:
    # numgen and jhash write their number in the host's byte order.
    return str(struct.unpack("=I", value)[0])


def _mark(value: bytes) -> str:
    return f"{struct.unpack('=I', value)[0]:#010x}"


FIELDS: Mapping[FieldType, Callable[[bytes], str]] = {
    "ipv4_addr": _ipv4,
    "ipv6_addr": _ipv6,
    "inet_proto": _protocol,
    "inet_service": _port,
    "ifname": name_of,
    "iface_index": _index,
    "mark": _mark,
    "index": _index,
}
ORDERED: Mapping[FieldType, Callable[[bytes], str]] = {
    **FIELDS,
    "mark": lambda value: _mark(value[::-1]) if sys.byteorder == "little" else _mark(value),
    "index": lambda value: str(int.from_bytes(value, "big")),
}
