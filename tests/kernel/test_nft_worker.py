"""The nftables worker may hang or die: it is replaced, its loss is told, and no transaction is half done."""

import errno
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lbd.core.ops import AddChain, AddElements, AddMap, AddTable, DeleteElements, DeleteTable
from lbd.core.state import Map
from lbd.host import netlink, nft_read
from lbd.host.nft import Nft
from lbd.lab.namespaces import wait_until
from lbd.reconcile import RefusedError
from netns import inside
from running import alive

pytestmark = pytest.mark.kernel

LARGE = Map(
    ("ipv4_addr", "inet_service", "index"),
    ("ipv4_addr", "inet_service"),
    1 << 17,
    counter=True,
    typeof="ip daddr . tcp dport . numgen inc mod 65536 : ip daddr . tcp dport",
)
SCHEMA = {"slots_tcp4": LARGE}
FIRST = [AddTable(), AddMap("slots_tcp4", LARGE)]


@pytest.fixture
def lost():
    return []


@pytest.fixture
def door(lost):
    with inside():
        door = Nft(deadline=5.0, lost=lost.append)
        door.commit(FIRST)
        yield door
        door.close()


def elements(count, backend=1):
    items = tuple((f"192.0.2.1 . 80 . {n}", f"10.0.0.{backend} . 80") for n in range(count))
    return AddElements("slots_tcp4", LARGE, items)


def test_a_hanging_worker_is_given_up_at_its_deadline_and_replaced(lost):
    with inside():
        door = Nft(deadline=0.3, lost=lost.append)
        door.read(SCHEMA)
        first = door.pid
        os.kill(first, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(RefusedError, match="the worker process did not answer in time during 'read'"):
            door.read(SCHEMA)
        assert 0.25 < time.monotonic() - start < 2.0
        assert lost == [f"the nftables worker (pid {first}) did not answer in time"]
        assert not alive(first)
        door.deadline = 5.0
        assert door.read(SCHEMA)[0] is None
        assert door.pid != first
        door.close()


def test_a_worker_that_cannot_be_started_is_a_refusal(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with inside(), monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", full)
        with pytest.raises(RefusedError, match="no worker process can be started: Too many open files"):
            Nft().read(SCHEMA)


def test_a_worker_that_died_is_replaced(door, lost):
    door.commit([elements(3)])
    first = door.pid
    os.kill(first, signal.SIGKILL)
    assert len(door.read(SCHEMA)[0].elements["slots_tcp4"]) == 3
    assert lost == [f"the nftables worker (pid {first}) ended"]
    assert door.pid != first
    assert not Path(f"/proc/{first}").exists()


def test_a_worker_that_died_in_a_commit_leaves_all_or_nothing(door, lost):
    many = elements(60_000)
    seen = set()
    # Loading takes some 0.3 s: from before the first byte to after the last.
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
        door.read(SCHEMA)
        victim, before = door.pid, generation()
        killer = threading.Timer(delay, os.kill, (victim, signal.SIGKILL))
        killer.start()
        with suppress(RefusedError):
            door.commit([many])
        killer.join()
        count = len(door.read(SCHEMA)[0].elements["slots_tcp4"])
        assert count in (0, len(many.items))
        assert generation() == before + (count > 0)
        seen.add(count)
        if count:
            door.commit([DeleteElements("slots_tcp4", LARGE, tuple(key for key, _ in many.items))])
    assert lost
    assert 0 in seen


def generation():
    with netlink.connect() as sock:
        return nft_read.generation(sock)


def test_a_refusal_tells_the_reason_and_the_line_and_costs_no_worker(door, lost):
    worker = door.pid
    wrong = AddElements("nope", LARGE, (("192.0.2.1 . 80 . 0", "10.0.0.1 . 80"),))
    with pytest.raises(RefusedError) as refused:
        door.commit([AddChain("one"), wrong])
    assert "No such file or directory" in str(refused.value)
    assert "add element inet lbd nope" in str(refused.value)
    assert not refused.value.permission
    assert "one" not in door.read(SCHEMA)[0].chains
    assert (door.pid, lost) == (worker, [])


def test_a_commit_is_known_by_its_generation(door):
    assert door.commit([elements(1)]) == generation()
    assert door.read(SCHEMA)[1] == generation()


def test_close_ends_the_worker_and_another_starts_when_asked(door):
    first = door.pid
    door.close()
    assert not alive(first)
    assert door.read(SCHEMA)[0] is not None
    assert door.pid != first


def test_close_does_not_wait_for_ever_for_a_hanging_worker():
    with inside():
        door = Nft(deadline=0.3)
        door.read(SCHEMA)
        worker = door.pid
        os.kill(worker, signal.SIGSTOP)
        start = time.monotonic()
        door.close()
        assert time.monotonic() - start < 2.0
        assert not alive(worker)


def test_a_worker_ends_with_the_process_that_it_works_for():
    with inside():
        door = Nft()
        door.read(SCHEMA)
        worker = door.pid
        # What the kernel does with the sockets of a process that was killed.
        door._sock.close()
        assert wait_until(lambda: not alive(worker), 5.0)
        door.close()


def test_a_commit_larger_than_any_socket_buffer_fits(door):
    door.commit([elements(50_000)])
    assert len(door.read(SCHEMA)[0].elements["slots_tcp4"]) == 50_000
    door.commit([DeleteTable()])
    assert door.read(SCHEMA)[0] is None
