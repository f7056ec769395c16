"""The tracer, and with it the program: where packets go, without a kernel."""

from dataclasses import replace
from fractions import Fraction
from functools import cache
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.core import maglev
from lbd.core.config import parse
from lbd.core.source import Source
from lbd.core.state import Chain, Desired, Hook, Map, Table
from lbd.core.trace import Facts, Noted, trace
from lbd.core.trace.fields import hashed
from lbd.core.trace.text import parse as parse_rule
from trace_cases import CASES
from trace_cases.where import LAYERS
from trace_cases.which import WEIGHTS
from trace_cases.words import (
    BACK4,
    CLIENT4,
    HIT,
    ONE,
    TWO,
    TWO_OF_EACH,
    VIP4,
    VIP6,
    Case,
    after,
    ping,
    sctp,
    tcp,
    udp,
)


def target(outcome, packet):
    """Where it goes, as a file writes a backend; "" for what is not translated."""
    if outcome.verdict == "forwarded":
        return f"{outcome.neighbour} by {outcome.device}"
    if (outcome.destination, outcome.port) == (packet.destination, packet.destination_port):
        return ""
    host = f"[{outcome.destination}]" if ":" in outcome.destination else outcome.destination
    return f"{host}:{outcome.port}" if outcome.port else outcome.destination if packet.family == 4 else host


def follow(case):
    """The outcomes of a case, after what was sent before has been noted."""
    wanted = case.desired
    facts = case.facts(wanted)
    for packet in case.before:
        facts = after(trace(wanted, packet, facts)[0], facts)
        assert facts.learned, "nothing was noted of the packet before"
    return trace(wanted, case.packet, facts)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_where_it_goes(case, request):
    if case.defect:
        request.applymarker(pytest.mark.xfail(reason=case.defect, strict=True))
    outcomes = follow(case)
    assert {(outcome.verdict, target(outcome, case.packet)) for outcome in outcomes} == case.expected
    assert {(outcome.source, outcome.source_ports) for outcome in outcomes} == {
        (case.source, case.source_ports)
    }
    assert sum(outcome.share for outcome in outcomes) == 1


def test_names_of_cases_differ():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def shares(text, packet):
    outcomes = trace(Case("", text, packet, frozenset()).desired, packet)
    found = {}
    for outcome in outcomes:
        where = target(outcome, packet)
        found[where] = found.get(where, 0) + outcome.share
    return found


@pytest.mark.parametrize("scheduler", ["random", "round-robin"])
def test_shares_are_as_the_weights(scheduler):
    found = shares(WEIGHTS + f'scheduler = "{scheduler}"', tcp())
    assert found == {ONE: Fraction(1, 4), TWO: Fraction(3, 4)}


def test_shares_of_least_connections_are_nearly_as_the_weights():
    found = shares(WEIGHTS + 'scheduler = "least-connections"', tcp())
    assert abs(found[TWO] - Fraction(3, 4)) < Fraction(1, 100)


@pytest.mark.parametrize("family", [4, 6])
def test_maglev_is_what_maglev_says(family):
    wanted = Case("", TWO_OF_EACH, tcp(), frozenset()).desired
    vip, net = (VIP4, "192.168.18") if family == 4 else (VIP6, "2001:db8:18:")
    elements = wanted.table.elements[f"slots_tcp{family}"]
    size = sum(key.startswith(f"{vip} . 8888 . ") for key in elements)
    for i in range(200):
        client, port = f"{net}{'.' if family == 4 else ':'}{i + 1}", 1024 + 301 * i
        slot = maglev.slot(size, ip_address(client), port)
        (outcome,) = trace(wanted, tcp(source=client, source_port=port))
        assert f"{outcome.destination} . {outcome.port}" == elements[f"{vip} . 8888 . {slot}"]


def test_steps_tell_the_way():
    (outcome,) = trace(Case("", TWO_OF_EACH, tcp(), frozenset()).desired, tcp())
    assert [(step.chain, step.did) for step in outcome.steps] == [
        ("prerouting", "goto services"),
        ("services", "goto tcp4_maglev_251"),
        ("tcp4_maglev_251", f"dnat to {outcome.destination} . 9999"),
        ("postrouting", "goto leave"),
        ("leave", "goto gateway4"),
        ("gateway4", "does not match"),
        ("gateway4", "does not match"),
    ]


def test_what_is_noted():
    (outcome,) = trace(Case("", HIT, tcp(), frozenset()).desired, tcp())
    host, port = outcome.noted
    assert (host.map, host.data) == ("sticky_tcp4", outcome.destination)
    assert (port.map, port.key, port.data) == ("sticky_port_tcp4", host.key, str(outcome.port))
    assert host.key.endswith(f" . {CLIENT4}")


def test_who_is_noted_already_stays_where_he_was():
    wanted = Case("", HIT, tcp(), frozenset()).desired
    (outcome,) = trace(wanted, tcp())
    other = {noted.map: {noted.key: noted.data} for noted in outcome.noted}
    other["sticky_tcp4"] = {outcome.noted[0].key: "192.168.2.75"}
    (again,) = trace(wanted, tcp(), Facts(learned=other))
    assert again.destination == "192.168.2.75"
    assert again.noted[0] == Noted("sticky_tcp4", outcome.noted[0].key, "192.168.2.75")


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


PACKETS = st.builds(
    lambda kind, way, port, source_port, mark, flags: replace(
        kind(**way), destination_port=port, source_port=source_port, mark=mark, flags=flags
    ),
    st.sampled_from([tcp, udp, sctp]),
    st.sampled_from(
        [
            {"source": source, "interface": interface, "destination": destination}
            for four in (True, False)
            for source in ((CLIENT4, "192.168.2.73") if four else ("2001:db8:18::25", "2001:db8:2::73"))
            for destination in ((VIP4, BACK4, "192.0.2.1") if four else (VIP6, "2001:db8:2::90"))
            for interface in ("eth0", "eth1", "")
        ]
    ),
    st.sampled_from([53, 80, 8000, 8042, 8099, 8888, 9001]) | st.integers(1, 65535),
    st.integers(1, 65535),
    st.sampled_from([0, 7, 0x107]),
    st.frozensets(st.sampled_from(["fin", "syn", "rst", "ack"])),
)


@given(
    st.sampled_from(range(len(CASES))), PACKETS | st.builds(ping, mark=st.sampled_from([0, 7])), st.booleans()
)
def test_every_packet_ends_somewhere(i, packet, over):
    case = CASES[i]
    wanted = _desired(i)
    table = wanted.table
    names = [*table.limits, *(name for name, shape in table.maps.items() if shape.learned)]
    facts = replace(case.facts(wanted), over=frozenset(names if over else ()))
    outcomes = trace(wanted, packet, facts)
    assert outcomes
    assert sum(outcome.share for outcome in outcomes) == 1
    for outcome in outcomes:
        # What goes to a backend came to a service, and what is noted says where it went.
        assert outcome.verdict in {"dnat", "rewritten"} or outcome.destination == packet.destination
        assert outcome.verdict != "dnat" or outcome.destination != packet.destination
        assert all(noted.data in ("", outcome.destination, str(outcome.port)) for noted in outcome.noted)


@cache
def _desired(i):
    return CASES[i].desired


def is_of(service, packet):
    """Whether a packet is a service's, by what the manual says."""
    if service.interface not in (None, packet.interface) or service.backends[0].family != packet.family:
        return False
    if service.mark is not None:
        return service.mark == packet.mark
    return any(
        packet.destination in ({VIP4, BACK4} if listen.wildcard else {str(listen.address)})
        and listen.protocol in ("any", packet.protocol)
        and (listen.protocol == "any" or packet.destination_port in listen.ports)
        for listen in service.listen
    )


@settings(max_examples=300)
@given(st.sets(st.sampled_from(range(len(LAYERS))), min_size=1), PACKETS | st.builds(ping, mark=st.just(7)))
def test_the_first_service_that_fits_takes_it_and_says_how_it_leaves(chosen, packet):
    layers = list(LAYERS.values())
    # In their order in the manual, each with a source address of its own.
    text = "".join(f'{layers[i]}return_path = "snat:10.0.0.{i + 1}"\n' for i in sorted(chosen))
    case = Case("", text, packet, frozenset())
    services = parse(Source("lbd.toml", text)).services
    taker = next((service for service in services if is_of(service, packet)), None)
    wanted = case.desired
    (outcome,) = trace(wanted, packet, case.facts(wanted))
    if taker is None:
        assert (outcome.verdict, outcome.destination, outcome.source) == ("accept", packet.destination, "")
    else:
        assert outcome.destination == str(taker.backends[0].address)
        assert outcome.source == str(taker.return_path.sources[0])
