"""The fake kernel against the real one: the same plans make the same state, and both refuse the same."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import SYSCTLS
from lbd.core.ops import (
    AddChain,
    AddElements,
    AddLimit,
    AddMap,
    AddRule,
    AddTable,
    DeleteChain,
    DeleteElements,
    DeleteLimit,
    DeleteMap,
    DeleteTable,
    FlushChain,
)
from lbd.core.state import Desired, Hook, Map, Table
from lbd.host import sysctl
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

SLOTS = Map(
    ("ipv4_addr", "inet_service", "index"),
    ("ipv4_addr", "inet_service"),
    4,
    counter=True,
    typeof="ip daddr . tcp dport . numgen inc mod 65536 : ip daddr . tcp dport",
)
SERVICES = Map(("ipv4_addr", "inet_proto", "inet_service"), "verdict", 4, counter=True)
SET = replace(SERVICES, data=(), counter=False)
LIMITS = replace(SET, data="limit")
RANGES = replace(SET, interval=True)
LIST = Map(("ipv4_addr",), (), 4, interval=True)
NOTES = Map(
    ("index", "ipv4_addr"),
    ("ipv4_addr",),
    4,
    learned="timeout",
    typeof="numgen inc mod 65536 . ip saddr : ip daddr",
)
MAPS = {
    "slots_tcp4": SLOTS,
    "services4": SERVICES,
    "logged": SET,
    "rates": LIMITS,
    "ranges": RANGES,
    "prefixes": LIST,
    "notes": NOTES,
}
# What a reader has to know of the maps that the cases make.
SCHEMA = Desired(table=Table(maps=MAPS, elements={name: {} for name in MAPS}))
RATE = "rate over 10/second burst 20 packets"
ONE, TWO = ("192.0.2.1 . 80 . 0", "10.0.0.1 . 80"), ("192.0.2.1 . 80 . 1", "10.0.0.2 . 80")
VIP = "192.0.2.1 . tcp . 80"
DNAT = "dnat ip to ip daddr . tcp dport . numgen inc mod 2 map @slots_tcp4"

# What each transaction of CASES begins with: a service that goes to a chain that reads its slots.
START = [
    AddTable(),
    *(AddMap(name, shape) for name, shape in MAPS.items()),
    AddLimit("slow", RATE),
    AddChain("base", Hook("nat", "prerouting", -100)),
    AddChain("class"),
    AddChain("idle"),
    AddElements("slots_tcp4", SLOTS, (ONE,)),
    AddElements("services4", SERVICES, ((VIP, "goto class"),)),
    AddElements("logged", SET, ((VIP, ""),)),
    AddElements("rates", LIMITS, ((VIP, "slow"),)),
    AddElements("ranges", RANGES, (("192.0.2.0/24 . tcp . 80-90", ""),)),
    AddElements("prefixes", LIST, (("192.0.2.0/24", ""),)),
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
    "delete an element of a set": ([DeleteElements("logged", SET, (VIP,))], True),
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
    "add a limit": ([AddLimit("new", RATE)], True),
    "add a limit and an element that names it": (
        [AddLimit("new", RATE), AddElements("rates", LIMITS, (("192.0.2.2 . tcp . 80", "new"),))],
        True,
    ),
    "name a limit that is not there": (
        [AddElements("rates", LIMITS, (("192.0.2.2 . tcp . 80", "nope"),))],
        False,
    ),
    "name another limit for a key that is there": (
        [AddLimit("new", RATE), AddElements("rates", LIMITS, ((VIP, "new"),))],
        False,
    ),
    "delete a limit that is not there": ([DeleteLimit("nope")], False),
    "delete a limit that an element names": ([DeleteLimit("slow")], False),
    "delete a limit before the element that names it": (
        [DeleteLimit("slow"), DeleteElements("rates", LIMITS, (VIP,))],
        False,
    ),
    "delete a limit and the element that names it": (
        [DeleteElements("rates", LIMITS, (VIP,)), DeleteLimit("slow")],
        True,
    ),
    "delete a limit and the map that names it": ([DeleteMap("rates"), DeleteLimit("slow")], True),
    "make a limit anew with another rate": (
        [
            DeleteElements("rates", LIMITS, (VIP,)),
            DeleteLimit("slow"),
            AddLimit("slow", "rate over 1/second burst 1 packets"),
            AddElements("rates", LIMITS, ((VIP, "slow"),)),
        ],
        True,
    ),
    "add a range to a map without intervals": (
        [AddElements("logged", SET, (("192.0.2.1 . tcp . 80-90", ""),))],
        False,
    ),
    "add a prefix to a map without intervals": (
        [AddElements("logged", SET, (("192.0.2.0/24 . tcp . 80", ""),))],
        False,
    ),
    "add an interval again": ([AddElements("ranges", RANGES, (("192.0.2.0/24 . tcp . 80-90", ""),))], True),
    "add an interval beside another": (
        [AddElements("ranges", RANGES, (("192.0.2.0/24 . tcp . 91-99", ""),))],
        True,
    ),
    "add an interval inside another": (
        [AddElements("ranges", RANGES, (("192.0.2.7 . tcp . 85", ""),))],
        False,
    ),
    "add an interval across the end of another": (
        [AddElements("ranges", RANGES, (("192.0.2.0/24 . tcp . 85-99", ""),))],
        False,
    ),
    "delete an interval": ([DeleteElements("ranges", RANGES, ("192.0.2.0/24 . tcp . 80-90",))], True),
    # Not here: to delete a part of it. This kernel takes that for the whole, and a plan never asks for it.
    "add a prefix again": ([AddElements("prefixes", LIST, (("192.0.2.0/24", ""),))], True),
    "add a prefix beside another": ([AddElements("prefixes", LIST, (("192.0.3.0/24", ""),))], True),
    "add a prefix inside another": ([AddElements("prefixes", LIST, (("192.0.2.128/25", ""),))], False),
    "add a prefix around another": ([AddElements("prefixes", LIST, (("192.0.2.0/23", ""),))], False),
    "add all addresses beside one prefix": ([AddElements("prefixes", LIST, (("0.0.0.0/0", ""),))], False),
    "delete a prefix": ([DeleteElements("prefixes", LIST, ("192.0.2.0/24",))], True),
    "delete a part of a prefix": ([DeleteElements("prefixes", LIST, ("192.0.2.0/25",))], False),
    "the last addresses of all": ([AddElements("prefixes", LIST, (("255.255.255.0/24", ""),))], True),
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


def tables(host, wish):
    """What a host has of our tables, in words that both kinds of host share: rules by their number."""
    live = host.read(wish)
    return _table(live.table), _table(live.ingress)


def _table(table):
    if table is None:
        return None
    chains = {name: (chain.hook, len(chain.digests)) for name, chain in table.chains.items()}
    return chains, table.maps, table.elements, table.limits, table.flowtables


def rest(host, wish):
    live = host.read(wish)
    return live.addresses, live.routes, live.rules, live.sysctls


def operations(todo):
    """All operations of a plan; each kernel lists what it has in an order of its own."""
    every = (*todo.before, *todo.prepare, *todo.swap, *todo.collect, *todo.forget, *todo.after)
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
    before = tables(real, SCHEMA)
    assert before == tables(fake, SCHEMA)
    assert all(shape.key for shape in before[0][1].values())
    verdicts = [not refused(host, ops) for host in hosts]
    assert verdicts == [taken, taken]
    after = tables(real, SCHEMA)
    assert after == tables(fake, SCHEMA)
    assert taken or after == before
    assert not remove(real).problems


def test_another_rate_under_a_known_name_is_ignored(real):
    """Hence a limit's name says what it is, and the fake refuses a name that is there."""
    real.commit([AddTable(), DeleteTable(), *START])
    real.commit([AddLimit("slow", "rate over 1/second burst 1 packets")])
    assert real.read(SCHEMA).table.limits == {"slow": RATE}
    assert not remove(real).problems


@EXAMPLES
@given(wishes=st.lists(desireds(offloads=False), min_size=1, max_size=3))
def test_both_kernels_come_to_the_same_by_the_same_plans(real, wishes):
    fake = FakeHost(sysctl.read(SYSCTLS))
    hosts = (real, fake)
    try:
        for wish in wishes:
            plans = [plan(host, wish) for host in hosts]
            assert operations(plans[0]) == operations(plans[1])
            assert plans[0].unsafe == plans[1].unsafe
            outcomes = [reconcile(host, wish) for host in hosts]
            assert outcomes[0].problems == outcomes[1].problems
            assert outcomes[0].elements == outcomes[1].elements
            assert tables(real, wish) == tables(fake, wish)
            assert rest(real, wish) == rest(fake, wish)
    finally:
        assert not remove(real).problems
    remove(fake)
    assert tables(real, Desired()) == tables(fake, Desired()) == (None, None)
    assert rest(real, Desired()) == rest(fake, Desired())
