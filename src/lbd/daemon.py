"""The daemon: triggers in, looks at the host, reports out. It wires the parts together and decides little.

One event loop has the triggers, the control socket and the service manager; one thread at a time does
what may take long (reading files, netlink, the nftables worker), so that the loop never waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import lbd
from lbd.applied import Applied
from lbd.balancing import Balancing
from lbd.checking import Checking
from lbd.commands import Commands, Looked
from lbd.core import control, report
from lbd.core.observed import Observed, next_deadline
from lbd.core.pacer import Pacer, Reason
from lbd.core.plan import Plan
from lbd.core.settings import Config
from lbd.core.state import Desired
from lbd.core.status import Standing, State, headline
from lbd.drifts import Drifts
from lbd.host.director import Director
from lbd.host.journal import Journal
from lbd.host.net_events import NetEvents
from lbd.host.nft_events import NftEvents
from lbd.host.notify import Notify
from lbd.host.serve import ControlServer
from lbd.host.store import Store
from lbd.host.watch import FileWatch
from lbd.intent import Intent
from lbd.leftovers import Leftovers
from lbd.overrides import Overrides
from lbd.packets import PacketPath
from lbd.reconcile import Outcome, RefusedError, reconcile
from lbd.unanswered import Unanswered

# What makes us read the file again. A look for any other reason must not pick up a half-written one.
FILE_REASONS: frozenset[Reason] = frozenset({"start", "file", "signal", "reload"})

# After these, what packets have noted is looked at as well: clients of a backend that is gone.
THOROUGH_REASONS: frozenset[Reason] = frozenset({"start", "audit", "signal", "reload"})

# A look that takes longer than this hangs, and the service manager is not told any more that we are well.
# Twice the worker's deadline, so that a hanging worker is replaced first.
LOOK_MOST = 60.0

# The longest sleep that asyncio need be asked for.
SLEEP_MOST = 3600.0


@dataclass(frozen=True, slots=True)
class Directories:
    """Where the daemon keeps its socket and its files (RUNTIME_DIRECTORY, STATE_DIRECTORY)."""

    runtime: Path
    state: Path


class Follower(Protocol):
    """Something that goes on between looks, and depends on the file."""

    async def follow(self, config: Config | None) -> None:
        """Be of `config` from now on; None ends it. What is known in time for a first look comes before."""


class Source(Follower, Protocol):
    """Knows more than the file does about who is to take connections, and asks for looks."""

    def merged(self, observed: Observed) -> Observed:
        """Return `observed` with what is known here. For any thread; it does not wait."""


class Daemon:
    """One director's daemon. `run` returns when it is told to stop."""

    def __init__(self, path: Path, directories: Directories) -> None:
        self.journal = Journal()
        self.notify = Notify()
        self.intent = Intent(path, Store(directories.state))
        self.lost: list[str] = []
        self.director = Director(self.intent.store, lost=self.lost.append)
        self.packets = PacketPath(self.journal.send)
        store, say = self.intent.store, self.journal.send
        self.overrides = Overrides(say, store)
        self.checking = Checking(say, lambda: self._trigger("health"), store)
        self.leftovers = Leftovers(say, store)
        self.unanswered = Unanswered(say, lambda: self.checking.beliefs)
        self.drifts = Drifts(say, store)
        self.balancing = Balancing(self.journal.send, lambda: self._trigger("balance"))
        # In this order: who is counted depends on who is out.
        self.sources: tuple[Source, ...] = (self.overrides, self.checking, self.balancing)
        self.followers: tuple[Follower, ...] = (*self.sources, self.unanswered)
        commands = Commands(
            self.intent, self.overrides, self.balancing, self.drifts, self._standing, self._asked
        )
        self.server = ControlServer(
            directories.runtime / control.SOCKET_NAME, commands.answer, self._answer_failed
        )
        self.pacer = Pacer(audit=Config().director.audit)
        self.wake = asyncio.Event()
        self.began = time.monotonic()
        self.look_began: float | None = None
        self.stopping = self.ready = False

        self.applied = Applied(say, self.intent, self.drifts)
        self.waiting: list[asyncio.Future[Looked]] = []

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises ControlSocketError, and OSError without the rights needed."""
        loop = asyncio.get_running_loop()
        await self.server.start()
        # Listening comes before the first look, or a change between the two would go unseen.
        self.nft_events, self.net_events = NftEvents(), NetEvents()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._trigger, "signal")
        loop.add_reader(self.nft_events.fileno(), self._ruleset_changed)
        loop.add_reader(self.net_events.fileno(), self._net_changed)
        self.watch = FileWatch(self.intent.path, lambda: self._trigger("file"), loop)
        heart = loop.create_task(self._beat())
        self.journal.send(report.started(lbd.__version__, str(self.intent.path)))
        if self.director.ignored:
            self.journal.send(report.degraded(self.director.ignored))
        self._trigger("start")
        try:
            while not self.stopping:
                await self._wait()
                await self._next_look()
        finally:
            heart.cancel()
            self.notify.stopping()
            loop.remove_reader(self.nft_events.fileno())
            loop.remove_reader(self.net_events.fileno())
            self.packets.follow(None)
            for follower in self.followers:
                await follower.follow(None)
            await self.server.close()
            self.watch.close()
            await asyncio.to_thread(self.director.close)
            self.journal.send(report.stopped())
            self.journal.close()

    # Triggers.

    def _trigger(self, reason: Reason) -> None:
        self.pacer.trigger(reason, time.monotonic())
        self.wake.set()

    def _stop(self) -> None:
        self.stopping = True
        self.wake.set()

    def _ruleset_changed(self) -> None:
        self.drifts.hear(self.nft_events.drain())
        # While a look is under way its own commits are announced too, and not yet known as ours.
        if self.look_began is None:
            self._sift_commits()

    def _sift_commits(self) -> None:
        if self.drifts.sift(self.director.own, self.director.nft.pid):
            self._trigger("rules")

    def _net_changed(self) -> None:
        if self.net_events.drain():
            self._trigger("net")

    async def _beat(self) -> None:
        """Tell the service manager that the loop turns and that the look under way is not stuck."""
        interval = self.notify.watchdog_interval
        while interval:
            if self.look_began is None or time.monotonic() - self.look_began < LOOK_MOST:
                self.notify.watchdog()
            await asyncio.sleep(interval)

    async def _wait(self) -> None:
        """Wait until a look is due; every trigger may make one due sooner."""
        left = self.pacer.due - time.monotonic()
        if left > 0 and not self.stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), min(left, SLEEP_MOST))
        self.wake.clear()

    # Looks.

    async def _next_look(self) -> None:
        reasons = self.pacer.take(time.monotonic())
        if not reasons or self.stopping:
            return
        self.look_began = time.monotonic()
        self.drifts.begin()
        # Who asks from now on is told about a later look: this one may have read the file already.
        waiting, self.waiting = self.waiting, []
        if self.ready and reasons & {"signal", "reload"}:
            self.notify.reloading(time.monotonic_ns() // 1000)
        try:
            await self._look(reasons, self.look_began)
        finally:
            self.look_began = None
            self._ruleset_changed()
            for why in self.lost:
                self.journal.send(report.worker(why))
            self.lost.clear()
            self._tell_status()
            for future in waiting:
                if not future.done():
                    future.set_result((self.intent.refusal, self.applied.outcome))

    async def _look(self, reasons: frozenset[Reason], began: float) -> None:
        # A file is told of when it is new, when it is good again, and when somebody asked.
        asked = bool(reasons & {"signal", "reload"} or self.intent.refusal)
        if reasons & FILE_REASONS:
            await self._read_file(reasons, began)
        now = self.intent.now
        if now is None:
            return
        wish, outcome = await asyncio.to_thread(self._bring, now.config, reasons)
        # Also who came while we looked: what they did may be what was repaired.
        self._ruleset_changed()
        self._sift_commits()
        drifted = self.applied.take(wish, outcome, time.monotonic() - began, asked=asked)
        await self.drifts.keep()
        if wish and outcome.undone is not None:
            self.net_events.watched = frozenset(wish.routes)
            self.balancing.looked()
        if outcome.undone is not None:
            thorough, settled = bool(reasons & THOROUGH_REASONS), outcome.converged
            await self.leftovers.clear(now.config, self.intent.observed, thorough=thorough, settled=settled)
        if outcome.converged:
            await self._converged(reasons)
        self.pacer.done(time.monotonic(), converged=outcome.converged, drift=drifted)
        self._await_deadline(now.config)

    def _await_deadline(self, config: Config) -> None:
        now = datetime.now(UTC)
        if deadline := next_deadline(config, now):
            self.pacer.later("deadline", time.monotonic() + (deadline - now).total_seconds())

    def _bring(self, config: Config, reasons: frozenset[Reason]) -> tuple[Desired | None, Outcome]:
        """Look at the host and bring it to what the file asks for, given what it is like. Blocks."""
        try:
            observed = self.director.observe(config)
        except RefusedError as error:
            return None, Outcome(Plan(), (str(error),), permission=error.permission)
        for source in self.sources:
            observed = source.merged(observed)
        wish = self.intent.wish(observed)
        # A drained backend that is down now changes no rule: only what is noted of it is not true any more.
        before = self.applied.wish
        told = before is None or before.table.learned != wish.table.learned
        return wish, reconcile(self.director, wish, thorough=told or bool(reasons & THOROUGH_REASONS))

    async def _read_file(self, reasons: frozenset[Reason], began: float) -> None:
        reading = await asyncio.to_thread(self.intent.read, began, patient=reasons == {"file"})
        for entry in reading.entries:
            self.journal.send(entry)
        if reading.again is not None:
            self.pacer.later("file", reading.again)
        self.watch.paths = self.intent.watched
        if now := self.intent.now:
            self.pacer.audit = now.config.director.audit
            self.packets.follow(now.config)
            self.leftovers.note(now.config, now.sources)
            for follower in self.followers:
                await follower.follow(now.config)

    async def _converged(self, reasons: frozenset[Reason]) -> None:
        if not self.ready:
            self.ready = True
            self.notify.ready(self._headline())
            self.journal.send(report.ready(self._headline(), time.monotonic() - self.began))
        if reasons & FILE_REASONS and not self.intent.refusal:
            for entry in (await asyncio.to_thread(self.intent.keep)).entries:
                self.journal.send(entry)

    # What others are told.

    def _standing(self) -> Standing:
        outcome, now, refusal = self.applied.outcome, self.intent.now, self.intent.refusal
        problems = outcome.problems if outcome else ()
        state: State = "converged" if now and self.applied.digest == now.digest else "converging"
        return Standing(
            state="degraded" if refusal or problems else state,
            path=str(self.intent.path),
            hash=now.digest if now else "",
            error=refusal.summary if refusal else "",
            problems=problems,
            drifts=self.drifts.incidents.count,
            last_drift=self.drifts.last,
            elements=outcome.elements if outcome else 0,
            generation=outcome.generation if outcome else 0,
            connections=self.balancing.connections,
            observed=self.intent.observed,
            beliefs=self.checking.beliefs,
            unanswered=self.unanswered.backends,
            now=time.monotonic(),
        )

    def _headline(self) -> str:
        return headline(self._standing(), self.intent.now.config if self.intent.now else None)

    def _tell_status(self) -> None:
        if self.ready:
            # READY=1 ends a reload, and says nothing new otherwise.
            self.notify.ready(self._headline())
        else:
            self.notify.status(self._headline())

    async def _asked(self, reason: Reason) -> Looked:
        """Look, since a client asks for it, and say what came of it."""
        future: asyncio.Future[Looked] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self._trigger(reason)
        return await future

    def _answer_failed(self, error: Exception) -> None:
        self.journal.send(report.degraded(f"the control socket failed: {error!r}"))
