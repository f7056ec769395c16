"""Edits and reloads: a good file is the kernel's at once, a bad one changes nothing and says where."""

import time

import pytest

from director import BAD, ONE, PATH, PLACE, PORT, TWO, VIP, service
from lbd.core.entry import MESSAGE_IDS
from lbd.lab.namespaces import Lab
from lbd.lab.traffic import Conversation, ask
from machine import Machine, wait

pytestmark = pytest.mark.systemd


def test_edit_converges_within_a_second(director: Machine, lab: Lab, record_property):
    written = director.write(PATH, service(TWO))
    wait(lambda: TWO.partition(":")[0] in director.table(), 5)
    seconds = time.monotonic() - written
    record_property("edit_to_kernel_seconds", seconds)
    assert ask(lab, "client", VIP, PORT).server == "server2"
    assert seconds < 1


def test_of_many_edits_the_last_one_wins_within_a_second(director: Machine):
    for _ in range(10):
        director.write(PATH, service(ONE, TWO))
        written = director.write(PATH, service(TWO))
    wait(lambda: "192.168.2.74" in director.table() and "192.168.2.73" not in director.table(), 5)
    assert time.monotonic() - written < 1


def test_file_written_in_place_in_two_parts_is_applied_once_it_is_whole(director: Machine):
    text = service(TWO)
    after = director.cursor()
    with (director.root / PATH.lstrip("/")).open("w") as file:
        for part in (text[: len(text) // 2], text[len(text) // 2 :]):
            file.write(part)
            file.flush()
        written = time.monotonic()
    wait(lambda: "192.168.2.74" in director.table(), 5)
    assert time.monotonic() - written < 1
    assert not [e for e in director.journal(after=after) if e.get("MESSAGE_ID") == MESSAGE_IDS["REFUSED"]]


def test_reload_of_a_good_file_returns_when_it_is_done(director: Machine, lab: Lab):
    director.write(PATH, service(TWO))
    done = director.systemctl("reload", "lbd")
    assert done.returncode == 0, done.stderr
    assert ask(lab, "client", VIP, PORT).server == "server2"


def test_reload_of_a_bad_file_fails_and_changes_nothing(director: Machine, lab: Lab):
    before, pid = director.table(), director.main_pid()
    with Conversation(lab, "client", VIP, PORT) as open_connection:
        after = director.cursor()
        director.write(PATH, BAD)
        assert director.systemctl("reload", "lbd").returncode != 0
        assert open_connection.alive()
    assert director.table() == before
    assert ask(lab, "client", VIP, PORT).server == "server1"
    unit = director.show()
    assert (unit["ActiveState"], unit["MainPID"]) == ("active", pid)
    assert PLACE in director.told()
    refused = wait(
        lambda: [
            e
            for e in director.journal(unit="lbd.service", after=after)
            if e.get("MESSAGE_ID") == MESSAGE_IDS["REFUSED"]
        ]
    )
    assert PLACE in refused[0]["MESSAGE"]
    assert (refused[0]["LBD_FILE"], refused[0]["LBD_LINE"], refused[0]["LBD_COLUMN"]) == (PATH, "5", "12")


def test_lbd_reload_of_a_bad_file_names_the_place_and_exits_78(director: Machine):
    director.write(PATH, BAD)
    done = director.run("lbd", "reload")
    assert done.returncode == 78
    assert PLACE in done.stderr
    assert "Traceback" not in done.stderr


def test_reload_of_the_mended_file_is_good_again(director: Machine, lab: Lab):
    director.write(PATH, BAD)
    assert director.systemctl("reload", "lbd").returncode != 0
    director.write(PATH, service(TWO))
    assert director.systemctl("reload", "lbd").returncode == 0
    assert ask(lab, "client", VIP, PORT).server == "server2"
    wait(lambda: "converged" in director.told())


def test_sighup_reloads_too(director: Machine, lab: Lab):
    director.write(PATH, service(TWO))
    director.must("systemctl", "kill", "--signal=HUP", "lbd")  # to every process of the unit
    wait(lambda: ask(lab, "client", VIP, PORT).server == "server2", 2)
    # The rules are there a moment before all of the reload is done.
    wait(lambda: director.show()["ActiveState"] == "active")
