"""kill -9 at any moment: the kernel has the old rules or the new, never a mixture, and all goes on."""

import random
import re
import signal
import threading
import time
from contextlib import suppress
from ipaddress import ip_network

import pytest

from lbd.client import CallError
from lbd.core.config import parse
from lbd.core.desired import desired
from lbd.core.observed import Observed
from lbd.core.source import Source
from lbd.lab.namespaces import wait_until
from lbd.lab.traffic import Conversation, ask
from running import VIP, Director, alive, at, backends, service

pytestmark = pytest.mark.kernel

# So large that most of an apply is the transaction: some 0.05 s for 10 services of 251 slots each.
SERVICES = 10
DAEMON_KILLS, WORKER_KILLS = 20, 80
RESTART = 2.0  # seconds from the start of the process to converged


def generation(n):
    """One of two files that have no slot in common; in both the first service serves."""
    ports = range(9000 + 100 * n, 9000 + 100 * n + SERVICES)
    many = (service(at(VIP[4], port), backends(3), name=f"s{port}") for port in ports)
    chosen = service(at(VIP[4], 8888), backends(2 + n), scheduler=["maglev", "random"][n])
    # All but one of many services go each time, and that is meant.
    return "\n".join(["[director]", "removed_percent = 100", chosen, *many])


FILES = [generation(0), generation(1)]
# The network of the real servers, which the director is in.
HOST = Observed(neighbours=frozenset({(ip_network("192.168.2.0/24"), "eth1")}))
TABLES = [desired(parse(Source("lbd.toml", text)), HOST).table for text in FILES]


@pytest.fixture
def director(lab, servers):
    """In the kernel is the first generation."""
    with Director(lab) as director:
        yield director.start(FILES[0])


@pytest.fixture
def talks(lab, director):
    """A conversation through the director for each protocol, and the other way in."""
    with Conversation(lab, "client", VIP[4], 8888) as one, Conversation(lab, "client2", VIP[4], 8888) as two:
        yield one, two


def in_kernel(director):
    """Which generation the kernel has; fails when it is neither."""
    table = director.table()
    found = [n for n, want in enumerate(TABLES) if table.elements == want.elements]
    assert found, "the kernel has elements of both generations, or of none"
    # Chains that nothing goes to any more may be left; the ones that count are whole.
    for name, chain in TABLES[found[0]].chains.items():
        assert len(table.chains[name].digests) == len(chain.rules), name
    return found[0]


def reload_in_background(director):
    def run():
        with suppress(CallError):
            verdicts.append(director.reload())

    verdicts = []
    thread = threading.Thread(target=run)
    thread.start()
    return thread, verdicts


def begin(director, n, chance, longest):
    """Have a generation applied, and come back at a moment of that."""
    director.write(FILES[n])
    background = reload_in_background(director)
    threading.Event().wait(chance.uniform(0, longest))
    return background


def duration(director):
    """How long an apply takes here, about."""
    start = time.monotonic()
    director.apply(FILES[1])
    director.apply(FILES[0])
    return (time.monotonic() - start) / 2


def test_daemon_killed_while_it_applies(lab, director, talks):
    chance, longest = random.Random(1), duration(director) * 1.2
    found = []
    for n in range(1, DAEMON_KILLS + 1):
        thread, _ = begin(director, n % 2, chance, longest)
        director.kill()
        thread.join()
        found.append(in_kernel(director) == n % 2)
        assert all(talk.alive() for talk in talks)
        start = time.monotonic()
        director.start()
        assert time.monotonic() - start < RESTART
        assert director.status()["state"] == "converged"
        assert in_kernel(director) == n % 2
    # The moments were well chosen: some kills came before the commit, some after.
    assert set(found) == {True, False}
    assert ask(lab, "client", VIP[4], 8888).server


def test_worker_killed_while_it_applies(lab, director, talks):
    chance, longest = random.Random(2), duration(director) * 1.2
    found = []
    for n in range(1, WORKER_KILLS + 1):
        thread, verdicts = begin(director, n % 2, chance, longest)
        worker = director.kill_worker()
        assert wait_until(lambda pid=worker: not alive(pid), 5.0)
        found.append(in_kernel(director) == n % 2)
        thread.join()
        # It may have been killed before or after: then the reload was good, and the next look meets the loss.
        assert verdicts[0]["ok"] or re.search("the worker process ended", verdicts[0]["error"])
        if not director.reload()["ok"]:
            assert director.reload()["ok"]
        assert in_kernel(director) == n % 2
        assert all(talk.alive() for talk in talks)
    assert set(found) == {True, False}
    assert len([line for line in director.lines if "the nftables worker" in line]) == WORKER_KILLS
    assert director.status()["state"] == "converged"


def test_daemon_killed_while_idle_has_nothing_to_do_afterwards(lab, director, talks):
    number = director.generation()
    for _ in range(3):
        director.kill()
        assert all(talk.alive() for talk in talks)
        assert ask(lab, "client", VIP[4], 8888).server
        mark, start = len(director.lines), time.monotonic()
        director.start()
        assert time.monotonic() - start < RESTART
        director.wait_line("applied .*: nothing to do", since=mark)
    assert director.generation() == number


def test_worker_killed_while_idle_is_replaced_at_the_next_look(director, talks):
    number = director.generation()
    worker = director.kill_worker()
    assert director.reload() == {"ok": True, "operations": 0}
    director.wait_line(rf"the nftables worker \(pid {worker}\) ended; a new one is started")
    assert director.workers() != [worker]
    assert director.generation() == number
    assert director.status()["drift"]["count"] == 0


def test_worker_that_hangs_does_not_hold_up_traffic_or_status(lab, director, talks):
    """The deadline itself is shown in test_nft_worker; here the daemon goes on answering while it waits."""
    director.kill_worker(signal.SIGSTOP)
    thread, verdicts = reload_in_background(director)
    for _ in range(5):
        start = time.monotonic()
        assert director.status()["services"]
        assert time.monotonic() - start < 0.5
        assert all(talk.alive() for talk in talks)
    assert not verdicts
    director.kill_worker(signal.SIGCONT)
    thread.join()
    assert verdicts == [{"ok": True, "operations": 0}]


def test_daemon_that_is_stopped_while_it_applies_finishes_and_leaves_the_new_generation(director, talks):
    director.write(FILES[1])
    thread, _ = reload_in_background(director)
    wait_until(lambda: not thread.is_alive(), 0.05)
    director.process.send_signal(signal.SIGTERM)
    assert director.process.wait(5.0) == 0
    thread.join()
    assert in_kernel(director) in (0, 1)
    assert all(talk.alive() for talk in talks)
    director.start()
    assert in_kernel(director) == 1


def test_state_directory_that_was_damaged_is_told_and_replaced(director, talks):
    memory = director.directory / "state" / "memory.json"
    director.kill()
    memory.write_text("{")
    mark = len(director.lines)
    director.start()
    director.wait_line(r"memory\.json is ignored: it is not JSON", since=mark)
    assert in_kernel(director) == 0
    assert all(talk.alive() for talk in talks)
    mark = len(director.lines)
    director.kill()
    director.start()
    director.wait_line("applied .*: nothing to do", since=mark)
    assert "ignored" not in director.said(mark)
