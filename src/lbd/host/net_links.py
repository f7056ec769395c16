"""The door to the routing decision: by which interface a backend is reached, as `ip route get` tells."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from ipaddress import ip_address

from pyroute2.netlink.rtnl import RTM_GETROUTE
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lbd.core.observed import Link
from lbd.host.net_socket import KernelError, RouteSocket
from lbd.host.netlink import FAMILY

# What the kernel says of a destination to which no packet goes.
NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES)


def links(sock: RouteSocket, backends: Collection[str]) -> dict[str, Link]:
    """Return the way to each address that has one; raises KernelError and OSError."""
    names = dict(socket.if_nameindex())
    found: dict[str, Link] = {}
    for address in backends:
        to = ip_address(address)
        fields = {"family": FAMILY[to.version], "dst_len": to.max_prefixlen}
        try:
            (message,) = sock.get(rtmsg, RTM_GETROUTE, fields, [("RTA_DST", address)])
        except KernelError as error:
            if error.code in NO_WAY:
                continue
            raise
        index = message.get_attr("RTA_OIF")
        routed = bool(message.get_attr("RTA_GATEWAY") or message.get_attr("RTA_VIA"))
        if index in names:
            found[address] = Link(names[index], index, routed)
    return found


def interfaces() -> frozenset[str]:
    """Return the names of the interfaces there are."""
    return frozenset(name for _, name in socket.if_nameindex())
