"""Backends that are taken out by hand: `lbd drain`, `lbd maintenance`, `lbd undrain`, with a real daemon."""

import json
import re
import sys

import pytest

from lbd.lab.namespaces import wait_until
from lbd.lab.traffic import Conversation, Requester
from running import PATIENCE, VIP, answers, at, backends, service

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
ENOUGH = 30
ALL = {"server1", "server2", "server3"}
NOBODY = 65534


def web(family=4, count=3, **options):
    return service(at(VIP[family], 8888), backends(count, family), scheduler="round-robin", **options)


@pytest.fixture
def second(director):
    """The words for the second backend of IPv4, which no test leaves out of rotation."""
    director.apply(web())
    name = "web", backends(2)[1]
    yield name
    director.apply(web())
    director.lbd("undrain", *name)
    assert not overridden(director)


def said(director, *words):
    """What a command prints when it goes well."""
    done = director.lbd(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refused(director, code, *words):
    """What a command says when it ends with this code."""
    done = director.lbd(*words)
    assert (done.returncode, done.stdout) == (code, ""), (done.stdout, done.stderr)
    return done.stderr.strip()


def overridden(director):
    rows = [row for each in director.status()["services"] for row in each["backends"]]
    return {row["address"]: row["override"]["state"] for row in rows if "override" in row}


def row(director, address):
    (found,) = [
        r for each in director.status()["services"] for r in each["backends"] if r["address"] == address
    ]
    return found


@FAMILIES
def test_drained_by_hand_under_load_fails_no_request(lab, director, family):
    director.apply(web(family))
    address = backends(2, family)[1]
    since = len(director.lines)
    with Requester(lab, "client2", VIP[family], 8888) as load:
        talks = [Conversation(lab, "client", VIP[family], 8888) for _ in range(3)]
        # By the hash of a port of chance, hence missed by so many once in 10^9 runs.
        while not any(talk.server == "server2" for talk in talks) and len(talks) < 50:
            talks.append(Conversation(lab, "client", VIP[family], 8888))
        mine = next(talk for talk in talks if talk.server == "server2")
        load.wait_for(lambda tally: tally.answers.get("server2", 0) > ENOUGH)
        told = said(director, "drain", "web", address)
        # By the time of the answer it holds.
        before = load.tally().answers["server2"]
        assert told.startswith(f"web {address}: drain ("), told
        assert "left)" in told
        assert set(answers(lab, family, count=ENOUGH)) == {"server1", "server3"}
        tally = load.tally()
        load.wait_for(lambda t: t.total > tally.total + ENOUGH)
        assert all(talk.alive() for talk in talks)
        told = said(director, "undrain", "web", address)
        assert told == f"web {address}: up"
        load.wait_for(lambda t: t.answers["server2"] > before + ENOUGH)
        assert mine.alive()
        done = load.stop()
    assert not done.failures
    # One may have been under way when the rules changed.
    assert tally.answers["server2"] <= before + 1
    for talk in talks:
        talk.close()
    pattern = rf'backend {re.escape(address)} of service "web": '
    director.wait_line(pattern + r"drained, by uid 0 \(pid \d+\)", since=since)
    director.wait_line(pattern + r"as the file says again, by uid 0 \(pid \d+\)", since=since)


def test_saying_it_again_is_fine_and_says_so(director, second):
    since = len(director.lines)
    assert "since" not in said(director, "drain", *second)
    assert "since 2" in said(director, "drain", *second)
    assert said(director, "undrain", *second) == f"web {second[1]}: up"
    assert said(director, "undrain", *second) == f"web {second[1]}: up (nothing was to be undone)"
    assert sum("by uid" in line for line in director.lines[since:]) == 2


def test_maintenance_takes_no_connection_and_ends_none(lab, director, second):
    with Conversation(lab, "client", VIP[4], 8888, source_port=9001) as one:
        others = [Conversation(lab, "client", VIP[4], 8888) for _ in range(2)]
        assert {one.server, *(talk.server for talk in others)} == ALL
        assert (
            said(director, "maintenance", *second) == f"web {second[1]}: maintenance (1 connection is left)"
        )
        assert set(answers(lab, 4, count=ENOUGH)) == {"server1", "server3"}
        assert all(talk.alive() for talk in (one, *others))
        found = row(director, second[1])
        assert found["state"] == "maintenance"
        assert found["reason"].startswith("in maintenance by uid 0 at 2")
        assert found["reason"].endswith("(lbd undrain ends it)")
        for talk in others:
            talk.close()
    # One word takes the place of the other.
    assert said(director, "drain", *second).startswith(f"web {second[1]}: drain")
    assert overridden(director) == {second[1]: "drain"}


def test_the_answer_as_json(director, second):
    found = json.loads(said(director, "drain", *second, "-o", "json"))
    assert found["service"] == "web"
    assert found["backend"] == second[1]
    assert (found["state"], found["ended"]) == ("drain", False)
    assert isinstance(found["connections"], int)


def test_backend_is_meant_by_its_address_or_in_another_form(director, second):
    host, _, port = second[1].partition(":")
    assert said(director, "drain", "web", host).startswith(f"web {second[1]}: drain")
    director.apply(web() + service(at(VIP[6], 8888), backends(2, 6), name="six"))
    long = "[2001:DB8:0002:0::74]"
    assert said(director, "maintenance", "six", f"{long}:{port}").startswith(f"six {backends(2, 6)[1]}: main")
    assert said(director, "undrain", "six", long[1:-1]) == f"six {backends(2, 6)[1]}: up"


def test_unknown_ones_are_told_with_those_there_are(director, second):
    one, two, three = backends(3)
    told = refused(director, 2, "drain", "wep", two)
    assert told == 'lbd: there is no service "wep"; did you mean "web"?; there is web'
    told = refused(director, 2, "drain", "web", "192.168.2.74:9998")
    assert told.startswith('lbd: service "web" has no backend "192.168.2.74:9998"; did you mean')
    assert told.endswith(f"there are {one}, {two}, {three}")
    assert refused(director, 2, "drain", *second, "--timeout", "1m") == "lbd: --timeout goes with --wait"
    assert "is not a duration" in refused(director, 2, "drain", *second, "--wait", "--timeout", "soon")


def test_the_file_is_stronger(lab, director, second):
    two = backends(2)[1]
    told = refused_by_file(director, "drain")
    assert told == f"lbd: web {two}: state = 'drain' stands in the file; change it there"
    assert "stands in the file as well" in said(director, "drain", *second)
    director.apply(web_with(state="down"))
    told = said(director, "drain", *second)
    assert told.startswith(f"web {two}: down (state = 'down' in the file, which is stronger")
    found = row(director, two)
    assert found["state"] == "down"
    assert "drained by uid 0" in found["reason"]
    # When the file lets it, what was said holds.
    director.apply(web())
    assert row(director, two)["state"] == "drain"
    assert set(answers(lab, 4, count=ENOUGH)) == {"server1", "server3"}


def web_with(**second):
    one, two, three = backends(3)
    return service(at(VIP[4], 8888), [one, {"address": two, **second}, three], scheduler="round-robin")


def refused_by_file(director, state):
    director.apply(web_with(state=state))
    return refused(director, 1, "undrain", "web", backends(2)[1])


def test_it_is_kept_over_reloads_and_restarts(lab, director, second):
    said(director, "drain", *second)
    reason = row(director, second[1])["reason"]
    director.apply(web() + service(at(VIP[4], 8889), backends(1), name="other"))
    assert row(director, second[1])["reason"] == reason
    director.stop()
    director.start()
    assert row(director, second[1])["state"] == "drain"
    assert row(director, second[1])["reason"] == reason
    assert set(answers(lab, 4, count=ENOUGH)) == {"server1", "server3"}
    director.kill()
    director.start()
    assert overridden(director) == {second[1]: "drain"}
    assert said(director, "undrain", *second) == f"web {second[1]}: up"
    director.stop()
    director.start()
    assert not overridden(director)


def test_broken_file_of_overrides_is_told_and_ignored(director, second):
    said(director, "drain", *second)
    director.stop()
    path = director.directory / "state" / "overrides.json"
    path.write_text(path.read_text().replace('"drain"', '"down"'))
    since = len(director.lines)
    director.start()
    director.wait_line(r"overrides\.json is ignored: its checksum does not match", since=since)
    assert not overridden(director)


def test_backend_that_leaves_the_file_is_forgotten_and_that_is_told(lab, director, second):
    said(director, "drain", *second)
    # A refused file changes nothing.
    since = len(director.lines)
    director.write("[[service]]\nname = 1\n")
    director.wait_line("refused", since=since)
    assert overridden(director) == {second[1]: "drain"}
    # Nor does it keep anybody from saying something.
    assert said(director, "maintenance", *second).startswith(f"web {second[1]}: maintenance")
    said(director, "drain", *second)
    director.apply(web(count=1))
    told = f'{second[1]} of service "web" is not in the file any more, and is forgotten: drained by uid 0'
    director.wait_line(told, since=since)
    director.apply(web())
    assert row(director, second[1])["state"] == "up"
    assert set(answers(lab, 4, count=ENOUGH)) == ALL


def test_plan_knows_and_finds_nothing_to_do(director, second):
    said(director, "maintenance", *second)
    line = f"override: web {second[1]}: in maintenance by uid 0 at "
    first, *rest = said(director, "plan", "--exit-code").splitlines()
    assert first.startswith(line)
    assert rest == ["nothing to do"]
    (told,) = json.loads(said(director, "plan", "-o", "json"))["overrides"]
    assert told.startswith(f"web {second[1]}: in maintenance")
    assert "maintenance" in said(director, "status")
    # Without a daemon, too: what was said still holds.
    director.stop()
    before = director.generation()
    for command in ("plan", "apply"):
        first, *rest = said(director, command).splitlines()
        assert first.startswith(line)
        assert rest == ["nothing to do"]
    assert director.generation() == before
    director.start()


def test_only_root_and_its_own_user_may(lab, director, second):
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('control.sock');"
        "s.sendall(sys.argv[1].encode() + bytes([10])); print(s.makefile().readline())"
    )
    about = {"service": second[0], "backend": second[1]}
    # The directories above are root's alone: it begins in the right one.
    inside = f"cd {director.directory}/run && exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    for command in ("drain", "maintenance", "undrain", "drained"):
        question = json.dumps({"command": command, "arguments": about})
        argv = ["sh", "-c", f'{inside} /usr/bin/python3 -c "$0" "$1"', script, question]
        done = lab.run("director", argv)
        answer = json.loads(done.stdout)
        assert (answer["ok"], answer["kind"]) == (False, "denied")
        assert f"not for uid {NOBODY}" in answer["error"]
    assert not overridden(director)


def test_without_a_daemon_there_is_nobody_to_ask(director, second):
    director.stop()
    try:
        assert refused(director, 69, "drain", *second).startswith("lbd: no lbd runs here")
    finally:
        director.start()


def test_what_cannot_be_kept_is_done_and_told(director, second):
    state = director.directory / "state" / "overrides.json.new"
    state.mkdir()
    (state / "in-the-way").touch()
    try:
        told = refused(director, 1, "drain", *second)
        assert "but a restart forgets it" in told
        assert row(director, second[1])["state"] == "drain"
    finally:
        (state / "in-the-way").unlink()
        state.rmdir()


def test_commands_at_once_are_all_kept(lab, director, second):
    words = [("drain", second[1]), ("maintenance", backends(1)[0]), ("drain", backends(3)[2])]
    running = [
        lab.popen("director", [sys.executable, "-m", "lbd", word, "web", address]) for word, address in words
    ]
    assert [process.wait(PATIENCE) for process in running] == [0, 0, 0]
    found = {address: word for word, address in words}
    assert overridden(director) == found
    director.stop()
    director.start()
    assert overridden(director) == found
    for address in found:
        said(director, "undrain", "web", address)
    assert wait_until(lambda: not overridden(director), PATIENCE)
