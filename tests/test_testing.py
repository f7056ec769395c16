"""The fake host is as strict as a kernel, and of two kernels the stricter."""

import pytest

from fakes import STATIC
from lbd.core.ops import (
    AddAddress,
    AddChain,
    AddElements,
    AddMap,
    AddPolicyRule,
    AddRoute,
    AddRule,
    AddTable,
    DeleteAddress,
    DeleteChain,
    DeleteElements,
    DeleteMap,
    DeletePolicyRule,
    DeleteRoute,
    DeleteTable,
    FlushChain,
    RestoreRoute,
    SetSysctl,
)
from lbd.core.program import SCHEMA
from lbd.core.state import PROTOCOL, Address, Desired, Hook, LiveRoute, Map, Route, Rule
from lbd.reconcile import RefusedError
from lbd.testing import FakeHost

NAT = Hook("nat", "prerouting", -100)
VERDICTS = Map(("ipv4_addr",), "verdict", 2)
SET = Map(("ipv4_addr",), (), 2)
TABLE = (
    AddTable(),
    AddChain("base", NAT),
    AddChain("goal"),
    AddChain("other"),
    AddMap("verdicts", VERDICTS),
    AddMap("set", SET),
    AddRule("base", "ip daddr vmap @verdicts"),
    AddElements("verdicts", VERDICTS, (("192.0.2.1", "goto goal"),)),
)


@pytest.fixture
def host():
    host = FakeHost()
    host.commit(TABLE)
    return host


@pytest.mark.parametrize(
    ("ops", "why"),
    [
        ([AddChain("goal")], "File exists"),
        ([AddMap("set", SET)], "File exists"),
        ([FlushChain("none")], "No such file"),
        ([DeleteChain("none")], "No such file"),
        ([DeleteMap("none")], "No such file"),
        ([AddRule("none", "drop")], "No such file"),
        ([AddRule("base", "ip daddr @none drop")], "No such file"),
        ([AddRule("base", "jump none")], "No such file"),
        ([AddElements("none", SET, (("192.0.2.1", ""),))], "No such file"),
        ([AddElements("verdicts", VERDICTS, (("192.0.2.2", "goto none"),))], "No such file"),
        ([DeleteElements("verdicts", VERDICTS, ("192.0.2.9",))], "No such file"),
        # What has a hook cannot be gone to.
        ([AddElements("verdicts", VERDICTS, (("192.0.2.2", "goto base"),))], "Operation not supported"),
        ([AddRule("goal", "jump base")], "Operation not supported"),
        # An element's data is not changed in place.
        ([AddElements("verdicts", VERDICTS, (("192.0.2.1", "goto other"),))], "File exists"),
        # What is referred to stays.
        ([DeleteChain("goal")], "busy"),
        ([AddRule("base", "jump other"), DeleteChain("other")], "busy"),
        ([DeleteMap("verdicts")], "busy"),
        ([DeleteMap("verdicts"), FlushChain("base")], "busy"),
        # Before Linux 6.2 also in the transaction that drops the last reference.
        ([DeleteElements("verdicts", VERDICTS, ("192.0.2.1",)), DeleteChain("goal")], "busy"),
        ([AddElements("set", SET, tuple((f"192.0.2.{n}", "") for n in range(3)))], "Too many open files"),
        ([DeleteTable(), AddChain("goal")], "No such file"),
        ([DeleteTable(), DeleteTable()], "No such file"),
    ],
)
def test_transaction_is_refused_and_changes_nothing(host, ops, why):
    before, generation = host.read(Desired()), host.generation
    with pytest.raises(RefusedError, match=why):
        host.commit([AddChain("first"), *ops])
    assert host.read(Desired()) == before
    assert host.generation == generation


@pytest.mark.parametrize(
    ("name", "key", "data"),
    [
        ("services4", "192.0.2.1 . tcp", "goto goal"),
        ("services4", "192.0.2.1 . sctp . 80", "goto goal"),
        ("services4", "192.0.2.1 . tcp . 65536", "goto goal"),
        ("services4", "192.0.2.1 . tcp . 080", "goto goal"),
        ("services4", "2001:db8::1 . tcp . 80", "goto goal"),
        ("services6", "2001:DB8::1 . tcp . 80", "goto goal"),
        ("services_if4", "192.0.2.1 . tcp . 80", "goto goal"),
        ("services_if4", "an-interface-of-17 . 192.0.2.1 . tcp . 80", "goto goal"),
        ("slots_tcp4", "192.0.2.1 . 80 . 0", "10.0.0.1"),
        ("slots_tcp4", "192.0.2.1 . 80 . 0", ""),
        ("masquerade4", "192.0.2.1 . tcp . 80", "10.0.0.1"),
    ],
)
def test_element_that_does_not_fit_its_map_is_refused(host, name, key, data):
    host.commit([AddMap(name, SCHEMA[name])])
    with pytest.raises(RefusedError, match="syntax error"):
        host.commit([AddElements(name, SCHEMA[name], ((key, data),))])


def test_what_a_kernel_takes_is_done(host):
    host.commit(
        [
            AddTable(),
            AddElements("verdicts", VERDICTS, (("192.0.2.1", "goto goal"),)),
            DeleteElements("verdicts", VERDICTS, ("192.0.2.1",)),
            AddElements("verdicts", VERDICTS, (("192.0.2.1", "goto other"),)),
            # With its rules.
            DeleteChain("base"),
            AddChain("base", NAT),
            DeleteMap("set"),
        ]
    )
    host.commit([DeleteChain("goal")])
    table = host.read(Desired()).table
    assert table.chains.keys() == {"base", "other"}
    assert table.elements == {"verdicts": {"192.0.2.1": "goto other"}}


def test_without_a_table_there_is_nothing_to_change():
    with pytest.raises(RefusedError, match="No such file"):
        FakeHost().commit([AddChain("goal")])


def test_unknown_sysctl_is_refused():
    with pytest.raises(RefusedError, match="No such file"):
        FakeHost({}).apply(SetSysctl("net.ipv4.ip_forward", "1"))


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (Address("192.0.2.1/24", "eth0"), Address("192.0.2.1/24", "eth0")),
        # IPv6 does not look at the prefix.
        (Address("2001:db8::1/64", "eth0"), Address("2001:db8::1/128", "eth0")),
    ],
)
def test_address_that_is_there_is_refused(there, wanted):
    host = FakeHost()
    host.addresses[there] = False
    with pytest.raises(RefusedError, match="File exists"):
        host.apply(AddAddress(wanted))
    assert host.addresses == {there: False}


@pytest.mark.parametrize("other", [Address("192.0.2.1/32", "eth0"), Address("192.0.2.1/24", "eth1")])
def test_ipv4_address_with_another_prefix_or_elsewhere_is_taken(other):
    host = FakeHost()
    for address in (Address("192.0.2.1/24", "eth0"), other):
        host.apply(AddAddress(address))
    assert len(host.addresses) == 2


ROUTE = Route("10.9.0.0/16", "192.168.2.254")


def test_route_is_added_once_and_replaced_when_that_is_said():
    host = FakeHost()
    host.apply(AddRoute(ROUTE))
    with pytest.raises(RefusedError, match="File exists"):
        host.apply(AddRoute(ROUTE))
    host.apply(AddRoute(Route("10.9.0.0/16", "192.168.2.253"), replace=True))
    # The kernel finds the interface of the gateway.
    assert host.routes[ROUTE.key] == LiveRoute(Route("10.9.0.0/16", "192.168.2.253", "eth1"), PROTOCOL)


def test_foreign_things_are_not_deleted():
    host = FakeHost()
    address, rule = Address("192.0.2.1/24", "eth0"), Rule(100, 100, 4, "10.0.0.0/8")
    host.addresses[address] = host.rules[rule] = False
    host.apply(RestoreRoute(LiveRoute(ROUTE, STATIC)))
    for op in (DeleteAddress(address), DeletePolicyRule(rule), DeleteRoute(ROUTE)):
        host.apply(op)
    assert (host.addresses, host.rules) == ({address: False}, {rule: False})
    assert host.routes == {ROUTE.key: LiveRoute(ROUTE, STATIC)}
    with pytest.raises(RefusedError, match="File exists"):
        host.apply(AddPolicyRule(rule))


def test_ours_is_deleted_and_what_is_gone_is_no_error():
    host = FakeHost()
    address, rule = Address("192.0.2.1/24", "eth0"), Rule(100, 100, 4, "10.0.0.0/8")
    for op in (AddAddress(address), AddPolicyRule(rule), AddRoute(ROUTE)):
        host.apply(op)
    for op in (DeleteAddress(address), DeletePolicyRule(rule), DeleteRoute(ROUTE)) * 2:
        host.apply(op)
    assert not host.addresses
    assert not host.rules
    assert not host.routes
