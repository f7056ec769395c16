"""Which backend a connection gets."""

from lbd.core.observed import Observed
from trace_cases.words import (
    ALL,
    ALL6,
    CLIENT4,
    CLIENT6,
    DROP,
    FAR,
    HERE,
    HERE6,
    HIT,
    HOSTS,
    ONE,
    ONE6,
    OTHER4,
    OTHER6,
    RESET,
    SHIFTED,
    THREE,
    TWO,
    TWO6,
    TWO_OF_EACH,
    UNREACHABLE,
    VIP4,
    Case,
    dnat,
    ping,
    ranged,
    sctp,
    server,
    service,
    tcp,
    udp,
    weighted,
)


def _scheduler(name, more=""):
    return TWO_OF_EACH + f'scheduler = "{name}"\n{more}\n'


def _path(path, more=""):
    return TWO_OF_EACH + f'return_path = "{path}"\n{more}\n'


WEIGHTS = weighted((1, "weight = 1"), (2, "weight = 3"))

SCHEDULERS = [
    Case("maglev, another port", TWO_OF_EACH, tcp(source_port=FAR), dnat(TWO)),
    Case("maglev, another client", TWO_OF_EACH, tcp(source=OTHER4), dnat(ONE)),
    Case("maglev, another client ipv6", TWO_OF_EACH, tcp(source=OTHER6), dnat(ONE6)),
    Case("maglev by address", _scheduler("maglev", 'hash = ["source-address"]'), tcp(), dnat(ONE)),
    Case(
        # One address and port are the same for all who come there, and are left out.
        "maglev by all fields",
        _scheduler(
            "maglev", 'hash = ["source-address", "source-port", "destination-address", "destination-port"]'
        ),
        tcp(source_port=FAR),
        dnat(TWO),
    ),
    Case(
        "maglev by client and port of a range",
        ranged(HOSTS, 'hash = ["source-address", "destination-port"]'),
        tcp(8042),
        dnat(server(2, 8042)),
    ),
    Case("maglev by destination", _scheduler("maglev", 'hash = ["destination-address"]'), tcp(), dnat(TWO)),
    Case("maglev by port", _scheduler("maglev", 'hash = ["source-port"]'), tcp(), dnat(ONE)),
    Case("maglev, a size of its own", _scheduler("maglev", "table_size = 7"), tcp(), dnat(ONE)),
    Case("source-hash", _scheduler("source-hash"), tcp(), dnat(ONE)),
    Case("source-hash, another port", _scheduler("source-hash"), tcp(source_port=FAR), dnat(ONE)),
    Case("source-hash ipv6", _scheduler("source-hash"), tcp(source=CLIENT6), dnat(ONE6)),
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
        ranged("", f'sorry_server = "{THREE}"'),
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
        ranged(HOSTS, 'persistence = "10m"'),
        tcp(8043, source_port=FAR),
        dnat(server(1, 8043)),
        before=(tcp(8042),),
    ),
    Case(
        "persistence, range to one port",
        ranged(f"{ONE} {TWO}", 'persistence = "10m"'),
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
        ranged(HOSTS, f'pin = [{{ client = "{CLIENT4}", backend = "{server(2, 0)}" }}]'),
        tcp(8042),
        dnat(server(2, 8042)),
    ),
    Case(
        "pin of a range shifted",
        ranged(
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
    *(
        Case(
            f"pin to a drained one beside a sorry server, {kind}",
            ranged(
                "",
                f"""sorry_server = "{THREE}"\npin = [{{ client = "{OTHER4}", backend = "{drained}" }}]""",
            ).replace("backends = []", f'backends = [{{ address = "{drained}", state = "drain" }}]'),
            tcp(8042),
            dnat(THREE),
        )
        for kind, drained in (("range", server(1, 0)), ("range shifted", server(1, "9000-9099")))
    ),
]

CASES = [*SCHEDULERS, *BACKENDS, *PERSISTENCE]
