"""Who gets new connections, given who has how many: whose they are, maxima, least-connections."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.core import balance
from lbd.core.attribution import Attribution, Sent
from lbd.core.balance import BOUND, DEAD_BAND, Balance, again_below, watched
from lbd.core.config import parse
from lbd.core.desired import desired
from lbd.core.observed import Observed, Override
from lbd.core.probes import Health, TcpProbe
from lbd.core.source import Source
from running import service
from strategies import configs

TCP, UDP, ICMP = 6, 17, 1


def config(*services):
    return parse(Source("lbd.toml", "\n".join(services)))


def least(weights, **options):
    """A service of least-connections with backends of these weights, at 10.0.0.1 and up."""
    backends = [{"address": f"10.0.0.{n}:80", "weight": weight} for n, weight in enumerate(weights, 1)]
    return config(
        service("192.0.2.1:80", backends, **{"name": "w", "scheduler": "least-connections", **options})
    )


def names(found):
    return [(s.name, str(b)) for s in found.services for b in s.backends]


# Which services are counted.


@pytest.mark.parametrize(
    ("options", "backend", "counted"),
    [
        ({}, "10.0.0.1:80", False),
        ({"scheduler": "least-connections"}, "10.0.0.1:80", True),
        ({}, {"address": "10.0.0.1:80", "max_connections": 9}, True),
    ],
)
def test_only_what_needs_it_is_watched(options, backend, counted):
    found = config(service("192.0.2.1:80", [backend], "w", **options), service("192.0.2.2:80", [], "other"))
    assert watched(found) == ({"w"} if counted else set())


# Whose a connection is.

SERVICES = config(
    service("192.0.2.1:80", ["10.0.0.1:8080", "10.0.0.2"], "port"),
    service("192.0.2.1:53/udp", ["10.0.0.1:53"], "udp"),
    service("192.0.2.1:8000-8099", ["10.0.0.1:9000-9099", "10.0.0.2:9000-9099"], "range"),
    service("192.0.2.1:*", ["10.0.0.1"], "every", ssh=True),
    service("192.0.2.1:*/any", ["10.0.0.1", "10.0.0.3"], "any", ssh=True),
    service("192.0.2.3:80", ["10.0.0.1:80", "10.0.0.4:80"], "on-eth0", interface="eth0"),
    service("192.0.2.3:80", ["10.0.0.2:80", "10.0.0.4:80"], "on-eth1", interface="eth1"),
    service("*:443", ["10.0.0.5:443", "[fd00::5]:443"], "wild", interface="eth0"),
    "[[service]]\nname = 'marked'\nmark = 7\nbackends = ['10.0.0.6']\nssh = true\n",
    service("[2001:db8::1]:80", ["[fd00::1]:80"], "six"),
)

OWNERS = {
    "a port": ((TCP, "192.0.2.1", 80, "10.0.0.1", 8080), {("port", "10.0.0.1:8080")}),
    "the port of the listen address": ((TCP, "192.0.2.1", 80, "10.0.0.2", 80), {("port", "10.0.0.2")}),
    "another protocol": ((UDP, "192.0.2.1", 53, "10.0.0.1", 53), {("udp", "10.0.0.1:53")}),
    "a shifted range": ((TCP, "192.0.2.1", 8005, "10.0.0.2", 9005), {("range", "10.0.0.2:9000-9099")}),
    "the end of a range": ((TCP, "192.0.2.1", 8099, "10.0.0.1", 9099), {("range", "10.0.0.1:9000-9099")}),
    "behind a range": ((TCP, "192.0.2.1", 8100, "10.0.0.1", 8100), {("every", "10.0.0.1")}),
    "every protocol": ((ICMP, "192.0.2.1", 0, "10.0.0.3", 0), {("any", "10.0.0.3")}),
    "every protocol, with a port": ((UDP, "192.0.2.1", 99, "10.0.0.1", 99), {("any", "10.0.0.1")}),
    "one interface": ((TCP, "192.0.2.3", 80, "10.0.0.1", 80), {("on-eth0", "10.0.0.1:80")}),
    "another interface": ((TCP, "192.0.2.3", 80, "10.0.0.2", 80), {("on-eth1", "10.0.0.2:80")}),
    "an interface that cannot be told": (
        (TCP, "192.0.2.3", 80, "10.0.0.4", 80),
        {("on-eth0", "10.0.0.4:80"), ("on-eth1", "10.0.0.4:80")},
    ),
    "a wildcard": ((TCP, "198.51.100.9", 443, "10.0.0.5", 443), {("wild", "10.0.0.5:443")}),
    "a wildcard, IPv6": ((TCP, "2001:db8::9", 443, "fd00::5", 443), {("wild", "[fd00::5]:443")}),
    "a mark": ((TCP, "203.0.113.1", 25, "10.0.0.6", 25), {("marked", "10.0.0.6")}),
    "IPv6": ((TCP, "2001:db8::1", 80, "fd00::1", 80), {("six", "[fd00::1]:80")}),
    "another port of a backend": ((TCP, "192.0.2.1", 80, "10.0.0.2", 81), set()),
    "a backend that is no more": ((TCP, "192.0.2.1", 80, "10.0.0.99", 80), set()),
    "somebody else's": ((TCP, "203.0.113.1", 80, "172.17.0.2", 80), set()),
}


@pytest.mark.parametrize(("sent", "owners"), OWNERS.values(), ids=OWNERS)
def test_connection_counts_for(sent, owners):
    found = Attribution(SERVICES).count({Sent(*sent): 3})
    assert found == dict.fromkeys(owners, 3)


def test_connections_of_several_listen_addresses_add_up():
    found = config(service(["192.0.2.1:80", "192.0.2.2:80"], ["10.0.0.1:80"], "w"))
    counts = {Sent(TCP, address, 80, "10.0.0.1", 80): 2 for address in ("192.0.2.1", "192.0.2.2")}
    assert Attribution(found).count(counts) == {("w", "10.0.0.1:80"): 4}


@given(configs(), st.data())
def test_any_configuration_can_be_attributed(found, data):
    addresses = [str(listen.address) for s in found.services for listen in s.listen] or ["192.0.2.1"]
    backends = [str(b.address) for s in found.services for b in s.backends] or ["10.0.0.1"]
    port = st.sampled_from((0, 53, 80, 8000, 8103))
    sent = st.builds(
        Sent, st.sampled_from((1, 6, 17)), st.sampled_from(addresses), port, st.sampled_from(backends), port
    )
    counts = data.draw(st.dictionaries(sent, st.integers(1, 9), max_size=5))
    counted = Attribution(found).count(counts)
    assert counted.keys() <= set(names(found))
    assert Balance().step(found, counted, 1.0).connections.keys() <= set(names(found))


# Full backends.


@pytest.mark.parametrize(("most", "again"), [(1, 1), (2, 2), (5, 5), (10, 9), (20, 18), (25, 23)])
def test_full_backend_takes_connections_again_below(most, again):
    found = config(
        service("192.0.2.1:80", [{"address": "10.0.0.1:80", "max_connections": most}, "10.0.0.2:80"], "w")
    )
    (one, _) = names(found)
    assert again_below(found.services[0].backends[0]) == again
    now = Balance()
    # Below ten, one less than the maximum is already below 90 % of it.
    steps = ((most - 1, False), (most, True), (most + 5, True), (again, True), (again - 1, False))
    for number, full in steps:
        now = now.step(found, {one: number}, 1.0)
        assert (one in now.full) == full, number
        assert now.connections[one] == number


def test_full_backend_gets_no_slot_and_its_maximum_taken_away_is_not_full():
    backends = [{"address": "10.0.0.1:80", "max_connections": 2}, "10.0.0.2:80"]
    found = config(service("192.0.2.1:80", backends, "w"))
    now = Balance().step(found, {names(found)[0]: 2}, 1.0)
    rules = desired(found, Observed(full=now.full)).table
    assert set(rules.elements["slots_tcp4"].values()) == {"10.0.0.2 . 80"}
    free = config(service("192.0.2.1:80", ["10.0.0.1:80", "10.0.0.2:80"], "w"))
    assert not now.within(free).full


# Least connections.


class Traffic:
    """Arrivals by chance, by share; departures by chance, after a mean time of each backend in seconds."""

    def __init__(self, found, times, rate, start, seed=1):
        self.config, self.rate = found, rate
        self.keys = names(found)
        self.times, self.open = (
            dict(zip(self.keys, times, strict=True)),
            dict(zip(self.keys, start, strict=True)),
        )
        self.weights = {(s.name, str(b)): b.weight for s in found.services for b in s.backends}
        self.chance = random.Random(seed)
        self.now = Balance().step(found, self.open, 0.0)
        self.writes = 0

    def shares(self):
        parts = {key: self.now.shares.get(key, self.weights[key]) for key in self.keys}
        return {key: part / sum(parts.values()) for key, part in parts.items()}

    def _some(self, mean, most=math.inf):
        return min(max(0, round(self.chance.gauss(mean, math.sqrt(mean)))), most)

    def step(self, seconds=1.0):
        shares = self.shares()
        for _ in range(10):
            for key in self.keys:
                gone = self._some(
                    self.open[key] * -math.expm1(-seconds / 10 / self.times[key]), self.open[key]
                )
                self.open[key] += self._some(self.rate * seconds / 10 * shares[key]) - gone
        before, self.now = self.now, self.now.step(self.config, self.open, seconds)
        self.writes += not self.now.same_as(before)

    def loads(self):
        return [self.open[key] / self.weights[key] for key in self.keys]


def amplitude(loads):
    mean = sum(loads) / len(loads)
    return max(abs(load / mean - 1) for load in loads)


def spread(loads):
    return max(loads) / max(1, min(loads)) - 1


@pytest.mark.parametrize(
    ("times", "weights"),
    [
        ((0.3, 0.3, 0.9), (1, 1, 1)),
        ((2, 4, 8), (1, 1, 2)),
        ((20, 60, 40), (1, 2, 3)),
        ((60, 60, 240), (1, 1, 1)),
    ],
    ids=str,
)
def test_backends_come_to_have_as_many_connections_for_their_weight(times, weights):
    # 400 connections for each unit of weight, which by chance alone are 5 % off; all on one backend at first.
    total = 400 * sum(weights)
    mean = sum(map(math.prod, zip(times, weights, strict=True))) / sum(weights)
    world = Traffic(least(weights), times, total / mean, (total, *(0 for _ in times[1:])))
    steps = 300 + int(4 * max(times))
    for _ in range(steps):
        world.step()
    # From here on they stay together: on average within 20 %, and at no moment a third off the mean.
    writes, sums = world.writes, [0.0] * len(times)
    for _ in range(240):
        world.step()
        assert amplitude(world.loads()) < 0.35
        sums = [a + b for a, b in zip(sums, world.loads(), strict=True)]
    assert spread(sums) < 0.20
    assert world.writes - writes <= 240 / 5


@pytest.mark.parametrize("time", [0.3, 5, 60, 600])
def test_rare_samples_do_not_make_it_swing(time):
    world = Traffic(least((1, 1, 1)), (time, time, time), 1200 / time, (400, 400, 400))
    # Somebody else's 300 connections on one: everything moves away, and back.
    world.open[world.keys[0]] += 300
    for _ in range(int(60 + time / 5)):
        world.step(20.0)
    worst = 0.0
    for _ in range(60):
        world.step(20.0)
        worst = max(worst, amplitude(world.loads()))
    assert worst < 0.35


@pytest.mark.parametrize("time", [0.3, 5, 60])
def test_noise_writes_nothing(time):
    world = Traffic(least((1, 1, 1)), (time,) * 3, 1500 / time, (500,) * 3)
    for _ in range(600):
        world.step()
    # A minute without a write is the rule; connections of a minute wander off by themselves now and then.
    assert world.writes <= 20


@pytest.mark.parametrize("time", [2, 20, 200])
def test_fresh_backend_gets_its_bounded_share_and_no_more(time):
    four = least((1, 1, 1, 1))
    world = Traffic(four, (time,) * 4, 900 / time, (300, 300, 300, 0))
    fresh = world.keys[3]
    # They were in balance before it came.
    world.now = Balance()
    for _ in range(60):
        world.now = world.now.step(least((1, 1, 1)), world.open, 1.0)
    world.now = world.now.within(four)
    assert world.shares()[fresh] == pytest.approx(1 / 4)
    peak = 0.0
    for _ in range(int(200 + 4 * time)):
        world.step()
        # Four times where three others have at least a quarter of their weight; thousandths round a little.
        assert world.shares()[fresh] <= BOUND / (BOUND + 3 / BOUND) + 0.002
        peak = max(peak, world.open[fresh] / (sum(world.open.values()) / 4))
    # It does not get all there is at once: where connections are short it passes the others' for a moment.
    assert peak < 2.5
    assert amplitude(world.loads()) < 0.35


NUMBERS = st.lists(st.integers(0, 5000), min_size=2, max_size=40)


@given(NUMBERS, st.data())
def test_nobody_gets_more_than_four_times_its_part(numbers, data):
    weights = data.draw(st.lists(st.integers(1, 100), min_size=len(numbers), max_size=len(numbers)))
    found = least(weights)
    now = Balance()
    for seconds in (0.0, 1.0, 30.0):
        now = now.step(found, dict(zip(names(found), numbers, strict=True)), seconds)
    if not now.shares:
        return
    assert now.shares.keys() == set(names(found))
    total = sum(now.shares.values())
    for (key, share), weight in zip(now.shares.items(), weights, strict=True):
        assert share >= 1
        # A thousandth is the least there is.
        assert share / total <= BOUND * weight / sum(weights) + 0.002, key
    # Who has more for its weight gets less for it.
    order = sorted(zip(numbers, weights, now.corrections.values(), strict=True), key=lambda x: x[0] / x[1])
    assert all(a[2] >= b[2] - 1e-9 for a, b in pairwise(order))


def test_nothing_is_written_where_all_are_equal():
    found = least((1, 2))
    now = Balance().step(found, dict(zip(names(found), (100, 200), strict=True)), 1.0)
    assert not now.shares


def test_change_within_the_dead_band_is_not_written():
    found = least((1, 1))
    one, two = names(found)
    now = Balance().step(found, {one: 1000, two: 1000}, 0.0)
    # (mean / load) ** 2 with 1000 : 1100 is a tenth off the mean share.
    after = now.step(found, {one: 1000, two: 1100}, 1000.0)
    for _ in range(3):
        assert after.same_as(now)
    for _ in range(60):
        after = after.step(found, {one: 1000, two: 1100}, 1.0)
    assert not after.same_as(now)
    assert after.shares[one] / after.shares[two] > 1 + DEAD_BAND


def test_what_is_smoothed_does_not_depend_on_the_interval():
    found = least((1, 1))
    one, two = names(found)
    start = Balance().step(found, {one: 100, two: 100}, 0.0)
    often, seldom = start, start
    for _ in range(40):
        often = often.step(found, {one: 100, two: 300}, 0.5)
    for _ in range(10):
        seldom = seldom.step(found, {one: 100, two: 300}, 2.0)
    assert often.loads[two] == pytest.approx(seldom.loads[two])


def test_families_and_pools_are_balanced_apart():
    backends = [
        "10.0.0.1:80",
        "10.0.0.2:80",
        "[fd00::1]:80",
        "[fd00::2]:80",
        {"address": "10.0.0.3:80", "backup": True},
    ]
    found = config(
        service(["192.0.2.1:80", "[2001:db8::1]:80"], backends, "w", scheduler="least-connections")
    )
    counts = dict(zip(names(found), (10, 10, 900, 100), strict=False))
    now = Balance()
    for _ in range(9):
        now = now.step(found, counts, 1.0)
    assert now.shares.keys() == {("w", "[fd00::1]:80"), ("w", "[fd00::2]:80")}


def out(key, how):
    """What is observed when this backend is out."""
    states = {"drain", "maintenance"}
    if how in states:
        return Observed(overrides={key: Override(how, "somebody says so")})
    return Observed(**{how: {key: 0} if how == "portions" else frozenset({key})})


@pytest.mark.parametrize("how", ["dead", "drain", "maintenance", "portions"])
def test_who_is_out_has_no_share_and_does_not_count(how):
    found = least((1, 1, 1))
    one, two, three = names(found)
    now = alone = Balance()
    observed = out(three, how)
    for _ in range(9):
        now = now.step(found, {one: 300, two: 100, three: 5000}, 1.0, observed)
        alone = alone.step(least((1, 1)), {one: 300, two: 100}, 1.0)
    assert now.shares == alone.shares
    assert now.shares.keys() == {one, two}
    assert three not in now.loads
    # Its connections are known all the same.
    assert now.connections[three] == 5000


def test_who_comes_back_has_a_share_beside_the_others_at_once():
    found = least((1, 1, 1))
    one, two, three = names(found)
    now = Balance()
    for _ in range(9):
        now = now.step(found, {one: 300, two: 100}, 1.0, out(three, "dead"))
    back = now.within(found, Observed())
    assert back.shares.keys() == {one, two, three}
    total = sum(back.shares.values())
    assert back.shares[three] / total > 1 / 8
    assert not now.within(found, out(two, "dead")).shares.keys() & {two}


def test_pool_that_is_not_in_use_has_no_shares():
    backends = [{"address": f"10.0.0.{n}:80", "backup": n > 2} for n in range(1, 5)]
    found = config(service("192.0.2.1:80", backends, "w", scheduler="least-connections"))
    one, two, three, four = names(found)
    counts = {one: 900, two: 100, three: 900, four: 100}
    first, second = Balance(), Balance()
    dead = Observed(dead=frozenset({one, two}))
    for _ in range(9):
        first, second = first.step(found, counts, 1.0), second.step(found, counts, 1.0, dead)
    assert first.shares.keys() == {one, two}
    assert second.shares.keys() == {three, four}


def test_all_are_used_in_panic_and_so_have_shares():
    found = least((1, 1, 1))
    panic = replace(found.services[0], health=Health(TcpProbe(), panic=50))
    found = replace(found, services=(panic,))
    one, two, three = names(found)
    now = Balance()
    for _ in range(9):
        counts = {one: 300, two: 100, three: 100}
        now = now.step(found, counts, 1.0, Observed(dead=frozenset({one, two})))
    assert now.shares.keys() == {one, two, three}


def test_part_of_a_weight_is_not_given_back_by_a_correction():
    """A backend with a quarter of its weight has a quarter of the connections, and no correction for it."""
    found = least((1, 1, 1))
    keys = names(found)
    now = Balance()
    for _ in range(300):
        counts = dict(zip(keys, (400, 400, 100), strict=True))
        now = now.step(found, counts, 1.0, Observed(portions={keys[2]: 25}))
    assert not now.shares
    # Without that it would have many times what it is to have.
    naive = Balance()
    for _ in range(300):
        naive = naive.step(found, counts, 1.0)
    assert naive.shares[keys[2]] > 3 * naive.shares[keys[0]]


def test_new_weights_of_the_file_are_in_force_at_once():
    found = least((1, 1))
    counts = dict(zip(names(found), (300, 100), strict=True))
    now = Balance()
    for _ in range(9):
        now = now.step(found, counts, 1.0)
    other = now.within(least((1, 9)))
    ratio = [b.shares[names(found)[1]] / b.shares[names(found)[0]] for b in (now, other)]
    assert ratio[1] == pytest.approx(9 * ratio[0], rel=0.2)


def test_backend_that_was_taken_out_is_forgotten():
    now = Balance().step(least((1, 1, 1)), dict.fromkeys(names(least((1, 1, 1))), 50), 1.0)
    gone = names(least((1, 1, 1)))[2]
    kept = now.within(least((1, 1)))
    assert gone in now.connections
    assert not {gone} & {*kept.connections, *kept.loads, *kept.corrections, *kept.shares}


def test_constants_keep_the_loop_damped():
    # The least damping ratio for any time that connections last, see the head of core/balance.
    assert math.sqrt((1 + balance.QUICKLY) / (1 + balance.QUICKLY + balance.SLOWLY)) > 0.5
    # Connections that end at once: what is smoothed follows in less than one step.
    assert -math.expm1(-balance.LONGEST_STEP / balance.QUICK) * (1 + balance.QUICKLY) < 1
