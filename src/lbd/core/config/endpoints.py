"""Reading where connections come to and go: listen addresses, backends, return paths, and their ports.

Every function raises ValueError with a message for the person who wrote the file, as those of values do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import cast

from lbd.core.config import values
from lbd.core.settings import (
    EVERY_PORT,
    HIGHEST_PORT,
    IP,
    Backend,
    Family,
    Listen,
    Ports,
    Protocol,
    ReturnPath,
)
from lbd.core.words import quote

# What the kernel gives the director's own connections (net.ipv4.ip_local_port_range, by default). nftables
# does not look who has a port already, so a source port out of these could be taken twice.
LOCAL_PORTS = Ports(32768, 60999)
FIRST_UNPRIVILEGED = 1024

# "*", as the addresses it stands for.
_EVERY_ADDRESS: dict[Family, IP] = {4: IPv4Address(0), 6: IPv6Address(0)}

_SNAT = re.compile(r"snat:(?P<addresses>[^ ]*)(?: port (?P<ports>[^ ]+))?")


@dataclass(frozen=True, slots=True)
class ListenText:
    """An entry of `listen`. `address` None is "*": every address, of the families that the service has."""

    address: IP | None
    ports: tuple[Ports, ...]
    protocol: Protocol

    def listens(self, families: Iterable[Family]) -> tuple[Listen, ...]:
        """Return the listen addresses it stands for; `families` are those of "*"."""
        addresses = [self.address] if self.address else [_EVERY_ADDRESS[family] for family in families]
        return tuple(Listen(address, ports, self.protocol) for address in addresses for ports in self.ports)


def listen(text: str) -> ListenText:
    """Return what "192.0.2.1:80", "[2001:db8::1]:53/udp", "192.0.2.1:80,8000-8099" or "*:80" stands for."""
    if not text:
        raise ValueError('the text is empty; write an address and a port, as in "192.0.2.1:80"')
    body, slash, suffix = text.partition("/")
    word = values.choice(suffix, ("tcp", "udp", "sctp", "any"), kind="protocol ") if slash else "tcp"
    protocol = cast("Protocol", word)
    host, port = _split(body)
    if not host:
        hint = f"*{body or ':80'}{slash}{suffix}"
        raise ValueError(f'{quote(text)} has no address; every address of the director is "{hint}"')
    address = _listen_address(host)
    if port is None:
        raise ValueError(
            f'{quote(text)} has no port; write the one that clients use: "{body}:80{slash}{suffix}"'
        )
    found = _port_list(port)
    if protocol == "any" and not found[0].every:
        hint = f'"{body[: len(body) - len(port)]}*/any"'
        raise ValueError(f'"any" is every protocol, also those without ports; write {hint}')
    return ListenText(address, found, protocol)


def backend(text: str) -> Backend:
    """Return a backend from "192.0.2.1:80", "192.0.2.1:8000-8099", or "192.0.2.1" for the listen ports."""
    body, slash, suffix = text.partition("/")
    if slash:
        hint = "a network" if suffix.isdigit() else "a protocol, which is that of the listen address"
        raise ValueError(f"{quote(text)} has {hint}; a backend is one address and a port")
    host, port = _split(body)
    address = values.service_address(host)
    if port is None:
        return Backend(address)
    if "," in port:
        raise ValueError(f'{quote(text)} has several ports; a backend has one, or one range: "8000-8099"')
    found = EVERY_PORT if port == "*" else _ports(port)
    if found.every:
        raise ValueError(
            f"{quote(text)} has every port; leave it out, and the port stays the one that clients use"
        )
    return Backend(address, found)


def sorry_server(text: str) -> Backend:
    """Return a server of last resort, from "192.0.2.1:80" or "192.0.2.1"."""
    found = backend(text)
    if found.ports and not found.ports.single:
        raise ValueError(f"{quote(text)} has a range of ports; a sorry server has one")
    return found


def return_path(text: str) -> ReturnPath:
    """Return the way back from "gateway", "snat:203.0.113.5,203.0.113.6 port 20000-29999" and the like."""
    if text == "snat" or text.startswith("snat:"):
        return _snat(text)
    built = ("gateway", "masquerade", "snat:ADDRESS", "direct", "stateless")
    match values.choice(text, built):
        case "masquerade":
            return ReturnPath("masquerade")
        case "direct":
            return ReturnPath("direct")
        case "stateless":
            return ReturnPath("stateless")
    return ReturnPath()


def _snat(text: str) -> ReturnPath:
    if text in {"snat", "snat:"}:
        raise ValueError('"snat" needs the source address: write "snat:203.0.113.5"')
    match = _SNAT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{quote(text)} is not understood; addresses stand behind commas without spaces, and ports at "
            'the end: "snat:203.0.113.5,203.0.113.6 port 20000-29999"'
        )
    written = match["addresses"].split(",")
    for each in written:
        if each.count(":") == 1:
            raise ValueError(f'{quote(each)} has a port; ports stand at the end: " port 20000-29999"')
    sources = tuple(map(values.service_address, written))
    for i, source in enumerate(sources):
        if source in sources[:i]:
            raise ValueError(f"the source address {source} is listed twice")
    return ReturnPath("snat", sources, _snat_ports(match["ports"]) if match["ports"] else None)


def _snat_ports(text: str) -> Ports:
    low, dash, high = text.partition("-")
    found = Ports(_port(low), _port(high)) if dash else None
    if found is None or found.low >= found.high:
        raise ValueError(f'source ports {quote(text)} are not a range; write one like "20000-29999"')
    if found.low < FIRST_UNPRIVILEGED:
        raise ValueError(
            f"source ports {found} include ports below {FIRST_UNPRIVILEGED}, which belong to services of "
            f"the host; choose from {FIRST_UNPRIVILEGED} to {LOCAL_PORTS.low - 1}"
        )
    if found.overlaps(LOCAL_PORTS):
        raise ValueError(
            f"source ports {found} overlap {LOCAL_PORTS}, of which the director's own connections take "
            f"(net.ipv4.ip_local_port_range); choose from {FIRST_UNPRIVILEGED} to {LOCAL_PORTS.low - 1} or "
            f"from {LOCAL_PORTS.high + 1} to {HIGHEST_PORT}"
        )
    return found


def _listen_address(host: str) -> IP | None:
    if host == "*":
        return None
    found = values.address(host)
    return found if found.is_unspecified else values.service_address(host)


def _port_list(text: str) -> tuple[Ports, ...]:
    """Return ports from "80", "8000-8099", "80,443,8000-8099" or "*"."""
    if text == "*":
        return (EVERY_PORT,)
    parts = text.split(",")
    if "*" in parts:
        raise ValueError(f'ports {quote(text)}: "*" is every port; write it alone')
    if len(parts) > 1 and "" in parts:
        raise ValueError(f"ports {quote(text)}: a port is missing beside a comma")
    found = tuple(map(_ports, parts))
    for one, other in pairwise(sorted(found)):
        if one == other:
            raise ValueError(f"ports {quote(text)}: {one} is listed twice")
        if one.overlaps(other):
            raise ValueError(f"ports {quote(text)}: {one} and {other} overlap")
    return found


def _ports(text: str) -> Ports:
    """Return a port or a range of ports."""
    low, dash, high = text.partition("-")
    if not (low and dash and high):
        return Ports(number := _port(text), number)
    if low == "0" and high == str(HIGHEST_PORT):
        return EVERY_PORT
    found = Ports(_port(low), _port(high))
    if found.low > found.high:
        raise ValueError(f'port range {quote(text)} ends before it begins; write "{high}-{low}"')
    return EVERY_PORT if found.every else found


def _port(text: str) -> int:
    """Return a port, 1 to 65535, written in plain digits."""
    if not text:
        raise ValueError("the port is missing after the colon")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"port {quote(text)} is not a port; write a number, 1 to {HIGHEST_PORT}")
    if len(text) > 5 or not 1 <= int(text) <= HIGHEST_PORT:  # noqa: PLR2004 - the digits of the highest port
        raise ValueError(f"port {quote(text)[1:-1]} is not a port; ports are 1 to {HIGHEST_PORT}")
    if text.startswith("0"):
        raise ValueError(f"port {text} has a leading zero; write {int(text)}")
    return int(text)


def _split(text: str) -> tuple[str, str | None]:
    """Return host and port of "host:port", "[host]:port" or a host alone."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f'{quote(text)} is not an address and a port; write "[2001:db8::1]:80"')
        if ":" not in host:
            raise ValueError(f"{quote(text)}: only IPv6 addresses stand in brackets; leave them out")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        raise ValueError(f'{quote(text)} is ambiguous; write an IPv6 address in brackets: "[2001:db8::1]:80"')
    host, colon, port = text.partition(":")
    return host, port if colon else None
