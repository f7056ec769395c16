"""The packet program: word for word for a few files, and what holds for all.

Each golden/program/NAME.toml gives, on a host that lbd has not touched, the plan in NAME.txt: its nft lines
are exactly what nft is sent. After a change run the test with LBD_WRITE_GOLDEN=1 and read the difference
as if it were your own firewall.
"""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings

from lbd.core.config import parse
from lbd.core.desired import FORWARDING, desired
from lbd.core.plan import diff
from lbd.core.program import Listen, Target, Virtual, build, schedule
from lbd.core.source import Source
from lbd.core.state import Live
from strategies import desireds

FILES = sorted((Path(__file__).parent / "golden" / "program").glob("*.toml"))

ONE, TWO, THREE = (Target(f"10.0.0.{n}", 8080) for n in (1, 2, 3))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_plan_from_an_untouched_host(file):
    wish = desired(parse(Source(file.name, file.read_text())))
    plan = diff(Live(sysctls=dict.fromkeys(FORWARDING.values(), "0")), wish)
    groups = {"before": plan.before, "swap": plan.swap, "collect": plan.collect, "after": plan.after}
    text = "".join(f"# {name}\n" + "".join(f"{op}\n" for op in ops) for name, ops in groups.items() if ops)
    expected = file.with_suffix(".txt")
    if os.environ.get("LBD_WRITE_GOLDEN"):
        expected.write_text(text)
    assert text == expected.read_text()
    assert not plan.unsafe


def test_there_are_golden_files():
    assert len(FILES) >= 7


def virtual(address="192.0.2.1", port=80, targets=None, **keys):
    targets = {ONE: 1, TWO: 1} if targets is None else targets
    keys.setdefault("total", sum(targets.values()))
    return Virtual(Listen(6 if ":" in address else 4, "tcp", address, port), targets, **keys)


def classes(table):
    """The chains that pick a backend."""
    return {name: chain for name, chain in table.chains.items() if name.startswith(("tcp", "udp"))}


@pytest.mark.parametrize("scheduler", ["maglev", "random"])
def test_rules_do_not_grow_with_services(scheduler):
    many = build(virtual(port=port, scheduler=scheduler) for port in range(1, 200))
    one = build([virtual(scheduler=scheduler)])
    assert many.chains == one.chains
    assert len(many.elements["services4"]) == 199


def test_each_service_that_takes_turns_has_its_own_counter():
    table = build(
        virtual(address, port, scheduler="round-robin")
        for address in ("192.0.2.1", "192.0.2.11", "2001:db8::1", "2001:db8::1:1")
        for port in (1, 11)
    )
    assert len(classes(table)) == 8


@pytest.mark.parametrize("scheduler", ["maglev", "random", "round-robin"])
def test_one_backend_needs_no_choice(scheduler):
    slots, chain, pick = schedule(virtual(targets={ONE: 7}, scheduler=scheduler))
    assert (slots, chain, pick) == ([ONE], "tcp4_one", "numgen inc mod 1")


def test_backend_that_dies_does_not_change_the_size_of_a_maglev_table():
    whole = schedule(virtual(targets={ONE: 2, TWO: 2, THREE: 2}, total=6))
    less = schedule(virtual(targets={ONE: 2, TWO: 2}, total=6))
    assert whole[1:] == less[1:]
    assert len(whole[0]) == len(less[0])


def test_lightest_of_backends_has_a_slot():
    slots, _, _ = schedule(virtual(targets={ONE: 65535, TWO: 1}, total=65536))
    assert TWO in slots


def test_order_of_services_does_not_matter():
    services = [virtual(port=port, targets={ONE: port}) for port in (1, 2, 3)]
    forward, backward = build(services), build(reversed(services))
    assert (forward.chains, forward.maps) == (backward.chains, backward.maps)
    assert forward.elements == backward.elements


def test_packets_are_only_looked_at_when_a_service_asks_for_it():
    assert not any(name.startswith("log") for name in build([virtual()]).chains)
    table = build([virtual(log="new")])
    assert [name for name in table.chains if name.startswith("log")] == ["log_prerouting"]


@settings(max_examples=60, deadline=None)
@given(desireds())
def test_program_has_no_loose_end(wish):
    table = wish.table
    assert table.maps.keys() == table.elements.keys()
    for services in ("services4", "services_if4", "services6", "services_if6"):
        for key, verdict in table.elements[services].items():
            goto, chain = verdict.split()
            assert goto == "goto"
            assert table.chains[chain].hook is None
            if not chain.startswith("when_empty"):
                _has_every_slot(table, key, table.chains[chain].rules[0])
    for shape, items in ((table.maps[name], table.elements[name]) for name in table.maps):
        # Room to grow: a map that is full would be made anew, and lose its counters.
        assert 2 * len(items) <= shape.size


def _has_every_slot(table, key, rule):
    """A slot that is not there would drop a share of the connections, and nobody would be told."""
    address, _, port = key.split(" . ")[-3:]
    count = int(rule.split(" mod ")[1].split()[0])
    slots = table.elements[rule.split("@")[1]]
    assert all(f"{address} . {port} . {index}" in slots for index in range(count))
    assert f"{address} . {port} . {count}" not in slots
