"""Files, packets, and where they go: each case says what a director with this file does with this packet.

The addresses are those of the lab (lbd.lab.topology.experiment with three servers, two clients and IPv6), so
that a case can also be tried with real packets. core/test_trace.py follows them through the rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from lbd.core.config import parse
from lbd.core.desired import desired
from lbd.core.observed import Observed
from lbd.core.source import Source
from lbd.core.state import Table
from lbd.core.trace import Facts, Packet

DIRECTORY = "/etc/lbd"

# From these ports maglev by address and port sends the client to the first and to the second real server, in
# both families, whether or not the backends have a port.
NEAR, FAR = 10_003, 10_032

VIP4, VIP6 = "192.168.18.58", "2001:db8:18::58"
BACK4, BACK6 = "192.168.2.90", "2001:db8:2::90"
CLIENT4, OTHER4 = "192.168.18.25", "192.168.18.26"
CLIENT6, OTHER6 = "2001:db8:18::25", "2001:db8:18::26"
# A real server as a client of a service: its neighbours would answer it directly.
NEIGHBOUR4, NEIGHBOUR6 = "192.168.2.73", "2001:db8:2::73"

NEIGHBOURS = Observed(
    neighbours=frozenset((ip_network(net), "eth1") for net in ("192.168.2.0/24", "2001:db8:2::/64"))
)
ROUTES = tuple(
    (ip_network(net), name)
    for net, name in (
        ("192.168.18.0/24", "eth0"),
        ("2001:db8:18::/64", "eth0"),
        ("192.168.2.0/24", "eth1"),
        ("2001:db8:2::/64", "eth1"),
    )
)
LOCAL = frozenset({VIP4, VIP6, BACK4, BACK6})


def tcp(port=8888, source=CLIENT4, source_port=NEAR, **keys):
    """A TCP packet that opens a connection to the service; from the director itself with interface=""."""
    to = VIP6 if ":" in source else VIP4
    keys = {"destination": to, "interface": "eth0", **keys}
    return Packet("tcp", source, source_port, destination_port=port, **keys)


def udp(*args, **keys):
    return replace(tcp(*args, **keys), protocol="udp", flags=frozenset())


def sctp(*args, **keys):
    return replace(tcp(*args, **keys), protocol="sctp", flags=frozenset())


def ping(source=CLIENT4, **keys):
    name = "ipv6-icmp" if ":" in source else "icmp"
    return replace(tcp(0, source, 0, **keys), protocol=name, flags=frozenset())


def server(n, port=9999, family=4):
    """Real server `n` with its port, or without one for port 0, as the file has it."""
    address = f"192.168.2.{72 + n}" if family == 4 else f"2001:db8:2::{72 + n}"
    if not port:
        return address if family == 4 else f"[{address}]"
    return f"{address}:{port}" if family == 4 else f"[{address}]:{port}"


def dnat(*servers):
    """Any of these servers."""
    return frozenset(("dnat", each) for each in servers)


def ends(verdict):
    """Not translated, and this becomes of it."""
    return frozenset({(verdict, "")})


ONE, TWO, THREE = (server(n) for n in (1, 2, 3))
ONE6, TWO6 = (server(n, family=6) for n in (1, 2))
ALL, ALL6 = dnat(ONE, TWO), dnat(ONE6, TWO6)
DROP, RESET, UNREACHABLE, OWN, COOKIE = map(ends, ("drop", "reset", "unreachable", "accept", "synproxy"))

HERE, HERE6 = f"{VIP4}:8888", f"[{VIP6}]:8888"


def service(listen, backends, more="", name="web"):
    """A service; `listen` and `backends` as words with spaces between, `more` is TOML."""
    return f"""\
[[service]]
name = "{name}"
{f"listen = {_list(listen)}" if listen else ""}
backends = {_list(backends)}
{more}
"""


def _list(words):
    return "[" + ", ".join(f'"{word}"' for word in words.split()) + "]"


def weighted(*entries):
    """A service whose backends are tables: (number, keys as TOML)."""
    tables = ", ".join(f'{{ address = "{server(n)}", {keys} }}' for n, keys in entries)
    return service(HERE, "").replace("backends = []", f"backends = [{tables}]")


@dataclass(frozen=True)
class Case:
    """A file, a packet, and what becomes of it.

    `expected` are all the (verdict, destination) there may be, the destination as the file writes a backend
    and "" where nothing is translated. `source` is what takes the place of the client's address. `before` are
    packets sent just before, which rules may have noted. `over` are limits that are passed: names of limits
    and sets that begin so. `files` are lists of prefixes beside the file.
    """

    name: str
    text: str
    packet: Packet
    expected: frozenset[tuple[str, str]]
    source: str = ""
    source_ports: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    observed: Observed = NEIGHBOURS
    before: tuple[Packet, ...] = ()
    over: tuple[str, ...] = ()
    connection: str = "new"
    # Why the program does not do it yet.
    defect: str = ""

    @property
    def table(self) -> Table:
        lists = [Source(f"{DIRECTORY}/{name}", text, "prefixes") for name, text in self.files.items()]
        return desired(parse(Source(f"{DIRECTORY}/lbd.toml", self.text), lists), self.observed).table

    def facts(self, table: Table) -> Facts:
        names = [*table.limits, *(name for name, shape in table.maps.items() if shape.learned)]
        over = frozenset(name for name in names if name.startswith(self.over or ("-",)))
        return Facts(local=LOCAL, routes=ROUTES, over=over, connection=self.connection)


TWO_OF_EACH = service(f"{HERE} {HERE6}", f"{ONE} {TWO} {ONE6} {TWO6}")


def _scheduler(name, more=""):
    return TWO_OF_EACH + f'scheduler = "{name}"\n{more}\n'


def _path(path, more=""):
    return TWO_OF_EACH + f'return_path = "{path}"\n{more}\n'


def _range(backends, more="", protocol="tcp"):
    suffix = "" if protocol == "tcp" else f"/{protocol}"
    families = {6 if "[" in backend else 4 for backend in backends.split()} or {4}
    listen = {4: f"{VIP4}:8000-8099{suffix}", 6: f"[{VIP6}]:8000-8099{suffix}"}
    return service(" ".join(listen[family] for family in sorted(families)), backends, more)


HOSTS = f"{server(1, 0)} {server(2, 0)}"
HOSTS6 = f"{server(1, 0, 6)} {server(2, 0, 6)}"
EITHER = f"{HOSTS} {HOSTS6}"

PLAIN = [
    Case("tcp", TWO_OF_EACH, tcp(), dnat(ONE)),
    Case("tcp ipv6", TWO_OF_EACH, tcp(source=CLIENT6), dnat(ONE6)),
    Case("tcp to another port", TWO_OF_EACH, tcp(8889), OWN),
    Case("tcp to another address", TWO_OF_EACH, tcp(destination=BACK4), OWN),
    Case("udp to a tcp service", TWO_OF_EACH, udp(), OWN),
    Case("ping", TWO_OF_EACH, ping(), OWN),
    Case("passing by", TWO_OF_EACH, tcp(9999, destination=NEIGHBOUR4), OWN),
    Case("udp", service(f"{HERE}/udp", f"{ONE} {TWO}", 'scheduler = "random"'), udp(), ALL),
    Case("udp ipv6", service(f"{HERE6}/udp", ONE6), udp(source=CLIENT6), dnat(ONE6)),
    Case("sctp", service(f"{HERE}/sctp", f"{ONE} {TWO}", 'scheduler = "random"'), sctp(), ALL),
    Case("sctp ipv6", service(f"{HERE6}/sctp", ONE6), sctp(source=CLIENT6), dnat(ONE6)),
    Case("one of a list of ports", service(f"{VIP4}:80,8888,9000-9001", ONE), tcp(80), dnat(ONE)),
    Case("a range in a list of ports", service(f"{VIP4}:80,8888,9000-9001", ONE), tcp(9001), dnat(ONE)),
    Case("not in a list of ports", service(f"{VIP4}:80,8888,9000-9001", ONE), tcp(9002), OWN),
    Case("backend without a port", service(HERE, server(1, 0)), tcp(), dnat(server(1, 8888))),
    Case("established", TWO_OF_EACH, tcp(flags=frozenset({"ack"})), OWN, connection="established"),
]

RANGES = [
    Case("range, same port", _range(HOSTS), tcp(8042), dnat(server(1, 8042))),
    Case("range, same port, ipv6", _range(EITHER), tcp(8042, CLIENT6), dnat(server(1, 8042, 6))),
    Case(
        "range, first port",
        _range(HOSTS, 'scheduler = "random"'),
        tcp(8000),
        dnat(server(1, 8000), server(2, 8000)),
    ),
    Case(
        "range, last port",
        _range(HOSTS, 'scheduler = "random"'),
        tcp(8099),
        dnat(server(1, 8099), server(2, 8099)),
    ),
    Case("before a range", _range(HOSTS), tcp(7999), OWN),
    Case("behind a range", _range(HOSTS), tcp(8100), OWN),
    Case("range to one port", _range(f"{ONE} {TWO}", 'scheduler = "random"'), tcp(8042), ALL),
    Case(
        "range shifted",
        _range(f"{server(1, '9000-9099')} {server(2, '9000-9099')}", 'scheduler = "random"'),
        tcp(8042),
        dnat(server(1, 9042), server(2, 9042)),
    ),
    Case(
        "range shifted, udp, ipv6",
        _range(server(1, "9000-9099", 6), protocol="udp"),
        udp(8099, CLIENT6),
        dnat(server(1, 9099, 6)),
    ),
    Case(
        "range shifted, sctp",
        _range(server(1, "9000-9099"), protocol="sctp"),
        sctp(8000),
        dnat(server(1, 9000)),
    ),
    Case(
        "every port",
        service(f"{VIP4}:*/udp", HOSTS, 'scheduler = "random"'),
        udp(53),
        dnat(server(1, 53), server(2, 53)),
    ),
    Case("every port of another protocol", service(f"{VIP4}:*/udp", HOSTS), tcp(53), OWN),
    Case("every port to one", service(f"[{VIP6}]:*/udp", ONE6), udp(53, CLIENT6), dnat(ONE6)),
    Case(
        "any protocol, tcp",
        service(f"{VIP4}:*/any", server(1, 0), "ssh = true"),
        tcp(80),
        dnat(server(1, 80)),
    ),
    Case(
        "any protocol, sctp",
        service(f"{VIP4}:*/any", server(1, 0), "ssh = true"),
        sctp(80),
        dnat(server(1, 80)),
    ),
    Case(
        "any protocol, ping", service(f"{VIP4}:*/any", server(1, 0), "ssh = true"), ping(), dnat(server(1, 0))
    ),
    Case(
        "any protocol, ping ipv6",
        service(f"[{VIP6}]:*/any", HOSTS6, 'scheduler = "random"\nssh = true'),
        ping(CLIENT6),
        dnat(server(1, 0, 6), server(2, 0, 6)),
    ),
]

WILD = service("*:8888", f"{ONE} {ONE6}", 'interface = "eth0"')
MARKED = service("", EITHER, 'mark = 7\nscheduler = "random"')
MARK_ANY = dnat(server(1, 8888), server(2, 8888))

# One service for each kind of listen address that fits port 8888; each has a backend port of its own.
LAYERS = {
    "an address and a port, on an interface": service(HERE, server(1, 1001), 'interface = "eth0"', "l1"),
    "an address and a port": service(HERE, server(1, 1002), name="l2"),
    "a range, on an interface": service(f"{VIP4}:8000-8999", server(1, 1003), 'interface = "eth0"', "l3"),
    "a range": service(f"{VIP4}:8000-8999", server(1, 1004), name="l4"),
    "every port, on an interface": service(
        f"{VIP4}:*", server(1, 1005), 'interface = "eth0"\nssh = true', "l5"
    ),
    "every port": service(f"{VIP4}:*", server(1, 1006), "ssh = true", "l6"),
    "any protocol, on an interface": service(
        f"{VIP4}:*/any", server(2, 0), 'interface = "eth0"\nssh = true', "l7"
    ),
    "any protocol": service(f"{VIP4}:*/any", server(3, 0), "ssh = true", "l8"),
    "every address and a port": service("*:8888", server(1, 1009), 'interface = "eth0"', "l9"),
    "every address and a range": service("*:8000-8999", server(1, 1010), 'interface = "eth0"', "l10"),
    "every address and port": service("*:*", server(1, 1011), 'interface = "eth0"\nssh = true', "l11"),
    "everything": service("*:*/any", server(2, 0), 'interface = "eth0"\nssh = true', "l12"),
    "a mark": service("", server(3, 0), "mark = 7", "l14"),
}
_TAKES = [
    *(server(1, port) for port in range(1001, 1007)),
    server(2, 8888),
    server(3, 8888),
    *(server(1, port) for port in range(1009, 1012)),
    server(2, 8888),
    server(3, 8888),
]

PRECEDENCE = [
    Case(f"the first that fits is {kind}", "".join(list(LAYERS.values())[i:]), tcp(mark=7), dnat(_TAKES[i]))
    for i, kind in enumerate(LAYERS)
]

INTERFACES = [
    Case("every address", WILD, tcp(), dnat(ONE)),
    Case("every address, another one", WILD, tcp(destination=BACK4), dnat(ONE)),
    Case("every address, ipv6", WILD, tcp(source=CLIENT6), dnat(ONE6)),
    Case("every address, another interface", WILD, tcp(source=NEIGHBOUR4, interface="eth1"), OWN),
    Case("every address, passing by", WILD, tcp(destination=NEIGHBOUR4), OWN),
    Case("interface", service(HERE, ONE, 'interface = "eth0"'), tcp(), dnat(ONE)),
    Case("another interface", service(HERE, ONE, 'interface = "eth1"'), tcp(), OWN),
    Case(
        "two interfaces",
        service(HERE, ONE, 'interface = "eth0"', "a") + service(HERE, TWO, 'interface = "eth1"', "b"),
        tcp(source="192.168.2.1", interface="eth1"),
        dnat(TWO),
        source="masquerade",
    ),
    Case("mark", MARKED, tcp(mark=7), MARK_ANY),
    Case("mark, ipv6", MARKED, udp(53, CLIENT6, mark=7), dnat(server(1, 53, 6), server(2, 53, 6))),
    Case("mark, ping", MARKED, ping(mark=7), dnat(server(1, 0), server(2, 0))),
    Case("mark, passing by", MARKED, tcp(destination="192.168.2.99", mark=7), MARK_ANY),
    Case("another mark", MARKED, tcp(mark=0x107), OWN),
    Case("mark with other bits beside", "[director]\nmark_mask = 0xff\n" + MARKED, tcp(mark=0x107), MARK_ANY),
    Case("mark without its bits", "[director]\nmark_mask = 0xff\n" + MARKED, tcp(mark=0x106), OWN),
    Case("mark on an interface", MARKED + 'interface = "eth1"', tcp(mark=7), OWN),
    Case(
        "what a mark takes is not of every address",
        service("*:8888", ONE, 'interface = "eth0"\nreturn_path = "masquerade"')
        + service("", server(2, 0), "mark = 7", "marked"),
        tcp(destination="192.168.2.99", mark=7),
        dnat(server(2, 8888)),
        defect="postrouting asks for every address without asking whether the address was the director's",
    ),
]

WEIGHTS = weighted((1, "weight = 1"), (2, "weight = 3"))

SCHEDULERS = [
    Case("maglev, another port", TWO_OF_EACH, tcp(source_port=FAR), dnat(TWO)),
    Case("maglev, another client", TWO_OF_EACH, tcp(source=OTHER4), dnat(ONE)),
    Case("maglev, another client ipv6", TWO_OF_EACH, tcp(source=OTHER6), dnat(ONE6)),
    Case("maglev by address", _scheduler("maglev", 'hash = ["source-address"]'), tcp(), dnat(ONE)),
    Case(
        "maglev by all fields",
        _scheduler(
            "maglev", 'hash = ["source-address", "source-port", "destination-address", "destination-port"]'
        ),
        tcp(),
        dnat(TWO),
    ),
    Case("maglev by destination", _scheduler("maglev", 'hash = ["destination-address"]'), tcp(), dnat(TWO)),
    Case("maglev by port", _scheduler("maglev", 'hash = ["source-port"]'), tcp(), dnat(TWO)),
    Case("maglev, a size of its own", _scheduler("maglev", "table_size = 7"), tcp(), dnat(ONE)),
    Case("source-hash", _scheduler("source-hash"), tcp(), dnat(ONE)),
    Case("source-hash, another port", _scheduler("source-hash"), tcp(source_port=FAR), dnat(ONE)),
    Case("source-hash ipv6", _scheduler("source-hash"), tcp(source=CLIENT6), dnat(TWO6)),
    Case("random", _scheduler("random"), tcp(), ALL),
    Case("random ipv6", _scheduler("random"), tcp(source=CLIENT6), ALL6),
    Case("random by weight", WEIGHTS + 'scheduler = "random"', tcp(), ALL),
    Case("round-robin", _scheduler("round-robin"), tcp(), ALL),
    Case("round-robin ipv6", _scheduler("round-robin"), tcp(source=CLIENT6), ALL6),
    Case("least-connections", _scheduler("least-connections"), tcp(), ALL),
    Case("maglev by weight", WEIGHTS, tcp(), dnat(TWO)),
]

BACKENDS = [
    Case("drained", weighted((1, 'state = "drain"'), (2, "weight = 1")), tcp(), dnat(TWO)),
    Case("down", weighted((1, 'state = "down"'), (2, "weight = 1")), tcp(), dnat(TWO)),
    Case("weight 0", weighted((1, "weight = 0"), (2, "weight = 1")), tcp(), dnat(TWO)),
    Case("backup waits", weighted((1, "weight = 1"), (2, "backup = true")), tcp(), dnat(ONE)),
    Case(
        "backup takes",
        weighted((1, 'state = "down"'), (2, "backup = true"), (3, "backup = 2")),
        tcp(),
        dnat(TWO),
    ),
    Case(
        "second backup",
        weighted((1, "weight = 0"), (2, 'backup = 1\nstate = "down"'.replace("\n", ", ")), (3, "backup = 2")),
        tcp(),
        dnat(THREE),
    ),
    Case(
        "full",
        weighted((1, "max_connections = 5"), (2, "weight = 1")),
        tcp(),
        dnat(TWO),
        observed=Observed(full=frozenset({("web", ONE)})),
    ),
    Case("sorry server waits", service(HERE, ONE, f'sorry_server = "{THREE}"'), tcp(), dnat(ONE)),
    Case("sorry server takes", service(HERE, "", f'sorry_server = "{THREE}"'), tcp(), dnat(THREE)),
    Case(
        "sorry server of a range",
        _range("", f'sorry_server = "{THREE}"'),
        tcp(8042),
        dnat(THREE),
    ),
    Case("empty, tcp", service(HERE, ""), tcp(), RESET),
    Case("empty, tcp ipv6", service(HERE6, ""), tcp(source=CLIENT6), RESET),
    Case("empty, udp", service(f"{HERE}/udp", ""), udp(), UNREACHABLE),
    Case("empty, udp ipv6", service(f"{HERE6}/udp", ""), udp(source=CLIENT6), UNREACHABLE),
    Case("empty, sctp", service(f"{HERE}/sctp", ""), sctp(), UNREACHABLE),
    Case("empty, ping", service(f"{VIP4}:*/any", "", "ssh = true"), ping(), UNREACHABLE),
    Case("empty, dropped", service(HERE, "", 'when_empty = "drop"'), tcp(), DROP),
    Case("empty, udp dropped", service(f"{HERE}/udp", "", 'when_empty = "drop"'), udp(), DROP),
    Case("empty, own", service(HERE, ""), tcp(source=VIP4, interface=""), RESET),
]

POOL = "snat:192.168.2.91,192.168.2.92,192.168.2.93,2001:db8:2::91"
RETURN_PATHS = [
    Case("masquerade", _path("masquerade"), tcp(), dnat(ONE), "masquerade"),
    Case("masquerade, ipv6", _path("masquerade"), tcp(source=CLIENT6), dnat(ONE6), "masquerade"),
    Case("snat", _path(POOL.replace("192.168.2.92,192.168.2.93,", "")), tcp(), dnat(ONE), "192.168.2.91"),
    Case("snat, ipv6", _path(POOL), tcp(source=CLIENT6), dnat(ONE6), "2001:db8:2::91"),
    Case("snat, a list", _path(POOL), tcp(), dnat(ONE), "192.168.2.91"),
    Case("snat, a list, another client", _path(POOL), tcp(source=OTHER4), dnat(ONE), "192.168.2.92"),
    Case("snat, ports", _path(POOL + " port 20000-29999"), tcp(), dnat(ONE), "192.168.2.91", "20000-29999"),
    Case(
        "snat, ports, ipv6",
        _path(POOL + " port 20000-29999"),
        tcp(source=CLIENT6),
        dnat(ONE6),
        "2001:db8:2::91",
        "20000-29999",
    ),
    Case(
        "snat, one and ports",
        service(f"{HERE}/udp", ONE, 'return_path = "snat:192.168.2.91 port 20000-29999"'),
        udp(),
        dnat(ONE),
        "192.168.2.91",
        "20000-29999",
    ),
    Case(
        "snat, ping",
        service(
            f"{VIP4}:*/any", server(1, 0), 'return_path = "snat:192.168.2.91 port 20000-29999"\nssh = true'
        ),
        ping(),
        dnat(server(1, 0)),
        "192.168.2.91",
    ),
    Case(
        "snat, range on an interface",
        service("*:8000-8099/udp", ONE, 'interface = "eth0"\nreturn_path = "snat:192.168.2.91"'),
        udp(8042),
        dnat(ONE),
        "192.168.2.91",
    ),
    Case(
        "snat, mark",
        service("", server(1, 0), 'mark = 7\nreturn_path = "snat:192.168.2.91"'),
        tcp(mark=7),
        dnat(server(1, 8888)),
        "192.168.2.91",
    ),
    Case("neighbour", TWO_OF_EACH, tcp(source=NEIGHBOUR4, interface="eth1"), dnat(ONE), "masquerade"),
    Case("neighbour, ipv6", TWO_OF_EACH, tcp(source=NEIGHBOUR6, interface="eth1"), dnat(TWO6), "masquerade"),
    Case(
        "neighbour, ping",
        MARKED,
        ping(NEIGHBOUR4, interface="eth1", mark=7),
        dnat(server(1, 0), server(2, 0)),
        "masquerade",
    ),
    Case("own", TWO_OF_EACH, tcp(source=VIP4, interface=""), dnat(TWO), "masquerade"),
    Case("own, ipv6", TWO_OF_EACH, tcp(source=VIP6, interface=""), dnat(TWO6), "masquerade"),
    Case(
        "own, range",
        _range(server(1, "9000-9099")),
        tcp(8042, source=VIP4, interface=""),
        dnat(server(1, 9042)),
        "masquerade",
    ),
    Case("own, masquerade", _path("masquerade"), tcp(source=VIP4, interface=""), dnat(TWO), "masquerade"),
    Case(
        "own, to a service on an interface",
        service(HERE, ONE, 'interface = "eth0"'),
        tcp(source=VIP4, interface=""),
        OWN,
    ),
    Case("own, elsewhere", TWO_OF_EACH, tcp(80, source=BACK4, destination=NEIGHBOUR4, interface=""), OWN),
]

STICKY = 'persistence = "10m"\nscheduler = "random"'
SHIFTED = _range(f"{server(1, '9000-9099')} {server(2, '9000-9099')}", 'persistence = "10m"')
HIT = TWO_OF_EACH + 'persistence = "10m"'

PERSISTENCE = [
    # By its own port the client of these would go to the other server.
    Case("persistence, first", HIT, tcp(source_port=FAR), dnat(TWO)),
    Case("persistence, again", HIT, tcp(source_port=FAR), dnat(ONE), before=(tcp(),)),
    Case("persistence, ipv6, first", HIT, tcp(source=CLIENT6, source_port=FAR), dnat(TWO6)),
    Case(
        "persistence, ipv6, again",
        HIT,
        tcp(source=CLIENT6, source_port=FAR),
        dnat(ONE6),
        before=(tcp(source=CLIENT6),),
    ),
    Case("persistence, another client", HIT, tcp(source=OTHER4), dnat(ONE), before=(tcp(source_port=FAR),)),
    Case(
        "persistence of a network",
        TWO_OF_EACH + 'persistence = { timeout = "10m", prefix_v4 = 24, prefix_v6 = 64 }',
        tcp(source=OTHER4),
        dnat(ONE),
        before=(tcp(),),
    ),
    Case(
        "persistence of a network, ipv6",
        TWO_OF_EACH + 'persistence = { timeout = "1500ms", prefix_v4 = 24, prefix_v6 = 64 }',
        tcp(source=OTHER6),
        dnat(ONE6),
        before=(tcp(source=CLIENT6),),
    ),
    Case(
        "persistence, another service",
        service(f"{VIP4}:8888,8889", f"{ONE} {TWO}", 'persistence = "10m"'),
        tcp(8889, source_port=FAR),
        dnat(TWO),
        before=(tcp(),),
    ),
    Case(
        "persistence, range",
        _range(HOSTS, 'persistence = "10m"'),
        tcp(8043, source_port=FAR),
        dnat(server(1, 8043)),
        before=(tcp(8042),),
    ),
    Case(
        "persistence, range to one port",
        _range(f"{ONE} {TWO}", 'persistence = "10m"'),
        tcp(8043, source_port=FAR),
        dnat(ONE),
        before=(tcp(8042),),
    ),
    Case(
        "persistence, range shifted, same port",
        SHIFTED,
        tcp(8042, source_port=FAR),
        dnat(server(1, 9042)),
        before=(tcp(8042),),
    ),
    Case(
        "persistence, range shifted, another port",
        SHIFTED,
        tcp(8043, source_port=FAR),
        dnat(server(1, 9043)),
        before=(tcp(8042),),
    ),
    Case(
        "persistence, every port",
        service(f"{VIP4}:*/udp", HOSTS, 'persistence = "10m"'),
        udp(54, source_port=FAR),
        dnat(server(1, 54)),
        before=(udp(53),),
    ),
    Case(
        "persistence, mark",
        service("", HOSTS, 'mark = 7\npersistence = "10m"\nscheduler = "random"'),
        udp(54, mark=7),
        dnat(server(1, 54)),
        before=(tcp(mark=7),),
    ),
    Case(
        "persistence, every address",
        service("*:8888", f"{ONE} {TWO}", 'interface = "eth0"\npersistence = "10m"'),
        tcp(source_port=FAR),
        dnat(ONE),
        before=(tcp(),),
    ),
    Case(
        "persistence, every address and a range",
        service("*:8000-8999/udp", f"{ONE} {TWO}", 'interface = "eth0"\npersistence = "10m"'),
        udp(8001, source_port=FAR),
        dnat(ONE),
        before=(udp(),),
    ),
    Case(
        "persistence, masquerade",
        _path("masquerade", 'persistence = "10m"'),
        tcp(source_port=FAR),
        dnat(ONE),
        "masquerade",
        before=(tcp(),),
    ),
    Case("pin", TWO_OF_EACH + f'pin = [{{ client = "{CLIENT4}", backend = "{TWO}" }}]', tcp(), dnat(TWO)),
    Case(
        "pin of a network",
        TWO_OF_EACH + f'pin = [{{ client = "192.168.18.24/31", backend = "{TWO}" }}]',
        tcp(),
        dnat(TWO),
    ),
    Case(
        "pin of another",
        TWO_OF_EACH + f'pin = [{{ client = "192.168.18.26/31", backend = "{TWO}" }}]',
        tcp(),
        dnat(ONE),
    ),
    Case(
        "pin, ipv6",
        TWO_OF_EACH + f'pin = [{{ client = "2001:db8:18::/64", backend = "{TWO6}" }}]',
        tcp(source=CLIENT6),
        dnat(TWO6),
    ),
    Case(
        "pin before persistence",
        HIT + f'\npin = [{{ client = "{CLIENT4}", backend = "{TWO}" }}]',
        tcp(),
        dnat(TWO),
        before=(tcp(),),
    ),
    Case(
        "pin of a range",
        _range(HOSTS, f'pin = [{{ client = "{CLIENT4}", backend = "{server(2, 0)}" }}]'),
        tcp(8042),
        dnat(server(2, 8042)),
    ),
    Case(
        "pin of a range shifted",
        _range(
            f"{server(1, '9000-9099')} {server(2, '9000-9099')}",
            f'pin = [{{ client = "{CLIENT4}", backend = "{server(2, "9000-9099")}" }}]',
        ),
        tcp(8042),
        dnat(server(2, 9042)),
    ),
    Case(
        "pin to a drained one",
        weighted((1, 'state = "drain"'), (2, "weight = 1"))
        + f'pin = [{{ client = "{CLIENT4}", backend = "{ONE}" }}]',
        tcp(),
        dnat(ONE),
    ),
    Case(
        "pin to one that is down",
        weighted((1, 'state = "down"'), (2, "weight = 1"))
        + f'pin = [{{ client = "{CLIENT4}", backend = "{ONE}" }}]',
        tcp(),
        dnat(TWO),
    ),
]

LIST = {"list.txt": "# who else\n192.168.18.26\n10.0.0.0/8\n2001:db8:18::26\n"}
FILE = '{ file = "list.txt" }'


def _lists(more):
    return TWO_OF_EACH + more


ACCESS = [
    Case("allowed", _lists('allow = ["192.168.18.24/31"]'), tcp(), dnat(ONE)),
    Case("not allowed", _lists('allow = ["192.168.18.24/31"]'), tcp(source=OTHER4), DROP),
    Case(
        "not allowed, refused",
        _lists('allow = ["192.168.18.24/31"]\nrefuse = "reject"'),
        tcp(source=OTHER4),
        RESET,
    ),
    Case(
        "not allowed, nobody of the family", _lists('allow = ["192.168.18.24/31"]'), tcp(source=CLIENT6), DROP
    ),
    Case("allowed, ipv6", _lists('allow = ["2001:db8:18::/64"]'), tcp(source=CLIENT6), dnat(ONE6)),
    Case("denied", _lists('deny = ["192.168.18.24/31"]'), tcp(), DROP),
    Case(
        "denied, udp refused",
        service(f"{HERE}/udp", ONE, f'deny = ["{CLIENT4}"]\nrefuse = "reject"'),
        udp(),
        UNREACHABLE,
    ),
    Case("not denied", _lists('deny = ["192.168.18.24/31"]'), tcp(source=OTHER4), dnat(ONE)),
    Case("deny comes first", _lists(f'allow = ["192.168.18.0/24"]\ndeny = ["{CLIENT4}"]'), tcp(), DROP),
    Case("denied, ipv6", _lists(f'deny = ["{CLIENT6}"]'), tcp(source=CLIENT6), DROP),
    Case("denied by a file", _lists(f"deny = [{FILE}]"), tcp(source=OTHER4), DROP, files=LIST),
    Case("denied by a file, ipv6", _lists(f"deny = [{FILE}]"), tcp(source=OTHER6), DROP, files=LIST),
    Case("not denied by a file", _lists(f"deny = [{FILE}]"), tcp(), dnat(ONE), files=LIST),
    Case("allowed by a file", _lists(f"allow = [{FILE}]"), tcp(source=OTHER4), dnat(ONE), files=LIST),
    Case("not allowed by a file", _lists(f"allow = [{FILE}]"), tcp(), DROP, files=LIST),
    Case("allowed beside a file", _lists(f'allow = ["{CLIENT4}", {FILE}]'), tcp(), dnat(ONE), files=LIST),
    Case("denied on a range", _range(HOSTS, f'deny = ["{CLIENT4}"]'), tcp(8042), DROP),
    Case("not denied on a range", _range(HOSTS, f'deny = ["{OTHER4}"]'), tcp(8042), dnat(server(1, 8042))),
    Case("denied on every address", WILD + f'deny = ["{CLIENT4}"]', tcp(), DROP),
    Case("allowed on every address", WILD + f'allow = ["{CLIENT4}"]', tcp(), dnat(ONE)),
    Case("denied with a mark", MARKED + f'deny = ["{CLIENT4}"]', tcp(mark=7), DROP),
    Case("own, not allowed", _lists('allow = ["192.168.18.24/31"]'), tcp(source=VIP4, interface=""), DROP),
    Case("allowed and empty", service(HERE, "", f'allow = ["{CLIENT4}"]'), tcp(), RESET),
    Case("not allowed and empty", service(HERE, "", f'allow = ["{OTHER4}"]'), tcp(), DROP),
]


def _limits(more, over=""):
    return TWO_OF_EACH + over + "\n[service.limits]\n" + more


EACH = "client_new_per_second = 10\nclient_connections = 5"
LIMITS = [
    Case("under the limit", _limits("new_per_second = 100"), tcp(), dnat(ONE)),
    Case("over the limit", _limits("new_per_second = 100"), tcp(), DROP, over=("new_",)),
    Case(
        "over the limit, refused",
        _limits("new_per_second = 100", 'refuse = "reject"'),
        tcp(),
        RESET,
        over=("new_",),
    ),
    Case("over the limit, ipv6", _limits("new_per_second = 100"), tcp(source=CLIENT6), DROP, over=("new_",)),
    Case("under the limits of a client", _limits(EACH), tcp(), dnat(ONE)),
    Case("over the rate of a client", _limits(EACH), tcp(), DROP, over=("client_new",)),
    Case("over the connections of a client", _limits(EACH), tcp(), DROP, over=("client_open",)),
    Case(
        "over the connections of a client, refused",
        _limits(EACH, 'refuse = "reject"'),
        tcp(),
        RESET,
        over=("client_open",),
    ),
    Case(
        "over the connections of a client, ipv6",
        _limits(EACH),
        tcp(source=CLIENT6),
        DROP,
        over=("client_open",),
    ),
    Case("limits on a range", _range(HOSTS) + "[service.limits]\n" + EACH, tcp(8042), dnat(server(1, 8042))),
    Case(
        "over the limits on a range",
        _range(HOSTS) + "[service.limits]\n" + EACH,
        tcp(8042),
        DROP,
        over=("client_new",),
    ),
    Case(
        "over the limit on every port",
        service(f"{VIP4}:*/udp", HOSTS) + "[service.limits]\nnew_per_second = 1",
        udp(),
        DROP,
        over=("new_",),
    ),
    Case(
        "over the limits with a mark",
        MARKED + "[service.limits]\n" + EACH,
        ping(mark=7),
        DROP,
        over=("client_open",),
    ),
    Case(
        "over the limits on every address",
        WILD + "[service.limits]\n" + EACH,
        tcp(),
        DROP,
        over=("client_new",),
    ),
    Case(
        "another service is over its limit",
        _limits("new_per_second = 100\n") + service(f"{VIP4}:80", THREE, name="other"),
        tcp(80),
        dnat(THREE),
        over=("new_",),
    ),
    Case(
        "allowed and over the limit",
        _limits("new_per_second = 100", f'allow = ["{CLIENT4}"]'),
        tcp(),
        DROP,
        over=("new_",),
    ),
]

PROXY = _limits("synproxy = true")
PROXY_ETH0 = service(HERE, ONE, 'interface = "eth0"\nlimits = { synproxy = true }')
ACK = frozenset({"ack"})
SYNPROXY = [
    Case("synproxy, first", PROXY, tcp(), COOKIE),
    Case("synproxy, first, ipv6", PROXY, tcp(source=CLIENT6), COOKIE),
    Case("synproxy, answer to a cookie", PROXY, tcp(flags=ACK), COOKIE),
    Case(
        "synproxy, answer that conntrack does not take", PROXY, tcp(flags=ACK), COOKIE, connection="invalid"
    ),
    Case("synproxy, established", PROXY, tcp(flags=ACK), OWN, connection="established"),
    # The kernel opens the connection to the backend itself, in the client's name.
    Case("synproxy, on to the backend", PROXY, tcp(interface=""), dnat(ONE)),
    Case("synproxy, on to the backend, ipv6", PROXY, tcp(source=CLIENT6, interface=""), dnat(ONE6)),
    Case(
        "synproxy, on to the backend, denied",
        _limits("synproxy = true", f'deny = ["{CLIENT4}"]'),
        tcp(interface=""),
        DROP,
    ),
    Case(
        "synproxy, on to the backend, masquerade",
        _limits("synproxy = true", 'return_path = "masquerade"'),
        tcp(interface=""),
        dnat(ONE),
        "masquerade",
    ),
    Case("synproxy, routed", PROXY.replace(VIP4, "192.168.2.99"), tcp(destination="192.168.2.99"), COOKIE),
    Case("synproxy, range", _range(HOSTS, "limits = { synproxy = true }"), tcp(8042), COOKIE),
    Case("synproxy, another port", PROXY, tcp(8889), OWN),
    Case("synproxy, empty", service(HERE, "", "limits = { synproxy = true }"), tcp(), RESET),
    Case("synproxy on an interface", PROXY_ETH0, tcp(), COOKIE),
    Case(
        "synproxy on an interface, on to the backend",
        PROXY_ETH0,
        tcp(interface=""),
        dnat(ONE),
        defect="what the kernel opens came in by no interface, and goes to the director's own port",
    ),
    Case("synproxy, own", PROXY, tcp(source=VIP4, interface=""), dnat(TWO), "masquerade"),
]

LOGS = [
    Case("log", _lists('log = "path"'), tcp(), dnat(ONE)),
    Case("log, new", _lists('log = "new"'), tcp(source=CLIENT6), dnat(ONE6)),
    Case(
        "log to the kernel", '[director]\nlog_target = "kernel"\n' + _lists('log = "path"'), tcp(), dnat(ONE)
    ),
    Case(
        "log, range on every address",
        service("*:8000-8999", ONE, 'interface = "eth0"\nlog = "path"'),
        tcp(),
        dnat(ONE),
    ),
    Case("log, mark", MARKED + 'log = "path"', ping(mark=7), dnat(server(1, 0), server(2, 0))),
    Case("log, not of the service", _lists('log = "path"'), tcp(8889), OWN),
]

CASES = [
    *PLAIN,
    *RANGES,
    *PRECEDENCE,
    *INTERFACES,
    *SCHEDULERS,
    *BACKENDS,
    *RETURN_PATHS,
    *PERSISTENCE,
    *ACCESS,
    *LIMITS,
    *SYNPROXY,
    *LOGS,
]
