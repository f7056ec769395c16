"""Services without connection tracking: direct return and stateless translation."""

from dataclasses import replace

from lbd.core.observed import Link
from trace_cases.words import (
    BACK_INDEX,
    CLIENT4,
    CLIENT6,
    DROP,
    FAR,
    HERE,
    HERE6,
    NEIGHBOUR4,
    NEIGHBOUR6,
    ONE,
    ONE6,
    OTHER4,
    OWN,
    RESET,
    THREE,
    TWO,
    TWO6,
    UNREACHABLE,
    VIP4,
    VIP6,
    WAYS,
    Case,
    dnat,
    ends,
    forwarded,
    rewritten,
    server,
    service,
    tcp,
    udp,
)

ACK = frozenset({"ack"})
EVERYWHERE = f"{HERE} {HERE6} {HERE}/udp {HERE6}/udp"
H1, H2 = (server(n, 0) for n in (1, 2))
H1_6, H2_6 = (server(n, 0, 6).strip("[]") for n in (1, 2))


def _untracked(path, listen, backends, more=""):
    return service(listen, backends, f'interface = "eth0"\nreturn_path = "{path}"\n{more}\n')


def _direct(backends=f"{H1} {H2} [{H1_6}] [{H2_6}]", more="", listen=EVERYWHERE):
    return _untracked("direct", listen, backends, more)


def _stateless(backends=f"{ONE} {TWO} {ONE6} {TWO6}", more="", listen=EVERYWHERE):
    return _untracked("stateless", listen, backends, more)


def _states(path, port, *states):
    """A service whose real servers are in these states."""
    tables = ", ".join(
        f'{{ address = "{server(n, port)}", state = "{state}" }}' for n, state in enumerate(states, 1)
    )
    return _untracked(path, HERE, "").replace("backends = []", f"backends = [{tables}]")


def _but(**links):
    """The ways there are, but for some to server 1 or 2."""
    others = {address: link for address, link in WAYS.links.items() if not address.endswith((":73", ".73"))}
    return replace(WAYS, links={**others, **links})


ROUTED = {H1: Link("eth1", BACK_INDEX, routed=True)}
NOWHERE = replace(WAYS, links={})
GONE = replace(WAYS, interfaces=frozenset())


def _case(name, text, packet, expected, **keys):
    return Case(name, text, packet, expected, **{"observed": WAYS, **keys})


DIRECT = [
    _case("direct", _direct(), tcp(), forwarded(H1)),
    _case("direct, another port of the client", _direct(), tcp(source_port=FAR), forwarded(H2)),
    _case("direct, ipv6", _direct(), tcp(source=CLIENT6), forwarded(H2_6)),
    _case("direct, udp", _direct(), udp(), forwarded(H1)),
    _case("direct, udp, ipv6", _direct(), udp(source=CLIENT6, source_port=FAR), forwarded(H2_6)),
    _case("direct, later packets", _direct(), tcp(flags=ACK), forwarded(H1)),
    _case("direct, to one", _direct(H2, listen=HERE), tcp(), forwarded(H2)),
    _case(
        "direct, source-hash",
        _direct(more='scheduler = "source-hash"'),
        tcp(source_port=FAR),
        forwarded(H2),
    ),
    _case("direct, another port", _direct(), tcp(8889), OWN),
    _case(
        "direct, another protocol",
        _direct(H1, listen=f"{HERE}/udp") + service(f"{VIP4}:8888", THREE, name="other"),
        tcp(),
        dnat(THREE),
    ),
    _case("direct, another interface", _direct(), tcp(source=NEIGHBOUR4, interface="eth1"), OWN),
    _case("direct, own", _direct(), tcp(source=VIP4, interface=""), OWN),
    _case("direct, drained", _states("direct", 0, "drain", "up"), tcp(), forwarded(H2)),
    _case("direct, empty", _direct("", listen=HERE), tcp(), RESET),
    _case("direct, empty, ipv6", _direct("", listen=HERE6), tcp(source=CLIENT6), RESET),
    _case("direct, empty, udp", _direct("", listen=f"{HERE}/udp"), udp(), UNREACHABLE),
    _case("direct, empty, dropped", _direct("", 'when_empty = "drop"', HERE), tcp(), DROP),
    _case("direct, all down", _states("direct", 0, "down", "down"), tcp(), RESET),
    _case("direct, no way to one", _direct(), tcp(), forwarded(H2), observed=_but()),
    _case("direct, one behind a router", _direct(), tcp(), forwarded(H2), observed=_but(**ROUTED)),
    _case("direct, no way to any", _direct(), tcp(), RESET, observed=NOWHERE),
    _case(
        "direct, no way to any, ipv6",
        _direct(),
        udp(source=CLIENT6),
        UNREACHABLE,
        observed=NOWHERE,
    ),
    _case("direct, no interface", _direct(), tcp(), RESET, observed=GONE),
]

# A backend port of their own, which no server of the lab has.
ANSWERING = f"{server(1, 7777)} {server(2, 7777)} {server(1, 7777, 6)}"


def _reply(packet, source=NEIGHBOUR4, **keys):
    """What server 1 sends to the client; by the port of a backend it is a reply."""
    to = CLIENT6 if ":" in source else CLIENT4
    return packet(10_003, source, 7777, destination=to, interface="eth1", **keys)


REWRITTEN = ends("rewritten")
STATELESS = [
    _case("stateless", _stateless(), tcp(), rewritten(ONE)),
    _case("stateless, another port of the client", _stateless(), tcp(source_port=FAR), rewritten(TWO)),
    _case("stateless, another client", _stateless(), tcp(source=OTHER4), rewritten(ONE)),
    _case("stateless, ipv6", _stateless(), tcp(source=CLIENT6), rewritten(ONE6)),
    _case("stateless, udp", _stateless(), udp(), rewritten(ONE)),
    _case("stateless, udp without a checksum", _stateless(), udp(checksum=False), rewritten(ONE)),
    _case("stateless, udp, ipv6", _stateless(), udp(source=CLIENT6, source_port=FAR), rewritten(TWO6)),
    _case("stateless, later packets", _stateless(), tcp(flags=ACK), rewritten(ONE)),
    _case("stateless, backend without a port", _stateless(H1, listen=HERE), tcp(), rewritten(f"{H1}:8888")),
    _case(
        "stateless, a list of ports",
        _stateless(H1, listen=f"{VIP4}:80,8888"),
        tcp(80),
        rewritten(f"{H1}:80"),
    ),
    _case(
        "stateless, source-hash",
        _stateless(more='scheduler = "source-hash"'),
        tcp(source_port=FAR),
        rewritten(ONE),
    ),
    _case("stateless, another port", _stateless(), tcp(8889), OWN),
    _case("stateless, another interface", _stateless(), tcp(source=NEIGHBOUR4, interface="eth1"), OWN),
    _case("stateless, own", _stateless(), tcp(source=VIP4, interface=""), OWN),
    _case(
        "stateless, beside every address",
        _stateless() + service("*:8888", THREE, 'interface = "eth0"', "other"),
        tcp(),
        rewritten(ONE),
    ),
    _case(
        "stateless and direct",
        _stateless(listen=HERE, backends=f"{ONE} {TWO}")
        + _direct(H2, listen=f"{HERE}/udp").replace('"web"', '"other"'),
        udp(),
        forwarded(H2),
    ),
    _case("stateless, drained", _states("stateless", 9999, "drain", "up"), tcp(), rewritten(TWO)),
    _case("stateless, empty", _stateless("", listen=HERE), tcp(), RESET),
    _case(
        "stateless, empty, udp, ipv6", _stateless("", listen=f"{HERE6}/udp"), udp(source=CLIENT6), UNREACHABLE
    ),
    _case("stateless, empty, dropped", _stateless("", 'when_empty = "drop"', HERE), tcp(), DROP),
    _case("stateless, no way to one", _stateless(), tcp(), rewritten(TWO), observed=_but()),
    _case("stateless, one behind a router", _stateless(), tcp(), rewritten(ONE), observed=_but(**ROUTED)),
    _case("stateless, no way to any", _stateless(), tcp(), RESET, observed=NOWHERE),
    _case("stateless, no interface", _stateless(), tcp(), RESET, observed=GONE),
    _case(
        "stateless, reply", _stateless(ANSWERING), _reply(tcp), REWRITTEN, source=VIP4, source_ports="8888"
    ),
    _case(
        "stateless, reply, ipv6",
        _stateless(ANSWERING),
        _reply(tcp, NEIGHBOUR6),
        REWRITTEN,
        source=VIP6,
        source_ports="8888",
    ),
    _case(
        "stateless, reply, udp",
        _stateless(ANSWERING),
        _reply(udp),
        REWRITTEN,
        source=VIP4,
        source_ports="8888",
    ),
    _case(
        "stateless, reply, udp without a checksum",
        _stateless(ANSWERING),
        _reply(udp, checksum=False),
        REWRITTEN,
        source=VIP4,
        source_ports="8888",
    ),
    _case(
        "stateless, reply, udp, ipv6",
        _stateless(ANSWERING),
        _reply(udp, NEIGHBOUR6),
        REWRITTEN,
        source=VIP6,
        source_ports="8888",
    ),
    _case(
        "stateless, reply of a drained one",
        _states("stateless", 7777, "drain", "up"),
        _reply(tcp),
        REWRITTEN,
        source=VIP4,
        source_ports="8888",
    ),
    _case("stateless, reply of one that is down", _states("stateless", 7777, "down", "up"), _reply(tcp), OWN),
    _case("stateless, reply from another port", _stateless(), _reply(tcp), OWN),
    _case(
        "stateless, reply of another protocol",
        _stateless(server(1, 7777), listen=f"{HERE}/udp"),
        _reply(tcp),
        OWN,
    ),
]

CASES = [*DIRECT, *STATELESS]
