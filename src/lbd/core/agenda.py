"""When each check is due: a heap of times. Time is an argument, in monotonic seconds.

A check comes one interval after the *start* of the one before and a little earlier, never later, so that
what dies is found within `fall` intervals. It waits for the one before to end: a slow target is checked less
often, and costs nobody else anything.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from hashlib import sha256

from lbd.core.health import CHANGING, Belief, Check

# A check comes earlier by up to this part of its interval. Those that once came together drift apart, and
# ten directors do not ask one backend in step.
JITTER = 0.05

# New checks come at this rate, or faster when their interval needs it: few are known at once, many are not a
# burst. The second of each makes them spread over the interval.
FIRST_PER_SECOND = 1000.0

_MODULUS = 1 << 32


@dataclass(slots=True, eq=False)
class Watch:
    """A check that goes on. `digest` names it, also in another run of lbd.

    `began` is when the last one was begun. `early` is how much earlier than its interval the next one is at
    least, as a part of it.
    """

    check: Check
    digest: str
    belief: Belief
    chance: int
    began: float = 0.0
    early: float = 0.0
    under_way: bool = False
    # The entry of the heap that counts; 0 is none.
    ticket: int = 0


def watch(check: Check, belief: Belief) -> Watch:
    """Return a check that is to go on, not yet in an agenda. What is believed of it may be replaced."""
    digest = sha256(repr(check).encode()).hexdigest()[:32]
    return Watch(check, digest, belief, int(digest[:8], 16))


class Agenda:
    """Gives out checks as they are due, `most` of them at once; those that wait come in order of due time."""

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self.under_way = 0
        self._heap: list[tuple[float, int, Watch]] = []
        self._tickets = itertools.count(1)

    @property
    def due(self) -> float | None:
        """When the next check is due, maybe in the past; None: one has to end first, or there is none."""
        while self._heap and self._heap[0][1] != self._heap[0][2].ticket:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap and self.under_way < self.most else None

    def add(self, new: list[Watch], now: float) -> None:
        """Begin with checks that are not in here. They come soon, and are spread from then on."""
        for each in new:
            interval = each.check.timing.interval
            window = min(interval, len(new) / FIRST_PER_SECOND)
            each.early = _chance(each) * (1 - window / interval)
            self._enter(each, now + _chance(each) * window)

    def drop(self, gone: Watch) -> None:
        """Forget a check. Whoever carries it out at the moment has to give that up."""
        gone.ticket = 0
        if gone.under_way:
            gone.under_way = False
            self.under_way -= 1

    def take(self, now: float, most: int) -> list[Watch]:
        """Begin the checks that are due, `most` of them."""
        taken: list[Watch] = []
        while len(taken) < most and (due := self.due) is not None and due <= now:
            _, _, each = heapq.heappop(self._heap)
            each.ticket, each.under_way, each.began = 0, True, now
            self.under_way += 1
            taken.append(each)
        return taken

    def ended(self, each: Watch, now: float) -> None:
        """Note that a check has ended (the belief is that after it), and when it comes again."""
        each.under_way = False
        self.under_way -= 1
        timing = each.check.timing
        interval = timing.fast if each.belief.phase in CHANGING else timing.interval
        early = max(each.early, JITTER * _chance(each))
        each.early = 0.0
        self._enter(each, max(now, each.began + interval * (1 - early)))

    def _enter(self, each: Watch, at: float) -> None:
        each.ticket = next(self._tickets)
        heapq.heappush(self._heap, (at, each.ticket, each))


def _chance(each: Watch) -> float:
    """Return a number from 0 to 1 that is another one each time: a linear congruential generator."""
    each.chance = (each.chance * 1664525 + 1013904223) % _MODULUS
    return each.chance / _MODULUS
