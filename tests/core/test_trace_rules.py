"""What the tracer makes of single rules: as nftables does, or not at all."""

import pytest

from lbd.core.state import Chain, Desired, Hook, Map, Table
from lbd.core.trace import Facts, trace
from lbd.core.trace.fields import hashed
from lbd.core.trace.text import parse as parse_rule
from trace_cases.words import BACK4, CLIENT6, VIP4, tcp, udp


# What nft has and the program does not use, or what nobody has: half understood, a trace would lie.
@pytest.mark.parametrize(
    "rule",
    [
        "",
        "counter",
        "continue",
        "queue",
        "accept drop",
        "masquerade random",
        "meta mark set 1 accept accept",
        "meta mark set meta mark",
        "meta mark & 7 set 1",
        "meta mark . ip saddr set 1",
        "meta l4proto set 6",
        "ip daddr set 192.0.2.1",
        "ip daddr set ip saddr",
        "ip ttl set 1",
        "tcp dport set 80",
        "th dport set meta mark map @m",
        "sctp dport set meta mark map @m",
        "udp checksum 1 drop",
        "udp checksum set 0",
        "ether type ip drop",
        "@th,32,16 set meta mark map @m",
        "@th,16,8 set meta mark map @m",
        "@th,16,16 set 80",
        "@nh,16,16 set meta mark map @m",
        "fwd to eth1",
        "fwd to meta mark map @m",
        "fwd ip to meta mark map @m",
        "fwd ip to 192.0.2.1 device eth1",
        "fwd ip to meta mark map @m device meta mark map @n accept",
        "dup to meta mark map @m",
        "ct mark set meta mark",
        "ip saddr 192.0.2.1 drop",
        "ip saddr != 192.0.2.1 drop",
        "ip saddr { 192.0.2.1, 192.0.2.2 } drop",
        "ip ttl 1 drop",
        "tcp dport 22 accept",
        "tcp dport != 22 accept",
        "tcp dport { 22, 23 } accept",
        "tcp flags syn drop",
        "tcp flags & (fin|syn|rst|ack) == ack drop",
        "tcp flags & (syn) == syn drop",
        "meta l4proto icmp drop",
        "meta l4proto != tcp drop",
        "meta l4proto { tcp, } drop",
        "meta l4proto { tcp udp } drop",
        "meta l4proto { tcp, udp drop",
        "meta nfproto 2 drop",
        "meta pkttype host drop",
        "iifname eth0 drop",
        'iifname "eth0" drop',
        "iif eth0 drop",
        "ct state related drop",
        "ct state new,related drop",
        "ct state != new drop",
        "ct status snat drop",
        "ct original ip saddr @s drop",
        "ct original proto-src @s drop",
        "ct direction original drop",
        "fib daddr type broadcast drop",
        "fib daddr . iif type local drop",
        "fib saddr oif missing drop",
        "ip daddr @s . tcp dport drop",
        "ip daddr != @s drop",
        "ip daddr . tcp dport",
        "ip daddr . ",
        ". ip daddr @s drop",
        "ip daddr vmap { 192.0.2.1 : drop }",
        "ip daddr vmap @m drop",
        "ip daddr vmap m",
        "ip daddr & 255.255.255.0 @s drop",
        "ip saddr & 24 @s drop",
        "tcp dport & 7 @s drop",
        "(ip saddr & 255.255.255.0 @s drop",
        "ip saddr and 255.255.255.0 @s drop",
        "dnat to 192.0.2.1",
        "dnat ip to",
        "dnat ip to 192.0.2.1-192.0.2.9",
        "dnat ip to 192.0.2.1:",
        "dnat ip to 192.0.2.1 random",
        "dnat ip to 192.0.2.1 drop",
        "dnat ip to ip saddr",
        "dnat ip to tcp dport map @a : tcp dport",
        "dnat ip prefix to ip saddr map @m",
        "dnat ip addr . port to ip saddr map @m",
        "snat ip to jhash ip saddr mod 2 seed 0x1 map { 0 : 192.0.2.1 1 : 192.0.2.2 }",
        "snat ip to jhash ip saddr mod 2 seed 0x1 map { a : 192.0.2.1 }",
        "snat ip to symhash mod 2 map @m",
        "dnat ip to jhash ip saddr mod 2 map @m",
        "dnat ip to jhash ip saddr mod 2 seed 1 offset 3 map @m",
        "dnat ip to numgen random mod 2 offset 1 map @m",
        "dnat ip to numgen both mod 2 map @m",
        "dnat ip to jhash numgen inc mod 2 mod 3 seed 1 map @m",
        "redirect to 8080",
        "tproxy to :8080",
        "reject with icmpx admin-prohibited",
        "limit rate 1/minute drop",
        "limit rate over 1/second burst 5 packets drop",
        "limit rate 1/second drop",
        'limit name "x" drop',
        "limit name ip saddr map { 0 : 192.0.2.1 } drop",
        "quota name ip saddr map @m drop",
        "update @s { ip saddr limit rate 1/second burst 1 packets } drop",
        "update @s { ip saddr counter } drop",
        "update @s { ip saddr timeout 1h }",
        "update @s { ip saddr : 192.0.2.1 }",
        "add @s { ip saddr ct count 5 } drop",
        "add @s { ip saddr",
        "delete @s { ip saddr }",
        "set update ip saddr @s",
        'log prefix "x" group 1 snaplen 20',
        'log prefix "x" level info',
        "log prefix x group 1",
        "log",
        "synproxy mss 1460 wscale 7",
        "synproxy mss 1460 timestamp sack-perm",
        "synproxy",
        "goto",
        "goto 7chain",
        "jump a b",
        "flow delete @f",
        'comment "x"',
        'accept comment "x"',
        "th sport @s drop",
        "udplite dport @s drop",
        "ether saddr @s drop",
        "@th,0,16 @s drop",
    ],
)
def test_what_is_not_known_is_not_skipped(rule):
    with pytest.raises(ValueError, match="not understood"):
        parse_rule(rule)


def test_a_verdict_of_an_element_that_is_not_known():
    chains = {"c": Chain(("ip daddr vmap @m",), Hook("filter", "prerouting", 0))}
    table = Table(chains, {"m": Map(("ipv4_addr",), "verdict", 9)}, {"m": {VIP4: "queue"}})
    with pytest.raises(ValueError, match="not understood"):
        trace(Desired(table), tcp())


def test_a_key_of_two_elements_is_told():
    chains = {"c": Chain(("ip daddr . tcp dport @s drop",), Hook("filter", "prerouting", 0))}
    shape = Map(("ipv4_addr", "inet_service"), (), 9, interval=True)
    elements = {"s": {f"{VIP4} . 1-9000": "", "192.168.18.0/24 . 8888": ""}}
    with pytest.raises(ValueError, match="several elements"):
        trace(Desired(Table(chains, {"s": shape}, elements)), tcp())


@pytest.mark.parametrize(
    ("rules", "verdict"),
    [
        (("ip daddr @s drop", "accept"), "drop"),
        (("ip6 daddr @s drop",), "accept"),
        (("jump a", "drop"), "drop"),
        (("jump b", "drop"), "accept"),
        (("goto a", "drop"), "accept"),
        (("jump c", "reject"), "unreachable"),
        (("jump d", "reject with tcp reset"), "reset"),
        (("return", "drop"), "accept"),
        (("meta l4proto udp drop",), "accept"),
        (("meta l4proto { udp, tcp } drop",), "drop"),
        (("ip daddr vmap @none", "drop"), "drop"),
        (("ip daddr vmap @rest", "drop"), "accept"),
        (("ct state untracked drop",), "accept"),
        (("tcp dport @s drop",), "accept"),
    ],
)
def test_chains_end_as_nftables_does(rules, verdict):
    chains = {
        "base": Chain(rules, Hook("filter", "prerouting", 0)),
        "a": Chain(("return", "drop")),
        "b": Chain(("accept",)),
        "c": Chain(("goto a", "drop")),
        "d": Chain(()),
    }
    maps = {
        "s": Map(("ipv4_addr",), (), 9),
        **dict.fromkeys(("none", "rest"), Map(("ipv4_addr",), "verdict", 9)),
    }
    elements = {"s": {VIP4: ""}, "none": {BACK4: "accept"}, "rest": {BACK4: "drop", "*": "accept"}}
    (outcome,) = trace(Desired(Table(chains, maps, elements)), tcp())
    assert outcome.verdict == verdict


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("ct status dnat drop", "drop"),
        ("masquerade", "drop"),
        ("flow add @f", "drop"),
        ("dnat ip to 192.0.2.1", "drop"),
        ("dnat ip6 to 2001:db8::1", "accept"),
        ("add @s { ip saddr ct count over 5 } drop", "drop"),
        ("ip saddr @s drop", "accept"),
        ("update @s { ip saddr limit rate over 5/second burst 5 packets } drop", "accept"),
    ],
)
def test_chains_of_type_nat_are_not_asked_unless_a_rule_needs_connections(rule, verdict):
    chains = {"base": Chain(("drop",), Hook("nat", "prerouting", -100)), "unused": Chain((rule,))}
    (outcome,) = trace(Desired(Table(chains)), tcp())
    assert outcome.verdict == verdict


# What Linux 6.18 put into a set for `jhash FIELDS mod 4294967295 seed 0x1`.
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"udp dport": "8888"}, 0x2BA52363),
        ({"meta nfproto": "ipv4"}, 0xDCB2045A),
        ({"ip daddr": "127.0.0.1", "udp dport": "8888"}, 0xDDBD5DA8),
        ({"meta mark": "0x00000107"}, 0x3A24DE7A),
        ({"oifname": "lo", "ip daddr": "127.0.0.1"}, 0xBEBC90C5),
    ],
)
def test_hashes_are_the_kernels(fields, expected):
    assert hashed(list(fields), list(fields.values()), 2**32 - 1, 1) == expected


def test_policy_ends_what_no_rule_decides():
    chains = {"base": Chain(("jump a",), Hook("filter", "input", 0, "drop")), "a": Chain(("return",))}
    (here,) = trace(Desired(Table(chains)), tcp(), Facts(local=frozenset({VIP4})))
    (past,) = trace(Desired(Table(chains)), tcp())
    assert (here.verdict, past.verdict) == ("drop", "accept")


NUMBER = "0x00000007"
MARKS = {
    "address4": Map(("mark",), ("ipv4_addr",), 9),
    "port": Map(("mark",), ("inet_service",), 9),
    "leaves_by": Map(("mark",), ("iface_index",), 9),
    "ends": Map(("ipv4_addr",), ("mark",), 9),
}
OF_MARKS = {
    "address4": {NUMBER: BACK4},
    "port": {NUMBER: "80"},
    "leaves_by": {NUMBER: "3"},
    "ends": {VIP4: NUMBER},
}
CHOSEN = "meta mark set ip daddr map @ends"
TO_ADDRESS = "ip daddr set meta mark map @address4"
FORWARDED = "fwd ip to meta mark map @address4 device meta mark map @leaves_by"


def entered(rules, packet, device="eth0", elements=OF_MARKS):
    """What becomes of a packet where rules are at the ingress of an interface, and the way out refuses."""
    ingress = {"in": Chain(tuple(rules), Hook("filter", "ingress", -450, device=device))}
    out = {"out": Chain(("udp dport @none accept", "reject"), Hook("filter", "postrouting", 0))}
    table = Table(out, {"none": Map(("inet_service",), (), 9)}, {"none": {"80": ""}})
    (outcome,) = trace(Desired(table, Table(ingress, MARKS, elements)), packet)
    return outcome


def test_what_is_forwarded_at_ingress_passes_no_other_hook():
    outcome = entered([f"{CHOSEN} {FORWARDED}", "drop"], tcp())
    assert (outcome.verdict, outcome.neighbour, outcome.device) == ("forwarded", BACK4, 3)
    assert (outcome.destination, outcome.port) == (VIP4, 8888)


@pytest.mark.parametrize(
    ("packet", "device", "without"),
    [
        (tcp(), "eth1", ""),
        (tcp(interface=""), "eth0", ""),
        (tcp(source=CLIENT6), "eth0", ""),
        (tcp(), "eth0", "ends"),
        (tcp(), "eth0", "address4"),
        (tcp(), "eth0", "leaves_by"),
    ],
)
def test_what_is_not_forwarded_at_ingress_goes_on(packet, device, without):
    outcome = entered(
        [f"{CHOSEN} {FORWARDED}"], packet, device, OF_MARKS | ({without: {}} if without else {})
    )
    assert (outcome.verdict, outcome.neighbour, outcome.device) == ("unreachable", "", 0)


def test_what_is_dropped_at_ingress_passes_no_other_hook():
    assert entered(["drop"], tcp()).verdict == "drop"


def test_what_is_rewritten_at_ingress_meets_the_other_hooks_as_such():
    rules = [f"{CHOSEN} {TO_ADDRESS} udp dport set meta mark map @port meta mark set 0 notrack accept"]
    outcome = entered(rules, udp())
    assert (outcome.verdict, outcome.destination, outcome.port) == ("rewritten", BACK4, 80)
    outcome = entered(rules, tcp())
    # What a rule did before it did not match is done.
    assert (outcome.verdict, outcome.destination, outcome.port) == ("unreachable", BACK4, 8888)


@pytest.mark.parametrize(("checksum", "by"), [(True, "udp dport"), (False, "th dport")])
def test_udp_with_and_without_a_checksum(checksum, by):
    rules = [
        f"{CHOSEN} {TO_ADDRESS} udp checksum 0 @th,16,16 set meta mark map @port accept",
        "udp dport set meta mark map @port accept",
    ]
    outcome = entered(rules, udp(checksum=checksum))
    assert (outcome.destination, outcome.port) == (BACK4, 80)
    assert len([step for step in outcome.steps if step.chain == "in"]) == 1 + checksum
    assert parse_rule(rules[checksum])[-2].field == by


def test_a_source_that_is_rewritten_is_told():
    rule = "meta mark set 7 ip saddr set meta mark map @address4 udp sport set meta mark map @port"
    outcome = entered([rule], udp(80))
    assert (outcome.verdict, outcome.source, outcome.source_ports) == ("rewritten", BACK4, "80")


def test_nothing_has_the_tag_of_a_vlan():
    assert entered(["ether type vlan accept", "drop"], tcp()).verdict == "drop"
