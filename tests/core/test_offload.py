"""Connections that leave the path of the rules: the program, plans from one to another, and what is told."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import SYSCTLS
from lbd.core.config import parse
from lbd.core.desired import desired
from lbd.core.observed import Observed, changes, named_interfaces
from lbd.core.ops import AddFlowtable, AddRule, DeleteFlowtable, FlushChain
from lbd.core.plan import diff
from lbd.core.settings import Config
from lbd.core.source import Source
from lbd.core.state import Desired, Live, LiveTable
from lbd.reconcile import Outcome, RefusedError, plan, reconcile, remove
from lbd.testing import FakeHost
from running import service
from strategies import configs, observations

ABLE = Observed(interfaces=frozenset({"eth0", "eth1", "eth2"}), offloads=True)
BOTH = '[director]\ndevices = ["eth1", "eth0"]\n'
WEB = service("192.0.2.1:80", ["10.0.0.1"], offload=True)


def config(text=BOTH + WEB):
    return parse(Source("lbd.toml", text))


def wish(text=BOTH + WEB, observed=ABLE):
    return desired(config(text), observed)


def chain(found):
    return found.table.chains["offload_forward"]


def test_established_connections_of_the_service_are_offloaded_between_the_devices():
    table = wish().table
    assert table.flowtables == {"offloaded": ("eth0", "eth1")}
    assert table.elements["offload4"] == {"192.0.2.1 . tcp . 80": ""}
    hook = chain(wish()).hook
    assert (hook.type, hook.point, hook.priority) == ("filter", "forward", 0)
    (rule,) = chain(wish()).rules
    assert rule == (
        "meta l4proto { tcp, udp } ct status dnat ct state established "
        "ct original ip daddr . meta l4proto . ct original proto-dst @offload4 flow add @offloaded"
    )


def test_other_services_stay_on_the_path_of_the_rules():
    found = wish(BOTH + WEB + service("192.0.2.1:81", ["10.0.0.1"], name="other"))
    assert list(found.table.elements["offload4"]) == ["192.0.2.1 . tcp . 80"]


def test_a_service_without_backends_keeps_what_it_has_offloaded():
    down = WEB.replace('["10.0.0.1"]', '[{ address = "10.0.0.1", state = "drain" }]')
    assert wish(BOTH + down).table.elements["offload4"] == wish().table.elements["offload4"]


def test_sctp_cannot_be_offloaded():
    text = BOTH + service(["192.0.2.1:80/sctp"], ["10.0.0.1"], offload=True)
    assert not wish(text).table.flowtables
    assert "offload_forward" not in wish(text).table.chains


@pytest.mark.parametrize("observed", [Observed(), replace(ABLE, offloads=False)])
def test_without_flowtables_all_else_is_as_without_offload(observed):
    plain = wish(BOTH + WEB.replace("offload = true", "offload = false"))
    assert plain.lacking == ()
    assert replace(wish(observed=observed), lacking=()) == plain
    assert wish(observed=observed).lacking == (
        'this kernel has no flowtables (NF_FLOW_TABLE): connections of service "web" are not offloaded',
    )


def test_many_services_are_one_sentence():
    text = BOTH + "".join(
        service(f"192.0.2.1:{n}", ["10.0.0.1"], name=f"s{n}", offload=True) for n in range(1, 4)
    )
    (said,) = wish(text, Observed()).lacking
    assert 'connections of service "s1" and of 2 others are not offloaded' in said


def test_only_devices_that_exist_are_named_and_the_others_told():
    found = wish(observed=replace(ABLE, interfaces=frozenset({"eth1"})))
    assert found.table.flowtables == {"offloaded": ("eth1",)}
    assert found.lacking == ("interface eth0 does not exist: connections through it are not offloaded",)
    assert not wish(observed=replace(ABLE, interfaces=frozenset())).table.flowtables


def test_interfaces_are_looked_for_only_when_a_rule_names_them():
    assert named_interfaces(config()) == {"eth0", "eth1"}
    assert named_interfaces(config(BOTH + WEB.replace("offload = true", "offload = false"))) == set()
    assert changes(ABLE, replace(ABLE, interfaces=frozenset({"eth0", "eth1", "eth3"}))) == (
        "interface eth2 is gone",
        "interface eth3 is there",
    )


# Plans.


def test_a_flowtable_is_made_before_the_rules_that_name_it():
    ops = plan(FakeHost(), wish()).swap
    made = next(n for n, op in enumerate(ops) if isinstance(op, AddFlowtable))
    named = next(n for n, op in enumerate(ops) if isinstance(op, AddRule) and "flow add" in op.rule)
    assert made < named
    assert str(ops[made]) == (
        'add flowtable inet lbd offloaded { hook ingress priority 0; devices = { "eth0", "eth1" }; }'
    )


def test_other_devices_make_it_anew_with_the_rules_that_name_it_and_nothing_else():
    host = FakeHost()
    reconcile(host, wish())
    found = plan(host, wish(BOTH.replace("eth0", "eth2") + WEB))
    assert found.swap == (
        FlushChain("offload_forward"),
        DeleteFlowtable("offloaded"),
        AddFlowtable("offloaded", ("eth1", "eth2")),
        AddRule("offload_forward", chain(wish()).rules[0]),
    )
    assert not found.collect


def test_a_flowtable_that_somebody_took_away_is_drift():
    host = FakeHost()
    reconcile(host, wish())
    host.ruleset.chains["offload_forward"].rules.clear()
    del host.ruleset.flowtables["offloaded"]
    assert plan(host, wish()).swap
    assert reconcile(host, wish()).converged
    assert not plan(host, wish())


def test_an_interface_that_left_the_flowtable_and_came_back_is_put_in_again():
    host = FakeHost()
    reconcile(host, wish())
    host.ruleset.flowtables["offloaded"] = ("eth1",)
    without = wish(observed=replace(ABLE, interfaces=frozenset({"eth1"})))
    assert not plan(host, without)
    assert reconcile(host, wish()).converged
    assert host.ruleset.flowtables == {"offloaded": ("eth0", "eth1")}


@st.composite
def offloading(draw):
    """A wish of a file in which any service may be offloaded, on a host that may be able to."""
    drawn = draw(configs())
    services = tuple(replace(each, offload=draw(st.booleans())) for each in drawn.services)
    devices = tuple(draw(st.lists(st.sampled_from(("eth0", "eth1", "eth2")), unique=True, min_size=1)))
    made = Config(replace(drawn.director, devices=devices), services)
    there = frozenset(draw(st.lists(st.sampled_from(("eth0", "eth1")), unique=True)))
    return desired(made, replace(draw(observations(made)), offloads=draw(st.booleans()), interfaces=there))


@given(offloading(), offloading())
def test_from_any_to_any(a, b):
    host = FakeHost(dict.fromkeys(SYSCTLS, "0"))
    for each in (a, b):
        outcome = reconcile(host, each)
        assert (outcome.refused, outcome.left) == ((), ())
        assert outcome.plan.lacking == each.lacking
    assert host.ruleset.flowtables == b.table.flowtables
    fresh = FakeHost(dict.fromkeys(SYSCTLS, "0"))
    reconcile(fresh, b)
    assert {n: c.rules for n, c in host.ruleset.chains.items()} == {
        n: c.rules for n, c in fresh.ruleset.chains.items()
    }
    assert host.ruleset.elements == fresh.ruleset.elements
    assert remove(host).converged
    assert host.ruleset is None


@given(offloading())
def test_flowtable_devices_and_rules_go_together(found):
    table = found.table
    rules = [rule for chain in table.chains.values() for rule in chain.rules if "flow add" in rule]
    assert bool(rules) == bool(table.flowtables)
    assert all(table.flowtables.values())
    assert all(rule.endswith("flow add @offloaded") for rule in rules)


# The fake.


@pytest.mark.parametrize(
    ("ops", "why"),
    [
        ([AddFlowtable("offloaded", ("eth0",))], "File exists"),
        ([AddFlowtable("other", ())], "not supported"),
        ([AddFlowtable("other", ("eth0", "eth0"))], "not supported"),
        ([DeleteFlowtable("other")], "No such file"),
        ([DeleteFlowtable("offloaded")], "busy"),
        ([AddRule("offload_forward", "flow add @other")], "No such file"),
        ([AddRule("prerouting", "flow add @offloaded")], "not supported"),
        ([AddRule("refuse_drop", "flow add @offloaded")], "not supported"),
    ],
)
def test_the_fake_refuses(ops, why):
    host = FakeHost()
    reconcile(host, wish())
    before = host.ruleset.copy()
    with pytest.raises(RefusedError, match=why):
        host.commit(ops)
    assert host.ruleset == before


# What is told.


def test_what_is_lacking_is_a_problem_and_no_failure():
    host = FakeHost()
    told = wish(observed=Observed()).lacking
    outcome = reconcile(host, wish(observed=Observed()))
    assert outcome.converged
    assert outcome.failures == ()
    assert outcome.problems == outcome.plan.lacking == told
    again = reconcile(host, wish(observed=Observed()))
    assert not again.plan
    assert again.problems == told


def test_what_is_lacking_comes_behind_what_failed():
    found = diff(Live(table=LiveTable()), Desired(unsafe=("a",), lacking=("b",)))
    outcome = Outcome(found, refused=("c",))
    assert outcome.failures == ("c", "a")
    assert outcome.problems == ("c", "a", "b")
