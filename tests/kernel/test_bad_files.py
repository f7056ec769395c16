"""A file that is refused changes nothing: the service goes on, and everybody is told why."""

import json
import os
import re
import time

import pytest

from director import BAD, ONE, TWO
from director import service as five_lines
from lbd.lab.namespaces import wait_until
from lbd.lab.traffic import Conversation, ask
from running import VIP, at, backends, service

pytestmark = pytest.mark.kernel

GOOD = five_lines(ONE)
TWO_SERVICES = GOOD + "\n" + service(at(VIP[4], 8889), [TWO], name="second")

# Text, where the first mistake is (":line:column", "" when there is no place to point at), and a word of why.
TEXTS = {
    "not TOML": ("[[service]\n", ":1:10", "TOML"),
    "not text": (b"name = '\xff\xfe'\n", "", "UTF-8"),
    "a NUL": (GOOD.encode() + b"\0", ":6:1", "NUL"),
    "an unclosed string": (GOOD.replace('"web"', '"web'), ":2:12", "TOML"),
    "a table that is none": ("service = 3\n", ":1:11", "must be a list"),
    "a wrong type": (BAD, ":5:12", "must be a list"),
    "a number for a string": (GOOD.replace('"web"', "7"), ":2:8", "must be a string"),
    "an unknown key": (GOOD + "weigth = 1\n", ":6:1", "unknown key"),
    "a duplicate key": (GOOD + 'name = "web"\n', "", "TOML"),
    "a duplicate name": (GOOD + service(at(VIP[4], 8889), [TWO]), ":7:8", "second service of this name"),
    "a duplicate listen address": (
        GOOD + service(at(VIP[4], 8888), [TWO], name="b", interface="eth0"),
        ":8:10",
        "already the listen address",
    ),
    "port 0": (GOOD.replace(":8888", ":0"), ":3:10", "port"),
    "port 65536": (GOOD.replace(":9999", ":65536"), ":5:13", "port"),
    "a hostname": (GOOD.replace("192.168.2.73", "server1.example"), ":5:13", "address"),
    "multicast": (GOOD.replace("192.168.2.73", "224.0.0.1"), ":5:13", "multicast"),
    "a name with nft in it": (GOOD.replace('"web"', '"web; add table ip x"'), ":2:8", "name"),
    "an interface with nft in it": (GOOD.replace("eth0", 'eth0\\" accept; #'), ":4:13", "interface"),
    "a check with two headers in one": (
        GOOD + 'health = { type = "http", headers = { A = "b\\r\\nC: d" } }\n',
        ":6:43",
        "one line",
    ),
    "nothing at all": ("", "", "allow_empty"),
    "only a comment": ("# to do\n", "", "allow_empty"),
    "2,000 nested brackets": ("x = " + "[" * 2000, "", "nested"),
    "a number of 5,000 digits": (GOOD + "port = " + "9" * 5000 + "\n", "", ""),
}


def fifo(path):
    os.mkfifo(path)


def huge(path):
    with path.open("wb") as file:
        file.truncate(1 << 30)


# What stands in the place of the file, and why it is refused.
THINGS = {
    "a FIFO": (fifo, "is a FIFO"),
    "1 GiB": (huge, "is too large"),
    "a directory": (lambda path: path.mkdir(), "is a directory"),
    "nothing": (lambda _: None, "No such file"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "/dev/zero": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
}


@pytest.fixture
def serving(lab, director):
    """The daemon with a good file, a conversation through it, and the generation of the kernel's rules.

    After the test everything is as it was, and a good file ends the trouble.
    """
    _clear(director.path)
    director.apply(GOOD)
    generation = director.generation()
    with Conversation(lab, "client", VIP[4], 8888) as talk:
        yield director
        assert director.generation() == generation
        assert talk.alive()
    assert ask(lab, "client", VIP[4], 8888).server == "server1"
    assert director.process.poll() is None
    _clear(director.path)
    director.apply(five_lines(ONE, TWO))
    status = director.status()
    assert (status["state"], status["config"]["error"]) == ("converged", None)
    assert not [line for line in director.lines if "Traceback" in line]


def _clear(path):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def refused(director, place, why):
    """Whether check, reload and status agree that the file is bad, at that place and for that reason."""
    checked = director.lbd("check")
    assert checked.returncode == 78
    assert f"{director.path}{place}" in checked.stderr
    assert why in checked.stderr
    assert "Traceback" not in checked.stderr
    verdict = director.reload()
    assert (verdict["ok"], verdict["exit"]) == (False, 78)
    assert verdict["error"] == checked.stderr.rstrip("\n")
    status = director.status()
    assert status["state"] == "degraded"
    assert status["config"]["error"].startswith(f"{director.path}{place}")
    return True


@pytest.mark.parametrize(("text", "place", "why"), TEXTS.values(), ids=TEXTS)
def test_bad_text_is_refused_and_changes_nothing(serving, text, place, why):
    serving.path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refused(serving, place, why)


@pytest.mark.parametrize(("make", "why"), THINGS.values(), ids=THINGS)
def test_what_is_no_file_is_refused_and_changes_nothing(serving, make, why):
    serving.path.unlink()
    make(serving.path)
    start = time.monotonic()
    assert refused(serving, "", why)
    assert time.monotonic() - start < 5.0


def test_reload_exits_78_with_file_line_and_column(serving):
    serving.write(BAD)
    done = serving.lbd("reload")
    assert done.returncode == 78
    first, line, caret = done.stderr.splitlines()
    assert first.startswith(f"{serving.path}:5:12: ")
    assert line.endswith('backends = "not a list"')
    assert caret.endswith("^^^^^^^^^^^^")


def test_check_tells_all_mistakes_at_once(serving):
    serving.write(GOOD.replace(":8888", ":0").replace("eth0", "eth0/1").replace("name", "nmae"))
    done = serving.lbd("check", "-o", "json")
    assert done.returncode == 78
    problems = json.loads(done.stdout)["problems"]
    assert {problem["line"] for problem in problems} >= {2, 3, 4}


def test_bad_edit_is_told_in_the_journal_once_and_ends_with_the_next_good_one(serving):
    since = len(serving.lines)
    serving.write(BAD)
    serving.wait_status(lambda s: s["state"] == "degraded")
    serving.wait_line(rf"file refused, the last good file stays in force: .*{serving.path}:5:12", since=since)
    serving.reload()
    assert len([line for line in serving.lines[since:] if "file refused" in line]) == 1
    assert not [line for line in serving.lines[since:] if "applied" in line]
    serving.write(GOOD)
    serving.wait_line(rf"applied {serving.path}: nothing to do", since=since)


def test_file_that_vanishes_and_comes_back_is_found(serving):
    serving.path.unlink()
    serving.wait_status(lambda s: s["state"] == "degraded", 5.0)
    serving.write(GOOD)
    serving.wait_in_force(GOOD, 2.0)


def test_editor_that_truncates_and_writes_slowly_is_waited_for(director):
    """What is there half way is a good file, with a service less; it is not quiet for 0.3 s (core/pacer)."""
    director.apply(TWO_SERVICES)
    generation = director.generation()
    longer = TWO_SERVICES + "# the end\n"
    gaps, last = [], time.monotonic()
    with director.path.open("w") as file:
        for line in longer.splitlines(keepends=True):
            file.write(line)
            file.flush()
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
            assert not wait_until(lambda: director.generation() != generation, 0.1) or max(gaps) > 0.25
    director.wait_in_force(longer, 2.0)
    assert director.generation() == generation or max(gaps) > 0.25, "this machine was too slow a writer"


def test_half_a_file_gets_a_second_look_before_it_is_refused(director):
    director.apply(GOOD)
    longer = GOOD + "# the end\n"
    with director.path.open("w") as file:
        file.write(longer[:60])
        file.flush()
        # The first look is after 0.3 s, the second 2 s later (intent.SECOND_LOOK).
        assert not wait_until(lambda: director.status()["state"] != "converged", 1.0)
        file.write(longer[60:])
    director.wait_in_force(longer, 3.0)


def test_no_beginning_of_a_file_is_taken_for_the_file(serving):
    """Of a file with one service: one of several may be cut between two, where only waiting helps."""
    exits = set()
    for length in range(len(GOOD) - 1):
        serving.path.write_text(GOOD[:length])
        exits.add(serving.reload().get("exit"))
    assert exits == {78}


def test_start_with_a_bad_file_goes_on_with_the_last_good_one(lab, director):
    director.apply(GOOD)
    generation = director.generation()
    director.stop()
    director.start(BAD)
    status = director.status()
    assert status["state"] == "degraded"
    assert re.search(r":5:12: ", status["config"]["error"])
    assert director.generation() == generation
    assert ask(lab, "client", VIP[4], 8888).server == "server1"
    director.apply(GOOD)
    assert director.status()["state"] == "converged"


def test_start_with_a_bad_file_and_nothing_kept_waits_for_a_good_one(lab, director):
    director.stop()
    kept = director.directory / "state" / "last-good.json"
    kept.unlink()
    director.start(BAD)
    director.wait_line("file refused, nothing is in force")
    assert director.status()["state"] == "degraded"
    director.write(GOOD)
    director.wait_in_force(GOOD, 2.0)
    assert ask(lab, "client", VIP[4], 8888).server == "server1"


def test_more_than_half_of_many_services_go_only_when_that_is_meant(lab, director):
    def many(count):
        return "".join(service(at(VIP[4], 8888 + n), backends(1), name=f"s{n}") for n in range(count))

    director.apply(many(12))
    generation = director.generation()
    director.write(many(5))
    status = director.wait_status(lambda s: s["config"]["error"])
    assert status["state"] == "degraded"
    refused = director.lbd("reload")
    assert refused.returncode == 78
    assert "7 of 12 services are gone at once (s5, s6, s7, s8, s9 and 2 more)" in refused.stderr
    assert "lbd reload --yes" in refused.stderr
    assert "refused: 7 of 12 services" in director.lbd("plan").stdout
    assert ask(lab, "client", VIP[4], 8888 + 11).server == "server1"
    assert director.generation() == generation
    meant = director.lbd("reload", "--yes")
    assert meant.returncode == 0, meant.stderr
    assert ask(lab, "client", VIP[4], 8888 + 11).failure == "refused"
    assert director.status()["config"]["error"] is None
