"""A plan: what it says, in which order, and what it leaves alone."""

from dataclasses import replace

from lbd.core.ops import (
    AddAddress,
    AddElements,
    AddPolicyRule,
    AddRoute,
    AddTable,
    DeleteAddress,
    DeleteElements,
    DeletePolicyRule,
    DeleteRoute,
    DeleteTable,
    Remember,
    RestoreRoute,
    SetSysctl,
)
from lbd.core.plan import Plan, body, diff, removal
from lbd.core.program import build
from lbd.core.settings import Ports, Service
from lbd.core.shape import Where
from lbd.core.state import (
    PROTOCOL,
    Address,
    Desired,
    Live,
    LiveChain,
    LiveRoute,
    LiveTable,
    Memory,
    Route,
    Rule,
)
from lbd.core.virtual import Target, Virtual

FORWARD = "net.ipv4.ip_forward"
STATIC = 4
ROUTE = Route("10.9.0.0/16", "192.168.2.254", "eth1")
OTHER = replace(ROUTE, via="192.168.2.253")
EMPTY = build([])


HTTP = Ports(80, 80)


def virtual(*backends, port=80, **keys):
    targets = {Target(backend, HTTP): 1 for backend in backends}
    service = Service("web", (), (), scheduler="random", **keys)
    where = Where(4, "tcp", "192.0.2.1", Ports(port, port))
    return Virtual(where, service, targets, total=len(targets), stay=frozenset(targets))


def table(*backends, **keys):
    return build([virtual(*backends, **keys)])


def live(want, **keys):
    """A host whose table is just `want`."""
    chains = {name: LiveChain(chain.rules, chain.hook) for name, chain in want.chains.items()}
    maps = {name: replace(shape, typeof="") for name, shape in want.maps.items()}
    bodies = {body(chain): chain.rules for chain in want.chains.values()}
    keys.setdefault("memory", Memory(bodies=bodies))
    return Live(LiveTable(chains, maps, want.elements, want.limits), **keys)


def wish(**keys):
    keys.setdefault("table", EMPTY)
    if "routes" in keys:
        keys["routes"] = {route.key: route for route in keys["routes"]}
    return Desired(**keys)


def test_nothing_to_do_is_false():
    plan = diff(live(EMPTY), wish())
    assert not plan
    assert plan == Plan()
    assert plan.lines() == ()


def test_what_is_left_out_is_nothing_to_do():
    assert not Plan(unsafe=("why",))


def test_one_backend_more_is_elements_and_its_class():
    plan = diff(live(table("10.0.0.1", "10.0.0.2")), wish(table=table("10.0.0.1", "10.0.0.3")))
    assert plan.lines() == (
        "delete element inet lbd slots_tcp4 { 192.0.2.1 . 80 . 1 }",
        "add element inet lbd slots_tcp4 { 192.0.2.1 . 80 . 1 : 10.0.0.3 . 80 }",
    )


def test_table_that_is_beyond_repair_is_made_anew_in_one_transaction():
    found = live(table("10.0.0.1"))
    broken = replace(found, table=replace(found.table, beyond_repair=True))
    plan = diff(broken, wish(table=table("10.0.0.1")))
    assert plan.swap[1:] == diff(replace(found, table=None), wish(table=table("10.0.0.1"))).swap
    assert str(plan.swap[0]) == "delete table inet lbd"
    assert not plan.collect


def test_chain_that_nothing_goes_to_any_more_goes_in_a_later_transaction():
    plan = diff(live(table("10.0.0.1", "10.0.0.2")), wish(table=table("10.0.0.1")))
    assert "flush chain inet lbd tcp4_random_2" in map(str, plan.swap)
    assert list(map(str, plan.collect)) == ["delete chain inet lbd tcp4_random_2"]


def test_map_that_is_too_small_is_made_anew_with_the_rules_that_name_it():
    want = build(virtual("10.0.0.1", port=n) for n in range(1, 2000))
    lines = [str(op) for op in diff(live(table("10.0.0.1")), wish(table=want)).swap]
    places = [
        next(i for i, line in enumerate(lines) if line.startswith(start))
        for start in (
            "flush chain inet lbd services",
            "delete map inet lbd services4",
            "add map inet lbd services4 ",
            "add element inet lbd services4 ",
            "add rule inet lbd services ",
        )
    ]
    assert places == sorted(places)
    # What does not name it, and what still fits, is left alone.
    assert not any("chain inet lbd prerouting" in line or "neighbours4" in line for line in lines)


def test_map_that_is_larger_than_needed_stays():
    large = table("10.0.0.1")
    large = replace(large, maps={name: replace(shape, size=65536) for name, shape in large.maps.items()})
    assert not diff(live(large), wish(table=table("10.0.0.1")))


def test_chain_whose_rules_we_have_never_seen_compiled_is_written_again():
    plan = diff(live(EMPTY, memory=Memory()), wish())
    assert {str(op).split()[0] for op in plan.swap} == {"flush", "add"}
    assert not any("element" in str(op) or "map inet" in str(op) for op in plan.swap)


def test_what_the_rules_need_comes_before_and_goes_after():
    address, rule = Address("192.0.2.1/24", "eth0"), Rule(1000, 100, 4, "10.0.0.0/8")
    want = wish(
        table=table("10.0.0.1"),
        addresses=frozenset({address}),
        routes=[ROUTE],
        rules=frozenset({rule}),
        sysctls={FORWARD: "1"},
    )
    plan = diff(Live(sysctls={FORWARD: "0"}), want)
    assert list(plan.before) == [
        Remember(Memory(sysctls={FORWARD: "0"})),
        SetSysctl(FORWARD, "1"),
        AddAddress(address),
        AddRoute(ROUTE),
        AddPolicyRule(rule),
    ]
    assert plan.swap[0] == AddTable()
    assert not plan.after

    there = live(
        want.table,
        addresses={address: True},
        routes={ROUTE.key: LiveRoute(ROUTE, PROTOCOL)},
        rules={rule: True},
        sysctls={FORWARD: "1"},
        memory=Memory(sysctls={FORWARD: "0"}),
    )
    back = removal(there)
    assert back.swap == (DeleteTable(),)
    assert not back.before
    assert list(back.after) == [
        DeletePolicyRule(rule),
        DeleteRoute(ROUTE),
        DeleteAddress(address),
        SetSysctl(FORWARD, "0"),
        Remember(Memory()),
    ]


def test_ipv6_address_with_another_prefix_goes_first():
    old, new = Address("2001:db8::1/64", "eth0"), Address("2001:db8::1/128", "eth0")
    plan = diff(live(EMPTY, addresses={old: True}), wish(addresses=frozenset({new})))
    assert list(plan.before) == [DeleteAddress(old), AddAddress(new)]
    assert not plan.after


def test_ipv4_address_with_another_prefix_is_there_all_the_time():
    old, new = Address("192.0.2.1/24", "eth0"), Address("192.0.2.1/32", "eth0")
    plan = diff(live(EMPTY, addresses={old: True}), wish(addresses=frozenset({new})))
    assert list(plan.before) == [AddAddress(new)]
    assert list(plan.after) == [DeleteAddress(old)]


def test_foreign_things_that_meet_a_wish_are_left_alone():
    address, rule = Address("192.0.2.1/24", "eth0"), Rule(1000, 100)
    there = live(
        EMPTY,
        addresses={address: False},
        rules={rule: False},
        routes={ROUTE.key: LiveRoute(replace(ROUTE, source="192.168.2.1"), STATIC)},
    )
    met = wish(addresses=frozenset({address}), rules=frozenset({rule}), routes=[ROUTE])
    assert not diff(there, met)
    assert not diff(there, wish())


def routes(now, *wished, before=None, replacing=False):
    memory = Memory(routes={ROUTE.key: before} if before else {}, bodies=live(EMPTY).memory.bodies)
    there = live(EMPTY, routes={ROUTE.key: now} if now else {}, memory=memory)
    return diff(there, wish(routes=wished, replace=frozenset({ROUTE.key} if replacing else ())))


def ours(route):
    return LiveRoute(route, PROTOCOL)


def foreign(route):
    return LiveRoute(route, STATIC)


def test_foreign_route_is_not_replaced_without_being_told():
    plan = routes(foreign(OTHER), ROUTE)
    assert not plan
    (reason,) = plan.unsafe
    assert "192.168.2.253" in reason
    assert "replace = true" in reason


def test_foreign_route_is_noted_before_it_is_replaced():
    plan = routes(foreign(OTHER), ROUTE, replacing=True)
    remember, add = plan.before
    assert remember.memory.routes == {ROUTE.key: foreign(OTHER)}
    assert add == AddRoute(ROUTE, replace=True)


def test_replaced_route_comes_back():
    plan = routes(ours(ROUTE), before=foreign(OTHER))
    restore, remember = plan.after
    assert restore == RestoreRoute(foreign(OTHER))
    assert not remember.memory.routes


def test_replaced_route_comes_back_when_ours_is_gone_too():
    assert routes(None, before=foreign(OTHER)).after[0] == RestoreRoute(foreign(OTHER))


def test_replaced_route_that_is_back_already_is_only_forgotten():
    (remember,) = routes(foreign(OTHER), before=foreign(OTHER)).after
    assert not remember.memory.routes


def test_replaced_route_comes_back_when_replacing_is_not_allowed_any_more():
    plan = routes(ours(ROUTE), ROUTE, before=foreign(OTHER))
    assert plan.after[0] == RestoreRoute(foreign(OTHER))
    assert plan.unsafe


def test_replaced_route_comes_back_when_it_will_do():
    plan = routes(ours(ROUTE), OTHER, before=foreign(OTHER), replacing=True)
    assert plan.after[0] == RestoreRoute(foreign(OTHER))
    assert not plan.unsafe


def test_replaced_route_is_still_known_when_ours_was_deleted():
    plan = routes(None, ROUTE, before=foreign(OTHER), replacing=True)
    assert plan.before == (AddRoute(ROUTE),)
    assert not plan.after


def test_our_route_is_just_as_the_file_says():
    assert routes(ours(OTHER), ROUTE).before == (AddRoute(ROUTE, replace=True),)
    on_link = replace(ROUTE, via="")
    assert routes(ours(ROUTE), on_link).before == (AddRoute(on_link, replace=True),)
    assert routes(ours(replace(ROUTE, source="192.168.2.1")), ROUTE).before == (
        AddRoute(ROUTE, replace=True),
    )


def test_interface_that_is_not_stated_is_the_kernels_choice():
    assert not routes(ours(ROUTE), replace(ROUTE, interface=""))


def sysctls(now, before, want):
    held = Memory(sysctls={FORWARD: before} if before else {}, bodies=live(EMPTY).memory.bodies)
    there = live(EMPTY, sysctls={FORWARD: now} if now else {}, memory=held)
    return diff(there, wish(sysctls={FORWARD: want} if want else {}))


def test_sysctl_that_is_right_is_not_ours():
    assert not sysctls("1", None, "1")


def test_first_value_of_a_sysctl_is_the_one_that_is_put_back():
    assert sysctls("2", "0", "1").before == (SetSysctl(FORWARD, "1"),)
    assert sysctls("1", "0", None).after[0] == SetSysctl(FORWARD, "0")


def test_sysctl_that_is_back_already_is_only_forgotten():
    (remember,) = sysctls("0", "0", None).after
    assert not remember.memory.sysctls


def test_sysctl_that_does_not_exist_is_told():
    plan = sysctls(None, None, "1")
    assert not plan
    assert FORWARD in plan.unsafe[0]


def test_elements_are_changed_by_delete_and_add_in_one_transaction():
    plan = diff(live(table("10.0.0.1")), wish(table=table("10.0.0.2")))
    assert [type(op) for op in plan.swap] == [DeleteElements, AddElements]


def test_removal_of_nothing_is_nothing():
    assert not removal(Live(sysctls={FORWARD: "1"}))
