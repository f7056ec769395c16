"""Who changes what is lbd's is named, once for as long as it goes on, and is kept in mind."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from lbd.lab.namespaces import wait_until
from running import PATIENCE, VIP, Director, answers, at, backends, service

pytestmark = pytest.mark.kernel

FILE = service(at(VIP[4], 8888), backends(3), scheduler="random") + service(
    at(VIP[4], 8889), backends(3), name="more", table_size=1021
)


@pytest.fixture
def fresh(lab, servers):
    """A daemon of one test alone, which nobody has troubled yet."""
    with Director(lab) as director:
        (director.directory / "state" / "incidents.json").unlink(missing_ok=True)
        yield director.start(FILE)


def incidents(director):
    return json.loads(director.lbd("drift", "-o", "json").stdout)


def test_who_still_lives_is_named_with_his_command(fresh, lab):
    with lab.popen(fresh.host, ["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as nft:
        nft.stdin.write(b"flush ruleset\n")
        nft.stdin.flush()
        fresh.wait_line(rf"drift repaired in \d+ ms, changed by nft \(pid {nft.pid}, root: nft -i\)")
        nft.stdin.close()
    (incident,) = incidents(fresh)
    assert incident["by"] == [f"nft (pid {nft.pid}, root: nft -i)"]
    assert incident["times"] == 1
    assert incident["repaired"] is True
    shown = fresh.lbd("drift").stdout
    assert f"by nft (pid {nft.pid}, root: nft -i)" in shown


def test_a_thousand_deletions_are_one_entry_with_a_count(fresh):
    slots = fresh.table().elements["slots_tcp4"]
    keys = [key for key in slots if " . 8889 . " in key][:1000]
    assert len(keys) == 1000
    since = len(fresh.lines)
    fresh.nft(f"delete element inet lbd slots_tcp4 {{ {', '.join(keys)} }}")
    fresh.wait_line("drift repaired", since=since)
    assert wait_until(lambda: fresh.table().elements["slots_tcp4"] == slots, PATIENCE)
    (incident,) = incidents(fresh)
    assert incident["operations"] >= 1
    assert len([line for line in fresh.lines[since:] if "drift" in line]) == 1


def test_incidents_outlive_the_daemon(fresh):
    fresh.nft("flush ruleset")
    fresh.wait_line("drift repaired")
    before = incidents(fresh)
    fresh.stop()
    fresh.start()
    assert incidents(fresh) == before
    # The count is of this daemon.
    assert fresh.status()["drift"]["count"] == 0


def test_nobody_is_nothing(fresh):
    assert incidents(fresh) == []
    assert fresh.lbd("drift").stdout == "nobody has changed anything of lbd's\n"


def test_who_fights_on_is_met_slowly_told_once_and_costs_little(fresh, lab):
    """Ten flushes a second for some seconds."""
    since, began = len(fresh.lines), time.monotonic()
    before = cpu(fresh.pid)
    while time.monotonic() - began < 8:
        fresh.nft("flush ruleset")
        time.sleep(0.1)  # the rhythm of who fights, nothing is waited for
    took = time.monotonic() - began
    used = cpu(fresh.pid) - before
    count = fresh.status()["drift"]["count"]
    # At once, and after 1, 2 and 4 seconds; one more for a look for another reason.
    assert 3 <= count <= 5
    told = [line for line in fresh.lines[since:] if "drift" in line]
    assert len(told) == 1, told
    (incident,) = incidents(fresh)
    assert incident["times"] == count
    assert used / took < 0.05, f"{used:.2f} s of CPU in {took:.1f} s"
    # It is made good in the end.
    assert wait_until(lambda: set(answers(lab, 4, count=3)) <= {"server1", "server2", "server3"}, PATIENCE)


def cpu(pid):
    """The seconds of CPU that all threads of a process have used: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
