"""What was said at run time of backends (`lbd drain`, `lbd maintenance`), kept until it is taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from lbd.core import report
from lbd.core.entry import Entry
from lbd.core.observed import BackendName, Observed, Override, name
from lbd.core.overrides import Said, decide, within
from lbd.core.settings import Backend, Config, Service
from lbd.host.store import Store, StoreError


class Overrides:
    """`said` is what was said, `held` the same as rules and checks take it; never changed, only replaced."""

    def __init__(self, say: Callable[[Entry], None], store: Store) -> None:
        self.say, self.store = say, store
        self.said: Mapping[BackendName, Said] = {}
        self.held: Mapping[BackendName, Override] = {}
        self._loaded = False
        # Two commands at once would each keep what they know, without the other.
        self._lock = asyncio.Lock()

    async def follow(self, config: Config | None) -> None:
        """Be of `config` from now on: what was said of backends that it does not have is forgotten."""
        if config is None:
            return
        async with self._lock:
            if not self._loaded:
                await self._load()
            kept = within(self.said, config)
            if kept is self.said:
                return
            for key in self.said.keys() - kept.keys():
                self.say(report.override_dropped(*key, self.held[key].reason))
            await self._hold(kept)

    def merged(self, observed: Observed) -> Observed:
        """Return what was observed of the host with what was said at run time. For any thread."""
        return replace(observed, overrides=self.held)

    async def say_of(
        self, service: Service, backend: Backend, wish: Said | None, pid: int, uid: int
    ) -> tuple[Said | None, str]:
        """Have `wish` hold of a backend, or nothing; a process of a user asked for it.

        Returns what was said before, and why a restart will have forgotten it (or nothing). Raises
        StandsInFileError.
        """
        key = name(service, backend)
        async with self._lock:
            before, said = self.said.get(key), decide(self.said, service, backend, wish)
            if said is self.said:
                return before, ""
            self.say(report.override(*key, wish.state if wish else "up", uid, pid))
            return before, await self._hold(said)

    async def _load(self) -> None:
        found = await asyncio.to_thread(self.store.overrides)
        if found.ignored:
            self.say(report.degraded(found.ignored))
        self._loaded = True
        self._set(found.value)

    async def _hold(self, said: Mapping[BackendName, Said]) -> str:
        """Hold `said` and keep it; a full disk must not keep a backend in rotation."""
        self._set(said)
        try:
            await asyncio.to_thread(self.store.save_overrides, said)
        except StoreError as error:
            self.say(report.degraded(f"what was said of backends cannot be kept: {error}"))
            return str(error)
        return ""

    def _set(self, said: Mapping[BackendName, Said]) -> None:
        self.said = said
        self.held = {key: each.override for key, each in said.items()}
