"""The fake kernel against the real one: the same plans make the same state, and both refuse the same."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbd.core.ops import (
    AddChain,
    AddElements,
    AddMap,
    AddRule,
    AddTable,
    DeleteChain,
    DeleteElements,
    DeleteMap,
    DeleteTable,
    FlushChain,
)
from lbd.core.program import SCHEMA
from lbd.core.state import Desired, Hook
from lbd.host.director import Director
from lbd.host.store import Store
from lbd.reconcile import RefusedError, plan, reconcile, remove
from lbd.testing import FakeHost
from netns import inside
from strategies import NETWORKS, desireds

pytestmark = pytest.mark.kernel

# The kernel of strategies.NETWORKS: both interfaces up, at the other end nobody.
BATCH = "".join(
    f"link add {name} type veth peer name far{name}\nlink set {name} up\nlink set far{name} up\n"
    + "".join(f"addr add {address} dev {name}{' nodad' if ':' in address else ''}\n" for address in addresses)
    for name, addresses in NETWORKS.items()
)
EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SLOTS = replace(SCHEMA["slots_tcp4"], size=4)
SERVICES = replace(SCHEMA["services4"], size=4)
SET = replace(SCHEMA["masquerade4"], size=4)
ONE, TWO = ("192.0.2.1 . 80 . 0", "10.0.0.1 . 80"), ("192.0.2.1 . 80 . 1", "10.0.0.2 . 80")
VIP = "192.0.2.1 . tcp . 80"
DNAT = "dnat ip to ip daddr . tcp dport . numgen inc mod 2 map @slots_tcp4"

# What each transaction of CASES begins with: a service that goes to a chain that reads its slots.
START = [
    AddTable(),
    AddMap("slots_tcp4", SLOTS),
    AddMap("services4", SERVICES),
    AddMap("masquerade4", SET),
    AddChain("base", Hook("nat", "prerouting", -100)),
    AddChain("class"),
    AddChain("idle"),
    AddElements("slots_tcp4", SLOTS, (ONE,)),
    AddElements("services4", SERVICES, ((VIP, "goto class"),)),
    AddElements("masquerade4", SET, ((VIP, ""),)),
    AddRule("class", DNAT),
    AddRule("idle", "drop"),
]

# A second transaction, and whether the kernel takes it.
CASES = {
    "delete the table": ([DeleteTable()], True),
    "delete the table twice": ([DeleteTable(), DeleteTable()], False),
    "add the table again": ([AddTable()], True),
    "add an element again": ([AddElements("slots_tcp4", SLOTS, (ONE,))], True),
    "add an element with other data": ([AddElements("slots_tcp4", SLOTS, ((ONE[0], TWO[1]),))], False),
    "add one element twice, differently": (
        [AddElements("slots_tcp4", SLOTS, ((TWO[0], ONE[1]), (TWO[0], TWO[1])))],
        False,
    ),
    "change an element's data": (
        [
            DeleteElements("slots_tcp4", SLOTS, (ONE[0],)),
            AddElements("slots_tcp4", SLOTS, ((ONE[0], TWO[1]),)),
        ],
        True,
    ),
    "delete an element that is not there": ([DeleteElements("slots_tcp4", SLOTS, (TWO[0],))], False),
    "delete an element twice": ([DeleteElements("slots_tcp4", SLOTS, (ONE[0], ONE[0]))], False),
    "delete an element of a set": ([DeleteElements("masquerade4", SET, (VIP,))], True),
    "add to a map that is not there": ([AddElements("nope", SLOTS, (TWO,))], False),
    "delete from a map that is not there": ([DeleteElements("nope", SLOTS, (ONE[0],))], False),
    "add more than fits": (
        [AddElements("slots_tcp4", SLOTS, tuple((f"192.0.2.1 . 80 . {n}", ONE[1]) for n in range(1, 5)))],
        False,
    ),
    "add as many as fit": (
        [AddElements("slots_tcp4", SLOTS, tuple((f"192.0.2.1 . 80 . {n}", ONE[1]) for n in range(1, 4)))],
        True,
    ),
    "go to a chain that is not there": (
        [AddElements("services4", SERVICES, (("192.0.2.2 . tcp . 80", "goto nope"),))],
        False,
    ),
    "go to a chain of the same transaction": (
        [AddChain("new"), AddElements("services4", SERVICES, (("192.0.2.2 . tcp . 80", "goto new"),))],
        True,
    ),
    "go to a chain with a hook": (
        [AddElements("services4", SERVICES, (("192.0.2.2 . tcp . 80", "goto base"),))],
        False,
    ),
    "delete a chain that an element goes to": ([DeleteChain("class")], False),
    "delete a chain that a rule goes to": (
        [AddRule("base", "goto idle"), FlushChain("idle"), DeleteChain("idle")],
        False,
    ),
    "delete a chain with rules": ([DeleteChain("idle")], True),
    "delete a chain with a hook": ([DeleteChain("base")], True),
    "delete a chain that is not there": ([DeleteChain("nope")], False),
    "flush a chain that is not there": ([FlushChain("nope")], False),
    "make a base chain anew": (
        [DeleteChain("base"), AddChain("base", Hook("nat", "prerouting", -90))],
        True,
    ),
    "add a rule to a chain that is not there": ([AddRule("nope", "drop")], False),
    "add a rule that names no map": ([AddRule("idle", DNAT.replace("@slots_tcp4", "@nope"))], False),
    "add a rule that goes nowhere": ([AddRule("idle", "goto nope")], False),
    "add a rule that goes to a hook": ([AddRule("idle", "jump base")], False),
    "delete a map that a rule names": ([DeleteMap("slots_tcp4")], False),
    "delete a map and its rule": ([FlushChain("class"), DeleteMap("slots_tcp4")], True),
    "delete a map that no rule names": ([DeleteMap("services4")], True),
    "delete a map that is not there": ([DeleteMap("nope")], False),
    "make a map anew in another size": (
        [FlushChain("class"), DeleteMap("slots_tcp4"), AddMap("slots_tcp4", replace(SLOTS, size=9))],
        True,
    ),
    "nothing of a transaction whose last operation is wrong": (
        [AddChain("new"), DeleteElements("slots_tcp4", SLOTS, (ONE[0],)), DeleteChain("nope")],
        False,
    ),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The real kernel, in a namespace of its own; nothing else of this module needs the thread's own."""
    with inside(BATCH):
        director = Director(Store(tmp_path_factory.mktemp("state")))
        yield director
        director.close()


def tables(host):
    """What a host has of our table, in words that both kinds of host share: rules by their number."""
    table = host.read(Desired()).table
    if table is None:
        return None
    chains = {name: (chain.hook, len(chain.digests)) for name, chain in table.chains.items()}
    return chains, table.maps, table.elements


def rest(host, wish):
    live = host.read(wish)
    return live.addresses, live.routes, live.rules, live.sysctls


def operations(todo):
    """All operations of a plan; each kernel lists what it has in an order of its own."""
    every = (*todo.before, *todo.swap, *todo.collect, *todo.after)
    return sorted(
        str(replace(op, keys=tuple(sorted(op.keys))) if isinstance(op, DeleteElements) else op)
        for op in every
    )


def refused(host, ops):
    try:
        host.commit(ops)
    except RefusedError:
        return True
    return False


@pytest.mark.parametrize(("ops", "taken"), CASES.values(), ids=CASES)
def test_both_kernels_take_and_refuse_the_same(real, ops, taken):
    fake = FakeHost()
    hosts = (real, fake)
    for host in hosts:
        host.commit([AddTable(), DeleteTable(), *START])
    before = tables(real)
    assert before == tables(fake)
    verdicts = [not refused(host, ops) for host in hosts]
    assert verdicts == [taken, taken]
    after = tables(real)
    assert after == tables(fake)
    assert taken or after == before
    assert not remove(real).problems


@EXAMPLES
@given(wishes=st.lists(desireds(), min_size=1, max_size=3))
def test_both_kernels_come_to_the_same_by_the_same_plans(real, wishes):
    fake = FakeHost()
    hosts = (real, fake)
    try:
        for wish in wishes:
            plans = [plan(host, wish) for host in hosts]
            assert operations(plans[0]) == operations(plans[1])
            assert plans[0].unsafe == plans[1].unsafe
            outcomes = [reconcile(host, wish) for host in hosts]
            assert outcomes[0].problems == outcomes[1].problems
            assert outcomes[0].elements == outcomes[1].elements
            assert tables(real) == tables(fake)
            assert rest(real, wish) == rest(fake, wish)
    finally:
        assert not remove(real).problems
    remove(fake)
    assert tables(real) is tables(fake) is None
    assert rest(real, Desired()) == rest(fake, Desired())
