"""Who changed the ruleset, told with the look that can have seen it; and who a process is."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from lbd.core.plan import Plan
from lbd.drifts import Drifts
from lbd.host.nft_events import Commit
from lbd.host.process import process
from lbd.host.store import Store
from lbd.lab.namespaces import wait_until
from lbd.reconcile import Outcome

OWN = {7}
OURS, THEIRS, LOST = Commit(7, 1, "lbd"), Commit(8, 2, "nobody-s"), Commit(0, lost=True)


@pytest.fixture
def drifts(tmp_path):
    said = []
    drifts = Drifts(said.append, Store(tmp_path))
    drifts.said = said
    return drifts


def names(actors):
    return [actor.process for actor in actors]


def test_our_own_commits_are_nobodys(drifts):
    drifts.hear([OURS])
    assert not drifts.sift(OWN)
    assert drifts.actors(drifted=True) == []


def test_our_worker_is_nobody_also_when_its_generation_is_not_known(drifts):
    drifts.hear([Commit(9, 1, "lbd"), THEIRS])
    assert drifts.sift(OWN, worker=1)
    assert names(drifts.actors(drifted=True)) == ["nobody-s"]


def test_who_came_before_a_look_belongs_to_it(drifts):
    drifts.hear([THEIRS])
    assert drifts.sift(OWN)
    drifts.begin()
    assert names(drifts.actors(drifted=False)) == ["nobody-s"]
    assert drifts.actors(drifted=True) == []


def test_who_came_too_late_for_a_look_is_named_by_the_next(drifts):
    drifts.begin()
    drifts.hear([THEIRS])
    drifts.sift(OWN)
    drifts.actors(drifted=False)
    drifts.begin()
    assert names(drifts.actors(drifted=True)) == ["nobody-s"]


def test_who_came_while_a_look_found_it_is_named_at_once(drifts):
    drifts.begin()
    drifts.hear([THEIRS])
    drifts.sift(OWN)
    assert names(drifts.actors(drifted=True)) == ["nobody-s"]
    assert drifts.actors(drifted=True) == []


def test_events_that_were_lost_ask_for_a_look_and_name_nobody(drifts):
    drifts.hear([LOST])
    assert drifts.sift(OWN)
    assert drifts.actors(drifted=True) == []


def test_the_last_is_of_this_daemon_and_the_others_are_kept(drifts, tmp_path):
    drifts.note(Outcome(Plan()), [], 0.1, repaired=True)
    assert drifts.last["by"] == "unknown"
    assert len(drifts.said) == 1
    drifts.store.save_incidents(drifts.incidents.known)
    again = Drifts(drifts.said.append, Store(tmp_path))
    assert again.last is None
    assert again.incidents.known == drifts.incidents.known


def test_a_damaged_file_is_told_and_left(drifts, tmp_path):
    (tmp_path / "incidents.json").write_text("{")
    said = []
    assert Drifts(said.append, Store(tmp_path)).incidents.known == ()
    assert "incidents.json is ignored" in said[0].message


def test_a_process_that_lives_is_known():
    found = process(os.getpid(), Path("/proc/self/comm").read_text().strip())
    assert found.user == pwd.getpwuid(os.getuid()).pw_name
    assert found.command.split()[0].endswith(Path(sys.orig_argv[0]).name)


def test_another_process_of_that_number_is_nobody():
    assert process(os.getpid(), "something-else") is None


def test_a_process_that_has_ended_is_nobody():
    ended = subprocess.Popen(["true"])
    # It is not waited for, and so it is still there in a way.
    assert wait_until(lambda: Path(f"/proc/{ended.pid}/stat").read_text().split()[2] == "Z", 10)
    assert process(ended.pid, "true") is None
    ended.wait()
    assert process(ended.pid, "true") is None
