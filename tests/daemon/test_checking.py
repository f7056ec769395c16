"""Checks as the daemon carries them out, of sockets on the loopback: what is told, asked for and kept."""

import asyncio
import socket
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbd import checking
from lbd.checking import Checking
from lbd.core.entry import DEGRADED, HEALTH, PANIC
from lbd.core.health import Result
from lbd.core.observed import Observed, Override
from lbd.core.probes import AgentProbe, Health, TcpProbe, Timing
from lbd.core.settings import Backend, Config, Listen, Ports, Service
from lbd.host import probe
from lbd.host.store import Store

LISTEN = Listen(ip_address("192.0.2.1"), Ports(80, 80))
TIMING = Timing(interval=0.05, fast=0.05, timeout=0.04, rise=2, fall=2)
# What is sent has no meaning: it takes the way of checks that have a task.
TALKS = TcpProbe(send=b"hello\n", expect=b"hello")


class Server:
    """A port of the loopback, which can be shut and opened again. Nobody accepts."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def shut(self):
        self.socket.close()

    def open(self):
        self.socket = socket.create_server(("127.0.0.1", self.port))


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shut()


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(checking, "SETTLE", 0.02)


def backend(server):
    return Backend(ip_address("127.0.0.1"), Ports(server.port, server.port))


def config(*servers, what=TcpProbe(), timing=TIMING, name="web", **options):  # noqa: B008 - a value
    ends = tuple(map(backend, servers))
    return Config(services=(Service(name, (LISTEN,), ends, health=Health(what, timing, **options)),))


def name(server):
    return ("web", f"127.0.0.1:{server.port}")


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.002)


def run(path, body):
    """Run with a Checking, the entries it told and the looks it asked for."""

    async def main():
        said, looks = [], []
        watcher = Checking(said.append, lambda: looks.append(1), Store(path))
        try:
            await body(watcher, said, looks)
        finally:
            await watcher.follow(None)

    asyncio.run(main())


def phase(watcher, server):
    return watcher.beliefs[name(server)].phase


def tasks():
    return len(asyncio.all_tasks())


def descriptors():
    return {(fd.name, fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists()}


def test_configuration_without_checks_takes_nothing(tmp_path):
    async def body(watcher, said, looks):
        before = len(descriptors())
        await watcher.follow(Config())
        assert watcher.merged(Observed(offloads=True)) == Observed(offloads=True)
        assert len(descriptors()) == before
        assert not said

    run(tmp_path, body)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("talks", [False, True])
def test_nothing_is_left_open_in_the_end(tmp_path, server, talks):
    before = len(descriptors())

    async def body(watcher, said, looks):
        await watcher.follow(config(server, what=TALKS if talks else TcpProbe()))
        await asyncio.sleep(0.2)
        await watcher.follow(None)
        assert tasks() == 1

    run(tmp_path, body)
    assert len(descriptors()) == before, descriptors()


def test_look_is_asked_for_when_somebody_goes_or_comes_and_only_then(tmp_path, server):
    async def body(watcher, said, looks):
        await watcher.follow(config(server))
        await until(lambda: phase(watcher, server) == "up")
        await asyncio.sleep(0.2)
        assert not looks
        assert not said
        server.shut()
        await until(lambda: looks)
        assert watcher.merged(Observed()) == Observed(dead=frozenset({name(server)}))
        await asyncio.sleep(0.2)
        assert len(looks) == 1
        server.open()
        await until(lambda: len(looks) == 2)
        assert watcher.merged(Observed()) == Observed()

    run(tmp_path, body)


def test_entries_say_from_what_to_what_and_why(tmp_path, server):
    async def body(watcher, said, looks):
        await watcher.follow(config(server))
        await until(lambda: phase(watcher, server) == "up")
        server.shut()
        await until(lambda: said)
        server.open()
        await until(lambda: len(said) == 2)
        assert [entry.message_id for entry in said] == [HEALTH, HEALTH]
        first, second = (entry.fields for entry in said)
        assert (first["LBD_FROM"], first["LBD_TO"], first["LBD_REASON"]) == (
            "up",
            "down",
            "connection refused",
        )
        assert (second["LBD_FROM"], second["LBD_TO"]) == ("down", "up")
        assert 0.04 < float(second["LBD_SECONDS"]) < 5

    run(tmp_path, body)


def test_checks_with_a_task_find_the_same(tmp_path, server):
    async def body(watcher, said, looks):
        # Nobody accepts, so nobody answers.
        await watcher.follow(config(server, what=TALKS))
        await until(lambda: phase(watcher, server) == "down")
        assert watcher.beliefs[name(server)].reason == "no answer within 0.04s"
        server.shut()
        await until(lambda: watcher.beliefs[name(server)].reason == "connection refused")
        assert tasks() <= 2

    run(tmp_path, body)


def test_error_inside_a_check_is_no_verdict_and_told_once(tmp_path, server, monkeypatch):
    async def broken(target, within):
        raise RuntimeError("surprise")

    monkeypatch.setattr(probe, "run", broken)

    async def body(watcher, said, looks):
        await watcher.follow(config(server, what=TALKS))
        await asyncio.sleep(0.3)
        assert phase(watcher, server) == "new up"
        (entry,) = said
        assert entry.message_id == DEGRADED
        assert "RuntimeError: surprise" in entry.message

    run(tmp_path, body)


def test_time_that_libraries_take_is_not_the_backends(tmp_path, server, monkeypatch):
    calls = []

    async def loads(target, within):
        calls.append(target)
        if len(calls) == 1:
            await asyncio.sleep(10.0)
        return Result(passed=True)

    monkeypatch.setattr(probe, "run", loads)

    async def body(watcher, said, looks):
        await watcher.follow(config(server, what=TALKS))
        await until(lambda: phase(watcher, server) == "up")
        assert not said

    run(tmp_path, body)


def test_source_that_is_not_there_is_no_verdict(tmp_path, server):
    async def body(watcher, said, looks):
        await watcher.follow(config(server, source=ip_address("192.0.2.77")))
        await asyncio.sleep(0.3)
        assert phase(watcher, server) == "new up"
        assert [entry.message_id for entry in said] == [DEGRADED]
        assert "source address" in said[0].message

    run(tmp_path, body)


@pytest.mark.parametrize("talks", [False, True])
def test_backend_that_goes_from_the_file_is_given_up_at_once(tmp_path, server, talks):
    async def body(watcher, said, looks):
        timing = replace(TIMING, interval=5.0, timeout=5.0)
        await watcher.follow(config(server, what=TALKS if talks else TcpProbe(), timing=timing))
        await until(lambda: phase(watcher, server) == "up" or watcher.agenda.under_way)
        await watcher.follow(config())
        assert watcher.agenda.under_way == 0
        assert watcher.agenda.due is None
        await asyncio.sleep(0)
        assert tasks() == 1
        assert not watcher.beliefs

    run(tmp_path, body)


def test_what_goes_on_is_not_begun_again(tmp_path, server):
    other = Server()

    async def body(watcher, said, looks):
        await watcher.follow(config(server))
        server.shut()
        await until(lambda: phase(watcher, server) == "down")
        since = watcher.beliefs[name(server)].since
        await watcher.follow(config(other, server))
        assert (phase(watcher, server), watcher.beliefs[name(server)].since) == ("down", since)
        await until(lambda: phase(watcher, other) == "up")

    run(tmp_path, body)
    other.shut()


def test_maintenance_ends_checks_and_after_it_the_first_decides(tmp_path, server):
    async def body(watcher, said, looks):
        await watcher.follow(config(server, slow_start=100.0))
        await until(lambda: phase(watcher, server) == "up")
        out = Observed(overrides={name(server): Override("maintenance", "by root")})
        assert watcher.merged(out) == out
        await until(lambda: watcher.agenda.due is None and not watcher.agenda.under_way)
        server.shut()
        await asyncio.sleep(0.2)
        assert not said
        # Another file, and it still rests.
        await watcher.follow(config(server, slow_start=100.0, panic=1))
        assert watcher.agenda.due is None
        assert watcher.merged(Observed()) == Observed()
        await until(lambda: phase(watcher, server) != "up")
        assert phase(watcher, server) in ("new up", "down")
        await until(lambda: phase(watcher, server) == "down")
        server.open()
        await until(lambda: phase(watcher, server) == "up")
        assert watcher.merged(Observed()).portions == {name(server): 10}

    run(tmp_path, body)


def test_slow_start_asks_for_a_look_at_each_step(tmp_path, server):
    async def body(watcher, said, looks):
        await watcher.follow(config(server, slow_start=1.0))
        server.shut()
        await until(lambda: phase(watcher, server) == "down")
        server.open()
        await until(lambda: phase(watcher, server) == "up")
        looks.clear()
        seen = [10]
        while seen[-1] < 100:
            await until(lambda: looks)
            looks.clear()
            seen.append(watcher.merged(Observed()).portions.get(name(server), 100))
        assert seen == sorted(seen)
        assert len(seen) >= 5
        # The last may have been asked for in the same moment.
        await asyncio.sleep(0.2)
        looks.clear()
        await asyncio.sleep(0.3)
        assert not looks

    run(tmp_path, body)


def test_agent_has_its_backend_drain_and_weigh_less(tmp_path, server):
    answers = {"now": b"ready up 40%\n"}

    async def answer(reader, writer):
        writer.write(answers["now"])
        await writer.drain()
        writer.close()

    async def body(watcher, said, looks):
        agent = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = agent.sockets[0].getsockname()[1]
        await watcher.follow(
            config(server, what=AgentProbe(), timing=replace(TIMING, timeout=1.0), port=port)
        )
        await until(lambda: watcher.merged(Observed()).portions == {name(server): 40})
        assert not said
        answers["now"] = b"drain\n"
        await until(lambda: watcher.merged(Observed()).overrides)
        assert watcher.merged(Observed()).overrides == {
            name(server): Override("drain", "its agent says drain")
        }
        assert (said[0].fields["LBD_FROM"], said[0].fields["LBD_TO"]) == ("up", "drain")
        mine = Observed(overrides={name(server): Override("drain", "by root")})
        assert watcher.merged(mine).overrides == mine.overrides
        answers["now"] = b"down # for the night\n"
        await until(lambda: watcher.merged(Observed()).dead)
        agent.close()
        await agent.wait_closed()

    run(tmp_path, body)


def test_panic_is_told_when_it_begins_and_when_it_ends(tmp_path, server):
    async def body(watcher, said, looks):
        await watcher.follow(config(server, panic=50))
        server.shut()
        await until(lambda: phase(watcher, server) == "down")
        for _ in range(3):
            await asyncio.to_thread(watcher.merged, Observed())
        await until(lambda: [e for e in said if e.message_id == PANIC])
        server.open()
        await until(lambda: phase(watcher, server) == "up")
        for _ in range(3):
            await asyncio.to_thread(watcher.merged, Observed())
        await until(lambda: len([e for e in said if e.message_id == PANIC]) == 2)

    run(tmp_path, body)


def test_beliefs_outlive_the_daemon(tmp_path, server):
    async def body(watcher, said, looks):
        await watcher.follow(config(server))
        server.shut()
        await until(lambda: phase(watcher, server) == "down")

    async def again(watcher, said, looks):
        await watcher.follow(config(server, timing=TIMING))
        assert phase(watcher, server) == "down"
        assert watcher.beliefs[name(server)].reason == "connection refused"
        assert not said

    run(tmp_path, body)
    run(tmp_path, again)


def test_beliefs_are_kept_soon_after_they_change(tmp_path, server):
    async def body(watcher, said, looks):
        def kept():
            return [belief.phase for belief in Store(tmp_path).beliefs().value.values()]

        await watcher.follow(config(server))
        await until(lambda: kept() == ["up"])
        server.shut()
        await until(lambda: kept() == ["down"])

    run(tmp_path, body)


def test_disk_that_takes_nothing_is_told_once(tmp_path, server):
    (tmp_path / "state").write_text("no directory")

    async def body(watcher, said, looks):
        await watcher.follow(config(server))
        with ExitStack() as stack:
            stack.callback(server.open)
            server.shut()
            await until(lambda: phase(watcher, server) == "down")
        await until(lambda: phase(watcher, server) == "up")
        await asyncio.sleep(0.1)
        assert len([entry for entry in said if "cannot be kept" in entry.message]) == 1

    run(tmp_path / "state", body)
