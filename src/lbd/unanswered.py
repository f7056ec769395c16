"""Watches for backends that pass their checks and whose replies do not come back (core/unanswered)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping

from lbd.core import report
from lbd.core.attribution import Attribution, Sent
from lbd.core.entry import Entry
from lbd.core.health import Belief
from lbd.core.observed import BackendName
from lbd.core.settings import Config
from lbd.core.unanswered import Sample, reported, suspects, waiting, watched
from lbd.host import conntrack

# Between two samples, in seconds: longer than a client waits between its first three SYNs (1 and 2 s).
INTERVAL = 10.0


class Unanswered:
    """Looks only while the configuration has checks. `backends` is how many connections wait with whom."""

    def __init__(
        self, say: Callable[[Entry], None], beliefs: Callable[[], Mapping[BackendName, Belief]]
    ) -> None:
        self.say, self.beliefs = say, beliefs
        self.backends: Mapping[BackendName, int] = {}
        self._config: Config | None = None
        self._attribution: Attribution | None = None
        self._sample = Sample()
        self._failed = False
        self._task: asyncio.Task[None] | None = None

    async def follow(self, config: Config | None) -> None:
        """Watch for `config` from now on; None ends it. Runs on the event loop."""
        self._config = config if config and watched(config) else None
        if self._config is None:
            if self._task:
                self._task.cancel()
            self._task, self._sample, self.backends = None, Sample(), {}
        elif self._task is None:
            self._task = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            config = self._config
            assert config is not None
            try:
                sample, found = await asyncio.to_thread(self._look, config, self._sample, self.beliefs())
            except OSError as error:
                if not self._failed:
                    why = error.strerror or str(error)
                    self.say(report.degraded(f"unanswered connections cannot be looked for: {why}"))
                self._failed = True
                continue
            self._failed = False
            for backend, number in found.items():
                if backend not in self.backends:
                    self.say(reported(backend, number))
            self._sample, self.backends = sample, found

    def _look(
        self, config: Config, before: Sample, beliefs: Mapping[BackendName, Belief]
    ) -> tuple[Sample, Mapping[BackendName, int]]:
        """Take a sample and compare it. Blocks."""
        unanswered: dict[Sent, set[bytes]] = defaultdict(set)
        for each in conntrack.unanswered():
            unanswered[each.sent].add(each.id)
        if not unanswered:
            return Sample(), {}
        if self._attribution is None or self._attribution.config is not config:
            self._attribution = Attribution(config)
        owners = suspects(self._attribution, beliefs, unanswered)
        sample = Sample(
            {sent: frozenset(unanswered[sent]) for sent in owners},
            {sent: frozenset(each.id for each in conntrack.answered(sent)) for sent in owners},
        )
        return sample, waiting(before, sample, owners)
