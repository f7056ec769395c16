"""Who changed the host under lbd, and when: one incident for as long as it goes on.

The journal is told of the first change at once, and of the first by each other program; of those that
follow within the same incident once a minute. Time is an argument: monotonic seconds for what is compared, a
text for what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lbd.core import report
from lbd.core.entry import Entry
from lbd.core.plan import Plan
from lbd.core.report import Actor
from lbd.core.words import cut

# After so many quiet seconds what comes is another incident. The same time makes the pacer forget it, too.
QUIET = 60.0
# Between two entries about one incident, in seconds.
TOLD_EVERY = 60.0

# So many incidents are kept, of which each has so many operations and actors in words.
KEPT = 100
LINES = 20
ACTORS = 20


@dataclass(frozen=True, slots=True)
class Incident:
    """Something of lbd's was changed by somebody else, `times` times between two moments (ISO 8601).

    `what` are the first operations that it took to repair it, of `operations` in all; `by` are who did it, as
    far as the kernel tells; `seconds` is what the longest repair took.
    """

    began: str
    ended: str
    times: int
    operations: int
    what: tuple[str, ...]
    by: tuple[str, ...]
    repaired: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Drift:
    """What one look found changed and did about it."""

    plan: Plan
    actors: tuple[Actor, ...]
    seconds: float
    repaired: bool


@dataclass(frozen=True, slots=True)
class Incidents:
    """All that are kept, the newest last. `count` is how often there was drift since the daemon started."""

    known: tuple[Incident, ...] = ()
    count: int = 0
    # When there was drift last, when the journal was told last, and how often there was drift since.
    last: float = -QUIET
    told: float = -TOLD_EVERY
    untold: int = 0
    # By their names: those that took part in the newest.
    programs: frozenset[str] = frozenset()

    def note(self, drift: Drift, moment: str, now: float) -> tuple[Incidents, Entry | None]:
        """Return what is known after another look that found drift, and what to tell the journal now."""
        lines = drift.plan.lines()
        by = tuple(dict.fromkeys(map(str, drift.actors)))
        again = bool(self.known) and now < self.last + QUIET
        if again:
            before = self.known[-1]
            incident = replace(
                before,
                ended=moment,
                times=before.times + 1,
                operations=before.operations + len(lines),
                by=tuple(dict.fromkeys([*before.by, *by]))[:ACTORS],
                repaired=drift.repaired,
                seconds=max(before.seconds, drift.seconds),
            )
            known = (*self.known[:-1], incident)
        else:
            what = tuple(map(cut, lines[:LINES]))
            incident = Incident(
                moment, moment, 1, len(lines), what, by[:ACTORS], drift.repaired, drift.seconds
            )
            known = (*self.known, incident)[-KEPT:]
        after = Incidents(known, self.count + 1, now, self.told, self.untold + 1)
        programs = {actor.process for actor in drift.actors}
        if again and programs <= self.programs and now < self.told + TOLD_EVERY:
            return replace(after, programs=self.programs), None
        told = report.drift(
            drift.plan, drift.actors, drift.seconds, repaired=drift.repaired, times=after.untold
        )
        programs |= self.programs if again else set()
        return replace(after, told=now, untold=0, programs=frozenset(programs)), told

    def over(self, now: float) -> tuple[Incidents, Entry | None]:
        """Return what is left to tell of an incident that has come to its end."""
        if not self.untold or now < self.last + QUIET:
            return self, None
        return replace(self, untold=0), report.drift_over(self.known[-1].by, self.untold)


def lines(known: Sequence[Incident]) -> tuple[str, ...]:
    """Return incidents for a person to read, the newest last."""
    said = []
    for each in known:
        times = f", {each.times} times until {each.ended}" if each.times > 1 else ""
        done = "repaired" if each.repaired else "not all repaired"
        said.append(f"{each.began}{times}: {done} in {each.seconds * 1000:.0f} ms")
        said.append(f"  by {', '.join(each.by) or 'unknown'}")
        said.extend(f"  {line}" for line in each.what)
        if each.operations > len(each.what):
            said.append(f"  {each.operations} operations in all")
    return tuple(said)
