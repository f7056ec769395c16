"""The elements of one map, looked up as nftables does: exact keys, and keys with ranges and prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

from lbd.core.ops import CATCH_ALL
from lbd.core.state import FieldType, Map

# Of these a key has one value; of addresses and ports it may have a range.
_EXACT: frozenset[FieldType] = frozenset({"inet_proto", "ifname", "mark", "index"})


class Elements:
    """What a map has, by key. `shape` None is a map in a rule, which has numbers as keys.

    Raises ValueError for an element that nft would refuse.
    """

    def __init__(self, shape: Map | None, elements: Mapping[str, str]) -> None:
        if shape is not None:
            for key, data in elements.items():
                _check(key, data, shape)
        self._elements = elements
        self._types = shape.key if shape is not None and shape.interval else ()
        # Where ranges are, only elements that agree in the exact fields are looked through.
        self._near: dict[tuple[str, ...], list[tuple[list[str], str]]] = {}
        for key, data in elements.items() if self._types else ():
            words = key.split(" . ")
            self._near.setdefault(self._exact(words), []).append((words, data))

    def find(self, key: tuple[str, ...]) -> str | None:
        """Return the data of a key ("" in a set), None if it has none.

        Raises ValueError if several elements have the key: nftables would take any of them.
        """
        if not self._types:
            found = self._elements.get(" . ".join(key))
            return self._elements.get(CATCH_ALL) if found is None else found
        if len(key) != len(self._types):
            raise ValueError(f"a key of {len(key)} fields in a map of {len(self._types)}: {' . '.join(key)}")
        fitting = [
            (words, data)
            for words, data in self._near.get(self._exact(list(key)), ())
            if all(map(_inside, self._types, words, key))
        ]
        if len(fitting) > 1:
            names = ", ".join(" . ".join(words) for words, _ in fitting)
            raise ValueError(f"{' . '.join(key)} is in several elements: {names}")
        return fitting[0][1] if fitting else self._elements.get(CATCH_ALL)

    def _exact(self, words: list[str]) -> tuple[str, ...]:
        return tuple(word for kind, word in zip(self._types, words, strict=False) if kind in _EXACT)


def _check(key: str, data: str, shape: Map) -> None:
    fields = 1 if isinstance(shape.data, str) else len(shape.data)
    if key != CATCH_ALL and len(key.split(" . ")) != len(shape.key):
        raise ValueError(f"an element has not the {len(shape.key)} fields of a key of its map: {key}")
    if len(data.split(" . ")) != max(1, fields) or bool(data) != bool(fields):
        raise ValueError(f"an element has not the {fields} fields of data of its map: {key} : {data}")


def _inside(kind: FieldType, element: str, value: str) -> bool:
    """Tell whether a field's value is in the range, prefix or value of an element."""
    if kind in _EXACT or element == value:
        return element == value
    low, dash, high = element.partition("-")
    if kind == "inet_service":
        return int(low) <= int(value) <= int(high or low)
    if dash:
        return int(ip_address(low)) <= int(ip_address(value)) <= int(ip_address(high))
    network = ip_network(element)
    address = ip_address(value)
    return address.version == network.version and address in network
