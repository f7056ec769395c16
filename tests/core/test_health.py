"""The state machine of a health check: its table, and what holds of every sequence of results."""

from dataclasses import replace
from itertools import groupby, pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.core import health
from lbd.core.health import CHANGING, IN_ROTATION, STEPS, TRANSITIONS, Belief, Phase, Result
from lbd.core.probes import Timing

PHASES = get_args(Phase)
PASS, FAIL = Result(passed=True), Result(passed=False, reason="connection refused")

timings = st.builds(
    Timing, rise=st.integers(1, 5), fall=st.integers(1, 5), start=st.sampled_from(("up", "down"))
)
sequences = st.lists(st.booleans(), min_size=1, max_size=60)


def beliefs(passed, timing):
    """What is believed before the first result and after each, a second apart."""
    found = [health.first(timing, 0.0)]
    for now, each in enumerate(passed, 1):
        found.append(health.step(found[-1], PASS if each else FAIL, timing, float(now)))
    return found


def run_before(passed, index):
    """How many of the same results in a row end at `index`."""
    length = 1
    while index >= length and passed[index - length] == passed[index]:
        length += 1
    return length


# The table.


def test_every_phase_has_a_row_for_either_result():
    assert set(TRANSITIONS) == {(phase, passed) for phase in PHASES for passed in (True, False)}


@pytest.mark.parametrize(("phase", "passed"), TRANSITIONS)
def test_row_goes_where_its_result_says(phase, passed):
    enough, until_then = TRANSITIONS[phase, passed]
    assert enough == ("up" if passed else "down")
    assert {enough, until_then} <= set(PHASES) - {"new up", "new down"}
    # Until there have been enough, one stays where one is; but the first result decides alone.
    stays = (until_then in IN_ROTATION) == (phase in IN_ROTATION)
    assert stays or phase in ("new up", "new down")
    assert (until_then in CHANGING) == (not phase.startswith("new") and passed != (phase in IN_ROTATION))


# Sequences.


@given(sequences, timings)
def test_first_result_decides_alone(passed, timing):
    before, after = beliefs(passed, timing)[:2]
    assert before.up == (timing.start == "up")
    assert after.phase == ("up" if passed[0] else "down")


@given(sequences, timings)
def test_down_takes_fall_failures_in_a_row_and_up_takes_rise(passed, timing):
    found = beliefs(passed, timing)[1:]
    for index, (before, after) in enumerate(pairwise(found), 1):
        needed = timing.rise if passed[index] else timing.fall
        # The first result counts for one in the state that it decided, which it is not against.
        enough = run_before(passed, index) >= needed
        if before.up != passed[index]:
            assert (after.up == passed[index]) == enough
        else:
            assert after.up == before.up


@given(st.booleans(), st.integers(1, 60), timings)
def test_alternating_results_never_flip_where_one_is_not_enough(first, number, timing):
    timing = replace(timing, rise=max(2, timing.rise), fall=max(2, timing.fall))
    passed = [first ^ bool(n % 2) for n in range(number)]
    assert len({belief.up for belief in beliefs(passed, timing)[1:]}) == 1


@given(sequences, timings)
def test_count_is_of_those_against_it_and_bounded(passed, timing):
    for belief in beliefs(passed, timing):
        most = timing.fall if belief.up else timing.rise
        assert (0 < belief.count < most) if belief.phase in CHANGING else belief.count == 0


@given(sequences, timings)
def test_since_is_when_it_last_turned(passed, timing):
    found = beliefs(passed, timing)
    turned = 0.0
    for now, (before, after) in enumerate(pairwise(found), 1):
        turned = float(now) if before.up != after.up else turned
        assert after.since == turned


@given(sequences, timings)
def test_came_up_is_only_after_a_check_had_found_it_down(passed, timing):
    found = beliefs(passed, timing)
    runs = [(up, list(group)) for up, group in groupby(found[1:], key=lambda belief: belief.up)]
    for index, (up, group) in enumerate(runs):
        for belief in group:
            if up and index:
                assert belief.came_up == belief.since
            if index == 0:
                assert belief.came_up is None


@given(sequences, timings)
def test_reason_of_one_that_is_down_is_why_it_is(passed, timing):
    for belief in beliefs(passed, timing)[1:]:
        if not belief.up:
            assert belief.reason == FAIL.reason
        elif belief.phase == "up":
            assert not belief.reason


@given(st.sampled_from(PHASES), st.booleans())
def test_result_that_says_nothing_new_makes_nothing_new(phase, passed):
    belief = Belief(phase, 1.0)
    after = health.step(belief, Result(passed), Timing(), 2.0)
    assert (after is belief) == (phase == ("up" if passed else "down"))


# Agents.


def test_what_an_agent_does_not_say_stays():
    belief = Belief("up", 0.0)
    belief = health.step(belief, Result(passed=True, weight=30, agent="drain"), Timing(), 1.0)
    belief = health.step(belief, PASS, Timing(), 2.0)
    assert (belief.weight, belief.agent, belief.since) == (30, "drain", 0.0)
    assert health.said(belief) == "drain"
    belief = health.step(belief, Result(passed=True, weight=100, agent=""), Timing(), 3.0)
    assert (belief.weight, belief.agent) == (100, "")
    assert health.said(belief) == "up"


# Slow start.


@given(st.integers(0, 100), st.floats(0.1, 1000), st.floats(0, 1e6), st.lists(st.floats(0, 1.5), max_size=20))
def test_slow_start_grows_to_what_the_agent_says(weight, slow_start, came_up, moments):
    belief = Belief("up", came_up, came_up=came_up, weight=weight)
    seen = [health.portion(belief, slow_start, came_up + m * slow_start) for m in sorted(moments)]
    assert seen == sorted(seen)
    assert all((1 if weight else 0) <= portion <= weight for portion in seen)
    assert health.portion(belief, slow_start, came_up + slow_start * 1.001) == weight


def test_slow_start_goes_in_steps_and_each_is_announced():
    belief, seen, now = Belief("up", 100.0, came_up=100.0), [], 100.0
    while now is not None:
        seen.append((now, health.portion(belief, 5.0, now)))
        now = health.next_step(belief, 5.0, now)
    assert seen == [(100.0 + n / 2, min(100, 10 * (n + 1))) for n in range(STEPS + 1)]


def test_one_that_was_up_all_the_time_has_its_whole_weight():
    assert health.portion(Belief("up", 5.0), 10.0, 5.0) == 100
    assert health.next_step(Belief("up", 5.0), 10.0, 5.0) is None
    assert health.portion(Belief("up", 5.0, came_up=5.0), 0.0, 5.0) == 100
    assert health.next_step(Belief("up", 5.0, came_up=5.0), 0.0, 5.0) is None


# What another check, or a time without checks, leaves.


def test_after_maintenance_the_first_check_decides_and_it_starts_slowly():
    resumed = health.resumed(Belief("failing", 1.0, 2, "slow"), 9.0)
    assert (resumed.phase, resumed.since, resumed.count, resumed.came_up) == ("new up", 1.0, 0, 9.0)
    assert health.step(resumed, FAIL, Timing(), 10.0).phase == "down"
    assert health.step(resumed, PASS, Timing(), 10.0).came_up == 9.0


def test_after_maintenance_one_that_was_down_has_to_rise():
    resumed = health.resumed(Belief("passing", 1.0, 1, "gone"), 9.0)
    assert (resumed.phase, resumed.count, resumed.reason) == ("down", 0, "gone")
    assert not health.step(resumed, PASS, Timing(), 10.0).up


@pytest.mark.parametrize("phase", PHASES)
def test_other_check_of_the_same_backend_begins_with_what_was_believed(phase):
    before = Belief(phase, 3.0, 1, "why", weight=20, agent="drain")
    after = health.carried_over(before)
    assert after.up == before.up
    assert (after.since, after.weight, after.agent) == (3.0, 100, "")
    assert health.step(after, FAIL, Timing(), 4.0).phase == "down"
    assert health.step(after, PASS, Timing(), 4.0).phase == "up"
