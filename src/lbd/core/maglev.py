"""Maglev tables and the kernel's jhash: which backend a connection gets, without asking the kernel.

The table is that of "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016, section 3.4):
each backend walks its own permutation of the slots and takes the next free one in turn. A backend that
comes or goes moves few of the others' slots, and two directors with the same backends make the same
table. Weights give a backend its turns in proportion.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address

# The seed of the kernel's hash is always written: an unset one is random in each kernel and never dumped,
# and two directors would then choose differently.
SEED = 1

# Primes just below powers of four, as the paper wants M prime; the last is the largest below the 65,536
# that a slot index may have. 16 slots for each unit of weight keep shares within 6 % of what they should be,
# and as few clients move besides those of a backend that goes. More would be finer, but the slots of all
# services are in one map, and the kernel needs the square of a map's size to list it.
SIZES = (251, 1021, 4093, 16381, 65521)
SLOTS_PER_WEIGHT = 16


def table_size(weights: int) -> int:
    """Return the number of slots for backends whose reduced weights add up to `weights`."""
    return next((m for m in SIZES if m >= weights * SLOTS_PER_WEIGHT), SIZES[-1])


def table(weights: Mapping[str, int], size: int) -> list[str]:
    """Fill `size` slots with the names of `weights` (all weights at least 1, `size` prime).

    The result depends on names and weights only, not on the order of the mapping.
    """
    names = sorted(weights)
    heaviest = max(weights.values())
    position, step = {}, {}
    for name in names:
        one, two = struct.unpack("<QQ", blake2b(name.encode(), digest_size=16).digest())
        position[name], step[name] = one % size, two % (size - 1) + 1
    slots: list[str] = [""] * size
    turns = dict.fromkeys(names, 0)
    left = size
    while True:
        for name in names:
            # A backend of half the heaviest's weight takes every second turn.
            turns[name] += weights[name]
            if turns[name] < heaviest:
                continue
            turns[name] -= heaviest
            at = position[name]
            while slots[at]:
                at = (at + step[name]) % size
            slots[at] = name
            position[name] = (at + step[name]) % size
            left -= 1
            if not left:
                return slots


def slot(size: int, source: IPv4Address | IPv6Address, source_port: int) -> int:
    """Return the slot that nft's `jhash ip saddr . tcp sport mod SIZE seed SEED` gives.

    The key is the register content: network order, each field padded to 4 bytes. The kernel scales the
    hash to the modulus by multiplication (net/netfilter/nft_hash.c, reciprocal_scale()).
    """
    key = source.packed + struct.pack("!H", source_port) + b"\0\0"
    return jhash(key, SEED) * size >> 32


def jhash(key: bytes, seed: int) -> int:
    """Hash `key` as the kernel does (include/linux/jhash.h, Jenkins' lookup3), little endian."""
    words = struct.unpack(f"<{(len(key) + 3) // 4}I", key + bytes(-len(key) % 4))
    a = b = c = (0xDEADBEEF + len(key) + seed) & 0xFFFFFFFF
    # A tail of one to three words is left for the final mix.
    whole = max(0, (len(words) - 1) // 3) * 3
    for i in range(0, whole, 3):
        a, b, c = _mix(a + words[i], b + words[i + 1], c + words[i + 2])
    tail = (*words[whole:], 0, 0, 0)[:3]
    return _final(a + tail[0], b + tail[1], c + tail[2])


def _rotate(x: int, k: int) -> int:
    x &= 0xFFFFFFFF
    return (x << k | x >> 32 - k) & 0xFFFFFFFF


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a, c = (a - c) ^ _rotate(c, 4), c + b
    b, a = (b - a) ^ _rotate(a, 6), a + c
    c, b = (c - b) ^ _rotate(b, 8), b + a
    a, c = (a - c) ^ _rotate(c, 16), c + b
    b, a = (b - a) ^ _rotate(a, 19), a + c
    c, b = (c - b) ^ _rotate(b, 4), b + a
    return a & 0xFFFFFFFF, b & 0xFFFFFFFF, c & 0xFFFFFFFF


def _final(a: int, b: int, c: int) -> int:
    c = ((c ^ b) - _rotate(b, 14)) & 0xFFFFFFFF
    a = ((a ^ c) - _rotate(c, 11)) & 0xFFFFFFFF
    b = ((b ^ a) - _rotate(a, 25)) & 0xFFFFFFFF
    c = ((c ^ b) - _rotate(b, 16)) & 0xFFFFFFFF
    a = ((a ^ c) - _rotate(c, 4)) & 0xFFFFFFFF
    b = ((b ^ a) - _rotate(a, 14)) & 0xFFFFFFFF
    return ((c ^ b) - _rotate(b, 24)) & 0xFFFFFFFF
