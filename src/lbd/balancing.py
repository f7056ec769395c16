"""Least connections and `max_connections`: counts the connections for core/balance to decide."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from lbd.core import report
from lbd.core.attribution import Attribution
from lbd.core.balance import Balance, watched
from lbd.core.entry import Entry
from lbd.core.observed import Observed
from lbd.core.settings import Config
from lbd.host import conntrack

# Between two samples, in seconds. A sample of a large table takes its time: the rest after it is so many
# times as long, which keeps it below 5 % of a core.
INTERVAL = 1.0
REST = 20.0


class Balancing:
    """Counts only while the configuration has a service that needs it. `changed` asks for a look."""

    def __init__(self, say: Callable[[Entry], None], changed: Callable[[], None]) -> None:
        self.say, self.changed = say, changed
        self.balance = Balance()
        self._config: Config | None = None
        self._attribution: tuple[Config, Attribution] | None = None
        self._sampled = 0.0
        self._failed = False
        self._task: asyncio.Task[None] | None = None

    async def follow(self, config: Config | None) -> None:
        """Count for `config` from now on; None counts nothing. Runs on the event loop.

        It returns when the connections have been counted once, or a daemon that starts would first take
        the backends that are full back into rotation.
        """
        before, self._config = self._config, config if config and watched(config) else None
        if self._config is None:
            if self._task:
                self._task.cancel()
            self._task, self._attribution, self.balance = None, None, Balance()
            return
        if before is not None and before is not self._config:
            self.balance = await asyncio.to_thread(self.balance.within, self._config)
        if self._task is None:
            took = await self._sample()
            self._task = asyncio.create_task(self._go_on(took))

    def merged(self, observed: Observed) -> Observed:
        """Return what was observed of the host with what the connections say. For any thread."""
        balance = self.balance
        return replace(observed, full=balance.full, shares=balance.shares)

    async def _go_on(self, took: float) -> None:
        while True:
            await asyncio.sleep(max(INTERVAL, took * REST))
            before = self.balance
            took = await self._sample()
            if not self.balance.same_as(before):
                self.changed()

    async def _sample(self) -> float:
        """Count once and return how many seconds that took. A failure is told once and changes nothing."""
        config, began = self._config, time.monotonic()
        assert config is not None
        try:
            balance = await asyncio.to_thread(self._step, config, began - self._sampled)
        except OSError as error:
            if not self._failed:
                self.say(report.degraded(f"connections cannot be counted: {error.strerror or error}"))
            self._failed = True
            return time.monotonic() - began
        self._failed = False
        # Meanwhile another file may have come into force, of which the next sample is.
        if config is self._config:
            self.balance, self._sampled = balance, began
        return time.monotonic() - began

    def _step(self, config: Config, seconds: float) -> Balance:
        """Count and decide. Blocks: 10,000 services take a second."""
        if self._attribution is None or self._attribution[0] is not config:
            self._attribution = config, Attribution(config)
        return self.balance.step(config, self._attribution[1].count(conntrack.count()), seconds)
