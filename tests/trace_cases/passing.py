"""What a connection passes before it gets a backend, and how it leaves."""

from trace_cases.words import (
    BACK4,
    CLIENT4,
    CLIENT6,
    COOKIE,
    DROP,
    HERE,
    HOSTS,
    MARKED,
    NEIGHBOUR4,
    NEIGHBOUR6,
    ONE,
    ONE6,
    OTHER4,
    OTHER6,
    OWN,
    RESET,
    THREE,
    TWO,
    TWO6,
    TWO_OF_EACH,
    UNREACHABLE,
    VIP4,
    VIP6,
    WILD,
    Case,
    dnat,
    ping,
    ranged,
    server,
    service,
    tcp,
    udp,
)


def _path(path, more=""):
    return TWO_OF_EACH + f'return_path = "{path}"\n{more}\n'


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
        ranged(server(1, "9000-9099")),
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
    Case("denied on a range", ranged(HOSTS, f'deny = ["{CLIENT4}"]'), tcp(8042), DROP),
    Case("not denied on a range", ranged(HOSTS, f'deny = ["{OTHER4}"]'), tcp(8042), dnat(server(1, 8042))),
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
    Case("limits on a range", ranged(HOSTS) + "[service.limits]\n" + EACH, tcp(8042), dnat(server(1, 8042))),
    Case(
        "over the limits on a range",
        ranged(HOSTS) + "[service.limits]\n" + EACH,
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
    Case("synproxy, range", ranged(HOSTS, "limits = { synproxy = true }"), tcp(8042), COOKIE),
    Case("synproxy, another port", PROXY, tcp(8889), OWN),
    Case("synproxy, empty", service(HERE, "", "limits = { synproxy = true }"), tcp(), RESET),
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

CASES = [*RETURN_PATHS, *ACCESS, *LIMITS, *SYNPROXY, *LOGS]
