"""When a look begins. Time is a number here."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.core.pacer import (
    BALANCE_REST,
    GAP_LEAST,
    GAP_MOST,
    LOOKS_APART,
    QUIET,
    RETRY_LEAST,
    RETRY_MOST,
    SETTLE,
    SETTLE_MOST,
    Pacer,
)

AUDIT = 60.0


@pytest.fixture
def pacer():
    """A pacer that has converged at time 0."""
    pacer = Pacer(AUDIT)
    pacer.trigger("start", 0.0)
    assert pacer.take(0.0) == {"start"}
    pacer.done(0.0, converged=True, drift=False)
    return pacer


def look(pacer, now=None, *, converged=True, drift=False):
    """Look when it is due, and say when and why that was."""
    now = pacer.due if now is None else now
    reasons = pacer.take(now)
    pacer.done(now, converged=converged, drift=drift)
    return now, reasons


def test_before_anything_happened_there_is_no_look():
    assert Pacer(AUDIT).due == float("inf")


@pytest.mark.parametrize("reason", ["start", "signal", "reload"])
def test_who_asks_is_answered_at_once(pacer, reason):
    pacer.trigger(reason, 10.0)
    assert look(pacer) == (10.0, {reason})


def test_nothing_is_due_before_its_time(pacer):
    pacer.trigger("file", 10.0)
    assert pacer.take(10.0) == frozenset()
    assert look(pacer) == (10.0 + SETTLE, {"file"})


def test_file_is_read_when_it_has_settled(pacer):
    for now in (10.0, 10.2, 10.4):
        pacer.trigger("file", now)
    assert look(pacer) == (10.4 + SETTLE, {"file"})
    assert pacer.due > 60.0


def test_reload_does_not_wait_for_the_file_to_settle(pacer):
    pacer.trigger("file", 10.0)
    pacer.trigger("reload", 10.1)
    assert look(pacer) == (10.1, {"reload"})


def test_file_that_never_settles_is_read_all_the_same(pacer):
    for tenth in range(100, 200):
        pacer.trigger("file", tenth / 10)
    assert pacer.due == 10.0 + SETTLE_MOST


def test_a_thousand_edits_in_ten_seconds_are_few_looks_and_the_last_is_after_the_last_edit(pacer):
    looks = []
    edits = [100 + n / 100 for n in range(1000)]
    for now in edits:
        while pacer.due <= now:
            looks.append(look(pacer)[0])
        pacer.trigger("file", now)
    looks.append(look(pacer)[0])
    assert len(looks) <= 20
    assert edits[-1] < looks[-1] <= edits[-1] + 1
    assert pacer.due == looks[-1] + AUDIT


def test_second_look_at_a_file_is_when_it_was_asked_for(pacer):
    pacer.later("file", 12.0)
    assert look(pacer) == (12.0, {"file"})


def test_edit_during_a_look_is_another_look(pacer):
    pacer.trigger("file", 10.0)
    pacer.take(10.3)
    pacer.trigger("file", 10.4)
    pacer.done(10.5, converged=True, drift=False)
    assert look(pacer) == (10.4 + SETTLE, {"file"})


@pytest.mark.parametrize("reason", ["rules", "net"])
def test_first_drift_is_met_at_once(pacer, reason):
    pacer.trigger(reason, 10.0)
    assert look(pacer, drift=True) == (10.0, {reason})


def test_look_for_anything_answers_the_drift_that_waits_too(pacer):
    pacer.trigger("rules", 10.0)
    look(pacer, drift=True)
    pacer.trigger("rules", 10.1)
    pacer.trigger("reload", 10.2)
    look(pacer)
    assert pacer.due == 10.2 + AUDIT


def test_one_who_fights_us_is_met_ever_more_slowly(pacer):
    times = []
    now = 100.0
    for _ in range(10):
        pacer.trigger("rules", now)
        now, _ = look(pacer, drift=True)
        times.append(now)
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert (gaps[0], gaps[-1]) == (GAP_LEAST, GAP_MOST)


def test_after_quiet_drift_is_met_at_once_again(pacer):
    for now in (100.0, 101.0, 103.0):
        pacer.trigger("rules", now)
        look(pacer, drift=True)
    now = 103.0 + QUIET
    pacer.trigger("rules", now)
    assert look(pacer, drift=True)[0] == now
    pacer.trigger("rules", now)
    assert pacer.due == now + GAP_LEAST


def test_a_storm_of_signals_is_answered_twenty_times_a_second(pacer):
    times = []
    for now in (10 + n / 1024 for n in range(1024)):
        pacer.trigger("signal", now)
        if pacer.take(now):
            times.append(now)
            pacer.done(now, converged=True, drift=False)
    assert len(times) == 20
    assert times[0] == 10.0
    # The last of them is not forgotten.
    assert look(pacer) == (times[-1] + LOOKS_APART, {"signal"})


def test_news_that_are_no_drift_do_not_slow_us_down(pacer):
    for now in (10.0, 10.1, 10.2):
        pacer.trigger("net", now)
        assert look(pacer) == (now, {"net"})


def test_what_did_not_converge_is_tried_again_ever_more_slowly(pacer):
    pacer.trigger("reload", 10.0)
    times = [look(pacer, converged=False)[0] for _ in range(10)]
    assert [b - a for a, b in pairwise(times)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (RETRY_LEAST, RETRY_MOST) == (1, 60)


def test_what_converged_is_not_tried_again(pacer):
    pacer.trigger("reload", 10.0)
    look(pacer, converged=False)
    pacer.trigger("reload", 10.5)
    look(pacer)
    assert pacer.due == 10.5 + AUDIT
    pacer.trigger("reload", 11.0)
    look(pacer, converged=False)
    assert pacer.due == 11.0 + RETRY_LEAST


def test_without_news_there_is_an_audit(pacer):
    assert [look(pacer) for _ in range(3)] == [(AUDIT * n, {"audit"}) for n in (1, 2, 3)]


def test_audit_can_be_changed(pacer):
    pacer.audit = 5.0
    pacer.trigger("reload", 10.0)
    look(pacer)
    assert pacer.due == 15.0


def test_look_for_who_takes_connections_is_at_once_and_waits_for_no_drift(pacer):
    pacer.trigger("rules", 10.0)
    look(pacer, drift=True)
    pacer.trigger("balance", 10.1)
    assert look(pacer) == (10.1, {"balance"})


def test_looks_for_who_takes_connections_rest_after_a_long_one(pacer):
    for now in (10.0, 30.0):
        pacer.trigger("balance", now)
        assert pacer.take(now) == {"balance"}
        # Also one that comes while it looks.
        pacer.trigger("balance", now + 0.5)
        pacer.done(now + 2.0, converged=True, drift=False)
        pacer.trigger("balance", now + 3.0)
        assert pacer.due == now + 2.0 + 2.0 * BALANCE_REST
        look(pacer)


def test_looks_for_who_takes_connections_do_not_put_the_audit_off(pacer):
    seen = set()
    for now in range(1, int(AUDIT) + 2):
        pacer.trigger("balance", float(now))
        seen |= look(pacer)[1]
        # A wake-up for what is not due yet.
        pacer.take(now + 0.5)
    assert "audit" in seen


REASONS = ("file", "signal", "reload", "rules", "net", "balance")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(REASONS), st.floats(0, 5), st.booleans(), st.booleans()), max_size=40)
)
def test_no_trigger_is_forgotten_and_none_waits_for_ever(events):
    pacer, now = Pacer(AUDIT), 0.0
    waiting = {}
    for reason, pause, converged, drift in events:
        pacer.trigger(reason, now)
        waiting.setdefault(reason, now)
        now += pause
        while pacer.due <= now:
            at = pacer.due
            reasons = pacer.take(at)
            assert reasons
            for each in reasons & waiting.keys():
                assert at - waiting.pop(each) <= max(SETTLE_MOST, GAP_MOST)
            for each in ("rules", "net"):
                waiting.pop(each, None)
            pacer.done(at, converged=converged, drift=drift)
    assert all(pacer.due <= since + GAP_MOST + SETTLE_MOST for since in waiting.values())
