"""Counts connections: who is to take new ones (core/balance), and whose drain has ended (core/drains)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from lbd.core import report
from lbd.core.attribution import Attribution
from lbd.core.balance import Balance, watched
from lbd.core.drains import Drains, Terms, draining
from lbd.core.entry import Entry
from lbd.core.observed import BackendName, Observed
from lbd.core.settings import Config
from lbd.host import conntrack

# Between two samples, in seconds. A sample of a large table takes its time: the rest after it is so many
# times as long, which keeps it below 5 % of a core.
INTERVAL = 1.0
REST = 20.0


class Balancing:
    """Counts only while a service needs it or a drain has not ended. `changed` asks for a look."""

    def __init__(self, say: Callable[[Entry], None], changed: Callable[[], None]) -> None:
        self.say, self.changed = say, changed
        self.balance = Balance()
        self.drains = Drains()
        self._config: Config | None = None
        self._watched = False
        # Of the last look: who is out, and who drains. A look's drains are in force when it is over.
        self._observed = Observed()
        # Whom the last balance took as out; written after it and read before it, so that it is never too new.
        self._counted = Observed()
        self._terms: Mapping[BackendName, Terms] = {}
        self._attribution: tuple[Config, Attribution] | None = None
        self._sampled = self._took = 0.0
        self._failed = False
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._turn = asyncio.Event()

    async def follow(self, config: Config | None) -> None:
        """Count for `config` from now on; None counts nothing. Runs on the event loop.

        It returns when the connections have been counted once, or a daemon that starts would first take
        the backends that are full back into rotation.
        """
        before, self._config = self._config, config
        had, self._watched = self._watched, bool(config and watched(config))
        if config is None:
            self.drains, self._terms = Drains(), {}
        if config is None or not self._watched:
            self.balance = Balance()
        elif not had:
            await self._sample()
        elif before is not config:
            observed = self._observed
            self.balance = await asyncio.to_thread(self.balance.within, config, observed)
            self._counted = observed
        self._tend()

    def merged(self, observed: Observed) -> Observed:
        """Return what was observed of the host with what the connections say. For any thread."""
        counted = self._counted
        balance = self.balance
        if self._config is None:
            return observed
        if self._watched and _out(counted) != _out(observed):
            # Who comes back would have the weight of the file beside the shares of the others.
            balance = balance.within(self._config, observed)
        self._observed, self._terms = observed, draining(self._config, observed)
        # Those that cannot be waited for have ended at once.
        drains = self.drains.follow(self._terms, 0.0)
        return replace(observed, full=balance.full, shares=balance.shares, ended=drains.ended)

    def looked(self) -> None:
        """Take the drains of the last look as in force. Runs on the event loop."""
        now = time.monotonic()
        before, self.drains = self.drains, self.drains.follow(self._terms, now)
        if self.drains is not before:
            self._tell_ended(before, now)
        self._tend()

    @property
    def connections(self) -> Mapping[BackendName, int]:
        """The open connections of each backend where they are counted."""
        return {**self.drains.connections, **self.balance.connections}

    async def count(self, key: BackendName) -> int | None:
        """Count the open connections of a backend now; None when the kernel does not let us."""
        config = self._config
        if config is None:
            return None
        try:
            async with self._lock:
                return (await asyncio.to_thread(self._count, config)).get(key, 0)
        except OSError:
            return None
        finally:
            self._tend()

    async def drained(self, key: BackendName, seconds: float) -> bool:
        """Wait so long at most while a backend drains; return whether its drain has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while key in self.drains.open:
                    await self._turn.wait()
        return key in self.drains.ended

    def _tend(self) -> None:
        """Count as long as it is needed."""
        needed = self._config is not None and (self._watched or bool(self.drains.open))
        if needed and self._task is None:
            self._task = asyncio.create_task(self._go_on())
        elif not needed:
            if self._task is not None:
                self._task.cancel()
            self._task, self._attribution = None, None

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(max(INTERVAL, self._took * REST))
            before, ended = self.balance, self.drains.ended
            await self._sample()
            if not self.balance.same_as(before) or self.drains.ended != ended:
                self.changed()

    async def _sample(self) -> None:
        """Count once. A failure is told once and changes nothing."""
        async with self._lock:
            config, drains, observed = self._config, self.drains, self._observed
            assert config is not None
            began = time.monotonic()
            try:
                counts = await asyncio.to_thread(self._count, config)
                balance = Balance()
                if self._watched:
                    seconds = began - self._sampled
                    balance = await asyncio.to_thread(self.balance.step, config, counts, seconds, observed)
            except OSError as error:
                if not self._failed:
                    self.say(report.degraded(f"connections cannot be counted: {error.strerror or error}"))
                self._failed = True
                return
            finally:
                self._took = time.monotonic() - began
            self._failed = False
            # Meanwhile another file may have come into force, or other drains, of which the next sample is.
            if config is self._config:
                self.balance, self._sampled = balance, began
                self._counted = observed
                if drains is self.drains:
                    self.drains = drains.step(counts, began)
                    self._tell_ended(drains, began)

    def _count(self, config: Config) -> Mapping[BackendName, int]:
        """Count the connections of each backend. Blocks: 10,000 services take a second."""
        known = self._attribution
        if known is None or known[0] is not config:
            known = self._attribution = config, Attribution(config)
        return known[1].count(conntrack.count())

    def _tell_ended(self, before: Drains, now: float) -> None:
        for key in sorted(self.drains.ended - before.ended):
            left = (
                "no connection is left"
                if self.drains.terms[key].tracked
                else "its connections are not tracked"
            )
            self.say(report.drained(*key, left, now - self.drains.began[key]))
        self._turn.set()
        self._turn = asyncio.Event()


def _out(observed: Observed) -> tuple[object, ...]:
    return observed.dead, observed.overrides, observed.expired, observed.portions
