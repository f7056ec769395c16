"""Backends that went up or down, for the journal: each on its own, until there are too many to read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lbd.core import report
from lbd.core.entry import Entry
from lbd.core.report import Turn

# So many are told one by one within this time, in seconds; of the rest the journal has the sum at its end.
EACH = 20
WITHIN = 1.0


@dataclass(slots=True)
class Bulletin:
    """What was told lately. Time is an argument, in monotonic seconds."""

    began: float = float("-inf")
    told: int = 0
    rest: list[Turn] = field(default_factory=list)

    def tell(self, turn: Turn, now: float) -> Entry | None:
        """Return the entry for a backend's turn; None: it is part of the sum that comes at `due`."""
        if now >= self.began + WITHIN and not self.rest:
            self.began, self.told = now, 0
        if self.told < EACH:
            self.told += 1
            return report.turned(turn)
        self.rest.append(turn)
        return None

    @property
    def due(self) -> float | None:
        """When the sum is to be told, None when there is none."""
        return self.began + WITHIN if self.rest else None

    def sum(self) -> Entry:
        """Return the sum of those that were not told one by one, and forget them."""
        turns, self.rest = self.rest, []
        self.began, self.told = float("-inf"), 0
        by_state = Counter(turn.after for turn in turns)
        services = list(dict.fromkeys(turn.service for turn in turns))
        return report.turned_too(by_state, services)
