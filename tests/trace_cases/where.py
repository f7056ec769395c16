"""Which packets are a service's, by its listen address, interface or mark."""

from trace_cases.words import (
    ALL,
    BACK4,
    CLIENT6,
    EITHER,
    HERE,
    HERE6,
    HOSTS,
    HOSTS6,
    MARKED,
    NEIGHBOUR4,
    ONE,
    ONE6,
    OWN,
    TWO,
    TWO_OF_EACH,
    VIP4,
    VIP6,
    WILD,
    Case,
    dnat,
    ping,
    ranged,
    sctp,
    server,
    service,
    tcp,
    udp,
)

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
    Case("range, same port", ranged(HOSTS), tcp(8042), dnat(server(1, 8042))),
    Case("range, same port, ipv6", ranged(EITHER), tcp(8042, CLIENT6), dnat(server(1, 8042, 6))),
    Case(
        "range, first port",
        ranged(HOSTS, 'scheduler = "random"'),
        tcp(8000),
        dnat(server(1, 8000), server(2, 8000)),
    ),
    Case(
        "range, last port",
        ranged(HOSTS, 'scheduler = "random"'),
        tcp(8099),
        dnat(server(1, 8099), server(2, 8099)),
    ),
    Case("before a range", ranged(HOSTS), tcp(7999), OWN),
    Case("behind a range", ranged(HOSTS), tcp(8100), OWN),
    Case("range to one port", ranged(f"{ONE} {TWO}", 'scheduler = "random"'), tcp(8042), ALL),
    Case(
        "range shifted",
        ranged(f"{server(1, '9000-9099')} {server(2, '9000-9099')}", 'scheduler = "random"'),
        tcp(8042),
        dnat(server(1, 9042), server(2, 9042)),
    ),
    Case(
        "range shifted, udp, ipv6",
        ranged(server(1, "9000-9099", 6), protocol="udp"),
        udp(8099, CLIENT6),
        dnat(server(1, 9099, 6)),
    ),
    Case(
        "range shifted, sctp",
        ranged(server(1, "9000-9099"), protocol="sctp"),
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
    "a mark": service("", server(3, 0), "mark = 7", "l14"),
    "every address and a port": service("*:8888", server(1, 1009), 'interface = "eth0"', "l9"),
    "every address and a range": service("*:8000-8999", server(1, 1010), 'interface = "eth0"', "l10"),
    "every address and port": service("*:*", server(1, 1011), 'interface = "eth0"\nssh = true', "l11"),
    "everything": service("*:*/any", server(2, 0), 'interface = "eth0"\nssh = true', "l12"),
}
_TAKES = [
    *(server(1, port) for port in range(1001, 1007)),
    server(2, 8888),
    server(3, 8888),
    server(3, 8888),
    *(server(1, port) for port in range(1009, 1012)),
    server(2, 8888),
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
    ),
]

CASES = [*PLAIN, *RANGES, *PRECEDENCE, *INTERFACES]
