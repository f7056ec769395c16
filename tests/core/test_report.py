"""The journal's entries: what happened in the message, and what a program looks for in the fields."""

import pytest

from lbd.core import entry, report
from lbd.core.ops import AddElements, FlushChain
from lbd.core.packet import Packet
from lbd.core.plan import Plan
from lbd.core.report import Actor
from lbd.core.source import BadFileError, Problem
from lbd.core.state import Map
from lbd.core.words import LONGEST_LINE

SERVICES = Map(("ipv4_addr", "inet_proto", "inet_service"), "verdict", 1024, counter=True)
PLAN = Plan(swap=(FlushChain("prerouting"),))
NFT, UNKNOWN = Actor(4711, "nft"), Actor(4712, "")


@pytest.mark.parametrize(
    ("actors", "words"),
    [
        ([], "unknown"),
        ([NFT], "nft (pid 4711)"),
        ([NFT, NFT], "nft (pid 4711)"),
        ([NFT, UNKNOWN], "nft (pid 4711), unknown (pid 4712)"),
        ([Actor(n, "a") for n in range(250)], ", ".join(f"a (pid {n})" for n in range(5)) + " and 245 more"),
    ],
)
def test_actors_are_named_once(actors, words):
    assert report.who(actors) == words


def test_applied_says_how_much_and_how_long():
    told = report.applied(PLAN, "/etc/lbd.toml", "abc", 0.0123)
    assert told.message == "applied /etc/lbd.toml: 1 operation in 12 ms"
    assert told.message_id == entry.APPLIED
    assert told.fields == {
        "LBD_CONFIG": "/etc/lbd.toml",
        "LBD_HASH": "abc",
        "LBD_SECONDS": "0.012",
        "LBD_OPERATIONS": "1",
        "LBD_PLAN": "flush chain inet lbd prerouting",
    }


def test_nothing_to_do_is_said_in_words():
    assert "nothing to do" in report.applied(Plan(), "/etc/lbd.toml", "abc", 0).message


def test_drift_says_who():
    told = report.drift(PLAN, [NFT, UNKNOWN], 0.5, repaired=True)
    assert told.message == (
        "drift repaired in 500 ms, changed by nft (pid 4711), unknown (pid 4712): "
        "1 operation: flush chain inet lbd prerouting"
    )
    assert (told.message_id, told.priority) == (entry.DRIFT, entry.WARNING)
    assert told.fields["LBD_ACTOR_PID"] == "4711"
    assert told.fields["LBD_ACTOR_PROCESS"] == "nft"
    assert told.fields["LBD_PLAN"] == "flush chain inet lbd prerouting"


def test_drift_that_could_not_be_undone_says_so():
    assert report.drift(PLAN, [], 0.5, repaired=False).message.startswith("drift not all repaired in 500 ms")


def test_drift_by_nobody_known_has_no_pid():
    assert report.drift(PLAN, [], 0.5, repaired=True).fields.keys() >= {"LBD_ACTOR"}
    assert "LBD_ACTOR_PID" not in report.drift(PLAN, [], 0.5, repaired=True).fields


def test_large_plan_is_cut():
    items = tuple((f"192.0.2.1 . tcp . {port}", "goto tcp4_one") for port in range(1, 1000))
    plan = Plan(swap=(AddElements("services4", SERVICES, items), *[FlushChain("x")] * 30))
    fields = report.applied(plan, "f", "h", 1).fields
    lines = fields["LBD_PLAN"].split("\n")
    assert fields["LBD_OPERATIONS"] == "31"
    assert len(lines) == report.OPERATIONS_SHOWN + 1
    assert lines[-1] == "... and 11 more"
    assert LONGEST_LINE < max(map(len, lines)) < LONGEST_LINE + 30


@pytest.mark.parametrize(
    ("kept", "words"), [(True, "the last good file stays in force"), (False, "nothing is in force")]
)
def test_refusal_has_every_problem_and_the_place_of_the_first(kept, words):
    error = BadFileError(
        [
            Problem("/etc/lbd.toml", 3, 7, "port 0 is not a port", ""),
            Problem("/etc/lbd.toml", None, None, "too large", ""),
        ]
    )
    told = report.refused(error, kept=kept)
    assert told.message.startswith(f"file refused, {words}: /etc/lbd.toml:3:7: ")
    assert "too large" in told.message
    assert (told.message_id, told.priority) == (entry.REFUSED, entry.ERROR)
    assert told.fields == {
        "LBD_FILE": "/etc/lbd.toml",
        "LBD_LINE": "3",
        "LBD_COLUMN": "7",
        "LBD_REASON": "port 0 is not a port",
    }


def test_refusal_of_a_whole_file_has_no_line():
    error = BadFileError([Problem("/etc/lbd.toml", None, None, "cannot be read", "")])
    assert report.refused(error, kept=True).fields["LBD_LINE"] == ""


def test_failure_says_why():
    told = report.failed(["one", "two"])
    assert told.message == "not converged: one; two"
    assert told.fields["LBD_REASON"] == "one"
    assert told.message_id == entry.FAILED


def test_packet_names_its_service_and_part():
    seen = Packet("in", "eth0", "198.51.100.7", "2001:db8::1", "tcp", 40000, 80, ("SYN",))
    told = report.packet(seen, "web", "request enters")
    assert told.message == "web: request enters: eth0 198.51.100.7:40000 > [2001:db8::1]:80 tcp SYN"
    assert (told.message_id, told.priority) == (entry.PACKET, entry.DEBUG)
    assert told.fields["LBD_SERVICE"] == "web"
    assert report.packet(seen, "", "packet enters").message.startswith("-: ")


@pytest.mark.parametrize(
    ("told", "message_id", "words"),
    [
        (report.started("1.0", "/etc/lbd.toml"), entry.STARTED, "lbd 1.0 started for /etc/lbd.toml"),
        (report.ready("converged", 0.25), entry.READY, "ready after 0.25 s: converged"),
        (report.stopped(), entry.STOPPED, "lbd apply --remove"),
        (report.degraded("why"), entry.DEGRADED, "why"),
        (report.worker("it ended"), entry.WORKER, "it ended; a new one is started"),
    ],
)
def test_each_thing_that_happens_has_its_id(told, message_id, words):
    assert told.message_id == message_id
    assert words in told.message
