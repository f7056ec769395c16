"""The door to the kernel's news about links, addresses, routes, policy rules and forwarding.

Plain struct on a plain socket, no pyroute2: a routing daemon may change thousands of routes a second, and
each one that does not concern us has to cost next to nothing. See rtnetlink(7) and
include/uapi/linux/{rtnetlink,if_link,if_addr,fib_rules,netconf}.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal, Self

from lbd.core.state import PROTOCOL, RouteKey
from lbd.host.netlink import (
    EVERYTHING,
    FAMILY,
    NETLINK_ADD_MEMBERSHIP,
    SOL_NETLINK,
    VERSION,
    Message,
    attributes,
    connect,
    messages,
    queued,
)

Kind = Literal["link", "address", "route", "rule", "forwarding", "lost"]

# RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF,
# IPV6_NETCONF.
GROUPS = (1, 5, 7, 8, 9, 11, 19, 24, 25)

# A route message takes about 1 KiB of buffer with the kernel's own overhead: some 4,000 routes at once.
RECEIVE_BUFFER = 4 << 20
# Datagrams per drain(), 10 ms at 5 us each: the event loop has other things to do in a storm.
DRAIN = 2000

# RTM_NEWLINK to RTM_DELNETCONF: an even number is new, the odd one after it is gone.
LINK, ADDRESS, ROUTE, RULE, FORWARDING = 16, 20, 24, 32, 80
KINDS: dict[int, Kind] = {
    LINK: "link",
    ADDRESS: "address",
    ROUTE: "route",
    RULE: "rule",
    FORWARDING: "forwarding",
}

# Sizes of the headers before the attributes.
IFINFOMSG, IFADDRMSG, RTMSG, FIB_RULE_HDR, NETCONFMSG = 16, 8, 12, 12, 4
_RTMSG = struct.Struct("=BB2xBB")  # rtm_family, rtm_dst_len, rtm_table, rtm_protocol
_IFADDRMSG = struct.Struct("=xB2xI")  # ifa_prefixlen, ifa_index
_ROUTE_START = struct.Struct("=4xH10xBB3xB")  # nlmsg_type, rtm_family, rtm_dst_len, rtm_protocol

IFLA_IFNAME = 3
RTA_DST, RTA_PRIORITY, RTA_TABLE = 1, 6, 15
IFA_ADDRESS, IFA_LOCAL, IFA_PROTO = 1, 2, 11
FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL = 6, 15, 21
NETCONFA_IFINDEX, NETCONFA_FORWARDING = 1, 2
EVERY_INTERFACE, DEFAULT_INTERFACE = 0xFFFFFFFF, 0xFFFFFFFE  # NETCONFA_IFINDEX_ALL (-1) and _DEFAULT (-2)


@dataclass(frozen=True, slots=True)
class NetEvent:
    """Something changed, or news were lost ("lost": the kernel had more than the buffer takes).

    `ours` tells whether the thing carries PROTOCOL. `portid` is the netlink port of who asked for the
    change, 0 when the kernel did it by itself.
    """

    kind: Kind
    ours: bool
    what: str
    portid: int = 0


class NetEvents:
    """Listens from its making on, in the network namespace where it is made. Never blocks.

    Of routes, only those are reported that are ours or whose key is in `watched`, which may be replaced at
    any time. Changes of our own are reported like all others.
    """

    def __init__(self, watched: Iterable[RouteKey] = (), *, receive_buffer: int = RECEIVE_BUFFER) -> None:
        """Raise OSError when the socket cannot be opened; `receive_buffer` is in bytes."""
        self.watched = frozenset(watched)
        self._socket = connect(socket.NETLINK_ROUTE, receive_buffer=receive_buffer)
        self._socket.setblocking(False)
        for group in GROUPS:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is news."""
        return self._socket.fileno()

    @property
    def watched(self) -> frozenset[RouteKey]:
        """The keys of the routes to report whose ever they are."""
        return self._watched

    @watched.setter
    def watched(self, keys: frozenset[RouteKey]) -> None:
        self._watched = keys
        networks = [ip_network(key.to) for key in keys]
        self._destinations = {(FAMILY[network.version], network.prefixlen) for network in networks}

    def drain(self) -> tuple[NetEvent, ...]:
        """Return what is queued and concerns us, of at most DRAIN datagrams; the rest keeps us readable."""
        events: list[NetEvent] = []
        lost = False
        for data in queued(self._socket, DRAIN):
            if data is None:
                # Said once for any number of messages lost; what is still queued is read on.
                lost = True
            elif self._may_concern(data):
                events += filter(None, map(self._event, messages(data)))
        if lost:
            events.append(NetEvent("lost", ours=False, what="there was more news than the buffer takes"))
        return tuple(events)

    def _may_concern(self, data: bytes) -> bool:
        """Tell from the first bytes whether a datagram is worth reading; most routes are not.

        A route's notification is alone in its datagram (rtmsg_fib in net/ipv4/fib_semantics.c).
        """
        kind, family, length, protocol = _ROUTE_START.unpack_from(data)
        return kind & ~1 != ROUTE or protocol == PROTOCOL or (family, length) in self._destinations

    def _event(self, message: Message) -> NetEvent | None:
        kind, payload = KINDS.get(message.kind & ~1), message.payload
        if kind == "route":
            key, protocol = _route(payload)
            ours = protocol == PROTOCOL
            if not ours and key not in self._watched:
                return None
            what = f"{key.to} table {key.table} metric {key.metric} protocol {protocol}"
        elif kind == "address":
            what, ours = _address(payload)
        elif kind == "rule":
            what, ours = _rule(payload)
        elif kind == "link":
            name = dict(attributes(payload, IFINFOMSG)).get(IFLA_IFNAME, b"")
            what, ours = name.rstrip(b"\0").decode(errors="replace"), False
        elif kind == "forwarding":
            what, ours = _forwarding(payload), False
        else:
            return None
        if not what:
            return None
        return NetEvent(
            kind, ours, f"{what} {'gone' if message.kind & 1 else 'new or changed'}", message.port
        )


def _route(payload: bytes) -> tuple[RouteKey, int]:
    family, length, table, protocol = _RTMSG.unpack_from(payload)
    found = dict(attributes(payload, RTMSG))
    to = f"{ip_address(found[RTA_DST])}/{length}" if RTA_DST in found else EVERYTHING[family]
    return RouteKey(to, _number(found.get(RTA_TABLE)) or table, _number(found.get(RTA_PRIORITY))), protocol


def _address(payload: bytes) -> tuple[str, bool]:
    length, index = _IFADDRMSG.unpack_from(payload)
    found = dict(attributes(payload, IFADDRMSG))
    # On a point-to-point link IFA_ADDRESS is the other end.
    address = ip_address(found.get(IFA_LOCAL) or found[IFA_ADDRESS])
    return f"{address}/{length} on interface {index}", found.get(IFA_PROTO) == bytes([PROTOCOL])


def _rule(payload: bytes) -> tuple[str, bool]:
    found = dict(attributes(payload, FIB_RULE_HDR))
    what = f"priority {_number(found.get(FRA_PRIORITY))} lookup {_number(found.get(FRA_TABLE))}"
    return what, found.get(FRA_PROTOCOL) == bytes([PROTOCOL])


def _forwarding(payload: bytes) -> str:
    """Return "" for the other settings of an interface, which come the same way."""
    found = dict(attributes(payload, NETCONFMSG))
    if NETCONFA_FORWARDING not in found:
        return ""
    index = _number(found.get(NETCONFA_IFINDEX))
    where = {EVERY_INTERFACE: "all", DEFAULT_INTERFACE: "default"}.get(index, f"interface {index}")
    return f"IPv{VERSION.get(payload[0], '?')} {where} = {_number(found[NETCONFA_FORWARDING])}"


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", sys.byteorder)
