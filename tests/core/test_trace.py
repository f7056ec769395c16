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
from lbd.core.trace import Facts, Noted, trace
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
