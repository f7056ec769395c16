"""Who else changes the host, and what became of it: commits by others in, incidents out."""

from __future__ import annotations

from collections.abc import Container, Iterable
from datetime import UTC, datetime
from typing import Any

from lbd.core import report
from lbd.core.entry import Entry
from lbd.core.report import Actor
from lbd.host.nft_events import Commit
from lbd.reconcile import Outcome

# Commits by others that are remembered between two looks; past that only their number would grow.
COMMITS_MOST = 256


class Drifts:
    """`count` and `last` are for the status: {"time", "operations", "by"} or None."""

    def __init__(self) -> None:
        self.count = 0
        self.last: dict[str, Any] | None = None
        self._commits: list[Commit] = []
        self._actors: list[Actor] = []

    def hear(self, commits: Iterable[Commit]) -> None:
        """Take commits as the kernel announces them, ours among them."""
        self._commits += commits
        del self._commits[:-COMMITS_MOST]

    def sift(self, own: Container[int]) -> bool:
        """Tell whether there were commits that are not among our `own` generations; keep who made them."""
        foreign = [c for c in self._commits if c.lost or c.generation not in own]
        self._commits.clear()
        self._actors += [Actor(c.pid, c.process) for c in foreign if not c.lost]
        del self._actors[:-COMMITS_MOST]
        return bool(foreign)

    def actors(self) -> list[Actor]:
        """Return, once, who has changed the ruleset since the last time."""
        told, self._actors = self._actors, []
        return told

    def note(self, outcome: Outcome, actors: list[Actor], took: float, *, repaired: bool) -> Entry:
        """Count a look that found the host changed, and return what to tell of it."""
        self.count += 1
        self.last = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "operations": len(outcome.plan.lines()),
            "by": report.who(actors),
        }
        return report.drift(outcome.plan, actors, took, repaired=repaired)
