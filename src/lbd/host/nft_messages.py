"""What all questions to nf_tables have in common (include/uapi/linux/netfilter/nf_tables.h)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping

from lbd.core.state import TABLE, TableFamily
from lbd.host import netlink

# NFPROTO_INET and NFPROTO_NETDEV.
FAMILIES: Mapping[TableFamily, int] = {"inet": 1, "netdev": 5}
GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM, GETGEN, GETOBJ, GETFLOWTABLE = 1, 4, 7, 10, 13, 16, 19, 23


def message_type(command: int) -> int:
    """Return the type of a message to nf_tables."""
    return netlink.NFNL_SUBSYS_NFTABLES << 8 | command


def header(family: int) -> bytes:
    """Return what every message begins with."""
    return struct.pack("!BBH", family, 0, 0)  # struct nfgenmsg


def dump(
    sock: socket.socket, family: TableFamily, command: int, *filters: bytes
) -> Iterator[dict[int, bytes]]:
    """Give the attributes of all of a kind in our table; the kernel gives chains of all tables."""
    payload = header(FAMILIES[family]) + netlink.text(1, TABLE) + b"".join(filters)
    for body in netlink.ask(sock, message_type(command), netlink.DUMP, payload):
        yield dict(netlink.attributes(body, 4))


def name_of(value: bytes) -> str:
    """Return a name, whatever bytes somebody made it of."""
    return value.rstrip(b"\0").decode(errors="backslashreplace")


def number(attributes: Mapping[int, bytes], kind: int) -> int:
    """Return a number of 32 bits, 0 when it is not told."""
    return int(struct.unpack("!I", attributes.get(kind, bytes(4)))[0])
