"""What follows from checks: for the rules, for the journal, and for the next file or daemon."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from lbd.core import entry, report, vitals
from lbd.core.bulletin import EACH, WITHIN, Bulletin
from lbd.core.health import Belief
from lbd.core.memory import decode_beliefs, encode_beliefs
from lbd.core.observed import Observed, Override
from lbd.core.probes import Health, TcpProbe, Timing
from lbd.core.report import Turn
from lbd.core.roster import Roster, roster
from lbd.core.settings import Backend, Config, Listen, Ports, Service

LISTEN = Listen(ip_address("192.0.2.1"), Ports(80, 80))
HEALTH = Health(TcpProbe())
ONE, TWO, THREE = (Backend(ip_address(f"10.0.0.{n}"), Ports(80, 80)) for n in (1, 2, 3))


def service(name="web", backends=(ONE, TWO, THREE), health=HEALTH):
    return Service(name, (LISTEN,), backends, health=health)


def of(*services, before=Roster(), kept=None):  # noqa: B008 - a value
    return roster(Config(services=services), before, kept or {}, 1.0)


def believing(*beliefs, health=HEALTH):
    """A roster of one service whose backends are believed to be what is given."""
    found = of(service(health=health))
    for row, belief in zip(found.rows, beliefs, strict=True):
        row.watch.belief = belief
    return found


UP, DOWN = Belief("up", 0.0), Belief("down", 0.0, reason="connection refused")
NAMES = [("web", f"10.0.0.{n}:80") for n in (1, 2, 3)]


# For the rules.


def test_down_is_dead_and_up_is_not():
    found = vitals.merged(believing(UP, DOWN, Belief("passing", 0.0, 1)).rows, Observed(offloads=True), 1.0)
    assert found == Observed(offloads=True, dead=frozenset(NAMES[1:]))


def test_agent_says_what_becomes_of_its_backend_unless_an_operator_did():
    operators = {NAMES[1]: Override("maintenance", "by root")}
    rows = believing(
        replace(UP, agent="drain", weight=40), replace(UP, agent="drain"), replace(DOWN, agent="maintenance")
    ).rows
    found = vitals.merged(rows, Observed(overrides=operators), 1.0)
    assert found.overrides == {NAMES[0]: Override("drain", "its agent says drain"), **operators}
    assert found.portions == {NAMES[0]: 40}
    assert found.dead == {NAMES[2]}
    assert vitals.resting(found) == {NAMES[1]}


def test_slow_start_is_of_the_service():
    slow = replace(HEALTH, slow_start=10.0)
    found = of(service(), service("slow", health=slow))
    assert len(found.watches) == 3
    found.rows[0].watch.belief = replace(UP, came_up=100.0)
    assert vitals.merged(found.rows, Observed(), 102.0).portions == {("slow", "10.0.0.1:80"): 30}
    assert vitals.step_due(found.rows, 102.0) == 103.0
    assert vitals.step_due(found.rows[:3], 102.0) is None
    found.rows[0].watch.belief = replace(DOWN, came_up=100.0)
    assert vitals.step_due(found.rows, 102.0) is None


@pytest.mark.parametrize(
    ("panic", "down", "panics"),
    [(0, 3, False), (50, 3, True), (50, 2, True), (50, 1, False), (34, 2, True), (33, 2, False)],
)
def test_panic_is_below_the_threshold(panic, down, panics):
    health = replace(HEALTH, panic=panic)
    rows = believing(*[DOWN] * down, *[UP] * (3 - down), health=health).rows
    found = vitals.merged(rows, Observed(), 1.0)
    config = Config(services=(service(health=health),))
    assert vitals.panicking(config, found) == ({"web": (down, 3)} if panics else {})


# For the next file.


def test_services_share_the_checks_of_a_backend():
    found = of(service("a"), service("b"), service("c", (ONE,), replace(HEALTH, timing=Timing(interval=9.0))))
    assert len(found.rows) == 7
    assert len(found.watches) == 4
    shared = found.rows[0].watch
    assert [row.name for row in found.users[shared]] == [("a", "10.0.0.1:80"), ("b", "10.0.0.1:80")]


def test_check_that_was_there_goes_on():
    before = of(service())
    after = of(service("other", (TWO, ONE)), before=before)
    assert [row.watch for row in after.rows] == [before.rows[1].watch, before.rows[0].watch]
    assert before.left_by(after) == [before.rows[2].watch]
    assert not after.left_by(after)


def test_other_check_takes_over_who_is_up():
    before = believing(UP, DOWN, UP)
    after = of(service(health=replace(HEALTH, timing=Timing(interval=9.0))), before=before)
    assert [row.watch.belief.phase for row in after.rows] == ["new up", "new down", "new up"]
    assert after.rows[1].watch.belief.reason == DOWN.reason
    assert len(before.left_by(after)) == 3


def test_what_was_kept_is_believed():
    digest = of(service()).rows[1].watch.digest
    found = of(service(), kept={digest: DOWN, "another": DOWN})
    assert [row.watch.belief.phase for row in found.rows] == ["new up", "down", "new up"]


def test_maintenance_by_the_file_has_no_check():
    found = of(service(backends=(ONE, replace(TWO, state="maintenance"))))
    assert [row.name for row in found.rows] == [NAMES[0]]


def test_shared_check_rests_when_nobody_wants_it():
    found = of(service("a"), service("b", (ONE,)))
    one, two = found.rows[0].watch, found.rows[1].watch
    assert found.at_rest(frozenset()) == set()
    assert found.at_rest({("a", "10.0.0.1:80"), ("a", "10.0.0.2:80")}) == {two}
    assert found.at_rest({("a", "10.0.0.1:80"), ("b", "10.0.0.1:80"), ("x", "y")}) == {one}


# For the next daemon.

BELIEFS = {
    "ab": Belief("failing", 12.25, 2, "no answer within 1s", 3.5, 40, "drain"),
    "cd": Belief("new up", 0.0),
}


def test_beliefs_are_read_as_they_were_written():
    assert decode_beliefs(encode_beliefs("boot", BELIEFS)) == ("boot", BELIEFS)


@pytest.mark.parametrize(
    "row",
    [
        [],
        ["up"],
        ["gone", 1.0, 0, "", None, 100, ""],
        ["up", "x", 0, "", None, 100, ""],
        ["up", 1.0, 0, "", None, 100, "x"],
        {},
        "up",
    ],
    ids=str,
)
def test_what_is_no_belief_is_refused(row):
    text = encode_beliefs("boot", BELIEFS)

    class Other:
        phase, since, count, reason, came_up, weight, agent = row if len(row) == 7 else [row] * 7

    with pytest.raises(ValueError, match="cannot be read"):
        decode_beliefs(encode_beliefs("boot", {"ab": Other}))
    assert decode_beliefs(text)


# For the journal.


def turn(n=1, after="down"):
    return Turn("web", f"10.0.0.{n}:80", "up", after, "connection refused", 12.3456)


def test_turn_is_told_with_its_facts():
    told = report.turned(turn())
    message = 'backend 10.0.0.1:80 of service "web": up -> down: connection refused (after 12.3 s)'
    assert told.message == message
    assert (told.message_id, told.priority) == (entry.HEALTH, entry.WARNING)
    assert told.fields == {
        "LBD_SERVICE": "web",
        "LBD_BACKEND": "10.0.0.1:80",
        "LBD_FROM": "up",
        "LBD_TO": "down",
        "LBD_REASON": "connection refused",
        "LBD_SECONDS": "12.346",
    }
    assert report.turned(turn(after="up")).priority == entry.NOTICE


def test_what_a_target_says_is_one_line_of_what_can_be_shown():
    said = report.turned(replace(turn(), reason="a\nb\x1b[31m" + "x" * 5000)).message
    assert said.isprintable()
    assert len(said) < 500


def test_few_are_told_each_and_the_rest_as_a_sum():
    bulletin = Bulletin()
    told = [bulletin.tell(turn(n), 5.0 + n / 100) for n in range(EACH)]
    assert all(told)
    assert bulletin.due is None
    assert bulletin.tell(turn(after="up"), 5.5) is None
    assert bulletin.tell(replace(turn(), service="other"), 5.9) is None
    assert bulletin.due == 5.0 + WITHIN
    summed = bulletin.sum()
    message = '2 more backends within a second: 1 -> down, 1 -> up; of service "web", "other"'
    assert summed.message == message
    assert (summed.message_id, summed.priority) == (entry.HEALTH, entry.WARNING)
    assert bulletin.due is None
    assert bulletin.tell(turn(), 6.1)


def test_those_that_come_slowly_are_all_told():
    bulletin = Bulletin()
    assert all(bulletin.tell(turn(), n * WITHIN / EACH * 1.01) for n in range(100))


def test_panic_is_loud():
    told = report.panic("web", 2, 3, 50)
    assert told.message == (
        'service "web" fails open: 2 of 3 backends are down, which leaves less than panic = 50 % up, '
        "and all are used"
    )
    assert (told.message_id, told.priority) == (entry.PANIC, entry.ERROR)
    assert report.panic_over("web").priority == entry.NOTICE
