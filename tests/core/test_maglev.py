"""Maglev's promises, and the kernel's hash."""

from collections import Counter
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.core import maglev

NAMES = [f"10.0.0.{n} . 8080" for n in range(1, 11)]


def moved(before, after, gone):
    """The slots that changed hands although their backend is still there."""
    return sum(old not in (new, gone) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (4, 3918539529),
        (8, 2116911235),
        (12, 3210818700),
        (16, 3515174110),
        (20, 2510217676),
        (24, 370230988),
        (36, 891631777),
        # One field alone is as long as it is: a protocol, a port.
        (1, 498748500),
        (2, 595268615),
        (3, 839329005),
        (5, 2134025580),
        (13, 2298576037),
        (22, 2923836602),
    ],
)
def test_jhash_is_the_kernels(length, expected):
    assert maglev.jhash(bytes((i * 37 + 11) % 256 for i in range(length)), 1) == expected


def test_jhash_depends_on_the_seed():
    assert maglev.jhash(b"abcd", 1) != maglev.jhash(b"abcd", 2)


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(0, 2**32 - 1))
def test_jhash_is_32_bits_of_any_key(key, seed):
    assert 0 <= maglev.jhash(key, seed) < 1 << 32


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
@pytest.mark.parametrize("size", maglev.SIZES)
def test_slot_is_the_hash_scaled_to_the_table(address, size):
    source = ip_address(address)
    # The registers of nft: the address, the port in network order, two bytes of padding.
    key = source.packed + (40000).to_bytes(2, "big") + bytes(2)
    assert maglev.slot(size, source, 40000) == maglev.jhash(key, maglev.SEED) * size // 2**32


def test_slots_are_hit_evenly():
    hits = Counter(maglev.slot(251, ip_address("192.0.2.7"), port) for port in range(1024, 1024 + 25100))
    assert len(hits) == 251
    # 100 each is expected; 5 standard deviations.
    assert max(hits.values()) < 150
    assert min(hits.values()) > 50


@pytest.mark.parametrize("size", maglev.SIZES)
def test_sizes_are_prime_and_fit_an_index(size):
    assert all(size % n for n in range(2, int(size**0.5) + 1))
    assert size < 1 << 16


@pytest.mark.parametrize(
    ("weights", "size"), [(1, 251), (3, 251), (15, 251), (16, 1021), (63, 1021), (255, 4093), (9999, 65521)]
)
def test_table_has_16_slots_for_each_weight_up_to_the_largest(weights, size):
    assert maglev.table_size(weights) == size


def test_table_does_not_depend_on_the_order():
    forward = dict.fromkeys(NAMES, 2)
    backward = dict.fromkeys(reversed(NAMES), 2)
    assert maglev.table(forward, 1021) == maglev.table(backward, 1021)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 6), min_size=1))
def test_shares_are_those_of_the_weights(weights):
    total = sum(weights.values())
    size = maglev.table_size(total)
    counts = Counter(maglev.table(weights, size))
    for name, weight in weights.items():
        # One in a hundred may be missing or too much, and less than a slot by rounding.
        share = size * weight / total
        assert abs(counts[name] - share) < 1 + share / maglev.LOOSE


def excess(names, gone, size):
    """The share of slots that move beyond those of the one that goes."""
    before = maglev.table(dict.fromkeys(names, 1), size)
    after = maglev.table({name: 1 for name in names if name != gone}, size)
    assert gone not in after
    return moved(before, after, gone) / size


@pytest.mark.parametrize("gone", NAMES)
def test_one_of_ten_that_goes_moves_few_of_the_others(gone):
    # Its own tenth has to move, and 3 % of the others do (more slots would move fewer). Hashing modulo the
    # number of backends would move nine tenths.
    assert excess(NAMES, gone, maglev.table_size(len(NAMES))) < 0.06


@pytest.mark.parametrize("net", range(10))
def test_in_a_large_table_one_of_ten_that_goes_moves_at_most_15_in_1000_of_the_others(net):
    names = [f"192.168.{net}.{n} . 8080" for n in range(1, 11)]
    assert max(excess(names, gone, 4093) for gone in names) <= 0.015


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 6), min_size=2), st.data())
def test_who_is_away_moves_nobody_else(weights, data):
    away = data.draw(st.sets(st.sampled_from(sorted(weights)), max_size=len(weights) - 1))
    size = maglev.table_size(sum(weights.values()))
    before, after = maglev.table(weights, size), maglev.table(weights, size, away)
    assert all(new == old for old, new in zip(before, after, strict=True) if old not in away)
    left = {name: weight for name, weight in weights.items() if name not in away}
    counts = Counter(after)
    assert counts.keys() == left.keys()
    for name, weight in left.items():
        # What it has been given by rounding it may keep.
        share = size * weight / sum(left.values())
        assert abs(counts[name] - share) < 2 + share / maglev.LOOSE


def test_one_that_comes_takes_from_all():
    before = maglev.table(dict.fromkeys(NAMES[:-1], 1), 4093)
    after = maglev.table(dict.fromkeys(NAMES, 1), 4093)
    taken = Counter(old for old, new in zip(before, after, strict=True) if new == NAMES[-1])
    assert taken.keys() == set(NAMES[:-1])


def test_what_counts_are_proportions():
    names = {name: 1 + i % 3 for i, name in enumerate(NAMES)}
    assert maglev.table(names, 1021) == maglev.table({name: 100 * w for name, w in names.items()}, 1021)


@pytest.mark.parametrize("size", [3, 5])
def test_a_table_smaller_than_its_weights_is_filled(size):
    assert set(maglev.table({NAMES[0]: 1000, NAMES[1]: 1}, size)) == {NAMES[0]}
    assert Counter(maglev.table({NAMES[0]: 2, NAMES[1]: 1, NAMES[2]: 1}, size, {NAMES[0]})).keys() == {
        *NAMES[1:3]
    }


def test_a_single_backend_has_every_slot():
    assert set(maglev.table({NAMES[0]: 5}, 251)) == {NAMES[0]}
