"""The sampler: when it counts, what it tells, and what it leaves alone; without a kernel."""

import asyncio
import time

import pytest

from lbd import balancing
from lbd.balancing import REST, Balancing
from lbd.core.attribution import Sent
from lbd.core.config import parse
from lbd.core.observed import Observed
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
        time.sleep(self.takes)
        if isinstance(self.counts, OSError):
            raise self.counts
        return self.counts


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
