"""What a listen address looks like to nftables: the fields of a packet that name it, as keys of maps.

Most are an address, a protocol and a port, and those are keys of hash maps. Others leave a field out (every
port, every protocol, every address of the director, a mark in the place of all) or are a range. Each way
is a Shape, with maps of its own, because a map has one kind of key. Of two that fit a packet the more exact
one is asked first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal
from zlib import crc32

from lbd.core.settings import EVERY_PORT, WHOLE_MARK, Family, Network, Ports, Protocol
from lbd.core.state import FieldType, Map

FAMILIES: tuple[Family, ...] = (4, 6)
# Those with ports, which `th` reads for all three.
TRANSPORTS: tuple[Protocol, ...] = ("tcp", "udp", "sctp")

Field = Literal["interface", "mark", "address", "protocol", "port"]

TRANSPORT = f"meta l4proto {{ {', '.join(TRANSPORTS)} }}"


def ip(family: Family) -> str:
    """Return nft's word for a family."""
    return "ip" if family == 4 else "ip6"  # noqa: PLR2004 - the family is its own number


def address_type(family: Family) -> FieldType:
    """Return nft's type of an address."""
    return "ipv4_addr" if family == 4 else "ipv6_addr"  # noqa: PLR2004 - the family is its own number


def prefix(network: Network) -> str:
    """Return a network as the kernel's reader writes it: one of a single address without its length."""
    alone = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if alone else str(network)


@dataclass(frozen=True)
class Shape:
    """Which fields name a listen address. Without a port ("none") there is no protocol either.

    No slots here and in Where: with ten thousand services, what follows from the fields is kept once made.
    """

    interface: bool = False
    mark: bool = False
    address: bool = True
    port: Literal["one", "range", "every", "none"] = "one"

    @property
    def interval(self) -> bool:
        """Whether keys have ranges, which nftables looks up in another kind of map."""
        return self.port == "range"

    @cached_property
    def suffix(self) -> str:
        """Return what the names of its maps and chains end in, before the family."""
        words = ["mark"] if self.mark else [] if self.address else ["wild"]
        words += [] if self.port in ("one", "none") else [self.port]
        words += ["any"] if self.port == "none" and not self.mark else []
        words += ["if"] if self.interface else []
        return "".join(f"_{word}" for word in words)

    @property
    def rank(self) -> tuple[int, ...]:
        """Return where it stands in the order in which listen addresses are asked."""
        # On the way out it can be told no more that an address was the director's: marks before wildcards.
        what = 0 if self.address else 1 if self.mark else 2
        return (what, _PORTS.index(self.port), int(not self.interface))

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Return the fields of a key, in their order in it."""
        every: dict[Field, bool] = {
            "interface": self.interface,
            "mark": self.mark,
            "address": self.address and not self.mark,
            "protocol": self.port != "none",
            "port": self.port in ("one", "range"),
        }
        return tuple(name for name, there in every.items() if there)

    @cached_property
    def slot_fields(self) -> tuple[Field, ...]:
        """Return the fields of a key in a map that is of one protocol and, if any, one interface.

        With an IPv6 address and a hash, an interface would be more than nft 1.0.6 has registers for.
        """
        return tuple(name for name in self.fields if name not in ("protocol", "interface"))

    def types(self, family: Family, fields: tuple[Field, ...]) -> tuple[FieldType, ...]:
        """Return nft's types of fields."""
        types: dict[Field, FieldType] = {
            "interface": "ifname",
            "mark": "mark",
            "address": address_type(family),
            "protocol": "inet_proto",
            "port": "inet_service",
        }
        return tuple(types[name] for name in fields)


_PORTS: tuple[Literal["one", "range", "every", "none"], ...] = ("one", "range", "every", "none")

# All there are, the most exact first. A wildcard needs an interface, or it would take everything.
SHAPES: tuple[Shape, ...] = tuple(
    sorted(
        [
            *(Shape(interface, port=port) for interface in (True, False) for port in _PORTS),
            *(Shape(interface=True, address=False, port=port) for port in _PORTS),
            *(Shape(interface, mark=True, address=False, port="none") for interface in (True, False)),
        ],
        key=lambda shape: shape.rank,
    )
)


@lru_cache
def _shape(
    interface: bool, mark: bool, address: bool, port: Literal["one", "range", "every", "none"]
) -> Shape:
    return Shape(interface, mark, address, port)


@dataclass(frozen=True)
class Where:
    """One listen address of a service in the terms of nftables.

    `address` is in normal form, "" for every address of the director; `mark` is None unless it stands in the
    place of address, protocol and port.
    """

    family: Family
    protocol: Protocol = "tcp"
    address: str = ""
    ports: Ports = EVERY_PORT
    interface: str = ""
    mark: int | None = None

    @cached_property
    def shape(self) -> Shape:
        """Return the fields that name it."""
        if self.mark is not None:
            return _shape(bool(self.interface), True, False, "none")
        port: Literal["one", "range", "every", "none"] = "range"
        if self.protocol == "any":
            port = "none"
        elif self.ports.every:
            port = "every"
        elif self.ports.single:
            port = "one"
        return _shape(bool(self.interface), False, bool(self.address), port)

    @cached_property
    def key(self) -> str:
        """Return its key in a map of its shape."""
        return self._join(self.shape.fields)

    @cached_property
    def slot_key(self) -> str:
        """Return its key in a map of its shape, protocol and interface."""
        return self._join(self.shape.slot_fields)

    @cached_property
    def kind(self) -> str:
        """Return what the names of its slots and of its class begin with: "tcp4", "udp_range_if_eth0_6"."""
        ends = f"_{_spelt(self.interface)}_" if self.interface else ""
        return f"{self.protocol}{self.shape.suffix}{ends}{self.family}"

    def _join(self, fields: tuple[Field, ...]) -> str:
        values: dict[Field, str] = {
            "interface": self.interface,
            "mark": f"{self.mark:#010x}" if self.mark is not None else "",
            "address": self.address,
            "protocol": self.protocol,
            "port": str(self.ports),
        }
        return " . ".join(values[name] for name in fields)


def _spelt(interface: str) -> str:
    """Return an interface's name as a part of a name that nft reads."""
    return interface if re.fullmatch(r"\w+", interface, re.ASCII) else f"{crc32(interface.encode()):08x}"


@dataclass(frozen=True, slots=True)
class Reading:
    """How the fields of a shape are read from a packet, in nft's words; of a mark `mark_mask` counts."""

    shape: Shape
    family: Family
    mark_mask: int = WHOLE_MARK

    def _packet(self, name: Field, port: str) -> str:
        # Behind another field nft wants a mask in brackets.
        mark = "meta mark" if self.mark_mask == WHOLE_MARK else f"(meta mark & {self.mark_mask:#010x})"
        words: dict[Field, str] = {
            "interface": "iifname",
            "mark": mark,
            "address": f"{ip(self.family)} daddr",
            "protocol": "meta l4proto",
            "port": port,
        }
        return words[name]

    @property
    def key(self) -> str:
        """Return the key of a packet on its way in, before its destination is translated."""
        return " . ".join(self._packet(name, "th dport") for name in self.shape.fields)

    def slot_key(self, protocol: Protocol) -> str:
        """Return the key in the maps of one protocol, of a packet on its way in."""
        return " . ".join(self._packet(name, f"{protocol} dport") for name in self.shape.slot_fields)

    def typeof(self, protocol: Protocol) -> str:
        """Return the key of `slot_key` for a declaration, where a mask means nothing."""
        whole = Reading(self.shape, self.family)
        return whole.slot_key(protocol)

    @property
    def original(self) -> str:
        """Return the key that a connection came with, whatever NAT made of it since."""
        return " . ".join(self._original(name) for name in self.shape.fields)

    @property
    def original_slot_key(self) -> str:
        """Return the key in the maps of one protocol that a connection came with."""
        return " . ".join(self._original(name) for name in self.shape.slot_fields)

    def _original(self, name: Field) -> str:
        words: dict[Field, str] = {
            "address": f"ct original {ip(self.family)} daddr",
            "port": "ct original proto-dst",
        }
        return words.get(name) or self._packet(name, "")

    @property
    def per_client(self) -> Reading:
        """Return the reading by which clients are told apart: all ports of a range are one."""
        if self.shape.port != "range":
            return self
        return replace(self, shape=replace(self.shape, port="every"))

    @property
    def guard(self) -> str:
        """Return what must be matched before `key` for it to mean something, with a space behind, or ""."""
        words = []
        if not self.shape.address:
            words.append(f"meta nfproto ipv{self.family}")
            if not self.shape.mark:
                words.append("fib daddr type local")
        return "".join(f"{word} " for word in words)

    @property
    def original_guard(self) -> str:
        """Return what must be matched before `original`, with a space behind, or "".

        nft 1.0.6 takes `ct original proto-dst` only behind a match on the protocol.
        """
        words = [] if self.shape.address else [f"meta nfproto ipv{self.family}"]
        words += [TRANSPORT] if "port" in self.shape.fields else []
        return "".join(f"{word} " for word in words)


def common(reading: Reading) -> str:
    """Return what the names of maps and chains of a reading end in."""
    return f"{reading.shape.suffix}{reading.family}"


def verdicts(reading: Reading) -> Map:
    """Return a map from listen addresses to chains."""
    types = reading.shape.types(reading.family, reading.shape.fields)
    return Map(types, "verdict", 0, interval=reading.shape.interval)


def readings(shapes: set[tuple[Shape, Family]], mark_mask: int) -> Iterator[Reading]:
    """Give how the shapes in use are read, the most exact first."""
    for shape in SHAPES:
        for family in FAMILIES:
            if (shape, family) in shapes:
                yield Reading(shape, family, mark_mask)
