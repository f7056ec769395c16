"""A table in the making: maps are declared by their first element, chains by who goes to them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lbd.core.state import Chain, Learned, Map, Table

# The smallest map: the kernel takes 16 bytes an element for the buckets of an empty one.
SMALLEST = 1024


@dataclass(slots=True)
class Draft:
    """What has been put together so far. Putting the same thing twice is putting it once."""

    chains: dict[str, Chain] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    elements: dict[str, dict[str, str]] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)
    learned: dict[str, Learned] = field(default_factory=dict)
    flowtables: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def declare(self, name: str, shape: Map) -> None:
        """Have a map, whether or not there is an element for it."""
        if name not in self.maps:
            self.maps[name], self.elements[name] = shape, {}

    def put(self, name: str, shape: Map, key: str, data: str = "") -> None:
        """Add an element; the first decides what kind of map it is."""
        self.declare(name, shape)
        self.elements[name][key] = data

    def chain(self, name: str, *rules: str) -> str:
        """Have a chain without a hook; return its name."""
        self.chains[name] = Chain(rules)
        return name

    def table(self) -> Table:
        """Return what was put together, each map with room to grow."""
        maps = {name: _sized(shape, len(self.elements[name])) for name, shape in self.maps.items()}
        learned = tuple(self.learned.values())
        return Table(self.chains, maps, self.elements, self.limits, learned, self.flowtables)


def _sized(shape: Map, count: int) -> Map:
    if shape.size:
        return shape
    # A declared size makes the dump right and the map half as large. Doubled, so that it seldom grows.
    return replace(shape, size=max(SMALLEST, 1 << (2 * count - 1).bit_length()) if count else SMALLEST)
