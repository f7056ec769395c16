"""The fake host is as strict as a kernel, and of two kernels the stricter."""

from dataclasses import replace

import pytest

from fakes import STATIC
from lbd.core.ops import (
    AddAddress,
    AddChain,
    AddElements,
    AddLimit,
    AddMap,
    AddPolicyRule,
    AddRoute,
    AddRule,
    AddTable,
    DeleteAddress,
    DeleteChain,
    DeleteElements,
    DeleteLimit,
    DeleteMap,
    DeletePolicyRule,
    DeleteRoute,
    DeleteTable,
    FlushChain,
    RestoreRoute,
    SetSysctl,
)
from lbd.core.state import PROTOCOL, Address, Desired, Hook, LiveRoute, Map, Route, Rule
from lbd.reconcile import RefusedError
from lbd.testing import FakeHost

NAT = Hook("nat", "prerouting", -100)
VERDICTS = Map(("ipv4_addr",), "verdict", 2)
SET = Map(("ipv4_addr",), (), 2)
LIMITS = Map(("ipv4_addr", "inet_service"), "limit", 9, interval=True)
RATE = "rate over 10/second burst 20 packets"
TABLE = (
    AddTable(),
    AddChain("base", NAT),
    AddChain("goal"),
    AddChain("other"),
    AddMap("verdicts", VERDICTS),
    AddMap("set", SET),
    AddMap("limits", LIMITS),
    AddLimit("slow", RATE),
    AddElements("limits", LIMITS, (("192.0.2.0/24 . 80-90", "slow"),)),
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
        # nft's `add` would keep the rate that is there.
        ([AddLimit("slow", RATE)], "File exists"),
        ([DeleteLimit("none")], "No such file"),
        ([DeleteLimit("slow")], "busy"),
        ([AddElements("limits", LIMITS, (("198.51.100.1 . 80", "none"),))], "No such file"),
        ([AddElements("limits", LIMITS, (("192.0.2.7 . 85", "slow"),))], "conflicting intervals"),
        ([AddElements("limits", LIMITS, (("0.0.0.0/0 . 90-99", "slow"),))], "conflicting intervals"),
        ([AddElements("set", SET, (("192.0.2.0/24", ""),))], "syntax error"),
        ([AddChain("early", Hook("filter", "ingress", 0, device="eth0"))], "Operation not supported"),
        ([AddChain("late", NAT, "netdev")], "No such file"),
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


SERVICES = Map(("ipv4_addr", "inet_proto", "inet_service"), "verdict", 9)
SHAPES = {
    "services4": SERVICES,
    "services6": replace(SERVICES, key=("ipv6_addr", "inet_proto", "inet_service")),
    "services_if4": replace(SERVICES, key=("ifname", *SERVICES.key)),
    "services_mark4": replace(SERVICES, key=("mark",)),
    "services_range4": replace(SERVICES, interval=True),
    "slots_tcp4": Map(("ipv4_addr", "inet_service", "index"), ("ipv4_addr", "inet_service"), 9),
    "log_new4": replace(SERVICES, data=()),
    "neighbours6": Map(("ipv6_addr", "ifname"), (), 9, interval=True),
}


@pytest.mark.parametrize(
    ("name", "key", "data"),
    [
        ("services4", "192.0.2.1 . tcp", "goto goal"),
        ("services4", "192.0.2.1 . icmp . 80", "goto goal"),
        ("services4", "192.0.2.1 . tcp . 65536", "goto goal"),
        ("services4", "192.0.2.1 . tcp . 080", "goto goal"),
        ("services4", "2001:db8::1 . tcp . 80", "goto goal"),
        ("services6", "2001:DB8::1 . tcp . 80", "goto goal"),
        ("services_if4", "192.0.2.1 . tcp . 80", "goto goal"),
        ("services_if4", "an-interface-of-17 . 192.0.2.1 . tcp . 80", "goto goal"),
        ("services_mark4", "76", "goto goal"),
        # Ranges are for maps of intervals, and in them in one form.
        ("services4", "192.0.2.1 . tcp . 80-90", "goto goal"),
        ("services4", "192.0.2.0/24 . tcp . 80", "goto goal"),
        ("services_range4", "192.0.2.1 . tcp . 90-80", "goto goal"),
        ("services_range4", "192.0.2.1 . tcp . 80-80", "goto goal"),
        ("services_range4", "192.0.2.1/32 . tcp . 80", "goto goal"),
        ("services_range4", "192.0.2.1/24 . tcp . 80", "goto goal"),
        ("neighbours6", "2001:db8::1/64 . eth1", ""),
        ("slots_tcp4", "192.0.2.1 . 80 . 0", "10.0.0.1"),
        ("slots_tcp4", "192.0.2.1 . 80 . 0", ""),
        ("slots_tcp4", "192.0.2.1 . 80 . 0", "10.0.0.0/8 . 80"),
        ("log_new4", "192.0.2.1 . tcp . 80", "10.0.0.1"),
    ],
)
def test_element_that_does_not_fit_its_map_is_refused(host, name, key, data):
    host.commit([AddMap(name, SHAPES[name])])
    with pytest.raises(RefusedError, match="syntax error"):
        host.commit([AddElements(name, SHAPES[name], ((key, data),))])


def test_intervals_beside_each_other_are_taken(host):
    keys = ("192.0.2.0/24 . 91-99", "192.0.2.0/24 . 1-79", "192.0.3.0/24 . 80", "0.0.0.0/1 . 80-90")
    host.commit([AddElements("limits", LIMITS, tuple((key, "slow") for key in keys))])
    assert len(host.read(Desired()).table.elements["limits"]) == 5


def test_limit_goes_with_the_last_element_that_names_it(host):
    host.commit([DeleteElements("limits", LIMITS, ("192.0.2.0/24 . 80-90",)), DeleteLimit("slow")])
    assert not host.read(Desired()).table.limits


def test_tables_of_two_families_do_not_know_each_other(host):
    hook = Hook("filter", "ingress", 0, device="eth0")
    host.commit([AddTable("netdev"), AddChain("goal", hook, "netdev")])
    live = host.read(Desired())
    assert live.ingress.chains["goal"].hook == hook
    assert live.table.chains["goal"].hook is None
    host.commit([DeleteTable("netdev")])
    live = host.read(Desired())
    assert live.ingress is None
    assert live.table


def test_what_packets_noted_is_read_when_asked_for(host):
    noted = Map(("index", "ipv4_addr"), ("ipv4_addr",), 9, learned="timeout")
    counted = replace(noted, data=(), learned="count")
    host.commit([AddMap("sticky", noted), AddMap("client", counted)])
    host.ruleset.elements["sticky"]["7 . 203.0.113.7"] = "10.0.0.1"
    host.ruleset.elements["client"]["7 . 203.0.113.7"] = ""
    assert not {"sticky", "client"} & host.read(Desired()).table.elements.keys()
    found = host.read(Desired(), learned=True).table.elements
    assert found["sticky"] == {"7 . 203.0.113.7": "10.0.0.1"}
    assert "client" not in found


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
    assert table.elements.pop("limits")
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
