"""Keys and data of elements: whether they are what nft reads, in the form in which they are read back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import pairwise

from lbd.core.ops import CATCH_ALL
from lbd.core.state import FieldType

# In another form than the kernel's reader writes, an element would never be found again.
FIELDS: dict[FieldType, Callable[[str], bool]] = {
    "ipv4_addr": lambda text: str(IPv4Address(text)) == text,
    "ipv6_addr": lambda text: str(IPv6Address(text)) == text,
    "inet_proto": {"tcp", "udp", "sctp"}.__contains__,
    "inet_service": lambda text: str(int(text)) == text and int(text) < 1 << 16,
    "ifname": lambda text: 0 < len(text) < 16,  # noqa: PLR2004 - IFNAMSIZ
    "iface_index": lambda text: str(int(text)) == text,
    "mark": lambda text: f"{int(text, 16):#010x}" == text,
    "index": lambda text: str(int(text)) == text,
}
PREFIXES: dict[FieldType, type[IPv4Network | IPv6Network]] = {
    "ipv4_addr": IPv4Network,
    "ipv6_addr": IPv6Network,
}

# The first and the last value that a key matches, for each field that may be a range.
Box = tuple[tuple[int, int], ...]


def fits(text: str, kinds: tuple[FieldType, ...], *, interval: bool = False) -> bool:
    """Tell whether a text is of these fields; with `interval` an address may be a prefix, a port a range."""
    words = text.split(" . ") if text else []
    one = _fits_range if interval else _fits_one
    try:
        return len(words) == len(kinds) and all(map(one, kinds, words))
    except ValueError:
        return False


@lru_cache(maxsize=65536)
def _fits_one(kind: FieldType, word: str) -> bool:
    return FIELDS[kind](word)


@lru_cache(maxsize=65536)
def _fits_range(kind: FieldType, word: str) -> bool:
    if "/" in word:
        network = PREFIXES[kind](word)
        return str(network) == word and network.prefixlen < network.max_prefixlen
    low, dash, high = word.partition("-") if kind == "inet_service" else (word, "", "")
    return FIELDS[kind](low) and (not dash or (FIELDS[kind](high) and int(low) < int(high)))


def overlap(keys: Iterable[str], kinds: tuple[FieldType, ...]) -> bool:
    """Tell whether two of these keys match the same packet."""
    groups: dict[tuple[str, ...], list[Box]] = defaultdict(list)
    for key in keys:
        if key != CATCH_ALL:
            words = list(zip(kinds, key.split(" . "), strict=True))
            exact = tuple(word for kind, word in words if not _may_be_range(kind))
            groups[exact].append(tuple(_span(kind, word) for kind, word in words if _may_be_range(kind)))
    return any(_touch(sorted(boxes)) for boxes in groups.values())


def _touch(boxes: list[Box]) -> bool:
    if all(len(box) == 1 for box in boxes):
        return any(one[0][1] >= other[0][0] for one, other in pairwise(boxes))
    return any(
        all(a[0] <= b[1] and b[0] <= a[1] for a, b in zip(one, other, strict=True))
        for n, one in enumerate(boxes)
        for other in boxes[:n]
    )


def _may_be_range(kind: FieldType) -> bool:
    return kind in PREFIXES or kind == "inet_service"


@lru_cache(maxsize=65536)
def _span(kind: FieldType, word: str) -> tuple[int, int]:
    if kind in PREFIXES:
        network = PREFIXES[kind](word)
        return int(network.network_address), int(network.broadcast_address)
    low, _, high = word.partition("-")
    return int(low), int(high or low)
