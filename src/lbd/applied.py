"""What was last applied and what came of it: told to the journal, and the measure of the next look."""

from __future__ import annotations

from collections.abc import Callable

from lbd.core import report
from lbd.core.entry import Entry
from lbd.core.state import Desired
from lbd.drifts import Drifts
from lbd.intent import Intent
from lbd.reconcile import Outcome


class Applied:
    """`wish` is what the host was brought to, by the file of `digest`; `outcome` came of the last look."""

    def __init__(self, say: Callable[[Entry], None], intent: Intent, drifts: Drifts) -> None:
        self.say, self.intent, self.drifts = say, intent, drifts
        self.wish: Desired | None = None
        self.digest = ""
        self.outcome: Outcome | None = None
        # What the kernel did not let us do, in lines of a plan.
        self._undone: tuple[str, ...] | None = None

    def take(self, wish: Desired | None, outcome: Outcome, took: float, *, asked: bool) -> bool:
        """Take what came of a look at the host; return whether somebody else had changed it.

        `asked` tells of a file also when it is not new. No `wish`: the host could not be looked at.
        """
        before, self.outcome = self.outcome, outcome
        drifted = self._tell(wish, outcome, took, asked=asked)
        if wish and outcome.undone is not None:
            assert self.intent.now
            self.wish, self.digest, self._undone = wish, self.intent.now.digest, outcome.undone
        if outcome.failures and (before is None or outcome.failures != before.failures):
            self.say(report.failed(outcome.failures))
        for why in outcome.plan.lacking:
            if before is None or why not in before.plan.lacking:
                self.say(report.degraded(why))
        return drifted

    def _tell(self, wish: Desired | None, outcome: Outcome, took: float, *, asked: bool) -> bool:
        # The same is asked for as at the last look, and yet there is more to do than was left undone then:
        # somebody else changed the host.
        left = self._undone if wish is not None and self.wish is wish else None
        news = self.intent.news()
        drifted = left is not None and outcome.goes_beyond(left)
        actors = self.drifts.actors(drifted=drifted)
        if left is not None and drifted:
            self.drifts.note(outcome, actors, took, repaired=outcome.is_back_to(left))
            return True
        now = self.intent.now
        if now is None or outcome.undone is None:
            return False
        if now.digest != self.digest or (asked and not self.intent.refusal):
            self.say(report.applied(outcome.plan, str(self.intent.path), now.digest, took))
        elif news:
            self.say(report.adapted(outcome.plan, news, took))
        return False
