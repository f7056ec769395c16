"""What cases are made of: the addresses of the lab, packets, services as text, and the case itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from lbd.core.config import parse
from lbd.core.desired import desired
from lbd.core.observed import Link, Observed
from lbd.core.source import Source
from lbd.core.state import Desired
from lbd.core.trace import Facts, Packet

DIRECTORY = "/etc/lbd"

# From these ports maglev by address and port sends the client to the first and to the second real server, in
# both families, whether or not the backends have a port.
NEAR, FAR = 10_385, 10_087

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

# The index of eth1, the second interface that a director of the lab gets beside lo.
BACK_INDEX = 3
WAYS = Observed(
    links={
        f"{net}{last}": Link("eth1", BACK_INDEX)
        for net in ("192.168.2.", "2001:db8:2::")
        for last in (73, 74, 75)
    },
    interfaces=frozenset({"eth0", "eth1"}),
)


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


def rewritten(*servers):
    """Any of these servers, packet by packet."""
    return frozenset(("rewritten", each) for each in servers)


def forwarded(*servers):
    """On as it is, to any of these servers as a neighbour."""
    return frozenset(("forwarded", f"{each} by {BACK_INDEX}") for each in servers)


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
    and "" where nothing is translated; see `forwarded` for direct return. `source` is what takes the place of
    the client's address. `before` are
    packets sent just before, which rules may have noted; of several ways that one may go, the first is taken.
    `over` are limits that are passed: names of limits and sets that begin so. `files` are lists of prefixes
    beside the file.
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
    def desired(self) -> Desired:
        lists = [Source(f"{DIRECTORY}/{name}", text, "prefixes") for name, text in self.files.items()]
        return desired(parse(Source(f"{DIRECTORY}/lbd.toml", self.text), lists), self.observed)

    def facts(self, desired: Desired) -> Facts:
        table = desired.table
        names = [*table.limits, *(name for name, shape in table.maps.items() if shape.learned)]
        over = frozenset(name for name in names if name.startswith(self.over or ("-",)))
        return Facts(local=LOCAL, routes=ROUTES, over=over, connection=self.connection)


def after(outcome, facts):
    """The facts with what was noted of a packet."""
    learned = {name: dict(elements) for name, elements in facts.learned.items()}
    for noted in outcome.noted:
        learned.setdefault(noted.map, {})[noted.key] = noted.data
    return replace(facts, learned=learned)


TWO_OF_EACH = service(f"{HERE} {HERE6}", f"{ONE} {TWO} {ONE6} {TWO6}")


def ranged(backends, more="", protocol="tcp"):
    suffix = "" if protocol == "tcp" else f"/{protocol}"
    families = {6 if "[" in backend else 4 for backend in backends.split()} or {4}
    listen = {4: f"{VIP4}:8000-8099{suffix}", 6: f"[{VIP6}]:8000-8099{suffix}"}
    return service(" ".join(listen[family] for family in sorted(families)), backends, more)


HOSTS = f"{server(1, 0)} {server(2, 0)}"
HOSTS6 = f"{server(1, 0, 6)} {server(2, 0, 6)}"
EITHER = f"{HOSTS} {HOSTS6}"

WILD = service("*:8888", f"{ONE} {ONE6}", 'interface = "eth0"')
MARKED = service("", EITHER, 'mark = 7\nscheduler = "random"')
SHIFTED = ranged(f"{server(1, '9000-9099')} {server(2, '9000-9099')}", 'persistence = "10m"')
HIT = TWO_OF_EACH + 'persistence = "10m"'
