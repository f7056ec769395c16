"""Incidents: what is one, what is told of it and when."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.core import entry
from lbd.core.incidents import KEPT, LINES, QUIET, TOLD_EVERY, Drift, Incidents, lines
from lbd.core.memory import decode_incidents, encode_incidents
from lbd.core.ops import FlushChain
from lbd.core.plan import Plan
from lbd.core.report import Actor

NFT = Actor(4711, "nft", "nft flush ruleset", "root")
OTHER = Actor(4712, "ansible")
START = 1000.0


def drift(*actors, operations=1, repaired=True, seconds=0.5):
    return Drift(Plan(swap=(FlushChain("leave"),) * operations), actors, seconds, repaired)


def after(*times, operations=1):
    """The incidents, and what was told, of drift at these moments."""
    incidents, told = Incidents(), []
    for at in times:
        incidents, one = incidents.note(drift(NFT, operations=operations), f"moment {at:g}", at)
        told.append(one)
    return incidents, told


def test_first_is_told_at_once_with_who_it_was():
    incidents, (told,) = after(START)
    assert told.message_id == entry.DRIFT
    assert "changed by nft (pid 4711, root: nft flush ruleset)" in told.message
    assert told.fields["LBD_ACTOR_COMMAND"] == "nft flush ruleset"
    assert told.fields["LBD_ACTOR_USER"] == "root"
    (incident,) = incidents.known
    assert (incident.began, incident.ended, incident.times) == ("moment 1000", "moment 1000", 1)


def test_those_that_follow_are_one_incident_and_told_once_a_minute():
    incidents, told = after(*(START + n for n in range(130)))
    (incident,) = incidents.known
    assert (incident.began, incident.ended, incident.times) == ("moment 1000", "moment 1129", 130)
    assert [n for n, one in enumerate(told) if one] == [0, 60, 120]
    assert told[60].fields["LBD_TIMES"] == "60"
    assert "the last of 60 times since this was told before" in told[60].message


def test_after_a_quiet_minute_it_is_another():
    incidents, told = after(START, START + QUIET)
    assert len(incidents.known) == 2
    assert all(told)


def test_what_was_not_told_is_told_when_it_is_over():
    incidents, _ = after(START, START + 1, START + 2)
    assert incidents.over(START + 1 + QUIET)[1] is None
    incidents, told = incidents.over(START + 2 + QUIET)
    assert told.message == (
        "drift has ended: repaired 2 more times, changed by nft (pid 4711, root: nft flush ruleset)"
    )
    assert incidents.over(START + 2 + QUIET) == (incidents, None)


def test_a_single_one_is_told_once():
    incidents, _ = after(START)
    assert incidents.over(START + 10 * QUIET) == (incidents, None)


def test_all_who_took_part_are_named_once():
    incidents, _ = Incidents().note(drift(NFT, OTHER), "a", START)
    incidents, _ = incidents.note(drift(OTHER, repaired=False, seconds=0.7), "b", START + 1)
    (incident,) = incidents.known
    assert incident.by == ("nft (pid 4711, root: nft flush ruleset)", "ansible (pid 4712)")
    assert (incident.repaired, incident.seconds, incident.operations) == (False, 0.7, 2)


def test_another_program_is_told_at_once():
    incidents, told = Incidents(), []
    for n, actors in enumerate([(NFT,), (NFT,), (OTHER,), (NFT, OTHER), ()]):
        incidents, one = incidents.note(drift(*actors), "m", START + n)
        told.append(bool(one))
    assert told == [True, False, True, False, False]


def test_a_thousand_deletions_are_one_incident_of_few_lines():
    incidents, (told,) = after(START, operations=1000)
    (incident,) = incidents.known
    assert (incident.operations, len(incident.what)) == (1000, LINES)
    assert "1000 operations" in told.message


@given(st.lists(st.floats(0, 300), max_size=60))
def test_however_it_goes_the_journal_has_an_entry_a_minute_and_all_are_counted(gaps):
    now, incidents, told = START, Incidents(), []
    for gap in gaps:
        now += gap
        incidents, ended = incidents.over(now)
        incidents, one = incidents.note(drift(NFT), "m", now)
        told += [(now, each) for each in (ended, one) if each]
    incidents, one = incidents.over(now + QUIET)
    told += [(now + QUIET, one)] if one else []
    counted = sum(int(one.fields["LBD_TIMES"]) for _, one in told)
    assert counted == incidents.count == len(gaps)
    assert sum(each.times for each in incidents.known) == len(gaps) or len(incidents.known) == KEPT
    # The end of one incident and the beginning of the next may be told together.
    moments = [at for at, one in told if "has ended" not in one.message]
    assert all(later - earlier > TOLD_EVERY - 1e-6 for earlier, later in pairwise(moments))


def test_they_are_kept_as_they_are():
    incidents, _ = after(START, START + 1, START + 100)
    assert decode_incidents(encode_incidents(incidents.known)) == incidents.known


@pytest.mark.parametrize(
    ("old", "new"), [('"times": 1', '"times": "x"'), ('"repaired": true', '"repaired": 1')]
)
def test_kept_ones_that_are_damaged_are_refused(old, new):
    incidents, _ = after(START)
    with pytest.raises(ValueError, match=r"."):
        decode_incidents(encode_incidents(incidents.known).replace(old, new))


def test_lines_for_a_person():
    incidents, _ = after(START, START + 1, operations=30)
    said = lines(incidents.known)
    assert said[0] == "moment 1000, 2 times until moment 1001: repaired in 500 ms"
    assert said[1] == "  by nft (pid 4711, root: nft flush ruleset)"
    assert said[2] == "  flush chain inet lbd leave"
    assert said[-1] == "  60 operations in all"
