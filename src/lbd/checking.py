"""Health checks of a running daemon: carried out as they are due, and a look when rules depend on one.

All of it happens on the event loop, but for `merged`, which reads what is believed there.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Mapping

from lbd.core import health, report, vitals
from lbd.core.agenda import Agenda, Watch
from lbd.core.bulletin import Bulletin
from lbd.core.entry import Entry
from lbd.core.health import Belief, Result
from lbd.core.observed import BackendName, Observed
from lbd.core.probes import Probe, TcpProbe
from lbd.core.roster import Roster, roster
from lbd.core.settings import Config
from lbd.host import descriptors
from lbd.host.probe_connect import Connects
from lbd.host.probe_errors import OwnTroubleError, said
from lbd.host.store import Store, StoreError

# Checks are begun so many at once, and then the event loop has this many seconds for others: 12,800 a second
# at most, of which no batch takes more than a few milliseconds.
AT_ONCE = 64
REST = 0.005

# What is believed is kept this long after it changed: what changes together is written once.
SETTLE = 1.0

# The same trouble of lbd's own is told again when it has been away for so many seconds.
QUIET = 60.0
# ... and so many kinds of it at most: a journal is not for more.
KINDS = 20

# As many objects as so many checks have are kept out of the cyclic garbage collector, whose looks at them
# would hold up the event loop for 100 ms.
MANY = 1000

# One look at a time: what changes a weight by time alone is not asked for more often, in seconds.
STEPS_APART = 0.1


class Checking:
    """Checks only while the configuration has a service that wants it. `changed` asks for a look."""

    def __init__(self, say: Callable[[Entry], None], changed: Callable[[], None], store: Store) -> None:
        self.say, self.changed, self.store = say, changed, store
        self.agenda = Agenda()
        self.bulletin = Bulletin()
        self._config: Config | None = None
        # Replaced as a whole: other threads read it.
        self._roster = Roster()
        self._resting: frozenset[BackendName] = frozenset()
        self._panicking: frozenset[str] = frozenset()
        self._kept: Mapping[str, Belief] | None = None
        self._troubles: dict[str, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connects: Connects[Watch] | None = None
        self._tasks: dict[Watch, asyncio.Task[None]] = {}
        self._loaded: set[type[Probe]] = set()
        self._saving: asyncio.Task[None] | None = None
        self._unsaved = ""
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    @property
    def beliefs(self) -> Mapping[BackendName, Belief]:
        """What is believed of each backend that has a check."""
        return {row.name: row.watch.belief for row in self._roster.rows}

    async def follow(self, config: Config | None) -> None:
        """Check for `config` from now on; None checks nothing. Runs on the event loop.

        It does not wait for results: what was believed before, also by a daemon before this one, goes on.
        """
        if config is None:
            await self._end()
        elif config is not self._config:
            if self._kept is None and any(service.health for service in config.services):
                loaded = await asyncio.to_thread(self.store.beliefs)
                self._kept = loaded.value
                if loaded.ignored:
                    self.say(report.degraded(loaded.ignored))
            if self._kept is not None:
                # Ten thousand take half a second.
                now = time.monotonic()
                after = await asyncio.to_thread(roster, config, self._roster, self._kept, now)
                # From now on what is known is known here.
                self._kept = {}
                self._take_up(after)
            self._config = config

    def merged(self, observed: Observed) -> Observed:
        """Return what was observed of the host with what the checks say. For any thread."""
        config, rows, loop = self._config, self._roster.rows, self._loop
        if config is None or loop is None or not (rows or self._panicking):
            return observed
        resting = vitals.resting(observed)
        if resting != self._resting:
            loop.call_soon_threadsafe(self._rest, resting)
        found = vitals.merged(rows, observed, time.monotonic())
        panicking = vitals.panicking(config, found)
        if panicking.keys() != self._panicking:
            loop.call_soon_threadsafe(self._tell_panic, config, panicking)
        return found

    # Who is checked.

    def _take_up(self, after: Roster) -> None:
        loop = self._loop = asyncio.get_running_loop()
        if self._connects is None:
            self._connects = Connects(self._ended)
        before, self._roster = self._roster, after
        for each in before.left_by(after):
            self._give_up(each)
        resting = after.at_rest(self._resting)
        for each in resting:
            self._give_up(each)
        self.agenda.most = descriptors.for_checks(len(after.watches))
        new = [each for each in after.watches.values() if each not in resting and not _goes_on(each)]
        self.agenda.add(new, loop.time())
        if len(new) > MANY:
            gc.freeze()
        if new or len(before.watches) != len(after.watches):
            self._later(SETTLE, self._keep)
        self._later(0, self._step)
        self._await()

    def _rest(self, resting: frozenset[BackendName]) -> None:
        """Do not check those in maintenance, and go on with those that were."""
        before, after = self._roster.at_rest(self._resting), self._roster.at_rest(resting)
        self._resting = resting
        for each in after - before:
            self._give_up(each)
        now = time.monotonic()
        again = [each for each in before - after if not _goes_on(each)]
        for each in again:
            each.belief = health.resumed(each.belief, now)
        self.agenda.add(again, now)
        self._later(0, self._step)
        self._await()

    def _give_up(self, gone: Watch) -> None:
        if self._connects is not None:
            self._connects.give_up(gone)
        if task := self._tasks.pop(gone, None):
            task.cancel()
        self.agenda.drop(gone)

    async def _end(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks = list(self._tasks.values())
        for each in self._roster.watches.values():
            self._give_up(each)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connects is not None:
            self._connects.close()
            self._connects = None
        if self.bulletin.due is not None:
            self.say(self.bulletin.sum())
        if self._saving:
            await self._saving
        if self._kept is not None:
            await self._save()
        self._config, self._roster = None, Roster()

    # The checks.

    def _await(self) -> None:
        """Wait for the next check that is due."""
        if (due := self.agenda.due) is not None:
            self._at(due, self._turn)

    def _turn(self) -> None:
        now = time.monotonic()
        for each in self.agenda.take(now, AT_ONCE):
            target, within = each.check.target, each.check.timing.timeout
            probe = target.probe
            if isinstance(probe, TcpProbe) and not probe.send and not probe.expect:
                assert self._connects is not None
                self._connects.begin(each, target, within)
            else:
                self._tasks[each] = asyncio.get_running_loop().create_task(self._probe(each))
        if (due := self.agenda.due) is not None:
            self._at(max(due, now + REST), self._turn)

    async def _probe(self, each: Watch) -> None:
        from lbd.host import probe  # noqa: PLC0415 - a director without such checks never loads it

        timeout, kind = each.check.timing.timeout, type(each.check.target.probe)
        # The first of a kind wait for libraries, which may take longer than they may.
        loaded = kind in self._loaded
        came: Result | OwnTroubleError | None
        try:
            async with asyncio.timeout(timeout):
                came = await probe.run(each.check.target, timeout)
        except TimeoutError:
            came = Result(passed=False, reason=f"no answer within {timeout:g}s") if loaded else None
        except OSError as error:
            came = OwnTroubleError(error.errno, said(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is one check's
            came = OwnTroubleError(0, f"{type(error).__name__}: {error}")
        self._loaded.add(kind)
        # Else it was given up, too late to end it.
        if self._tasks.get(each) is asyncio.current_task():
            del self._tasks[each]
            self._ended(each, came)

    def _ended(self, each: Watch, came: Result | OwnTroubleError | None) -> None:
        """Note what came of a check; None is that nothing can be said."""
        now, before = time.monotonic(), each.belief
        if isinstance(came, OwnTroubleError):
            self._tell_trouble(each, came, now)
        elif came is not None:
            each.belief = health.step(before, came, each.check.timing, now)
        was_full = self.agenda.under_way >= self.agenda.most
        self.agenda.ended(each, now)
        after = each.belief
        if after.phase != before.phase or after.weight != before.weight or after.agent != before.agent:
            self._turned(each, before, after)
        if was_full or self._turn not in self._timers:
            self._await()

    def _turned(self, each: Watch, before: Belief, after: Belief) -> None:
        """Tell, keep and have done what a check has changed."""
        was, is_now = health.said(before), health.said(after)
        if was != is_now:
            seconds = time.monotonic() - before.since
            reason = after.reason or ("the check passed" if after.up and not before.up else "")
            for row in self._roster.users[each]:
                entry = self.bulletin.tell(
                    report.Turn(*row.name, was, is_now, reason, seconds), time.monotonic()
                )
                if entry:
                    self.say(entry)
            if self.bulletin.due is not None and self._tell_sum not in self._timers:
                self._at(self.bulletin.due, self._tell_sum)
        if was != is_now or before.weight != after.weight:
            self.changed()
            self._later(0, self._step)
        if was != is_now or not {before.phase, after.phase} & health.CHANGING:
            self._later(SETTLE, self._keep)

    def _step(self) -> None:
        """Have rules changed when the next backend that starts slowly is to have more."""
        slow = (row for row in self._roster.rows if row.slow_start)
        if (due := vitals.step_due(slow, time.monotonic())) is not None:
            self._at(max(due, time.monotonic() + STEPS_APART), self._stepped)

    def _stepped(self) -> None:
        self.changed()
        self._step()

    # What is told and kept.

    def _tell_sum(self) -> None:
        self.say(self.bulletin.sum())

    def _tell_trouble(self, each: Watch, trouble: OwnTroubleError, now: float) -> None:
        """Tell of what lbd itself lacks. It is no verdict on a backend; the check comes again."""
        text = trouble.strerror or str(trouble)
        if now - self._troubles.get(text, float("-inf")) > QUIET and len(self._troubles) < KINDS:
            whom = str(each.check.target.address)
            self.say(report.degraded(f"health checks cannot be made, of {whom} for one: {text}"))
        self._troubles = {old: at for old, at in self._troubles.items() if now - at <= QUIET}
        self._troubles[text] = now
        # Somebody may have set another limit.
        self.agenda.most = descriptors.for_checks(len(self._roster.watches))

    def _tell_panic(self, config: Config, panicking: Mapping[str, tuple[int, int]]) -> None:
        before, self._panicking = self._panicking, frozenset(panicking)
        threshold = {s.name: s.health.panic for s in config.services if s.health}
        for name in sorted(self._panicking - before):
            self.say(report.panic(name, *panicking[name], threshold[name]))
        for name in sorted(before - self._panicking):
            self.say(report.panic_over(name))

    def _keep(self) -> None:
        if self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._save())
        else:
            self._later(SETTLE, self._keep)

    async def _save(self) -> None:
        beliefs = {each.digest: each.belief for each in self._roster.watches.values()}
        try:
            await asyncio.to_thread(self.store.save_beliefs, beliefs)
            self._unsaved = ""
        except StoreError as error:
            if str(error) != self._unsaved:
                self.say(report.degraded(f"what health checks say cannot be kept: {error}"))
            self._unsaved = str(error)
        finally:
            self._saving = None

    # Times.

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something so many seconds from now, unless it is to be done before that."""
        self._at(time.monotonic() + seconds, what)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        known = self._timers.get(what)
        if known is not None:
            if known.when() <= when:
                return
            known.cancel()
        self._timers[what] = asyncio.get_running_loop().call_at(when, self._due, what)

    def _due(self, what: Callable[[], None]) -> None:
        del self._timers[what]
        what()


def _goes_on(each: Watch) -> bool:
    return each.under_way or bool(each.ticket)
