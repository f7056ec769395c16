"""The same client, the same backend: what packets write down, and what of it stays true.

When a connection leaves for its backend, the director notes client and backend in maps whose elements go
after the service's timeout; the next connection of that client finds them there. nft 1.0.6 can write at
most 16 bytes of key and 16 of data from a packet. So the listen address is a hash in the key, the client of
IPv6 is one, too, and address and port of the backend are in two maps. Two listen addresses never have the
same hash (`salt`); two clients of one service may, and then share a backend.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from zlib import crc32

from lbd.core.draft import Draft
from lbd.core.maglev import jhash
from lbd.core.settings import Family, Persistence
from lbd.core.shape import Field, Reading, Where, address_type, ip
from lbd.core.state import FieldType, Learned, Map
from lbd.core.virtual import Virtual

# The most clients that are remembered, in each map: 4 MiB of buckets for an empty one. Beyond it a new
# client is served, and not remembered.
MOST_CLIENTS = 262_144

# nft wants a modulus, and this one keeps nearly the whole hash.
MODULUS = 2**32 - 1

CLIENT_SEED = 0x4C

# What is hashed where nothing else is left, for a wildcard on every port: NFPROTO_* of linux/netfilter.h.
NUMBERS: dict[Family, int] = {4: 2, 6: 10}


@dataclass(frozen=True, slots=True)
class Sticky:
    """How the clients of one listen address are remembered: its maps, and its keys in nft's words."""

    virtual: Virtual
    reading: Reading
    salt: int

    @property
    def maps(self) -> tuple[str, ...]:
        """Return the maps with the address, and the port if the backend has one, of a client's backend."""
        kind = self.virtual.where.kind
        # Ports that stay or move all alike are not the backend's; a note has all its parts or none.
        return (
            (f"sticky_{kind}", f"sticky_port_{kind}")
            if self.virtual.form == "port"
            else (f"sticky_host_{kind}",)
        )

    @property
    def name(self) -> str:
        """Return what tells chains apart that read or write such maps in different ways."""
        return f"sticky_{self._prefix}{_tag(self.virtual.where)}"

    @property
    def _kept(self) -> Persistence:
        kept = self.virtual.service.persistence
        assert kept is not None
        return kept

    @property
    def _prefix(self) -> int:
        return self._kept.prefix(self.reading.family)

    @property
    def timeout(self) -> str:
        """Return how long a client is remembered, as nft reads it."""
        milliseconds = round(self._kept.timeout * 1000)
        return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"

    @property
    def lookup(self) -> str:
        """Return what stands behind `dnat ip to` to send a client where it was before."""
        packet = self.reading.per_client.slot_key(self.virtual.where.protocol)
        key = f"{self._listen(packet)} . {self._client(brackets=True)}"
        return " : ".join(f"{key} map @{name}" for name in self.maps)

    @property
    def record(self) -> str:
        """Return the rule, in postrouting, that notes where a client went."""
        protocol = self.virtual.where.protocol
        key = f"{self._listen(self.reading.per_client.original_slot_key)} . {self._client(brackets=False)}"
        data = (f"{ip(self.reading.family)} daddr", f"{protocol} dport")
        match = "" if protocol == "any" else f"meta l4proto {protocol} "
        return match + " ".join(
            f"update @{name} {{ {key} timeout {self.timeout} : {value} }}"
            for name, value in zip(self.maps, data, strict=False)
        )

    def declare(self, draft: Draft) -> None:
        """Have the maps, and say what their elements may be."""
        family: FieldType = address_type(self.reading.family)
        client: FieldType = "ipv4_addr" if self.reading.family == 4 else "index"  # noqa: PLR2004 - the IP version
        typeof = f"numgen inc mod 65536 . {'ip saddr' if client == 'ipv4_addr' else 'numgen inc mod 65536'}"
        types: tuple[FieldType, ...] = (family, "inet_service")
        words = (f"{ip(self.reading.family)} daddr", f"{self.virtual.where.protocol} dport")
        for name, kind, word in zip(self.maps, types, words, strict=False):
            shape = Map(
                ("index", client), (kind,), MOST_CLIENTS, learned="timeout", typeof=f"{typeof} : {word}"
            )
            draft.declare(name, shape)
        known = draft.learned.get(self.maps[0], Learned(self.maps, {}))
        mine = frozenset(target.element for target in self.virtual.stay)
        number = str(listen_hash(self.virtual.where, self.salt))
        draft.learned[self.maps[0]] = replace(known, allowed={**known.allowed, number: mine})

    def _listen(self, fields: str) -> str:
        seed = _seed(self.virtual.where, self.salt)
        return f"jhash {fields or 'meta nfproto'} mod {MODULUS} seed {seed:#x}"

    def _client(self, *, brackets: bool) -> str:
        """Return the part of a key that is the client; nft wants a mask in brackets in one place only."""
        source, network = f"{ip(self.reading.family)} saddr", _network(self.reading.family, self._prefix)
        if self._prefix < network.max_prefixlen:
            source = f"{source} & {network.netmask}"
            source = f"({source})" if brackets else source
        if self.reading.family == 4:  # noqa: PLR2004 - the IP version
            return source
        return f"jhash {source} mod {MODULUS} seed {CLIENT_SEED:#x}"


def listen_hash(where: Where, salt: int) -> int:
    """Return what the kernel makes of a listen address: jhash of its fields, as in the registers."""
    values: dict[Field, bytes] = {
        "mark": struct.pack("=I", where.mark or 0),
        "address": ip_address(where.address).packed if where.address else b"",
        "port": struct.pack("!H", where.ports.low),
    }
    fields = [name for name in where.shape.slot_fields if name != "port" or where.shape.port == "one"]
    parts = [values[name] for name in fields] or [bytes([NUMBERS[where.family]])]
    # Of several fields each has whole registers; one alone is as long as it is.
    key = parts[0] if len(parts) == 1 else b"".join(part + bytes(-len(part) % 4) for part in parts)
    return jhash(key, _seed(where, salt)) * MODULUS >> 32


def salt(virtuals: Iterable[Virtual]) -> int:
    """Return the first salt by which no two listen addresses of the same maps have the same hash."""
    kept = [v.where for v in virtuals if v.service.persistence]
    tried = 0
    while True:
        seen = {(where.kind, listen_hash(where, tried)) for where in kept}
        if len(seen) == len(kept):
            return tried
        tried += 1


def _tag(where: Where) -> str:
    """Return what is in the seed and not in the hash, as a part of a name."""
    return f"_{where.ports.low}_{where.ports.high}" if where.shape.port == "range" else ""


def _seed(where: Where, salt: int) -> int:
    # The ports of a range are one to a client. A seed of zero is a random one to nft.
    return (crc32(_tag(where).encode()) ^ salt) or 1


def _network(family: int, prefix: int) -> IPv4Network | IPv6Network:
    return IPv4Network((0, prefix)) if family == 4 else IPv6Network((0, prefix))  # noqa: PLR2004 - the IP version
