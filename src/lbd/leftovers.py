"""Connections that backends leave behind when they go: found and ended after the rules have changed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from lbd.core import report
from lbd.core.attribution import Attribution, Sent
from lbd.core.entry import DEGRADED, Entry
from lbd.core.leftovers import (
    Left,
    Ruling,
    Served,
    Unreached,
    changed,
    ended,
    kinds,
    served,
    touched,
)
from lbd.core.observed import Observed
from lbd.core.packet import UDP
from lbd.core.settings import Config, Service
from lbd.core.source import Source
from lbd.host import conntrack, conntrack_delete
from lbd.host.conntrack_delete import NoFilterError
from lbd.host.conntrack_messages import Tracked
from lbd.host.net_links import links
from lbd.host.net_socket import KernelError, RouteSocket
from lbd.host.store import Store

# The kernel walks its whole table for each kind of connections that is deleted by filter: some 30 ms with
# 300,000 entries. Beyond so many kinds, one look at all entries is cheaper.
FEW = 16


@dataclass(frozen=True, slots=True)
class _Work:
    """What one clearing is to do: `kinds` None is a look at all connections."""

    ruling: Ruling
    kinds: Mapping[Sent, Left] | None
    listen: frozenset[Served]


@dataclass(frozen=True, slots=True)
class _Known:
    """Of what a clearing was, for the next one to see what changed.

    `gone` and `listen` are for one more look at all: a packet that was under way while the rules changed may
    have made its entry after the first.
    """

    config: Config
    observed: Observed
    ruling: Ruling
    gone: tuple[Service, ...]
    listen: frozenset[Served]


class Leftovers:
    """What connection tracking still sends to backends that are not there any more."""

    def __init__(self, say: Callable[[Entry], None], store: Store) -> None:
        self.say, self.store = say, store
        self._known: _Known | None = None
        # What was to be in force since then, and may have been in part.
        self._noted: list[Config] = []
        self._sources: tuple[Source, ...] = ()
        self._attribution: Attribution | None = None
        self._failed = False
        self._later: asyncio.Task[None] | None = None

    def note(self, config: Config, sources: tuple[Source, ...]) -> None:
        """Know that `config` is to be in force from now on, and of which files it is."""
        if not self._noted or self._noted[-1] is not config:
            self._noted.append(config)
        self._sources = sources

    async def clear(self, config: Config, observed: Observed, *, thorough: bool, settled: bool) -> None:
        """End what is left over, now that the rules are those of `config`. Runs on the event loop.

        `thorough`: look at all connections, not only at those of backends that went since the last call.
        `settled`: the rules are all there; until they are, the next call does the same once more.
        """
        known = self._known
        if known and known.config is config and not touched(known.observed, observed):
            if thorough:
                self._sweep(known, observed, last=True)
            return
        now, entries = await asyncio.to_thread(self._step, config, observed)
        self._tell(entries)
        if settled and now:
            self._known, self._noted = now, []
            if known and thorough:
                self._sweep(now, observed, last=False)

    def _sweep(self, known: _Known, observed: Observed, *, last: bool) -> None:
        """Look at all connections beside everything else: what just went is ended, and nobody waits for more.

        After the `last` one what was there before the last change is forgotten.
        """
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._again(known, observed, last=last))

    async def _again(self, known: _Known, observed: Observed, *, last: bool) -> None:
        ruling = Ruling(self._attributed(known.config), known.ruling.gone, observed)
        done, entries = await asyncio.to_thread(_do, _Work(ruling, None, known.listen))
        self._tell(entries)
        if done and last and self._known is known:
            ruling = Ruling(self._attributed(known.config), Attribution(Config()), observed)
            self._known = _Known(known.config, observed, ruling, (), frozenset())

    def _tell(self, entries: Sequence[Entry]) -> None:
        """Tell the journal; of failures in a row the first one only."""
        failed = any(entry.message_id == DEGRADED for entry in entries)
        for entry in entries:
            if entry.message_id != DEGRADED or not self._failed:
                self.say(entry)
        self._failed = failed

    def _step(self, config: Config, observed: Observed) -> tuple[_Known | None, Sequence[Entry]]:
        """Find out what changed since the last time and end what is left over. Blocks.

        Returns what is known now, None when it failed, and what the journal is to be told.
        """
        known = self._known
        # What only another version of lbd knew of is nobody's.
        before = known.config if known else self.store.last_config(besides=self._sources) or Config()
        was, has = changed(before, config)
        names = touched(known.observed, observed) if known else frozenset()
        same = [service for service in config.services if service.name in names and service not in has]
        # Also what was to be in force in between, and may have been in part.
        between = [service for noted in self._noted for service in changed(noted, config)[0]]
        gone = tuple({id(each): each for each in (*(known.gone if known else ()), *was, *between)}.values())
        ruling = Ruling(self._attributed(config), Attribution(Config(services=gone)), observed)
        if known:
            listen = served([*has, *same], observed) - served([*was, *same], known.observed) | known.listen
        else:
            listen = served(config.services, observed)
        kinds = None
        if known:
            kinds = _some([*gone, *has, *same], ruling, known.ruling)
        done, entries = _do(_Work(ruling, kinds, listen))
        return _Known(config, observed, ruling, gone, listen) if done else None, entries

    def _attributed(self, config: Config) -> Attribution:
        if self._attribution is None or self._attribution.config is not config:
            self._attribution = Attribution(config)
        return self._attribution


def _some(services: Iterable[Service], ruling: Ruling, before: Ruling) -> Mapping[Sent, Left] | None:
    """Return which kinds of connections are to end that were not before; None when that is not all."""
    every, whole = kinds(services)
    if not whole or any(ruling.hides(sent) for sent in every):
        return None
    found = {sent: left for sent in every if (left := ruling.left(sent)) and not before.left(sent)}
    return found if len(found) <= FEW else None


def _do(work: _Work) -> tuple[bool, Sequence[Entry]]:
    """End what is to end; return whether that could be done, and what the journal is to be told. Blocks."""
    began = time.monotonic()
    left: Counter[Left] = Counter()
    unreached: Counter[str] = Counter()
    failure = []
    try:
        left.update(_all(work.ruling) if work.kinds is None else _each(work.kinds))
        unreached.update(_unreached(work.listen))
    except (OSError, KernelError) as error:
        failure = [report.degraded(f"connections that backends left behind stay: {error}")]
    said = ended(left, unreached, time.monotonic() - began)
    return not failure, [*([said] if said else []), *failure]


def _all(ruling: Ruling) -> Counter[Left]:
    """Look at all connections and end those that are left over."""
    counts = conntrack.count()
    stale = {sent: left for sent in counts if (left := ruling.left(sent))}
    if len(stale) <= FEW:
        return _each(stale, counts)
    conntrack_delete.singly(conntrack.handles(stale))
    found: Counter[Left] = Counter()
    for sent, left in stale.items():
        found[left] += counts[sent]
    return found


def _each(kinds: Mapping[Sent, Left], counts: Mapping[Sent, int] | None = None) -> Counter[Left]:
    """End all connections of some kinds. The kernel does not say how many it deletes by filter: `counts`."""
    found: Counter[Left] = Counter()
    for sent, left in kinds.items():
        found[left] += _one(sent, None if counts is None else counts[sent])
    return found


def _one(sent: Sent, number: int | None) -> int:
    if conntrack_delete.filters(sent):
        number = conntrack.count(sent)[sent] if number is None else number
        with suppress(NoFilterError):
            if number:
                conntrack_delete.by_filter(sent)
            return number
    return conntrack_delete.singly(conntrack.handles({sent}))


def _unreached(listen: frozenset[Served]) -> Counter[str]:
    """End what is addressed to services and was never translated."""
    at = Unreached(listen)
    alone = [each.kind for each in listen]
    found: dict[Tracked, str] = {}
    doubtful: dict[Tracked, list[Served]] = {}
    only = [kind for kind in alone if kind is not None]
    asked = only if len(only) == len(alone) and len(only) <= FEW else [None]
    for kind in asked:
        for tracked in conntrack.untranslated(UDP, kind):
            candidates = at.at(tracked.sent)
            if mine := next((each for each in candidates if not each.interface), None):
                found[tracked] = mine.service
            elif candidates:
                doubtful[tracked] = candidates
    if doubtful:
        # Of services with an interface are the clients that are reached by it.
        with closing(RouteSocket()) as sock:
            ways = links(sock, {tracked.client for tracked in doubtful})
        for tracked, candidates in doubtful.items():
            way = ways.get(tracked.client)
            for each in candidates:
                if way and way.interface == each.interface:
                    found[tracked] = each.service
    conntrack_delete.singly(tracked.handle for tracked in found)
    return Counter(found.values())
