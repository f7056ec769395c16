"""The sampler: when it counts, what it tells, and what it leaves alone; without a kernel."""

import asyncio
import time

import pytest

from lbd import balancing
from lbd.balancing import REST, Balancing
from lbd.core.attribution import Sent
from lbd.core.config import parse
from lbd.core.entry import DRAINED as DRAINED_ID
from lbd.core.observed import Observed, Override
from lbd.core.source import Source
from running import service

ONE, TWO = {"address": "10.0.0.1:80", "max_connections": 2}, "10.0.0.2:80"
LIMITED = parse(Source("f", service("192.0.2.1:80", [ONE, TWO], "w")))
FREE = parse(Source("f", service("192.0.2.1:80", [TWO], "w")))
FULL = {Sent(6, "192.0.2.1", 80, "10.0.0.1", 80): 2}
NAME = ("w", "10.0.0.1:80")


class Table:
    """A conntrack table that is what it is told, and notes when it was counted."""

    def __init__(self):
        self.counts, self.takes, self.times = {}, 0.0, []

    def count(self):
        self.times.append(time.monotonic())
        counts = self.counts
        time.sleep(self.takes)
        if isinstance(counts, OSError):
            raise counts
        return counts


@pytest.fixture
def table(monkeypatch):
    table = Table()
    monkeypatch.setattr(balancing.conntrack, "count", table.count)
    monkeypatch.setattr(balancing, "INTERVAL", 0.01)
    return table


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.002)


def run(body):
    """Run with a Balancing, the entries it told and the looks it asked for."""

    async def main():
        said, looks = [], []
        watcher = Balancing(said.append, lambda: looks.append(1))
        try:
            await body(watcher, said, looks)
        finally:
            await watcher.follow(None)

    asyncio.run(main())


def test_first_count_is_there_before_the_first_look(table):
    async def body(watcher, said, looks):
        table.counts = FULL
        await watcher.follow(LIMITED)
        assert watcher.merged(Observed(interfaces=frozenset({"eth0"}))) == Observed(
            full=frozenset({NAME}), interfaces=frozenset({"eth0"})
        )
        assert not looks

    run(body)


def test_look_is_asked_for_when_something_changes_and_only_then(table):
    async def body(watcher, said, looks):
        await watcher.follow(LIMITED)
        await until(lambda: len(table.times) > 5)
        assert not looks
        table.counts = FULL
        await until(lambda: looks)
        assert watcher.balance.full == {NAME}
        seen = len(table.times)
        await until(lambda: len(table.times) > seen + 5)
        assert len(looks) == 1

    run(body)


def test_failure_is_told_once_and_changes_nothing(table):
    async def body(watcher, said, looks):
        table.counts = FULL
        await watcher.follow(LIMITED)
        table.counts = OSError(1, "Operation not permitted")
        seen = len(table.times)
        await until(lambda: len(table.times) > seen + 5)
        assert watcher.balance.full == {NAME}
        assert [entry.message for entry in said] == ["connections cannot be counted: Operation not permitted"]
        table.counts = {}
        await until(lambda: looks)
        assert not watcher.balance.full

    run(body)


def test_configuration_that_needs_no_counting_ends_it(table):
    async def body(watcher, said, looks):
        await watcher.follow(FREE)
        assert not table.times
        table.counts = FULL
        await watcher.follow(LIMITED)
        await watcher.follow(FREE)
        assert watcher.merged(Observed()) == Observed()
        seen = len(table.times)
        await asyncio.sleep(0.05)
        assert len(table.times) <= seen + 1

    run(body)


def test_counting_that_takes_long_rests_long(table):
    async def body(watcher, said, looks):
        table.takes = 0.02
        await watcher.follow(LIMITED)
        await until(lambda: len(table.times) > 2)
        for earlier, later in zip(table.times, table.times[1:], strict=False):
            assert later - earlier >= REST * table.takes

    run(body)


# Drains.

DRAINED = Observed(overrides={("w", TWO): Override("drain", "somebody says so")})
OPEN = {Sent(6, "192.0.2.1", 80, "10.0.0.2", 80): 1}


def look(watcher, observed):
    """A look as the daemon has it; what it makes of what was observed."""
    merged = watcher.merged(observed)
    watcher.looked()
    return merged


def test_drain_is_counted_until_it_has_ended_and_told_once(table):
    async def body(watcher, said, looks):
        table.counts = OPEN
        await watcher.follow(FREE)
        assert not look(watcher, DRAINED).ended
        await until(lambda: watcher.connections == {("w", TWO): 1})
        assert not looks
        table.counts = {}
        await until(lambda: looks)
        assert look(watcher, DRAINED).ended == {("w", TWO)}
        assert [entry.message_id for entry in said] == [DRAINED_ID]
        # There is nothing left to count.
        seen = len(table.times)
        await asyncio.sleep(0.05)
        assert len(table.times) <= seen + 1
        assert not look(watcher, Observed()).ended
        assert await watcher.drained(("w", TWO), 10.0) is False

    run(body)


def test_who_waits_hears_of_the_end_at_once(table):
    async def body(watcher, said, looks):
        table.counts = OPEN
        await watcher.follow(FREE)
        look(watcher, DRAINED)
        assert await watcher.drained(("w", TWO), 0.05) is False
        waiting = asyncio.create_task(watcher.drained(("w", TWO), 10.0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        table.counts = {}
        async with asyncio.timeout(5.0):
            assert await waiting is True
        # It hears of the end by others as well.
        look(watcher, Observed())
        table.counts = OPEN
        look(watcher, DRAINED)
        waiting = asyncio.create_task(watcher.drained(("w", TWO), 10.0))
        await asyncio.sleep(0.05)
        look(watcher, Observed())
        async with asyncio.timeout(5.0):
            assert await waiting is False

    run(body)


def test_count_from_before_a_drain_does_not_end_it(table):
    async def body(watcher, said, looks):
        await watcher.follow(LIMITED)
        look(watcher, DRAINED)
        await until(lambda: watcher.drains.zero)
        # The second count without a connection is under way when the drain is undone and begun anew.
        table.takes = 0.2
        seen = len(table.times)
        await until(lambda: len(table.times) > seen)
        look(watcher, Observed())
        look(watcher, DRAINED)
        table.counts = OPEN
        await until(lambda: watcher.connections[("w", TWO)])
        assert not watcher.drains.ended
        assert not said

    run(body)


def test_backend_is_counted_when_somebody_asks(table):
    async def body(watcher, said, looks):
        assert await watcher.count(("w", TWO)) is None
        await watcher.follow(FREE)
        table.counts = OPEN
        assert await watcher.count(("w", TWO)) == 1
        assert await watcher.count(("w", "10.0.0.9:80")) == 0
        table.counts = OSError(1, "Operation not permitted")
        assert await watcher.count(("w", TWO)) is None
        assert len(table.times) == 3

    run(body)
