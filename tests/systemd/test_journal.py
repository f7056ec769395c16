"""What `journalctl -u lbd` has to tell, in fields that can be selected."""

import pytest

from director import PATH, TWO, service
from lbd.core.entry import MESSAGE_IDS
from machine import Entry, Machine, wait

pytestmark = pytest.mark.systemd


def entries(machine: Machine, kind: str, after: str = "") -> list[Entry]:
    journal = machine.journal(unit="lbd.service", after=after)
    return [entry for entry in journal if entry.get("MESSAGE_ID") == MESSAGE_IDS[kind]]


def test_a_start_is_told_and_every_own_entry_has_an_id(director: Machine):
    assert wait(lambda: entries(director, "STARTED"))
    assert wait(lambda: entries(director, "READY"))
    own = [e for e in director.journal(unit="lbd.service") if e.get("SYSLOG_IDENTIFIER") == "lbd"]
    assert own
    for entry in own:
        assert entry.get("MESSAGE_ID") in MESSAGE_IDS.values(), entry["MESSAGE"]
        assert any(name.startswith("LBD_") for name in entry), entry["MESSAGE"]
        assert entry["_TRANSPORT"] == "journal"


def test_a_change_is_told_once(director: Machine):
    after = director.cursor()
    director.write(PATH, service(TWO))
    assert director.systemctl("reload", "lbd").returncode == 0
    applied = wait(lambda: entries(director, "APPLIED", after))
    assert len(applied) == 1
    assert applied[0]["LBD_CONFIG"] == PATH
    assert TWO.partition(":")[0] in applied[0]["LBD_PLAN"]


def test_a_stop_is_told(director: Machine):
    director.must("systemctl", "stop", "lbd")
    assert wait(lambda: entries(director, "STOPPED"))
