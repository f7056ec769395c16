"""Random valid services, small and from few values, so that two of them have much in common.

Their addresses are on no network of the host, and those of backends are of no listen address.
"""

from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from healths import healths
from lbd.core.config.lists import collapsed
from lbd.core.settings import (
    EVERY_PORT,
    Access,
    Backend,
    Limits,
    Listen,
    Persistence,
    Pin,
    Ports,
    PrefixFile,
    Rate,
    ReturnPath,
    Service,
)

FOUR = Ports(8000, 8003)
# The second and the third range overlap.
PORTS = (Ports(53, 53), Ports(80, 80), FOUR, Ports(8100, 8103), Ports(8102, 8105), EVERY_PORT)
LISTENS = (
    *(
        Listen(ip_address(address), ports, protocol)
        for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "0.0.0.0", "::")
        for ports in PORTS
        for protocol in ("tcp", "udp", "sctp")
    ),
    *(Listen(ip_address(address), EVERY_PORT, "any") for address in ("192.0.2.1", "2001:db8::1", "0.0.0.0")),
)
# What most files have, and what backends with a range of ports go with.
COMMON = tuple(each for each in LISTENS if each.ports.single and not each.wildcard)
SHIFTED = tuple(each for each in LISTENS if len(each.ports) == len(FOUR))
MARKS = (0x1, 0x4C)
BACKENDS = {
    4: tuple(map(ip_address, ("10.0.0.1", "10.0.0.2", "10.0.0.3"))),
    6: tuple(map(ip_address, ("fd00::1", "fd00::2", "fd00::3"))),
}
SORRY = {4: ip_address("10.0.0.9"), 6: ip_address("fd00::9")}
SNAT = {
    4: tuple(map(ip_address, ("198.51.100.9", "198.51.100.10"))),
    6: tuple(map(ip_address, ("2001:db8:1::9", "2001:db8:1::10"))),
}
PATHS = (
    ReturnPath(),
    ReturnPath(),
    ReturnPath("masquerade"),
    ReturnPath("snat", (SNAT[4][0], SNAT[6][0])),
    ReturnPath("snat", SNAT[4] + SNAT[6]),
    ReturnPath("snat", (SNAT[4][0], SNAT[6][0]), Ports(20000, 29999)),
    ReturnPath("snat", SNAT[4] + SNAT[6], Ports(20000, 29999)),
)
# Services without connection tracking have listen addresses, and backends, of their own.
UNTRACKED = tuple(
    Listen(ip_address(address), ports, protocol)
    for address in ("192.0.2.5", "2001:db8::5")
    for ports in PORTS[:2]
    for protocol in ("tcp", "udp")
)
ENTRANCE = "eth0"
ENDS = {
    4: tuple(map(ip_address, ("10.0.1.1", "10.0.1.2", "10.0.1.3"))),
    6: tuple(map(ip_address, ("fd00:1::1", "fd00:1::2", "fd00:1::3"))),
}
STATES = ("up", "up", "up", "up", "drain", "down", "maintenance")
DEADLINE = datetime(2026, 12, 31, 22, tzinfo=UTC)

# Beside each other, at the end of all addresses, one, and all.
PREFIXES = tuple(
    map(
        ip_network,
        (
            "203.0.113.0/25",
            "203.0.113.128/26",
            "203.0.113.200",
            "255.255.255.0/24",
            "2001:db8:5::/48",
            "2001:db8:6::1",
            "ffff::/16",
        ),
    )
)
EVERYBODY = tuple(map(ip_network, ("0.0.0.0/0", "::/0")))
FILES = (
    PrefixFile(
        "lists/office.txt", collapsed([*PREFIXES, ip_network("10.1.0.0/16"), ip_network("10.2.0.0/15")])
    ),
    PrefixFile("lists/four.txt", collapsed(map(ip_network, ("198.51.100.0/24", "203.0.113.9")))),
    PrefixFile("lists/all.txt", EVERYBODY),
    PrefixFile("lists/none.txt", ()),
)
RATES = (None, None, Rate(10, 20), Rate(1, 1))


def conflict(one, other):
    """Tell whether two listen addresses of one interface are refused together."""
    if (one.address, one.protocol) != (other.address, other.protocol):
        return False
    ranges = not any(ports.single or ports.every for ports in (one.ports, other.ports))
    return one.ports == other.ports or (ranges and one.ports.overlaps(other.ports))


def _ports(listens):
    """The ways in which all backends of a service may have ports: each is what one of them may have."""
    if not listens or any(listen.protocol == "any" for listen in listens):
        return [(None,)]
    own = (Ports(8080, 8080), Ports(8081, 8081))
    loose = any(listen.wildcard or not listen.ports.single for listen in listens)
    # Without and with the port of a listen address, two entries may be one backend: not drawn.
    ways = [(None,), own] if loose else [(None, own[0])]
    if all(len(listen.ports) == len(FOUR) for listen in listens):
        ways.append((Ports(9000, 9003),))
    return ways


@st.composite
def _backend(draw, family, ports):
    state = draw(st.sampled_from(STATES))
    return Backend(
        address=draw(st.sampled_from(BACKENDS[family])),
        ports=draw(st.sampled_from(ports)),
        # A few times the weight makes the next size of a maglev table.
        weight=draw(st.sampled_from((1, 1, 1, 2, 6, 0))),
        state=state,
        backup=draw(st.sampled_from((0, 0, 0, 1, 2))),
        drain_until=draw(st.sampled_from((None, DEADLINE))) if state == "drain" else None,
        max_connections=draw(st.sampled_from((0, 0, 10))),
    )


def _backends(family, ports):
    return st.lists(_backend(family, ports), min_size=1, max_size=3, unique_by=lambda b: (b.address, b.ports))


@st.composite
def _access(draw):
    """Who may connect, and who may not: (allow, deny)."""
    if draw(st.booleans()):
        return None, Access()
    prefixes = draw(st.lists(st.sampled_from(PREFIXES), unique=True, max_size=5))
    files = draw(st.lists(st.sampled_from(FILES), unique=True, max_size=3))
    half, part = draw(st.integers(0, len(prefixes))), draw(st.integers(0, len(files)))
    allow = Access(collapsed(prefixes[:half]), tuple(files[:part]))
    deny = Access(collapsed(prefixes[half:]), tuple(files[part:]))
    if draw(st.integers(0, 5)) == 0:
        allow = Access(EVERYBODY, allow.files)
    somebody = allow.prefixes or any(file.prefixes for file in allow.files)
    return allow if somebody else None, deny


def _limits(*, synproxy):
    return st.builds(
        Limits,
        new=st.sampled_from(RATES),
        client_new=st.sampled_from(RATES),
        client_connections=st.sampled_from((0, 0, 3)),
        synproxy=st.booleans() if synproxy else st.just(False),
    )


@st.composite
def _pins(draw, backends):
    drawn = draw(st.lists(st.sampled_from(PREFIXES), unique=True, max_size=2))
    groups = [(client, [b for b in backends if b.family == client.version]) for client in drawn]
    return tuple(Pin(client, draw(st.sampled_from(own))) for client, own in groups if own)


@st.composite
def _hash(draw, scheduler, *, ports):
    """What a service hashes, in the order of HashField; without a choice what core/config makes of it."""
    usual = ("source-address", "source-port") if ports else ("source-address",)
    if scheduler == "source-hash":
        return ("source-address",)
    if scheduler != "maglev" or draw(st.booleans()):
        return usual
    fields = ["source-address", "source-port", "destination-address", "destination-port"]
    fields = [field for field in fields if ports or field.endswith("address")]
    chosen = draw(st.lists(st.sampled_from(fields), min_size=1, unique=True))
    return tuple(field for field in fields if field in chosen)


@st.composite
def _service(draw, name, listens, interface, *, mark=None, devices=()):
    families = sorted({listen.family for listen in listens})
    if mark is not None:
        families = draw(st.sampled_from(([4], [6], [4, 6])))
    backends = ()
    ports = draw(st.sampled_from(_ports(listens)))
    if draw(st.integers(0, 9)) != 1:
        backends = tuple(backend for family in families for backend in draw(_backends(family, ports)))
    sorry = draw(st.lists(st.sampled_from(families), unique=True, max_size=1))
    scheduler = draw(st.sampled_from(("random", "round-robin", "maglev", "source-hash", "least-connections")))
    hashes = scheduler in ("maglev", "source-hash")
    has_ports = mark is None and all(listen.protocol != "any" for listen in listens)
    allow, deny = draw(_access())
    # The connection that a synproxy opens enters by no interface.
    tcp = bool(listens) and not interface
    tcp = tcp and all(listen.protocol == "tcp" and not listen.ports.every for listen in listens)
    return Service(
        name=name,
        listen=tuple(listens),
        backends=backends,
        interface=interface,
        mark=mark,
        scheduler=scheduler,
        hash=draw(_hash(scheduler, ports=has_ports)),
        table_size=draw(st.sampled_from((0, 13))) if hashes else 0,
        return_path=draw(st.sampled_from(PATHS)),
        persistence=draw(st.sampled_from((None, None, Persistence(600.0), Persistence(1.5, 24, 64)))),
        pins=draw(_pins(backends)),
        allow=allow,
        deny=deny,
        refusal=draw(st.sampled_from(("drop", "reject"))),
        limits=draw(st.sampled_from((Limits(),)) | _limits(synproxy=tcp)),
        when_empty=draw(st.sampled_from(("reject", "drop"))),
        sorry=tuple(Backend(SORRY[family], draw(st.sampled_from(ports[:1]))) for family in sorry)
        if not ports[0] or ports[0].single
        else (),
        offload=bool(devices) and draw(st.booleans()),
        log=draw(st.sampled_from(("off", "off", "new", "path"))),
        ssh=any(listen.ports.every for listen in listens),
        health=draw(healths(listens, backends)),
        on_down=draw(st.sampled_from((None, "keep", "reset"))),
    )


@st.composite
def _untracked(draw, name, listen):
    """A service with direct return or stateless translation."""
    kind = draw(st.sampled_from(("direct", "stateless")))
    scheduler = draw(st.sampled_from(("maglev", "source-hash")))
    # With a port for each listen address, replies can be told apart.
    own = Ports(8000 + listen.ports.low, 8000 + listen.ports.low)
    ports = draw(st.sampled_from((None, own))) if kind == "stateless" else None
    addresses = draw(st.lists(st.sampled_from(ENDS[listen.family]), unique=True, max_size=3))
    backends = tuple(
        Backend(address, ports, draw(st.sampled_from((1, 1, 2, 0))), draw(st.sampled_from(STATES)))
        for address in addresses
    )
    return Service(
        name=name,
        listen=(listen,),
        backends=backends,
        interface=ENTRANCE,
        scheduler=scheduler,
        hash=draw(_hash(scheduler, ports=True)),
        return_path=ReturnPath(kind),
        when_empty=draw(st.sampled_from(("reject", "drop"))),
        health=draw(healths((listen,), backends)),
    )


@st.composite
def services(draw, devices):
    """Services that one file may have; connections may be offloaded between `devices`."""
    services, taken, marks = [], [], set()
    for number in range(draw(st.integers(0, 3))):
        name = f"s{number}"
        if draw(st.integers(0, 7)) == 1:
            listen = draw(st.sampled_from(UNTRACKED))
            if (ENTRANCE, listen) not in taken:
                taken.append((ENTRANCE, listen))
                services.append(draw(_untracked(name, listen)))
            continue
        interface = draw(st.sampled_from((None, None, "eth0", "eth1")))
        if draw(st.integers(0, 6)) == 0:
            mark = draw(st.sampled_from(MARKS))
            if mark not in marks:
                marks.add(mark)
                services.append(draw(_service(name, (), interface, mark=mark, devices=devices)))
            continue
        listens = []
        pool = draw(st.sampled_from((COMMON, COMMON, COMMON, LISTENS, SHIFTED)))
        for listen in draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3)):
            free = not any(conflict(listen, other) for where, other in taken if where == interface)
            if free and (interface or not listen.wildcard):
                taken.append((interface, listen))
                listens.append(listen)
        if listens:
            services.append(draw(_service(name, listens, interface, devices=devices)))
    return tuple(services)
