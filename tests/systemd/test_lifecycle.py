"""The daemon goes, by will or by force; the traffic does not notice and the daemon comes back."""

import json
import time

import pytest

from director import BAD, ONE, PATH, PLACE, PORT, TWO, VIP, service
from lbd.core.entry import MESSAGE_IDS
from lbd.lab.namespaces import Lab
from lbd.lab.traffic import Conversation, Requester, ask
from machine import Machine, wait

pytestmark = pytest.mark.systemd

QUICK_WATCHDOG = {
    PATH: service(ONE),
    "etc/systemd/system/lbd.service.d/test.conf": "[Service]\nWatchdogSec=1s\n",
}


def restarted(machine: Machine, pid: str) -> bool:
    unit = machine.show()
    return unit["ActiveState"] == "active" and unit["MainPID"] != pid


def test_stop_leaves_traffic_flowing(director: Machine, lab: Lab):
    before = director.table()
    with Conversation(lab, "client", VIP, PORT) as open_connection:
        assert director.systemctl("stop", "lbd").returncode == 0
        assert director.show()["Result"] == "success"
        assert open_connection.alive()
    assert director.table() == before
    assert ask(lab, "client", VIP, PORT).server == "server1"


def test_restart_fails_no_request(director: Machine, lab: Lab):
    with (
        Conversation(lab, "client", VIP, PORT) as open_connection,
        Requester(lab, "client", VIP, PORT, pause=0.005) as requester,
    ):
        requester.wait_for(lambda tally: tally.total > 10)
        assert director.systemctl("restart", "lbd").returncode == 0
        seen = requester.tally().total
        requester.wait_for(lambda tally: tally.total > seen + 10)
        assert not requester.stop().failures
        assert open_connection.alive()


def test_watchdog_restarts_a_stopped_daemon(boot_director, lab: Lab):
    machine = boot_director(QUICK_WATCHDOG)
    machine.wait_active()
    pid = machine.main_pid()
    with (
        Conversation(lab, "client", VIP, PORT) as open_connection,
        Requester(lab, "client", VIP, PORT, pause=0.01) as requester,
    ):
        machine.must("kill", "-STOP", pid)
        wait(lambda: restarted(machine, pid), 15)
        assert open_connection.alive()
        assert not requester.stop().failures
    assert any("Watchdog timeout" in entry["MESSAGE"] for entry in machine.journal(unit="lbd.service"))
    assert machine.show()["NRestarts"] == "1"


def test_idle_daemon_outlives_its_watchdog(boot_director):
    machine = boot_director(QUICK_WATCHDOG)
    machine.wait_active()
    pid = machine.main_pid()
    first = int(machine.show()["WatchdogTimestampMonotonic"])
    # Three periods with nothing to do but to say so; microseconds.
    wait(lambda: int(machine.show()["WatchdogTimestampMonotonic"]) > first + 3_000_000)
    assert (machine.main_pid(), machine.show()["NRestarts"]) == (pid, "0")


def test_killed_daemon_is_back_within_two_seconds_and_writes_nothing(director: Machine, lab: Lab):
    before, pid = director.table(), director.main_pid()
    generation = json.loads(director.must("lbd", "status", "-o", "json"))["kernel"]["generation"]
    with Conversation(lab, "client", VIP, PORT) as open_connection:
        start = time.monotonic()
        director.must("kill", "-KILL", pid)
        wait(lambda: restarted(director, pid))
        assert time.monotonic() - start < 2.5
        assert open_connection.alive()
    assert director.table() == before
    assert json.loads(director.must("lbd", "status", "-o", "json"))["kernel"]["generation"] == generation


def test_bad_file_at_boot_without_a_good_one_waits_for_the_file(boot_director, lab: Lab):
    machine = boot_director({PATH: BAD})
    wait(lambda: PLACE in machine.told())
    assert machine.table() == ""
    machine.write(PATH, service(ONE))
    wait(lambda: ask(lab, "client", VIP, PORT).server == "server1")
    machine.wait_active()
    assert machine.show()["NRestarts"] == "0"


def test_bad_file_at_start_with_a_good_one_serves_the_good_one(director: Machine, lab: Lab):
    director.must("systemctl", "stop", "lbd")
    director.must("nft", "delete", "table", "inet", "lbd")
    director.write(PATH, BAD)
    assert director.systemctl("start", "lbd").returncode == 0
    assert ask(lab, "client", VIP, PORT).server == "server1"
    status = json.loads(director.must("lbd", "status", "-o", "json"))
    assert status["state"] == "degraded"
    assert PLACE in director.told()
    director.write(PATH, service(TWO))
    wait(lambda: ask(lab, "client", VIP, PORT).server == "server2")


def test_missing_file_at_boot_waits_for_the_file(boot_director, lab: Lab):
    machine = boot_director({PATH: ""})
    machine.must("systemctl", "stop", "lbd")
    (machine.root / PATH.lstrip("/")).unlink()
    machine.systemctl("start", "--no-block", "lbd")
    wait(lambda: "/etc/lbd.toml" in machine.told())
    machine.write(PATH, service(ONE))
    wait(lambda: ask(lab, "client", VIP, PORT).server == "server1")


def test_restart_of_nftables_is_repaired_and_told(director: Machine, lab: Lab):
    """nftables.service flushes the ruleset of the whole host, as Debian's /etc/nftables.conf says."""
    after = director.cursor()
    assert director.systemctl("restart", "nftables").returncode == 0
    wait(lambda: ask(lab, "client", VIP, PORT).server == "server1", 5)
    drift = wait(
        lambda: [e for e in director.journal(after=after) if e.get("MESSAGE_ID") == MESSAGE_IDS["DRIFT"]]
    )
    assert "nft" in drift[0]["MESSAGE"]


def test_apply_remove_leaves_nothing(director: Machine, lab: Lab):
    director.must("systemctl", "stop", "lbd")
    director.must("lbd", "apply", "--remove")
    assert director.table() == ""
    assert lab.sysctl("director", "net.ipv4.ip_forward") == "0"
    assert ask(lab, "client", VIP, PORT).failure == "refused"
