"""Who else changes the host, and what became of it: commits by others in, incidents out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Iterable
from datetime import UTC, datetime
from typing import Any

from lbd.core import report
from lbd.core.entry import Entry
from lbd.core.incidents import Drift, Incidents
from lbd.core.report import Actor
from lbd.host.nft_events import Commit
from lbd.host.process import process
from lbd.host.store import Store, StoreError
from lbd.reconcile import Outcome

# Commits by others that are remembered between two looks; past that only their number would grow.
COMMITS_MOST = 256


class Drifts:
    """Keeps incidents over restarts; what the journal is not told of is not written down either."""

    def __init__(self, say: Callable[[Entry], None], store: Store) -> None:
        self.say, self.store = say, store
        kept = store.incidents()
        self.incidents = Incidents(kept.value)
        # The last drift since the daemon started, as the status has it.
        self.last: dict[str, Any] | None = None
        self._unkept = False
        if kept.ignored:
            say(report.degraded(kept.ignored))
        self._commits: list[tuple[Commit, Actor]] = []
        self._actors: list[Actor] = []
        self._early = 0

    def hear(self, commits: Iterable[Commit]) -> None:
        """Take commits as the kernel announces them, ours among them."""
        # At once: who ran `nft` is gone within milliseconds.
        self._commits += [(commit, _actor(commit)) for commit in commits]
        del self._commits[:-COMMITS_MOST]

    def sift(self, own: Container[int], worker: int | None = None) -> bool:
        """Tell whether there were commits that are not among our `own` generations; keep who made them.

        Of a commit that our worker made in the same moment as somebody else we do not know the generation.
        """
        foreign = [(c, actor) for c, actor in self._commits if c.lost or c.generation not in own]
        self._commits.clear()
        self._actors += [actor for c, actor in foreign if not c.lost and c.pid != worker]
        del self._actors[:-COMMITS_MOST]
        return bool(foreign)

    def begin(self) -> None:
        """Take notice that a look begins: who comes from now on may have come too late for it."""
        self._early = len(self._actors)

    def actors(self, *, drifted: bool) -> list[Actor]:
        """Return, once, who has changed the ruleset, as far as the look that ends now can have seen it."""
        known, self._actors = self._actors, []
        if not drifted:
            self._actors = known[self._early :]
        return known

    def note(self, outcome: Outcome, actors: list[Actor], took: float, *, repaired: bool) -> None:
        """Take a look that found the host changed."""
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        drift = Drift(outcome.plan, tuple(actors), took, repaired)
        # The status is for everyone on the host, to whom command lines may be hidden.
        by = report.who([Actor(actor.pid, actor.process) for actor in actors])
        self.last = {"time": moment, "operations": len(outcome.plan.lines()), "by": by}
        self.incidents, told = self.incidents.note(drift, moment, time.monotonic())
        self._tell(told)

    async def keep(self) -> None:
        """Tell the end of what has ended, and keep what was told. Runs on the event loop."""
        self.incidents, told = self.incidents.over(time.monotonic())
        self._tell(told)
        if not self._unkept:
            return
        self._unkept = False
        try:
            await asyncio.to_thread(self.store.save_incidents, self.incidents.known)
        except StoreError as error:
            self.say(report.degraded(f"incidents cannot be kept: {error}"))

    def _tell(self, told: Entry | None) -> None:
        if told is not None:
            self.say(told)
            self._unkept = True


def _actor(commit: Commit) -> Actor:
    found = process(commit.pid, commit.process) if commit.pid else None
    if found is None:
        return Actor(commit.pid, commit.process)
    return Actor(commit.pid, commit.process, found.command, found.user)
