"""Commits to our table are announced with the writer's process; commits to others' tables are not."""

import os
import select
import subprocess

import pytest

from lbd.core.ops import AddTable, DeleteTable
from lbd.host import netlink, nft_events, nft_read
from lbd.host.nft import Nft
from lbd.host.nft_events import Commit, NftEvents
from netns import inside

pytestmark = pytest.mark.kernel

PATIENCE_MS = 5000


@pytest.fixture
def host():
    with inside() as namespace:
        yield namespace


@pytest.fixture
def events(host):
    events = NftEvents()
    yield events
    events.close()


def commits(events):
    """What has been announced, with a wait for the first."""
    poll = select.poll()
    poll.register(events.fileno(), select.POLLIN)
    assert poll.poll(PATIENCE_MS), "nothing was announced"
    return events.drain()


def nft(text):
    """Run nft in this thread's namespace and return its process id."""
    process = subprocess.Popen(["nft", text])
    assert process.wait() == 0
    return process.pid


def generation():
    with netlink.connect() as sock:
        return nft_read.generation(sock)


@pytest.mark.usefixtures("host")
def test_a_commit_is_announced_with_its_generation_and_writer(events):
    pid = nft("add table inet lbd; add chain inet lbd one; add chain inet lbd two")
    assert commits(events) == [Commit(generation(), pid, "nft")]
    pids = [nft("delete chain inet lbd one"), nft("flush ruleset")]
    assert [commit.pid for commit in commits(events)] == pids


def test_our_own_commit_is_known_by_its_generation(events):
    door = Nft()
    generations = [door.commit([AddTable()]), door.commit([DeleteTable()])]
    worker = door.pid
    door.close()
    found = commits(events)
    assert [commit.generation for commit in found] == generations
    assert {commit.pid for commit in found} == {worker} != {os.getpid()}


def test_commits_to_the_tables_of_others_are_not_announced(events):
    nft("add table ip other; add set ip other s { type ipv4_addr; }; add element ip other s { 192.0.2.1 }")
    nft("add table inet lbd2")
    pid = nft("add table inet lbd")
    assert [commit.pid for commit in commits(events)] == [pid]


def test_a_commit_that_touches_ours_and_others_is_announced_once(events):
    pid = nft("add table ip other; add table inet lbd; add chain ip other c")
    assert [commit.pid for commit in commits(events)] == [pid]


def test_a_refused_transaction_is_not_announced(events):
    assert subprocess.run(
        ["nft", "add table inet lbd; delete table ip nope"], capture_output=True, check=False
    ).returncode
    pid = nft("add table inet lbd")
    assert [commit.pid for commit in commits(events)] == [pid]


@pytest.mark.usefixtures("host")
def test_announcements_that_did_not_fit_are_told_as_lost(monkeypatch):
    monkeypatch.setattr(nft_events, "RECEIVE_BUFFER", 1)  # the kernel makes some 2 KiB of it
    events = NftEvents()
    elements = ", ".join(f"192.0.2.{n}" for n in range(256))
    nft(
        "add table inet lbd; add set inet lbd s { type ipv4_addr; };"
        f"add element inet lbd s {{ {elements} }}"
    )
    assert [commit.lost for commit in commits(events)].count(True) == 1
    # It goes on from there.
    pid = nft("delete table inet lbd")
    assert commits(events)[-1].pid == pid
    events.close()
