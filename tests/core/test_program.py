"""The packet program: word for word for a few files, and what holds for all.

Each golden/program/NAME.toml gives, on a host that lbd has not touched, the plan in NAME.txt: its nft lines
are exactly what nft is sent. After a change run the test with LBD_WRITE_GOLDEN=1 and read the difference
as if it were your own firewall.
"""

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings

from lbd.core import schedule
from lbd.core.config import parse
from lbd.core.desired import FORWARDING, desired
from lbd.core.observed import Link, Observed
from lbd.core.plan import diff
from lbd.core.program import build
from lbd.core.schedule import Pick
from lbd.core.settings import Ports, Scheduler, Service
from lbd.core.shape import Reading, Where
from lbd.core.source import Source
from lbd.core.state import Live
from lbd.core.virtual import Target, Virtual
from strategies import desireds

GOLDEN = Path(__file__).parent / "golden" / "program"
FILES = sorted(GOLDEN.glob("*.toml"))
# The files of prefixes that they name, and the networks of the host that they are for.
LISTS = sorted(GOLDEN.glob("*.list"))
HOST = Observed(
    neighbours=frozenset({(ip_network("10.0.0.0/24"), "eth1"), (ip_network("fd00::/64"), "eth1")}),
    interfaces=frozenset({"eth0", "eth1"}),
    links={
        **{f"10.0.0.{n}": Link("eth1", 3) for n in range(1, 5)},
        **{f"fd00::{n}": Link("eth1", 3) for n in range(1, 5)},
    },
    offloads=True,
)

ONE, TWO, THREE = (Target(f"10.0.0.{n}", Ports(8080, 8080)) for n in (1, 2, 3))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_plan_from_an_untouched_host(file):
    lists = [Source(each.name, each.read_text(), kind="prefixes") for each in LISTS]
    wish = desired(parse(Source(file.name, file.read_text()), lists), HOST)
    plan = diff(Live(sysctls=dict.fromkeys((*FORWARDING.values(), *wish.sysctls), "0")), wish)
    groups = {name: getattr(plan, name) for name in ("before", "prepare", "swap", "collect", "after")}
    text = "".join(f"# {name}\n" + "".join(f"{op}\n" for op in ops) for name, ops in groups.items() if ops)
    expected = file.with_suffix(".txt")
    if os.environ.get("LBD_WRITE_GOLDEN"):
        expected.write_text(text)
    assert text == expected.read_text()
    assert not plan.unsafe
    assert not plan.forget


def test_there_are_golden_files():
    assert len(FILES) >= 19


def virtual(address="192.0.2.1", port=80, targets=None, total=None, **keys):
    targets = {ONE: 1, TWO: 1} if targets is None else targets
    total = sum(targets.values()) if total is None else total
    where = Where(6 if ":" in address else 4, "tcp", address, Ports(port, port))
    return Virtual(where, Service("web", (), (), **keys), targets, total)


def pick(given):
    return schedule.pick(given, Reading(given.where.shape, given.where.family))


def classes(table):
    """The chains that pick a backend."""
    return {name: chain for name, chain in table.chains.items() if name.startswith(("tcp", "udp"))}


@pytest.mark.parametrize("scheduler", ["maglev", "source-hash", "random", "least-connections"])
def test_rules_do_not_grow_with_services(scheduler):
    many = build(virtual(port=port, scheduler=scheduler) for port in range(1, 50))
    one = build([virtual(scheduler=scheduler)])
    assert many.chains == one.chains
    assert len(many.elements["services4"]) == 49


def test_each_service_that_takes_turns_has_its_own_counter():
    table = build(
        virtual(address, port, scheduler="round-robin")
        for address in ("192.0.2.1", "192.0.2.11", "2001:db8::1", "2001:db8::1:1")
        for port in (1, 11)
    )
    assert len(classes(table)) == 8


@pytest.mark.parametrize("scheduler", [*get_args(Scheduler)])
def test_one_backend_needs_no_choice(scheduler):
    alone = virtual(targets={ONE: 7}, scheduler=scheduler)
    assert pick(alone) == Pick("one", "numgen inc mod 1", (ONE,))
    assert classes(build([alone])).keys() == {"tcp4_one"}


def test_backend_that_dies_does_not_change_the_size_of_a_maglev_table():
    whole = pick(virtual(targets={ONE: 2, TWO: 2, THREE: 2}, total=6))
    less = pick(virtual(targets={ONE: 2, TWO: 2}, total=6))
    assert (whole.name, whole.expression) == (less.name, less.expression)
    assert len(whole.slots) == len(less.slots)


def test_lightest_of_backends_has_a_slot():
    assert TWO in pick(virtual(targets={ONE: 65535, TWO: 1}, total=65536)).slots


def test_order_of_services_does_not_matter():
    services = [virtual(port=port, targets={ONE: port}) for port in (1, 2, 3)]
    forward, backward = build(services), build(reversed(services))
    assert (forward.chains, forward.maps) == (backward.chains, backward.maps)
    assert forward.elements == backward.elements


def test_packets_are_only_looked_at_when_a_service_asks_for_it():
    assert not any(name.startswith("log") for name in build([virtual()]).chains)
    table = build([virtual(log="new")])
    assert [name for name in table.chains if name.startswith("log")] == ["log_prerouting"]


NAME = re.compile(r"[a-z][a-z0-9_-]{0,127}")


def test_no_text_of_the_file_is_a_name():
    """Of names of services and files only a digest is left: they are anything that somebody may think of."""
    text = """
        [[service]]
        name = "flush.ruleset"
        listen = ["192.0.2.1:80", "[2001:db8::1]:8000-8003/udp"]
        backends = ["10.0.0.1", "10.0.0.2", "[fd00::1]"]
        scheduler = "round-robin"
        persistence = "10m"
        allow = [{ file = '"; flush ruleset #.list' }]
        limits = { new_per_second = 1, client_new_per_second = 1, client_connections = 1 }
        log = "path"
        """
    source = Source("lbd.toml", text)
    lists = [Source('"; flush ruleset #.list', "203.0.113.0/24", kind="prefixes")]
    wish = desired(parse(source, lists))
    lines = "\n".join(diff(Live(sysctls=dict.fromkeys(FORWARDING.values(), "0")), wish).lines())
    assert "ruleset" not in lines
    assert "#" not in lines
    table = wish.table
    assert all(NAME.fullmatch(name) for name in (*table.chains, *table.maps, *table.limits))


GOES = re.compile(r"\b(?:goto|jump) ([\w-]+)")
NAMED = re.compile(r"@(\w+)\b(?!,)")
PICKS = re.compile(r" mod (\d+)(?: seed \w+)? map @((?:slots|hosts|ends)_\w+)")
SHIFTS = re.compile(r" map @(ports_\w+)")


@settings(max_examples=200, deadline=None)
@given(desireds())
def test_program_has_no_loose_end(wish):
    _has_no_loose_end(wish.table, idle={"refuse_drop", "refuse_reject"})
    if wish.ingress:
        _has_no_loose_end(wish.ingress, idle=set())
        assert not wish.ingress.learned


def _has_no_loose_end(table, idle):
    assert table.maps.keys() == table.elements.keys()
    rules = [rule for chain in table.chains.values() for rule in chain.rules]
    named = {name for rule in rules for name in NAMED.findall(rule)}
    assert named == table.maps.keys() | table.flowtables.keys()

    held = {name for name, shape in table.maps.items() if shape.data == "verdict"}
    verdicts = [data for name in held for data in table.elements[name].values()]
    assert all(re.fullmatch(r"(goto|jump) [\w-]+", verdict) for verdict in verdicts)
    goals = {goal for text in (*rules, *verdicts) for goal in GOES.findall(text)}
    assert goals | idle == {name for name, chain in table.chains.items() if chain.hook is None}

    limited = [name for name, shape in table.maps.items() if shape.data == "limit"]
    assert {data for name in limited for data in table.elements[name].values()} == table.limits.keys()
    for each in table.learned:
        # Otherwise every note would be taken for a wrong one, and forgotten.
        known = {data for allowed in each.allowed.values() for data in allowed}
        assert all(data.count(" . ") == len(each.maps) - 1 for data in known)
    told = {name for each in table.learned for name in each.maps}
    noting = {name for name, shape in table.maps.items() if shape.learned and shape.data}
    assert told == noting
    assert all(NAME.fullmatch(name) for name in (*table.chains, *table.maps, *table.limits))
    for name, shape in table.maps.items():
        # Room to grow: a map that is full would be made anew, and lose its counters.
        assert 2 * len(table.elements[name]) <= shape.size
        assert not (shape.learned and table.elements[name])


@settings(max_examples=200, deadline=None)
@given(desireds())
def test_every_service_has_every_slot(wish):
    """A slot that is not there would drop a share of the connections, and nobody would be told."""
    for table in (wish.table, *([wish.ingress] if wish.ingress else ())):
        for name, shape in table.maps.items():
            for key, verdict in table.elements[name].items() if name.startswith("services") else ():
                chain = _class(table, name.removeprefix("services"), key, verdict)
                if not chain.startswith("refuse"):
                    words = zip(shape.key, key.split(" . "), strict=True)
                    # Protocol and interface are in the name of the map of slots.
                    begin = [word for kind, word in words if kind not in ("inet_proto", "ifname")]
                    _has_every_slot(table, begin, chain)


def _class(table, ends, key, verdict):
    """The chain that picks a backend for a service, or that refuses its connections."""
    chain = verdict.removeprefix("goto ")
    if chain == f"guard{ends}":
        assert table.chains[chain].rules[-1] == f"goto limited{ends}"
        chain = table.elements[f"schedule{ends}"][key].removeprefix("goto ")
    return chain


def _has_every_slot(table, begin, chain):
    *_, picking, last = ("", *table.chains[chain].rules)
    if last.startswith("goto refuse_"):
        # There is nobody for new clients.
        assert not PICKS.search(picking)
        return
    assert last == "drop"
    count, slots = PICKS.search(picking).groups()
    held = table.elements[slots]
    assert all(" . ".join([*begin, str(index)]) in held for index in range(int(count)))
    assert " . ".join([*begin, count]) not in held
    if shifting := SHIFTS.search(picking):
        low, high = map(int, begin[-1].split("-"))
        ports = [table.elements[shifting[1]][" . ".join([*begin[:-1], str(n)])] for n in range(low, high + 1)]
        # Somewhere else, in the same order.
        assert [int(port) - int(ports[0]) for port in ports] == list(range(high - low + 1))
        assert int(ports[0]) != low
