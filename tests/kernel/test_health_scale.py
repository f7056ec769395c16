"""Many checks at once: each verdict is right, nobody waits for a slow target, and the loop goes on."""

import asyncio
import socket
import time
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from lbd.checking import Checking
from lbd.core.observed import Observed
from lbd.core.probes import Health, TcpProbe, Timing
from lbd.core.settings import Backend, Config, Listen, Ports, Service
from lbd.host.store import Store
from lbd.lab.namespaces import Lab
from lbd.lab.topology import Host, Interface, Topology

pytestmark = pytest.mark.kernel

# The far host has every address of THERE and none of NOWHERE.
THERE, NOWHERE = "2001:db8:5::", "2001:db8:6::"
OPEN, SHUT = 9999, 9998
INTERVAL = 1.0
GOOD, SILENT, REFUSING = 800, 100, 100
HOSTS = Topology(
    (
        Host("director", (Interface("eth0", "wire0", ("2001:db8:4::1/64",)),)),
        Host("far", (Interface("eth0", "wire0", ("2001:db8:4::2/64",)),)),
    )
)
FAR = "2001:db8:4::2"


@pytest.fixture(scope="module")
def lab():
    with Lab(HOSTS) as lab:
        lab.run("far", ["ip", "-6", "route", "add", "local", f"{THERE}/112", "dev", "lo"])
        for prefix in (THERE, NOWHERE):
            lab.run("director", ["ip", "-6", "route", "add", f"{prefix}/112", "via", FAR])
        with lab.inside("far"):
            listener = socket.create_server(("::", OPEN), family=socket.AF_INET6, backlog=1024)
        with listener:
            yield lab


def backends(prefix, number, port):
    return [Backend(IPv6Address(prefix) + n + 1, Ports(port, port)) for n in range(number)]


def config(ends, timing):
    listen = Listen(IPv6Address("2001:db8:18::1"), Ports(80, 80))
    return Config(services=(Service("s", (listen,), tuple(ends), health=Health(TcpProbe(), timing)),))


def descriptors():
    """What this process has open."""
    found = Path("/proc/self/fd")
    return {(fd.name, fd.readlink()) for fd in found.iterdir() if fd.exists()}


@contextmanager
def checking(path):
    """A Checking, the entries it told and the looks it asked for; `run` runs it with the loop's lateness."""
    said, looks = [], []
    yield Checking(said.append, lambda: looks.append(time.monotonic()), Store(path)), said, looks


async def lateness(seconds, look=lambda: None):
    """By how much short sleeps were too long by this thread's own doing, at most."""
    worst, end = 0.0, time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        used = time.thread_time()
        await asyncio.sleep(0.005)
        worst = max(worst, min(time.monotonic() - now - 0.005, time.thread_time() - used))
        look()
    return worst


def test_slow_targets_cost_nobody_else_anything(lab, tmp_path):
    ends = [
        *backends(THERE, GOOD, OPEN),
        *backends(NOWHERE, SILENT, OPEN),
        *backends(THERE, REFUSING, SHUT),
    ]
    # A silent one is checked less often than its interval says.
    timing = Timing(interval=INTERVAL, fast=INTERVAL, timeout=1.5 * INTERVAL, fall=2)
    overdue, held = [], []

    async def main():
        with checking(tmp_path) as (watcher, said, looks):
            await watcher.follow(config(ends, timing))
            await asyncio.sleep(3 * INTERVAL)
            good = [row.watch for row in watcher._roster.rows[:GOOD]]

            def look():
                now = time.monotonic()
                overdue.append(max(now - each.began for each in good) - INTERVAL)
                held.append(len(descriptors()))

            worst = await lateness(4 * INTERVAL, look)
            found = watcher.merged(Observed())
            await watcher.follow(None)
            return worst, found, said, looks

    before = descriptors()
    with lab.inside("director"):
        worst, found, said, looks = asyncio.run(main())
    print(f"\nloop late by {1000 * worst:.1f} ms at most, a check by {1000 * max(overdue):.1f} ms")
    print(f"{max(held) - len(before)} descriptors, {len(said)} entries, {len(looks)} looks")
    assert found.dead == {("s", str(end)) for end in ends[GOOD:]}
    assert worst < 0.05
    # Other users of the machine may hold it up; who waits for a silent target waits for 1.5 s.
    assert max(overdue) < 0.5
    # Beside the silent ones some batches of 64 who answer at once: never all 800 of those.
    assert max(held) - len(before) < SILENT + 4 * 64
    assert len(descriptors()) == len(before), descriptors() - before
    assert len(said) < 150


def test_silent_targets_wait_for_each_other_when_descriptors_are_few(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("lbd.host.descriptors.for_checks", lambda _: 20)
    ends = [*backends(NOWHERE, SILENT, OPEN), *backends(THERE, 20, OPEN)]
    most = []

    async def main():
        with checking(tmp_path) as (watcher, said, _):
            await watcher.follow(config(ends, Timing(interval=0.2, fast=0.2, timeout=0.1)))
            # 100 silent ones, 20 at a time, are a round of 0.5 s.
            await lateness(2.0, lambda: most.append(watcher.agenda.under_way))
            found = watcher.merged(Observed())
            await watcher.follow(None)
            return found, said

    with lab.inside("director"):
        found, _ = asyncio.run(main())
    assert max(most) == 20
    assert found.dead == {("s", str(end)) for end in ends[:SILENT]}


def test_connects_of_backends_that_go_are_given_up(lab, tmp_path):
    timing = Timing(interval=1.0, timeout=0.5)

    async def main():
        with checking(tmp_path) as (watcher, said, _):
            await watcher.follow(config(backends(NOWHERE, 20, OPEN), timing))
            async with asyncio.timeout(5):
                while watcher.agenda.under_way < 20:  # noqa: ASYNC110 - what is waited for knows of no event
                    await asyncio.sleep(0.01)
            full = len(descriptors())
            await watcher.follow(config([], timing))
            assert len(descriptors()) == full - 20
            # Nothing comes of them later.
            await asyncio.sleep(0.8)
            assert watcher.agenda.under_way == 0
            assert not said
            await watcher.follow(None)

    with lab.inside("director"):
        asyncio.run(main())
