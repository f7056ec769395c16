"""When checks are due: spread, a little early, never late, and not more at once than may be."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lbd.core.agenda import JITTER, Agenda, watch
from lbd.core.health import Belief, Check, Target
from lbd.core.probes import TcpProbe, Timing

UP, FAILING = Belief("up", 0.0), Belief("failing", 0.0, 1)


def watches(number, timing=Timing()):  # noqa: B008 - a value
    return [watch(Check(Target(TcpProbe(), f"192.0.2.{n}", 80), timing), UP) for n in range(number)]


def run(agenda, until, takes=lambda _: 0.0, tick=0.001):
    """Carry checks out, each in as long as `takes` says; return when each began."""
    began, ends, now = defaultdict(list), [], 0.0
    while now < until:
        for end, each in [pair for pair in ends if pair[0] <= now]:
            ends.remove((end, each))
            agenda.ended(each, now)
        for each in agenda.take(now, 1000):
            began[each].append(now)
            ends.append((now + takes(each), each))
        assert len(ends) == agenda.under_way <= agenda.most
        now += tick
    return began


def gaps(times):
    return [later - earlier for earlier, later in pairwise(times)]


def test_next_check_comes_an_interval_later_or_a_little_earlier():
    agenda = Agenda(100)
    agenda.add(new := watches(20, Timing(interval=0.5)), 0.0)
    # The time that a check takes is not added.
    began = run(agenda, 10.0, lambda _: 0.1)
    for each in new:
        # The second may come earlier, by which they are spread.
        first, *others = gaps(began[each])
        assert 0.1 <= first <= 0.502
        assert all(0.5 * (1 - JITTER) <= gap <= 0.502 for gap in others)
        assert len(set(map(round_up, others))) > 5
    assert not agenda.due > 10.5


def round_up(seconds):
    return round(seconds * 1000)


def test_few_are_checked_at_once_and_many_within_an_interval():
    agenda = Agenda(100)
    agenda.add(watches(1), 5.0)
    assert 5.0 <= agenda.due <= 5.001
    agenda = Agenda(100_000)
    agenda.add(new := watches(5000), 0.0)
    assert len(agenda.take(2.0, 100_000)) == len(new)
    agenda = Agenda(100_000)
    agenda.add(watches(5000), 0.0)
    # Not a burst: a tenth of the interval has about a tenth of them.
    assert 400 < len(agenda.take(0.2, 100_000)) < 600


def test_later_they_are_spread_over_the_interval():
    agenda = Agenda(1000)
    agenda.add(new := watches(200), 0.0)
    began = run(agenda, 12.0)
    parts = Counter(int(times[-1] % 2.0 / 0.2) for times in began.values())
    assert len(parts) == 10
    assert max(parts.values()) < len(new) / 4


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 40))
def test_never_more_at_once_than_may_be_and_everybody_gets_a_turn(number, most, takes):
    agenda = Agenda(most)
    agenda.add(new := watches(number, Timing(interval=0.1, fast=0.1)), 0.0)
    began = run(agenda, 3.0, lambda _: takes / 1000)
    counts = [len(began[each]) for each in new]
    assert min(counts) > 0
    # Who waits comes in turn: nobody twice as often as somebody else, but for the beginning.
    assert max(counts) <= 2 * min(counts) + 2


def test_slow_target_is_checked_less_often_and_costs_nobody_else():
    agenda = Agenda(100)
    slow, *others = watches(10, Timing(interval=0.2, fast=0.2))
    agenda.add([slow, *others], 0.0)
    began = run(agenda, 6.0, lambda each: 1.0 if each is slow else 0.001)
    assert all(gap >= 1.0 for gap in gaps(began[slow]))
    assert len(began[slow]) >= 5
    for each in others:
        assert max(gaps(began[each])) <= 0.203


def test_fast_interval_is_for_what_may_be_about_to_change():
    agenda = Agenda()
    (each,) = watches(1, Timing(interval=10.0, fast=1.0))
    agenda.add([each], 0.0)
    agenda.take(1.0, 1)
    agenda.ended(each, 1.0)
    first = agenda.due
    assert 1.0 <= first <= 11.0
    each.belief = FAILING
    agenda.take(first, 1)
    agenda.ended(each, first)
    assert 0.95 <= agenda.due - first <= 1.0
    each.belief = UP
    agenda.take(now := agenda.due, 1)
    agenda.ended(each, now)
    assert 9.5 <= agenda.due - now <= 10.0


def test_dropped_one_does_not_come_again_and_leaves_its_place():
    agenda = Agenda(1)
    one, two = watches(2)
    agenda.add([one, two], 0.0)
    (taken,) = agenda.take(1.0, 5)
    assert agenda.due is None  # one has to end first
    agenda.drop(taken)
    (other,) = agenda.take(1.0, 5)
    assert {taken, other} == {one, two}
    agenda.ended(other, 1.0)
    agenda.drop(other)
    assert agenda.due is None
    assert agenda.under_way == 0
    # Back again, it counts once.
    agenda.add([one], 2.0)
    agenda.drop(one)
    agenda.add([one], 3.0)
    assert agenda.take(9.0, 5) == [one]


def test_order_is_that_of_due_times():
    agenda = Agenda(1)
    agenda.add(new := watches(50), 0.0)
    taken = []
    while (due := agenda.due) is not None:
        (each,) = agenda.take(100.0, 1)
        taken.append(due)
        agenda.drop(each)
    assert len(taken) == len(new)
    assert taken == sorted(taken)


def test_digest_is_that_of_the_check_and_of_no_other():
    check = Check(Target(TcpProbe(), "192.0.2.1", 80), Timing())
    others = [
        replace(check, timing=Timing(interval=3.0)),
        replace(check, target=Target(TcpProbe(), "192.0.2.2", 80)),
        replace(check, target=Target(TcpProbe(), "192.0.2.1", 80, "192.0.2.9")),
        replace(check, target=Target(TcpProbe(send=b"x"), "192.0.2.1", 80)),
    ]
    assert watch(check, UP).digest == watch(replace(check), UP).digest
    assert len({watch(each, UP).digest for each in [check, *others]}) == 5
