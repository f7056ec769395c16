"""Shares of slots: exact while they are few, close when there are too many."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.core.slots import MOST, reduce, share

weights = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 65535))
small = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9))


def test_weights_are_divided_by_what_they_have_in_common():
    assert reduce({"a": 300, "b": 200}) == {"a": 3, "b": 2}
    assert reduce({"a": 7}) == {"a": 1}


def test_weight_zero_takes_no_slot():
    assert reduce({"a": 0, "b": 4}) == {"b": 1}
    assert reduce({"a": 0}) == {}
    assert share({}) == []


@settings(deadline=None)
@given(weights)
def test_every_weight_has_a_slot_and_all_have_few(given_weights):
    live = {name for name, weight in given_weights.items() if weight}
    slots = reduce(given_weights)
    assert slots.keys() == live
    assert all(count >= 1 for count in slots.values())
    assert sum(slots.values()) <= MOST + len(live)


@settings(deadline=None)
@given(small)
def test_small_weights_are_exact(given_weights):
    slots = reduce(given_weights)
    names = list(slots)
    assert all(given_weights[a] * slots[b] == given_weights[b] * slots[a] for a in names for b in names)


@settings(deadline=None)
@given(weights)
def test_large_weights_are_close(given_weights):
    slots, total = reduce(given_weights), sum(given_weights.values())
    # One slot of rounding for each, and each of those of at least one slot takes from the others.
    bound = (len(slots) + 1) / MOST
    count = sum(slots.values())
    assert all(abs(slots[n] / count - given_weights[n] / total) <= bound for n in slots)


@settings(deadline=None)
@given(small)
def test_each_has_its_slots_and_no_more(given_weights):
    assert Counter(share(given_weights)) == reduce(given_weights)


@settings(deadline=None)
@given(small)
def test_turns_are_spread_evenly(given_weights):
    slots, reduced = share(given_weights), reduce(given_weights)
    for name, weight in reduced.items():
        # In any stretch of turns a name has its share, give or take the others that come at the same time.
        for end in range(len(slots)):
            had = slots[: end + 1].count(name)
            assert abs(had - (end + 1) * weight / len(slots)) <= len(reduced)


def test_heavy_one_does_not_get_its_turns_in_a_row():
    assert share({"a": 3, "b": 1, "c": 1}) == ["a", "a", "b", "c", "a"]
    assert share({"a": 1, "b": 1}) == ["a", "b"]
    assert share({"a": 4, "b": 2}) == ["a", "b", "a"]
