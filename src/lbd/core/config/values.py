"""Reading single values: text from the file in, a typed value out.

Every function raises ValueError with a message for the person who wrote the file: what was found, what was
meant, what to do. nft accepts a dnat to a multicast address, so these checks are the only guard.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address, ip_interface, ip_network
from types import MappingProxyType

from lbd.core.settings import IP, InterfaceAddress, Network
from lbd.core.words import did_you_mean, quote

# How a value of TOML is called in a message.
KINDS: dict[type, str] = {list: "a list", dict: "a table"}
# From this prefix length on every IPv4 address is a host's (RFC 3021).
POINT_TO_POINT = 31
# The first byte of IPv4's loopback addresses; all below are of hosts, but those of 0.0.0.0/8.
LOOPBACK = 127

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Fewer than the kernel allows: dev_valid_name() also takes quotes, and nft reads * as a wildcard.
_INTERFACE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.@-]{1,15}")
_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h)")
# Whole numbers, so that 700 ms are 0.7 s and not a bit more.
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_PREFIX = re.compile(r"[0-9]{1,3}")


def described(value: object) -> str:
    """Return a value that is of the wrong type, in few words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**20):
        return f"the number {value}"
    if isinstance(value, str):
        return quote(value)
    return KINDS.get(type(value), "a date or time")


def include_pattern(text: str) -> str:
    """Return a pattern of file names below the directory of the main file."""
    if not text or text.startswith("/") or "**" in text or not text.isprintable():
        raise ValueError(
            f'{quote(text)} is not a pattern; write names relative to this file, without "**": "lbd.d/*.toml"'
        )
    return text


def choice(
    word: str, built: Sequence[str], refused: Mapping[str, str] = MappingProxyType({}), kind: str = ""
) -> str:
    """Return `word`, a `kind`, if it is one of `built`; those of `refused` are known, with what to say."""
    if word in built:
        return word
    listed = ", ".join(f'"{each}"' for each in built)
    if why := refused.get(word):
        raise ValueError(f"{kind}{quote(word)} is {why}; choose one of {listed}")
    raise ValueError(f"{kind}{quote(word)} is not one of {listed}{did_you_mean(word, (*built, *refused))}")


def file_name(text: str, such_as: str = "lists/office.txt") -> str:
    """Return the name of a file, relative to the directory of the main file or absolute."""
    if not text or text.endswith("/") or not text.isprintable():
        raise ValueError(f'{quote(text)} is not the name of a file; write one like "{such_as}"')
    return text


def service_name(text: str) -> str:
    """Return a service name, which is also what commands and the journal call it."""
    if _NAME.fullmatch(text):
        return text
    raise ValueError(
        f"{quote(text)} is not a name; use 1 to 63 letters, digits, dots, underscores and dashes, "
        "beginning with a letter or a digit"
    )


def interface_name(text: str) -> str:
    """Return the name of a network interface, without wildcards."""
    if _INTERFACE.fullmatch(text):
        return text
    raise ValueError(
        f'{quote(text)} is not an interface name; use 1 to 15 letters, digits, "_", ".", "@" and "-"'
    )


def duration(text: str, low: str, high: str) -> float:
    """Return seconds from "500ms", "2s", "1m" or "1h"; `low` and `high` are written the same way."""
    seconds = _seconds(text)
    if not _seconds(low) <= seconds <= _seconds(high):
        raise ValueError(f'{text} is out of range; write a duration from "{low}" to "{high}"')
    return seconds


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(
            f'{quote(text)} is not a duration; write a whole number and a unit: "500ms", "2s", "1m", "1h"'
        )
    return int(match[1]) * _MILLISECONDS[match[2]] / 1000


def address(text: str) -> IP:
    """Return an IPv4 or IPv6 address of any kind, without a zone and not IPv4 in IPv6 form."""
    if "%" in text:
        raise ValueError(
            f"{quote(text)} has a zone; write the address alone and the interface under its own key"
        )
    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError(_why_no_address(text)) from None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        raise ValueError(f"{quote(text)} is an IPv4 address in IPv6 form; write {found.ipv4_mapped}")
    return found


def unicast(text: str) -> IP:
    """Return an address that one host can have."""
    found = address(text)
    if isinstance(found, IPv4Address) and 1 << 24 <= int(found) < LOOPBACK << 24:
        # Most are, and a file has a hundred thousand.
        return found
    if found.is_multicast:
        kind = "a multicast address"
    elif found.is_unspecified:
        kind = "the unspecified address"
    elif found.is_loopback:
        kind = "a loopback address"
    elif found == IPv4Address(0xFFFFFFFF):
        kind = "the broadcast address"
    elif isinstance(found, IPv4Address) and int(found) < 1 << 24:
        kind = "an address of 0.0.0.0/8, which no host has"
    else:
        return found
    raise ValueError(f"{found} is {kind}; write the address of one host on the network")


def service_address(text: str) -> IP:
    """Return an address for clients or backends; a link-local one of IPv6 means nothing beyond its link."""
    found = unicast(text)
    if isinstance(found, IPv6Address) and found.is_link_local:
        raise ValueError(
            f"{found} is a link-local address, which is not routed; write a global or unique local one"
        )
    return found


def interface_address(text: str) -> InterfaceAddress:
    """Return an address with the prefix of its network: "192.0.2.1/24"."""
    host, slash, prefix = text.partition("/")
    found = unicast(host)
    if not slash:
        usual = 24 if found.version == 4 else 64  # noqa: PLR2004 - the IP version
        raise ValueError(
            f'{quote(text)} has no prefix length; write "{found}/{usual}" if that is its network'
        )
    whole = ip_interface(f"{found}/{_prefix(prefix, found)}")
    if isinstance(whole, IPv4Interface) and whole.network.prefixlen < POINT_TO_POINT:
        reserved = {whole.network.network_address, whole.network.broadcast_address}
        if found in reserved:
            raise ValueError(f"{whole} is the first or last address of its network; write that of a host")
    return whole


def network(text: str) -> Network:
    """Return a network: "10.9.0.0/16"; an address alone is a network of one."""
    host, slash, prefix = text.partition("/")
    found = address(host)
    length = _prefix(prefix, found) if slash else found.max_prefixlen
    whole = ip_network(f"{found}/{length}", strict=False)
    if whole.network_address != found:
        raise ValueError(f'{quote(text)} has bits set beyond its prefix; the network is "{whole}"')
    return whole


def _prefix(text: str, of: IP) -> int:
    if not (text.isascii() and _PREFIX.fullmatch(text) and int(text) <= of.max_prefixlen):
        raise ValueError(
            f"/{quote(text)[1:-1]} is not a prefix length; for {of} it is 0 to {of.max_prefixlen}"
        )
    return int(text)


def _why_no_address(text: str) -> str:
    shown = quote(text)
    if not text:
        return "the address is missing"
    if "/" in text:
        return f"{shown} is not one address; write it without the prefix length"
    if ":" in text:
        return f"{shown} is not an IPv6 address"
    if text.replace(".", "").isdigit():
        return f"{shown} is not an IPv4 address; it is four numbers, 0 to 255, without leading zeros"
    if _HOST_NAME.fullmatch(text):
        return f"{shown} is a host name; lbd wants an address, because a name can change its meaning unseen"
    return f'{shown} is not an address; write one like "192.0.2.1" or "2001:db8::1"'
