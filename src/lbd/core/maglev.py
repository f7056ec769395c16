"""Maglev tables and the kernel's jhash: which backend a connection gets, without asking the kernel.

A table is what "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016, section 3.4) makes of
it: even shares, few slots of others moved by a backend that comes or goes, and the same for all who know the
same backends. It is not filled as there, where a backend that finds a slot taken walks on to a free one. Here
it has missed its turn, since a walk depends on all the others, and moves twice as many slots when one of them
goes (docs/adr/0008-maglev-tables.md).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Mapping
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address
from random import Random

# The seed of the kernel's hash is always written: an unset one is random in each kernel and never dumped,
# and two directors would then choose differently.
SEED = 1

# Primes just below powers of four, as the paper wants M prime; the last is the largest below the 65,536
# that a slot index may have. 16 slots for each unit of weight keep shares within 6 % of what they should be,
# and as few clients move besides those of a backend that goes. More would be finer, but the slots of all
# services are in one map, and the kernel needs the square of a map's size to list it.
SIZES = (251, 1021, 4093, 16381, 65521)
SLOTS_PER_WEIGHT = 16

# How much of a share may be missing or too much, as a part of it: nobody can tell one in a hundred from
# chance, and exact shares would move a third more of the others' slots when a backend goes.
LOOSE = 100


def table_size(weights: int) -> int:
    """Return the number of slots for backends whose reduced weights add up to `weights`."""
    return next((m for m in SIZES if m >= weights * SLOTS_PER_WEIGHT), SIZES[-1])


def table(weights: Mapping[str, int], size: int, away: Collection[str] = ()) -> list[str]:
    """Fill `size` slots with the names of `weights` (all weights at least 1) that are not `away`.

    Those away have slots at first, which are then given to the others: who has a slot and stays keeps it.
    The result depends on names, weights and who is away, not on any order.
    """
    slots = [""] * size
    # Of a name alone, so that two directors throw alike. random() gives the same for a seed in every Python.
    dice = {
        name: Random(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big"))  # noqa: S311
        for name in sorted(weights)
    }
    _fill(slots, weights, dice)
    if away:
        slots = ["" if name in away else name for name in slots]
        _fill(slots, {name: weight for name, weight in weights.items() if name not in away}, dice)
    return slots


def _fill(slots: list[str], weights: Mapping[str, int], dice: Mapping[str, Random]) -> None:
    """Let each backend throw at the slots, as often as its weight says, until it has its share."""
    size = len(slots)
    has = Counter(slots)
    shares = _shares(weights, size)
    least = {name: share - share // LOOSE for name, share in shares.items()}
    most = {name: share + share // LOOSE for name, share in shares.items()}
    left = has[""]
    owed = sum(max(0, least[name] - has[name]) for name in weights)
    credit = dict.fromkeys(weights, 0)
    throws = [(name, weights[name], dice[name].random) for name in dice if name in weights]
    while left:
        enough = most if left > owed else least
        throws = [each for each in throws if has[each[0]] < enough[each[0]]]
        heaviest = max(weight for _, weight, _ in throws)
        alike = all(weight == heaviest for _, weight, _ in throws)
        # Rounds, until one of them has enough or what is left is owed.
        ends = False
        while left and not ends:
            for name, weight, throw in throws:
                if not alike:
                    # One of half the heaviest's weight throws every second time, whatever the weights are in
                    # numbers.
                    credit[name] += weight
                    if credit[name] < heaviest:
                        continue
                    credit[name] -= heaviest
                at = int(throw() * size)
                if slots[at]:
                    continue
                if has[name] < least[name]:
                    owed -= 1
                elif has[name] >= most[name] or left <= owed:
                    continue
                slots[at] = name
                has[name] += 1
                left -= 1
                ends = ends or has[name] >= enough[name] or left == owed


def _shares(weights: Mapping[str, int], size: int) -> dict[str, int]:
    """Divide `size` slots by weight, those left over to the largest remainders."""
    total = sum(weights.values())
    shares = {name: size * weight // total for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: (-(size * weights[name] % total), name))
    for name in by_remainder[: size - sum(shares.values())]:
        shares[name] += 1
    return shares


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
