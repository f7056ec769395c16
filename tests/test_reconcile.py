"""From any state to any other, on a host in memory: whatever is cut or refused on the way."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from fakes import SYSCTLS, asked_for, clone, hosts, state, wanted
from lbd.core.desired import desired
from lbd.core.ops import AddRoute
from lbd.core.plan import Plan
from lbd.core.settings import Config
from lbd.core.state import Memory, Route
from lbd.reconcile import Outcome, RefusedError, plan, reconcile, remove
from lbd.testing import FakeHost
from strategies import desireds


class CutError(Exception):
    """The power went out."""


def fault(at, error):
    """Return a `FakeHost.fail` that raises `error` at step `at`, and the list that counts the steps."""
    steps = []

    def fail(what):
        steps.append(what)
        if len(steps) - 1 == at:
            raise error

    return fail, steps


def steps_to(host, wish):
    trial = clone(host)
    trial.fail, steps = fault(None, None)
    reconcile(trial, wish)
    return len(steps)


@settings(max_examples=150, deadline=None)
@given(hosts(), desireds(), desireds())
def test_a_then_b_is_b(host, a, b):
    before, expected = state(clone(host)), wanted(host, b)
    reconcile(host, a)
    outcome = reconcile(host, b)
    assert not outcome.refused
    assert not outcome.left
    assert state(host) == expected
    assert not plan(host, b)

    assert remove(host).converged
    assert state(host) == before
    assert host.memory == Memory()


@settings(max_examples=100, deadline=None)
@given(desireds())
def test_the_table_is_what_the_file_asks_for(wish):
    host = FakeHost(dict.fromkeys(SYSCTLS, "0"))
    outcome = reconcile(host, wish)
    assert outcome.problems == (*wish.unsafe, *wish.lacking)
    assert state(host)[:2] == (asked_for(wish.table), asked_for(wish.ingress))
    tables = [table for table in (wish.table, wish.ingress) if table]
    assert outcome.elements == sum(len(items) for table in tables for items in table.elements.values())
    assert host.addresses == dict.fromkeys(wish.addresses, True)
    assert host.routes.keys() == wish.routes.keys()
    assert host.rules == dict.fromkeys(wish.rules, True)
    assert host.sysctls.items() >= wish.sysctls.items()


@settings(max_examples=60, deadline=None)
@given(hosts(), desireds(), desireds())
def test_cut_anywhere_it_ends_in_b_and_can_be_taken_away(host, a, b):
    before, expected = state(clone(host)), wanted(host, b)
    reconcile(host, a)
    for cut in range(steps_to(host, b)):
        broken = clone(host)
        broken.fail, _ = fault(cut, CutError())
        with pytest.raises(CutError):
            reconcile(broken, b)
        broken.fail = lambda _: None

        gone = clone(broken)
        assert remove(gone).converged
        assert state(gone) == before

        assert not reconcile(broken, b).refused
        assert state(broken) == expected
        assert not plan(broken, b)
        assert remove(broken).converged
        assert state(broken) == before


@settings(max_examples=60, deadline=None)
@given(hosts(), desireds(), desireds())
def test_what_is_refused_is_told_and_done_later(host, a, b):
    before, expected = state(clone(host)), wanted(host, b)
    reconcile(host, a)
    for step in range(steps_to(host, b)):
        refusing = clone(host)
        refusing.fail, _ = fault(step, RefusedError("not now"))
        outcome = reconcile(refusing, b)
        assert outcome.refused
        assert not outcome.converged
        refusing.fail = lambda _: None

        assert not reconcile(refusing, b).refused
        assert state(refusing) == expected
        assert not plan(refusing, b)
        assert remove(refusing).converged
        assert state(refusing) == before


@settings(max_examples=60, deadline=None)
@given(hosts(), desireds())
def test_a_refused_removal_is_told_and_done_later(host, a):
    before = state(clone(host))
    reconcile(host, a)
    trial = clone(host)
    trial.fail, steps = fault(None, None)
    remove(trial)
    for step in range(len(steps)):
        refusing = clone(host)
        refusing.fail, _ = fault(step, RefusedError("not now"))
        assert remove(refusing).refused
        refusing.fail = lambda _: None
        assert remove(refusing).converged
        assert state(refusing) == before


def note(host, wish):
    """Packets note all that they may, and a client that went where nobody sends one."""
    for learned in wish.table.learned:
        for listen, known in learned.allowed.items():
            wrong = " . ".join(("10.9.9.9", "9")[: len(learned.maps)])
            for client, data in enumerate([*sorted(known), wrong]):
                for name, part in zip(learned.maps, data.split(" . "), strict=True):
                    host.ruleset.elements[name][f"{listen} . {client}"] = part


def notes(host, learned):
    """What is noted as a whole: listen address and client to where the client went."""
    parts = [host.ruleset.elements.get(name, {}) for name in learned.maps]
    whole = set(parts[0]).intersection(*parts[1:])
    return {key: " . ".join(part[key] for part in parts) for key in whole}


def right(noted, learned):
    return {key: data for key, data in noted.items() if data in learned.allowed.get(key.split(" . ")[0], ())}


@settings(max_examples=150, deadline=None)
@given(desireds(), desireds())
def test_what_packets_noted_stays_as_long_as_it_is_true(a, b):
    host = FakeHost(dict.fromkeys(SYSCTLS, "0"))
    reconcile(host, a)
    note(host, a)
    before = {learned.maps: notes(host, learned) for learned in a.table.learned}
    assert not reconcile(host, b).left
    for learned in b.table.learned:
        assert notes(host, learned) == right(before.get(learned.maps, {}), learned)
    assert not plan(host, b)
    # Nobody looks at them without need.
    note(host, b)
    assert not reconcile(host, b, thorough=False).plan
    assert not reconcile(host, b).left
    for learned in b.table.learned:
        assert notes(host, learned) == right(notes(host, learned), learned)


def test_hand_of_somebody_else_is_not_taken_for_ours():
    """They change a rule just after we wrote it, before we read what the kernel made of it."""
    host, wish = FakeHost(), desired(Config())
    reconcile(host, wish)
    expected, commit = state(clone(host)), host.commit

    def commit_and_they_too(ops):
        generation = commit(ops)
        host.ruleset.chains["prerouting"].rules[0] += " comment"
        host.generation += 1
        return generation

    host.ruleset.chains["prerouting"].rules.clear()
    host.commit = commit_and_they_too
    assert reconcile(host, wish).left
    host.commit = commit
    assert plan(host, wish)
    assert reconcile(host, wish).converged
    assert state(host) == expected


def test_what_an_earlier_look_had_left_is_no_drift():
    left = ("add route 10.9.0.0/16 via 192.0.2.1",)
    again = Outcome(Plan(before=(AddRoute(Route("10.9.0.0/16", "192.0.2.1")),)), undone=left)
    assert not again.goes_beyond(left)
    assert again.goes_beyond(())
    assert again.is_back_to(left)
    assert not again.is_back_to(())
    assert replace(again, undone=()).is_back_to(())
