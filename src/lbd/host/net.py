"""The door to addresses, routes and policy rules: rtnetlink(7).

Importing pyroute2 costs 75 to 110 ms and 13 MiB in a process that has asyncio already. Importing a part of it
costs the same, because the package imports all of its parts.

Everything blocks: call it from one worker thread at a time, never in the event loop.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Self

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_SECONDARY, ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import RT_SCOPE_NOWHERE, RTNH_F_ONLINK, rtmsg

from lbd.core.observed import Link
from lbd.core.plan import satisfies
from lbd.core.settings import Network
from lbd.core.state import PROTOCOL, Address, LiveRoute, Route, RouteKey, Rule
from lbd.core.words import NEEDS_CAPABILITY
from lbd.host import net_links, sysctl
from lbd.host.net_messages import (
    Names,
    address_message,
    read_address,
    read_route,
    read_rule,
    route_message,
    rule_message,
)
from lbd.host.net_socket import Keep, KernelError, RouteSocket
from lbd.host.netlink import FAMILY, attribute
from lbd.reconcile import RefusedError

ADD = NLM_F_CREATE | NLM_F_EXCL
REPLACE = NLM_F_CREATE | NLM_F_REPLACE

NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH)
HINTS = {
    errno.EPERM: NEEDS_CAPABILITY,
    errno.ENETUNREACH: "the gateway is on no connected network",
    errno.EHOSTUNREACH: "the gateway is on no connected network",
    errno.ENETDOWN: "the interface is down; bring it up with `ip link set dev NAME up`",
    errno.EACCES: "is IPv6 disabled on this interface? see net.ipv6.conf.NAME.disable_ipv6",
    errno.EAFNOSUPPORT: "this kernel runs without IPv6",
    errno.EOPNOTSUPP: "this kernel runs without IPv6",
}

# struct rtmsg behind the netlink header: rtm_family, rtm_dst_len, and the attributes after 12 bytes.
RTM_FAMILY, RTM_DST_LEN, RTM_ATTRIBUTES = 16, 17, 28
RTA_DST = 1
# struct ifaddrmsg: ifa_index.
IFA_INDEX = 20
# IFA_PROTO is one byte (since Linux 5.18).
IFA_PROTO_OURS = attribute(11, bytes([PROTOCOL]))[:5]
_U32 = struct.Struct("=I")
_ATTRIBUTE = struct.Struct("=HH")


class NetRefusedError(RefusedError):
    """The kernel does not take an address, route or rule, or does not answer; the message says why."""


@dataclass(frozen=True, slots=True)
class NetState:
    """What there is: addresses and rules with whether they are ours, routes with whose they are."""

    addresses: Mapping[Address, bool]
    routes: Mapping[RouteKey, LiveRoute]
    rules: Mapping[Rule, bool]


class Net:
    """Addresses, routes and policy rules of the network namespace in which it is first used.

    Ours carry PROTOCOL (IFA_PROTO, rtm_protocol, FRA_PROTOCOL). Nothing else is ever changed, except by
    add_route(replace=True) and restore_route(). Adding what is already there as asked and ours, and
    deleting what is already gone, are no errors. All methods raise NetRefusedError.
    """

    def __init__(self) -> None:
        self._socket = RouteSocket()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the next call opens another."""
        self._socket.close()

    def read(
        self, addresses: Collection[Address], routes: Collection[RouteKey], rules: Collection[Rule]
    ) -> NetState:
        """Return all that is ours, and what of the desired `addresses`, `routes` and `rules` is foreign.

        For a desired route the whole of its table passes by, since the kernel filters a dump by table and
        protocol but not by destination: 35 ms for 50,000 IPv4 routes, 60 ms for IPv6.
        """
        with _words("read", "addresses, routes and policy rules"):
            names = _names()
            return NetState(
                self._addresses(names, addresses), self._routes(names, routes), self._rules(rules)
            )

    def neighbours(self) -> frozenset[tuple[Network, str]]:
        """Return the networks that an interface leads to without a router, with the interface."""
        with _words("read", "addresses"):
            names = _names()
            found = (read_address(m, names)[0] for m in self._socket.dump(ifaddrmsg, RTM_GETADDR, {}))
            return frozenset((ip_interface(there.address).network, there.interface) for there in found)

    def links(self, backends: Collection[str]) -> dict[str, Link]:
        """Return the way to each of these addresses, as far as there is one; see net_links.links()."""
        with _words("find", "the way to backends"):
            return net_links.links(self._socket, backends)

    def add_address(self, address: Address) -> None:
        """Give an interface an address of ours."""
        with _words("add", address):
            try:
                self._socket.change(address_message(address, _index), RTM_NEWADDR, ADD)
            except KernelError as error:
                if error.code != errno.EEXIST:
                    raise
                if not self._addresses(_names(), [address]).get(address):
                    raise KernelError(error.code, "it is there already and not ours") from None

    def delete_address(self, address: Address) -> None:
        """Take an address of ours from an interface.

        Refused when the kernel would take foreign addresses along: without promote_secondaries, an IPv4
        network's first address takes its later ones with it (__inet_del_ifa in net/ipv4/devinet.c).
        """
        with _words("delete", address, gone=(errno.EADDRNOTAVAIL, errno.ENODEV)):
            index = _index(address.interface)
            messages = self._socket.dump(ifaddrmsg, RTM_GETADDR, {"index": index})
            found = [(message, *read_address(message, {index: address.interface})) for message in messages]
            # RTM_DELADDR does not look at IFA_PROTO, so we do.
            mine = next((message for message, there, ours in found if ours and there == address), None)
            if mine is None:
                return
            if not mine["flags"] & IFA_F_SECONDARY and not _promotes(address.interface):
                later = [
                    there for message, there, ours in found if not ours and message["flags"] & IFA_F_SECONDARY
                ]
                if taken := [there.address for there in later if _same_network(there, address)]:
                    raise KernelError(
                        0,
                        f"the kernel would delete {', '.join(taken)} with it, not ours; first set "
                        f"net.ipv4.conf.{address.interface}.promote_secondaries = 1",
                    )
            self._socket.change(address_message(address, _index), RTM_DELADDR)

    def add_route(self, route: Route, *, replace: bool = False) -> None:
        """Add a route of ours; with `replace`, in the place of what has the same key, whose ever it is."""
        with _words("add", route):
            try:
                message = route_message(route, PROTOCOL, _index)
                self._socket.change(message, RTM_NEWROUTE, REPLACE if replace else ADD)
            except KernelError as error:
                if error.code != errno.EEXIST:
                    raise
                there = self._routes(_names(), [route.key]).get(route.key)
                if there and (there.protocol != PROTOCOL or not satisfies(there.route, route)):
                    raise KernelError(error.code, f"{there.route}, of protocol {there.protocol}") from None

    def delete_route(self, route: Route) -> None:
        """Delete a route of ours."""
        with _words("delete", route, gone=(errno.ESRCH, errno.ENODEV)):
            message = route_message(route, PROTOCOL, _index)
            message["scope"] = RT_SCOPE_NOWHERE  # any
            self._socket.change(message, RTM_DELROUTE)

    def restore_route(self, live: LiveRoute) -> None:
        """Put a foreign route back, with its own protocol, in the place of what has the same key.

        What a LiveRoute does not hold is lost (see net_messages).
        """
        with _words("restore", live.route):
            try:
                self._socket.change(route_message(live.route, live.protocol, _index), RTM_NEWROUTE, REPLACE)
            except KernelError as error:
                if error.code not in NO_WAY or not live.route.interface:
                    raise
                # It was there with this gateway on this interface, so it was there as "onlink".
                message = route_message(live.route, live.protocol, _index, flags=RTNH_F_ONLINK)
                self._socket.change(message, RTM_NEWROUTE, REPLACE)

    def add_rule(self, rule: Rule) -> None:
        """Add a policy rule of ours."""
        with _words("add", rule):
            try:
                self._socket.change(rule_message(rule), RTM_NEWRULE, ADD)
            except KernelError as error:
                if error.code != errno.EEXIST or not self._rules([rule]).get(rule):
                    raise

    def delete_rule(self, rule: Rule) -> None:
        """Delete a policy rule of ours."""
        with _words("delete", rule, gone=(errno.ENOENT,)):
            self._socket.change(rule_message(rule), RTM_DELRULE)

    def _addresses(self, names: Names, desired: Collection[Address]) -> dict[Address, bool]:
        interfaces = {address.interface for address in desired}
        indexes = {index for index, name in names.items() if name in interfaces}

        def concerns(data: bytes, at: int) -> bool:
            (size,), (index,) = _U32.unpack_from(data, at), _U32.unpack_from(data, at + IFA_INDEX)
            return index in indexes or IFA_PROTO_OURS in data[at : at + size]

        dump = self._socket.dump(ifaddrmsg, RTM_GETADDR, {}, keep=concerns)
        found = (read_address(message, names) for message in dump)
        return {address: ours for address, ours in found if ours or address in desired}

    def _routes(self, names: Names, desired: Collection[RouteKey]) -> dict[RouteKey, LiveRoute]:
        state: dict[RouteKey, LiveRoute] = {}
        tables: dict[tuple[int, int], set[tuple[int, bytes]]] = defaultdict(set)
        for key in desired:
            network = ip_network(key.to)
            to = network.network_address.packed if network.prefixlen else b""
            tables[FAMILY[network.version], key.table].add((network.prefixlen, to))
        for (family, table), destinations in tables.items():
            keep = _goes_to(family, destinations)
            for message in self._socket.dump(
                rtmsg, RTM_GETROUTE, {"family": family}, [("RTA_TABLE", table)], keep
            ):
                live = read_route(message, names)
                if live.route.key in desired:
                    # Of several with one key the kernel uses the first (`ip route append` makes such).
                    state.setdefault(live.route.key, live)
        for family in FAMILY.values():
            for message in self._socket.dump(rtmsg, RTM_GETROUTE, {"family": family, "proto": PROTOCOL}):
                live = read_route(message, names)
                if live.protocol == PROTOCOL:
                    state.setdefault(live.route.key, live)
        return state

    def _rules(self, desired: Collection[Rule]) -> dict[Rule, bool]:
        state: dict[Rule, bool] = {}
        for family in FAMILY.values():
            for message in self._socket.dump(fibmsg, RTM_GETRULE, {"family": family}):
                rule, ours = read_rule(message) or (None, False)
                if rule and (ours or rule in desired):
                    # The kernel keeps the same rule twice when only the protocols differ.
                    state[rule] = ours or state.get(rule, False)
        return state


def _names() -> Names:
    return dict(socket.if_nameindex())


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise KernelError(errno.ENODEV, f"interface {interface} does not exist") from None


def _goes_to(family: int, destinations: Collection[tuple[int, bytes]]) -> Keep:
    """Return the test for a route message to one of `destinations`, (prefix length, network)."""
    lengths = {length for length, _ in destinations}

    def keep(data: bytes, at: int) -> bool:
        length = data[at + RTM_DST_LEN]
        if length not in lengths or data[at + RTM_FAMILY] != family:
            return False
        to = b""
        if length:
            # The kernel writes RTA_DST among the first; pyroute2 would take 135 us a route.
            at += RTM_ATTRIBUTES
            size, kind = _ATTRIBUTE.unpack_from(data, at)
            while kind != RTA_DST:
                at += size + 3 & ~3
                size, kind = _ATTRIBUTE.unpack_from(data, at)
            to = data[at + 4 : at + size]
        return (length, to) in destinations

    return keep


def _same_network(one: Address, other: Address) -> bool:
    return ip_interface(one.address).network == ip_interface(other.address).network


def _promotes(interface: str) -> bool:
    # With slashes, since an interface's name may have dots.
    names = [f"net/ipv4/conf/{name}/promote_secondaries" for name in ("all", interface)]
    return "1" in sysctl.read(names).values()


@contextmanager
def _words(verb: str, thing: object, gone: Collection[int] = ()) -> Iterator[None]:
    """Say in words what was asked and what the kernel said; the errors in `gone` mean that it is done."""
    try:
        yield
    except KernelError as error:
        if error.code in gone:
            return
        raise NetRefusedError(
            f"cannot {verb} {thing}: {_why(error)}", permission=error.code == errno.EPERM
        ) from None
    except OSError as error:
        message = f"cannot {verb} {thing}: the rtnetlink socket failed: {error.strerror or error}"
        raise NetRefusedError(message, permission=isinstance(error, PermissionError)) from None
    except ValueError as error:
        # A route to restore comes from a file that somebody may have edited.
        raise NetRefusedError(f"cannot {verb} {thing}: {error}") from None


def _why(error: KernelError) -> str:
    # An interface that does not exist is said by us, and in full.
    if error.code in (0, errno.ENODEV) and error.said:
        return error.said
    more = [HINTS.get(error.code, ""), error.said]
    return (
        f"{os.strerror(error.code)} ({'; '.join(filter(None, more))})"
        if any(more)
        else os.strerror(error.code)
    )
