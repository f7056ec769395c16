"""Shares of slots: weights as a list of slots, evenly interleaved."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import gcd
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)

# With 4,096 slots the rounding of a share is below 0.025 %, far under what anybody can measure on
# connections, and a service stays a small part of a map.
MOST = 4096


def reduce(weights: Mapping[Name, int]) -> dict[Name, int]:
    """Divide by the greatest common divisor, and scale down to at most MOST slots in all.

    Every backend with a weight keeps at least one slot, so the sum may pass MOST by their number.
    """
    live = {name: weight for name, weight in weights.items() if weight > 0}
    if not live:
        return {}
    divisor = gcd(*live.values())
    total = sum(live.values()) // divisor
    if total <= MOST:
        return {name: weight // divisor for name, weight in live.items()}
    return {name: max(1, round(weight * MOST / (total * divisor))) for name, weight in live.items()}


def share(weights: Mapping[Name, int]) -> list[Name]:
    """Return the slots in turn order: each name as often as its reduced weight, spread evenly.

    In turn, a heavy backend would otherwise get its connections in bursts. This is nginx' and LVS'
    smooth weighted round robin, done in closed form: the k-th slot of a name lies at (k + 1/2) / weight.
    """
    reduced = reduce(weights)
    places = [
        ((2 * k + 1) / (2 * weight), i, name)
        for i, (name, weight) in enumerate(reduced.items())
        for k in range(weight)
    ]
    return [name for _, _, name in sorted(places, key=lambda place: place[:2])]
