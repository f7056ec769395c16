"""Somebody else changes the director: the next look makes it right, and touches only what is wrong."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import hosts, state, wanted
from lbd.core.ops import AddElements, AddFlowtable, AddMap, AddRule, DeleteElements
from lbd.core.plan import body
from lbd.core.program import DSTNAT, MANGLE
from lbd.core.state import PROTOCOL, Address, Hook, LiveRoute, Map, Rule
from lbd.reconcile import plan, reconcile
from lbd.testing import digest
from lbd.testing.ruleset import MAP, TARGET, Chain, Ruleset
from strategies import desireds

# Each is one thing that somebody can do to a host, and that its kernel lets them do.
DAMAGE = []


def damage(harm):
    DAMAGE.append(harm)
    return harm


def _pick(draw, things):
    return draw(st.sampled_from(sorted(things)))


@damage
def delete_element(draw, host):
    filled = {name for name, items in host.ruleset.elements.items() if items}
    if filled:
        items = host.ruleset.elements[_pick(draw, filled)]
        del items[_pick(draw, items)]


@damage
def alter_element(draw, host):
    filled = {name for name, items in host.ruleset.elements.items() if items and name.startswith("slots")}
    if filled:
        name = _pick(draw, filled)
        items = host.ruleset.elements[name]
        items[_pick(draw, items)] = "10.9.9.9 . 1" if name.endswith("4") else "fd09::9 . 1"


# One value of each type, of which no file is drawn.
STRAY = {
    "ipv4_addr": "203.0.113.99",
    "ipv6_addr": "2001:db8:99::1",
    "inet_proto": "tcp",
    "inet_service": "9",
    "ifname": "eth9",
    "mark": "0x00000063",
    "index": "99999",
}


@damage
def stray_element(draw, host):
    """In a map that the file fills, whatever it is of."""
    names = [name for name, shape in host.ruleset.maps.items() if shape.key and not shape.learned]
    if not names:
        return
    shape = host.ruleset.maps[name := _pick(draw, names)]
    match shape.data:
        case "verdict":
            data = "goto refuse_drop"
        case "limit":
            host.ruleset.limits["stray"] = "rate over 1/second burst 1 packets"
            data = "stray"
        case fields:
            data = " . ".join(STRAY[field] for field in fields)
    host.ruleset.elements[name][" . ".join(STRAY[field] for field in shape.key)] = data


@damage
def stray_limit(_, host):
    host.ruleset.limits["stray"] = "rate over 1/second burst 1 packets"


@damage
def other_rate(draw, host):
    """Somebody makes a limit again with another rate."""
    if host.ruleset.limits:
        host.ruleset.limits[_pick(draw, host.ruleset.limits)] = "rate over 77/second burst 7 packets"


@damage
def delete_limit(draw, host):
    if host.ruleset.limits:
        name = _pick(draw, host.ruleset.limits)
        del host.ruleset.limits[name]
        for items in host.ruleset.elements.values():
            for key in [key for key, data in items.items() if data == name]:
                del items[key]


@damage
def flush_chain(draw, host):
    host.ruleset.chains[_pick(draw, host.ruleset.chains)].rules.clear()


@damage
def add_rule(draw, host):
    rules = host.ruleset.chains[_pick(draw, host.ruleset.chains)].rules
    rules.insert(draw(st.integers(0, len(rules))), "counter accept")


@damage
def alter_rule(draw, host):
    rules = host.ruleset.chains[_pick(draw, host.ruleset.chains)].rules
    if rules:
        rules[draw(st.integers(0, len(rules) - 1))] += " comment"


@damage
def unhook(_, host):
    host.ruleset.chains["prerouting"].hook = None


@damage
def other_hook(draw, host):
    hooks = (
        Hook("nat", "prerouting", DSTNAT + 1),
        Hook("filter", "prerouting", MANGLE),
        Hook("nat", "prerouting", DSTNAT, "drop"),
    )
    host.ruleset.chains["prerouting"].hook = draw(st.sampled_from(hooks))


@damage
def stray_chain(draw, host):
    hook = draw(st.sampled_from((None, Hook("nat", "prerouting", 0))))
    host.ruleset.chains["stray_hook" if hook else "stray"] = Chain(hook, ["drop"])


@damage
def jump_to_a_stray_chain(_, host):
    host.ruleset.chains["stray"] = Chain(None, ["drop"])
    host.ruleset.chains["prerouting"].rules.insert(0, "jump stray")


@damage
def stray_map(_, host):
    host.ruleset.chains["stray"] = Chain(None, ["ip daddr vmap @stray_map"])
    host.ruleset.maps["stray_map"] = Map((), (), 0)
    host.ruleset.elements["stray_map"] = {"192.0.2.9": "goto refuse_drop"}


@damage
def other_map(draw, host):
    """Somebody makes a map again: smaller, with other fields, or as something we cannot read."""
    if not host.ruleset.maps:
        return
    name = _pick(draw, host.ruleset.maps)
    shape = host.ruleset.maps[name]
    shapes = (
        replace(shape, size=16),
        replace(shape, counter=not shape.counter),
        replace(shape, interval=not shape.interval),
        replace(shape, learned="" if shape.learned else "count"),
        Map((), (), 0),
    )
    host.ruleset.maps[name], host.ruleset.elements[name] = draw(st.sampled_from(shapes)), {}


@damage
def delete_map(draw, host):
    if not host.ruleset.maps:
        return
    name = _pick(draw, host.ruleset.maps)
    del host.ruleset.maps[name], host.ruleset.elements[name]
    for chain in host.ruleset.chains.values():
        chain.rules = [rule for rule in chain.rules if name not in MAP.findall(rule)]


@damage
def delete_chain(draw, host):
    name = _pick(draw, host.ruleset.chains)
    del host.ruleset.chains[name]
    for items in host.ruleset.elements.values():
        for key in [key for key, data in items.items() if data in (f"goto {name}", f"jump {name}")]:
            del items[key]
    for chain in host.ruleset.chains.values():
        chain.rules = [rule for rule in chain.rules if name not in TARGET.findall(rule)]


@damage
def delete_table(_, host):
    host.ruleset = None


@damage
def delete_ingress(_, host):
    host.ingress = None


@damage
def stray_ingress(_, host):
    """What nobody asks for; or a chain that the file has, with another rule."""
    host.ingress = host.ingress or Ruleset()
    host.ingress.chains["services"] = Chain(None, ["drop"])


@damage
def stray_flowtable(_, host):
    host.ruleset.flowtables["stray"] = ("eth0",)


@damage
def other_flowtable(_, host):
    """Somebody makes it again between other interfaces."""
    for name in host.ruleset.flowtables:
        host.ruleset.flowtables[name] = ("eth1",)


@damage
def delete_address(draw, host):
    if ours := [address for address, is_ours in host.addresses.items() if is_ours]:
        del host.addresses[_pick(draw, ours)]


@damage
def delete_rule(draw, host):
    if ours := [rule for rule, is_ours in host.rules.items() if is_ours]:
        del host.rules[_pick(draw, ours)]


@damage
def delete_route(draw, host):
    if ours := [key for key, live in host.routes.items() if live.protocol == PROTOCOL]:
        del host.routes[_pick(draw, ours)]


@damage
def alter_route(draw, host):
    if ours := [key for key, live in host.routes.items() if live.protocol == PROTOCOL]:
        key = _pick(draw, ours)
        via = "192.168.2.77" if "." in key.to else "2001:db8:2::77"
        host.routes[key] = LiveRoute(replace(host.routes[key].route, via=via), PROTOCOL)


@damage
def stray_of_ours(_, host):
    """What an earlier lbd set up, and then lost its memory."""
    host.addresses[Address("203.0.113.77/32", "eth0")] = True
    host.rules[Rule(2000, 200, 4, "10.77.0.0/16")] = True


@damage
def sysctl(draw, host):
    name = _pick(draw, host.sysctls)
    # A value that is not asked for is the administrator's: only what lbd holds is damage.
    if name in host.memory.sysctls:
        host.sysctls[name] = "0"


@damage
def forget(_, host):
    """The state directory is lost: what the rules are is no longer known."""
    host.memory = replace(host.memory, bodies={})


@pytest.mark.parametrize("harm", DAMAGE, ids=lambda harm: harm.__name__)
def test_drift_is_repaired(harm):
    @settings(max_examples=6, deadline=None)
    @given(st.data(), hosts(), desireds())
    def repaired(data, host, wish):
        expected = wanted(host, wish)
        reconcile(host, wish)
        harm(data.draw, host)
        _repair(host, wish, expected)

    repaired()


@settings(max_examples=60, deadline=None)
@given(st.data(), hosts(), desireds())
def test_any_mix_of_drift_is_repaired(data, host, wish):
    expected = wanted(host, wish)
    reconcile(host, wish)
    for harm in data.draw(st.lists(st.sampled_from(DAMAGE), min_size=2, max_size=5)):
        if whole(host):
            harm(data.draw, host)
    _repair(host, wish, expected)


def whole(host):
    """Tell whether there is enough left of the table for one more of DAMAGE."""
    names = {*host.ruleset.chains, *host.ruleset.maps} if host.ruleset else set()
    return {"prerouting", "refuse_drop"} <= names


def _repair(host, wish, expected):
    live = host.read(wish)
    outcome = reconcile(host, wish)
    assert not outcome.refused
    assert not outcome.left
    assert state(host) == expected
    assert not plan(host, wish)
    _touches_only_what_differs(live, outcome.plan, wish)


def _touches_only_what_differs(live, done, wish):
    for family, there, want in (
        ("inet", live.table, wish.table),
        ("netdev", live.ingress, wish.ingress),
    ):
        if there and want:
            ops = [op for op in (*done.prepare, *done.swap) if op.family == family]
            _touches_only(there, ops, want, live.memory)


def _touches_only(there, ops, want, memory):
    anew = {op.name for op in ops if isinstance(op, (AddMap, AddFlowtable))}
    for op in ops:
        if isinstance(op, (AddElements, DeleteElements)) and op.name not in anew:
            was, now = there.elements[op.name], want.elements[op.name]
            keys = op.keys if isinstance(op, DeleteElements) else [key for key, _ in op.items]
            assert all(was.get(key) != now.get(key) for key in keys)
    for op in ops:
        if isinstance(op, AddRule):
            chain, right = want.chains[op.chain], there.chains.get(op.chain)
            digests = tuple(digest(rule, op.family) for rule in chain.rules)
            untouched = right and right.hook == chain.hook and right.digests == digests
            known = right and body(chain, op.family) in memory.bodies
            assert not untouched or not known or _names_any(chain.rules, anew)


def _names_any(rules, names):
    return any(f"@{name}" in rule for rule in rules for name in names)
