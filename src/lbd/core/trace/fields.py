"""A packet, and its fields as keys of maps have them and as the kernel hashes them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Literal

from lbd.core.maglev import jhash
from lbd.core.trace.rule import Field

# IPPROTO_* of in(7); others are written as their number.
NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "sctp": 132}
TRANSPORTS = ("tcp", "udp", "sctp")

# NFPROTO_* of linux/netfilter.h.
NFPROTO = {"ipv4": 2, "ipv6": 10}

IFNAMSIZ = 16


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet: addresses in normal form, ports 0 where the protocol has none.

    `protocol` is one of NUMBERS or a number as text. `interface` is where it came in, "" for one of the
    director's own, and `out` where it leaves, "" until that is known. `mark` is as the first rule that asks
    for it finds it. `flags` are those of TCP; `checksum` is whether it has one, which UDP may go without.
    A packet with the tag of a VLAN is seen by the VLAN's own interface, without the tag.
    """

    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    interface: str = ""
    out: str = ""
    mark: int = 0
    flags: frozenset[str] = frozenset({"syn"})
    checksum: bool = True

    @property
    def family(self) -> Literal[4, 6]:
        """The IP version."""
        return 6 if ":" in self.destination else 4

    @property
    def word(self) -> str:
        """What nft calls the IP version."""
        return "ip6" if ":" in self.destination else "ip"


def value(field: Field, packet: Packet) -> str | None:
    """Return a field as text, None if the packet has none such: a rule that asks for it does not match."""
    words = field.name.removeprefix("ct original ").split()
    match words:
        case ["ip" | "ip6" as family, end]:
            address = packet.source if end == "saddr" else packet.destination
            return _masked(address, field.mask) if family == packet.word else None
        case ["udp", "checksum"]:
            return "0" if packet.protocol == "udp" and not packet.checksum else None
        case ["th" | "tcp" | "udp" | "sctp" as protocol, end]:
            port = packet.source_port if end == "sport" else packet.destination_port
            return str(port) if packet.protocol in (TRANSPORTS if protocol == "th" else (protocol,)) else None
        case ["proto-dst"]:
            return str(packet.destination_port) if packet.protocol in TRANSPORTS else None
    return _meta(field, packet)


def written(name: str, text: str, packet: Packet) -> Packet | None:
    """Return a packet with another value of a field, None if it has none such."""
    if name == "meta mark":
        return replace(packet, mark=int(text, 0))
    if value(Field(name), packet) is None:
        return None
    match name.rpartition(" ")[2]:
        case "saddr":
            return replace(packet, source=text)
        case "daddr":
            return replace(packet, destination=text)
        case "sport":
            return replace(packet, source_port=int(text))
        case "dport":
            return replace(packet, destination_port=int(text))
    raise ValueError(f"a field that cannot be set: {name}")


def _meta(field: Field, packet: Packet) -> str:
    match field.name:
        case "meta mark":
            return f"{packet.mark & int(field.mask or 0xFFFFFFFF):#010x}"
        case "ether type":
            return packet.word
        case "meta l4proto":
            return packet.protocol
        case "meta nfproto":
            return f"ipv{packet.family}"
        case "iifname":
            return packet.interface
        case "oifname":
            return packet.out
    raise ValueError(f"a field that is not known: {field.name}")


def _masked(address: str, mask: str) -> str:
    if not mask:
        return address
    whole, bits = ip_address(address), ip_address(mask)
    return str(type(whole)(int(whole) & int(bits)))


def hashed(names: Sequence[str], values: Sequence[str], modulus: int, seed: int) -> int:
    """Return what `jhash FIELDS mod MODULUS seed SEED` is for values of fields.

    Of several fields each is padded to 4 bytes. One alone is hashed at its own length, which counts.
    """
    parts = [_register(name, text) for name, text in zip(names, values, strict=True)]
    key = parts[0] if len(parts) == 1 else b"".join(part + bytes(-len(part) % 4) for part in parts)
    return jhash(key, seed) * modulus >> 32


def _register(name: str, text: str) -> bytes:
    """Return a field as the kernel has it in a register, network order but for a mark."""
    match name.rsplit(maxsplit=1)[-1]:
        case "saddr" | "daddr":
            return ip_address(text).packed
        case "sport" | "dport" | "proto-dst":
            return struct.pack("!H", int(text))
        case "l4proto":
            return bytes([NUMBERS[text] if text in NUMBERS else int(text)])
        case "nfproto":
            return bytes([NFPROTO[text]])
        case "mark":
            return struct.pack("<I", int(text, 16))
        case "iifname" | "oifname":
            return text.encode().ljust(IFNAMSIZ, b"\0")
        case _:
            raise ValueError(f"a field that is not known in a hash: {name}")
