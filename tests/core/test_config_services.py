"""What every way to write a service means: each syntax as the values it becomes."""

from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address, ip_network

import pytest

from lbd.core.config import parse
from lbd.core.settings import (
    EVERY_PORT,
    Access,
    Backend,
    Config,
    Limits,
    Listen,
    Persistence,
    Ports,
    Rate,
    ReturnPath,
    Service,
)
from lbd.core.source import Source

FOUR, SIX = "0.0.0.0", "::"


def config(text: str) -> Config:
    return parse(Source("/etc/lbd.toml", text))


def service(
    keys: str, backends: str = '["192.0.2.1"]', listen: str = '"198.51.100.1:80"', top: str = ""
) -> Service:
    """Return the only service of a file, with some keys more."""
    where = f"listen = {listen}" if listen else ""
    text = f"{top}\n[[service]]\nname = 's'\n{where}\nbackends = {backends}\n{keys}\n"
    return config(text).services[-1]


def listen(address: str, low: int, high: int | None = None, protocol: str = "tcp") -> Listen:
    return Listen(ip_address(address), Ports(low, high or low), protocol)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"198.51.100.1:80"', [listen("198.51.100.1", 80)]),
        ('"198.51.100.1:80/tcp"', [listen("198.51.100.1", 80)]),
        ('"198.51.100.1:53/udp"', [listen("198.51.100.1", 53, protocol="udp")]),
        ('"198.51.100.1:2905/sctp"', [listen("198.51.100.1", 2905, protocol="sctp")]),
        ('"198.51.100.1:8000-8099"', [listen("198.51.100.1", 8000, 8099)]),
        ('"198.51.100.1:80-80"', [listen("198.51.100.1", 80)]),
        ('"198.51.100.1:80-81,90"', [listen("198.51.100.1", 80, 81), listen("198.51.100.1", 90)]),
        (
            '"198.51.100.1:443,80,8000-8099/udp"',
            [
                listen("198.51.100.1", 443, protocol="udp"),
                listen("198.51.100.1", 80, protocol="udp"),
                listen("198.51.100.1", 8000, 8099, "udp"),
            ],
        ),
        ('"198.51.100.1:*"', [Listen(ip_address("198.51.100.1"), EVERY_PORT)]),
        ('"198.51.100.1:0-65535"', [Listen(ip_address("198.51.100.1"), EVERY_PORT)]),
        ('"198.51.100.1:1-65535/udp"', [Listen(ip_address("198.51.100.1"), EVERY_PORT, "udp")]),
        ('"198.51.100.1:*/any"', [Listen(ip_address("198.51.100.1"), EVERY_PORT, "any")]),
        ('["198.51.100.1:80", "198.51.100.2:80"]', [listen("198.51.100.1", 80), listen("198.51.100.2", 80)]),
        ('"*:80"', [listen(FOUR, 80)]),
        ('"0.0.0.0:80"', [listen(FOUR, 80)]),
        ('"*:*/any"', [Listen(ip_address(FOUR), EVERY_PORT, "any")]),
    ],
)
def test_listen_addresses(written: str, expected: list[Listen]):
    assert service("ssh = true\ninterface = 'eth0'", listen=written).listen == tuple(expected)


@pytest.mark.parametrize(
    ("written", "backends", "expected"),
    [
        ('"*:80"', '["192.0.2.1", "[2001:db8::1]"]', [FOUR, SIX]),
        ('"*:80"', '["[2001:db8::1]"]', [SIX]),
        ('"[::]:80"', '["[2001:db8::1]"]', [SIX]),
        ('"[0::0]:80"', '["[2001:db8::1]"]', [SIX]),
        ('"*:80"', "[]", [FOUR, SIX]),
        ('["0.0.0.0:80", "[::]:80"]', '["192.0.2.1", "[2001:db8::1]"]', [FOUR, SIX]),
    ],
)
def test_every_address_is_of_the_families_of_the_backends(written: str, backends: str, expected: list[str]):
    made = service("interface = 'eth0'", backends, written)
    assert made.listen == tuple(listen(address, 80) for address in expected)
    assert all(each.wildcard for each in made.listen)


def test_a_mark_takes_the_place_of_listen():
    made = service("mark = 4294967295\nsorry_server = '192.0.2.9'", listen="")
    assert (made.mark, made.listen, made.hash) == (4294967295, (), ("source-address",))
    assert made.sorry == (Backend(ip_address("192.0.2.9")),)
    assert service("mark = 0x10", listen="", top="[director]\nmark_mask = 0xf0").mark == 16


@pytest.mark.parametrize("scheduler", ["maglev", "source-hash", "random", "round-robin", "least-connections"])
def test_schedulers(scheduler: str):
    made = service(f"scheduler = '{scheduler}'")
    assert made.scheduler == scheduler
    fields = ("source-address",) if scheduler == "source-hash" else ("source-address", "source-port")
    assert made.hash == fields


BOTH = ("source-address", "source-port")
SOURCE = ("source-address",)
ANY, TCP = '"198.51.100.1:*/any"', '"198.51.100.1:80"'


@pytest.mark.parametrize(
    ("defaults", "keys", "where", "expected"),
    [
        ("", "", TCP, BOTH),
        ("", "hash = ['source-address']", TCP, SOURCE),
        ("", "hash = ['destination-port', 'source-address']", TCP, ("source-address", "destination-port")),
        ("", "scheduler = 'source-hash'\nhash = ['source-address']", TCP, SOURCE),
        ("", "", ANY, SOURCE),
        (
            "",
            "hash = ['destination-address', 'source-address']",
            ANY,
            ("source-address", "destination-address"),
        ),
        ("hash = ['destination-port']", "", TCP, ("destination-port",)),
        ("hash = ['destination-port']", "", ANY, SOURCE),
        ("hash = ['destination-address']", "", ANY, ("destination-address",)),
        ("hash = ['destination-port']", "scheduler = 'source-hash'", TCP, SOURCE),
        ("hash = ['destination-port']", "scheduler = 'random'", TCP, BOTH),
        ("hash = ['destination-port']", "hash = ['source-port']", TCP, ("source-port",)),
    ],
)
def test_what_is_hashed(defaults: str, keys: str, where: str, expected: tuple[str, ...]):
    keys = f"{keys}\nssh = true"
    assert service(keys, listen=where, top=f"[defaults]\n{defaults}").hash == expected


@pytest.mark.parametrize("size", [3, 251, 65521])
def test_table_sizes(size: int):
    assert service(f"table_size = {size}").table_size == size
    assert service("").table_size == 0


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("gateway", ReturnPath()),
        ("masquerade", ReturnPath("masquerade")),
        ("snat:203.0.113.5", ReturnPath("snat", (ip_address("203.0.113.5"),))),
        (
            "snat:203.0.113.5,2001:db8::5",
            ReturnPath("snat", (ip_address("203.0.113.5"), ip_address("2001:db8::5"))),
        ),
        (
            "snat:203.0.113.5,203.0.113.6 port 20000-29999",
            ReturnPath("snat", (ip_address("203.0.113.5"), ip_address("203.0.113.6")), Ports(20000, 29999)),
        ),
        (
            "snat:203.0.113.5 port 1024-32767",
            ReturnPath("snat", (ip_address("203.0.113.5"),), Ports(1024, 32767)),
        ),
        (
            "snat:203.0.113.5 port 61000-65535",
            ReturnPath("snat", (ip_address("203.0.113.5"),), Ports(61000, 65535)),
        ),
    ],
)
def test_return_paths(written: str, expected: ReturnPath):
    made = service(f"return_path = '{written}'").return_path
    assert made == expected
    assert str(made) == written


def test_one_snat_serves_both_families_and_the_default_may_have_one_too_many():
    top = "[defaults]\nreturn_path = 'snat:203.0.113.5,2001:db8::5'"
    made = service("", '["192.0.2.1", "[2001:db8::1]"]', '["198.51.100.1:80", "[2001:db8::9]:80"]', top)
    assert made.return_path.of(6) == (ip_address("2001:db8::5"),)
    assert service("", top=top).return_path.of(4) == (ip_address("203.0.113.5"),)


DIRECT = "interface = 'eth0'\nreturn_path = 'direct'\nwhen_empty = 'drop'\ntable_size = 251"


def test_direct_return():
    backends = '["192.0.2.1", { address = "192.0.2.2:80", state = "drain" }]'
    made = service(DIRECT, backends, '["198.51.100.1:80", "198.51.100.1:80/udp"]')
    assert made.return_path == ReturnPath("direct")
    assert made.backends[1] == Backend(ip_address("192.0.2.2"), Ports(80, 80), state="drain")


def test_stateless():
    keys = "interface = 'eth0'\nreturn_path = 'stateless'\nscheduler = 'source-hash'"
    made = service(keys, '["192.0.2.1:8080", "192.0.2.2"]', '"198.51.100.1:80"')
    assert made.return_path == ReturnPath("stateless")
    # Ports and protocols tell replies apart.
    service(keys, '["192.0.2.1"]', '["198.51.100.1:80", "198.51.100.1:443", "198.51.100.2:80/udp"]')


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"10m"', Persistence(600.0)),
        ('"1s"', Persistence(1.0)),
        ('"168h"', Persistence(604800.0)),
        ('{ timeout = "1h" }', Persistence(3600.0)),
        ('{ timeout = "1h", prefix_v4 = 24, prefix_v6 = 64 }', Persistence(3600.0, 24, 64)),
    ],
)
def test_persistence(written: str, expected: Persistence):
    assert service(f"persistence = {written}").persistence == expected
    assert service("", top=f"[defaults]\npersistence = {written}").persistence == expected


def test_pins_lead_to_a_backend_with_all_that_is_said_of_it():
    backends = '["192.0.2.1:80", { address = "192.0.2.2", weight = 0 }, "[2001:db8::1]"]'
    pins = """[
      { client = "10.0.0.0/8", backend = "192.0.2.2" },
      { client = "2001:db8:9::/48", backend = "[2001:DB8::1]" },
    ]"""
    made = service(f"pin = {pins}", backends, '["198.51.100.1:80", "[2001:db8::9]:80"]')
    assert [pin.client for pin in made.pins] == [ip_network("10.0.0.0/8"), ip_network("2001:db8:9::/48")]
    assert [pin.backend for pin in made.pins] == [made.backends[1], made.backends[2]]


def test_prefixes_are_put_together_and_in_order():
    made = service(
        "allow = ['2001:db8::/33', '10.1.0.0/16', '10.0.0.0/16', '2001:db8:8000::/33', '10.0.0.1']"
    )
    assert made.allow == Access((ip_network("10.0.0.0/15"), ip_network("2001:db8::/32")))
    assert made.deny == Access()
    assert made.refusal == "drop"


def test_access_of_a_service_takes_the_place_of_the_default():
    top = "[defaults]\nallow = ['10.0.0.0/8']\ndeny = ['10.9.0.0/16']\nrefuse = 'reject'"
    made = service("", top=top)
    assert made.allow == Access((ip_network("10.0.0.0/8"),))
    assert made.deny == Access((ip_network("10.9.0.0/16"),))
    assert made.refusal == "reject"
    made = service("allow = ['10.9.0.0/24']\ndeny = []\nrefuse = 'drop'", top=top)
    assert (made.allow, made.deny, made.refusal) == (Access((ip_network("10.9.0.0/24"),)), Access(), "drop")


def test_limits():
    keys = """
    [service.limits]
    new_per_second = 1000
    new_burst = 5
    client_new_per_second = 10
    client_connections = 65535
    synproxy = true
    """
    assert service(keys).limits == Limits(Rate(1000, 5), Rate(10, 10), 65535, synproxy=True)
    assert service("limits.client_new_per_second = 10\nlimits.client_new_burst = 20").limits == Limits(
        client_new=Rate(10, 20)
    )


def test_limits_of_a_service_take_the_place_of_all_default_limits():
    top = "[defaults.limits]\nnew_per_second = 5"
    assert service("", top=top).limits == Limits(Rate(5, 5))
    assert service("limits = { client_connections = 2 }", top=top).limits == Limits(client_connections=2)
    assert service("limits = {}", top=top).limits == Limits()


def test_synproxy_is_for_tcp_ports_and_ranges():
    assert service(
        "limits.synproxy = true", listen='["198.51.100.1:80", "198.51.100.1:90-99"]'
    ).limits.synproxy


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"192.0.2.9:80"', [Backend(ip_address("192.0.2.9"), Ports(80, 80))]),
        ('"192.0.2.9"', [Backend(ip_address("192.0.2.9"))]),
        (
            '["[2001:db8::9]:80", "192.0.2.9:81"]',
            [
                Backend(ip_address("2001:db8::9"), Ports(80, 80)),
                Backend(ip_address("192.0.2.9"), Ports(81, 81)),
            ],
        ),
    ],
)
def test_sorry_servers(written: str, expected: list[Backend]):
    made = service(f"sorry_server = {written}", "[]", '["198.51.100.1:80-90", "[2001:db8::1]:80"]')
    assert made.sorry == tuple(expected)


def test_backends():
    backends = """[
      "192.0.2.1:9000",
      { address = "192.0.2.2:80", weight = 65535, max_connections = 10000000, backup = true },
      { address = "192.0.2.3:80", backup = 9 },
      { address = "192.0.2.4:80", backup = false, state = "down" },
      { address = "192.0.2.5:80", state = "drain", drain_until = 2026-12-31T22:00:00Z },
      { address = "192.0.2.6:80", state = "drain", drain_until = 2026-12-31 22:00:00.5+02:00 },
    ]"""
    made = service("", backends, '"198.51.100.1:8000-8009"').backends
    offset = timezone(timedelta(hours=2))
    assert made == (
        Backend(ip_address("192.0.2.1"), Ports(9000, 9000)),
        Backend(ip_address("192.0.2.2"), Ports(80, 80), 65535, backup=1, max_connections=10_000_000),
        Backend(ip_address("192.0.2.3"), Ports(80, 80), backup=9),
        Backend(ip_address("192.0.2.4"), Ports(80, 80), state="down"),
        Backend(
            ip_address("192.0.2.5"),
            Ports(80, 80),
            state="drain",
            drain_until=datetime(2026, 12, 31, 22, tzinfo=UTC),
        ),
        Backend(
            ip_address("192.0.2.6"),
            Ports(80, 80),
            state="drain",
            drain_until=datetime(2026, 12, 31, 22, 0, 0, 500_000, tzinfo=offset),
        ),
    )


def test_backends_that_shift_a_range():
    listens = '["198.51.100.1:8000-8009", "198.51.100.2:7000-7009/udp"]'
    backends = '["192.0.2.1:9000-9009", { address = "192.0.2.2:9000-9009", weight = 2 }]'
    made = service("", backends, listens).backends
    assert [backend.ports for backend in made] == [Ports(9000, 9009)] * 2
    assert made[0].ports_behind(listen("198.51.100.1", 8000, 8009)) == Ports(9000, 9009)


def test_offload():
    top = "[director]\ndevices = ['eth0', 'eth1']\n[defaults]\noffload = true"
    assert service("", top=top).offload
    assert not service("offload = false", top=top).offload


def test_ssh():
    assert service("ssh = true", listen='"198.51.100.1:22"').ssh
    for ports in ("[]", "[2222]"):
        made = service(
            "", listen='["198.51.100.1:22", "198.51.100.2:20-30"]', top=f"[director]\nssh_ports = {ports}"
        )
        assert not made.ssh
    service("", listen='["198.51.100.1:22/udp", "198.51.100.1:*/sctp"]')


def test_a_host_that_is_only_a_real_server():
    made = config("[real_server]\ndirect = ['192.168.18.58', '2001:db8::1']")
    assert made == Config(real_server=(ip_address("192.168.18.58"), ip_address("2001:db8::1")))


TWO = """
[[service]]
name = "a"
listen = {}
{}
backends = ["192.0.2.1"]
[[service]]
name = "b"
listen = {}
{}
backends = ["192.0.2.2"]
"""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # The more exact one wins.
        (("'198.51.100.1:80'", ""), ("'198.51.100.1:80-90'", "")),
        (("'198.51.100.1:80-90'", ""), ("'198.51.100.1:*'", "ssh = true")),
        (("'198.51.100.1:80'", ""), ("'198.51.100.1:*/any'", "ssh = true")),
        (("'198.51.100.1:*'", "ssh = true"), ("'198.51.100.1:*/any'", "ssh = true")),
        (("'198.51.100.1:80'", ""), ("'*:80'", "interface = 'eth0'")),
        (("'198.51.100.1:80'", "interface = 'eth0'"), ("'198.51.100.1:80'", "")),
        (("'198.51.100.1:80-90'", "interface = 'eth0'"), ("'198.51.100.1:85-95'", "interface = 'eth1'")),
        # Others have nothing in common.
        (("'198.51.100.1:80-90'", ""), ("'198.51.100.1:85-95/udp'", "")),
        (("'198.51.100.1:80-90'", ""), ("'198.51.100.1:91-95'", "")),
        (("'198.51.100.1:80-90'", ""), ("'198.51.100.2:80-90'", "")),
    ],
)
def test_listen_addresses_that_go_together(one: tuple[str, str], other: tuple[str, str]):
    assert len(config(TWO.format(*one, *other)).services) == 2
    assert len(config(TWO.format(*other, *one)).services) == 2


DIRECT_ON, STATELESS_ON = (
    f"interface = '{{}}'\nreturn_path = '{kind}'".format for kind in ("direct", "stateless")
)
SHARED = """
[[service]]
name = "a"
listen = ["198.51.100.1:80", "[2001:db8::9]:443"]
backends = ["192.0.2.1", "[2001:db8::1]"]
{}
[[service]]
name = "b"
listen = {}
backends = [{}]
{}
"""


@pytest.mark.parametrize(
    ("keys", "written", "backends", "other_keys"),
    [
        # Direct return has no replies, and a tracked service is not at ingress.
        (DIRECT_ON("eth0"), '"198.51.100.2:80"', '"192.0.2.1"', ""),
        (DIRECT_ON("eth0"), '"198.51.100.1:80"', '"192.0.2.2"', "interface = 'eth1'"),
        (DIRECT_ON("eth0"), '"198.51.100.1:443"', '"192.0.2.1"', DIRECT_ON("eth1")),
        (DIRECT_ON("eth0"), '"198.51.100.1:80/udp"', '"192.0.2.1"', STATELESS_ON("eth1")),
        # Another port, another protocol; 443 is the backend's of the other family.
        (STATELESS_ON("eth0"), '"198.51.100.2:80"', '"192.0.2.1:81"', ""),
        (STATELESS_ON("eth0"), '"198.51.100.2:80/udp"', '"192.0.2.1"', ""),
        (STATELESS_ON("eth0"), '"198.51.100.2:*/sctp"', '"192.0.2.1"', ""),
        (STATELESS_ON("eth0"), '"198.51.100.2:81-90"', '"192.0.2.1"', ""),
        (STATELESS_ON("eth0"), '"198.51.100.2:443"', '"192.0.2.1"', ""),
        (
            STATELESS_ON("eth0"),
            '["198.51.100.2:443", "[2001:db8::8]:80"]',
            '"192.0.2.1", "[2001:db8::1]"',
            "",
        ),
    ],
)
def test_services_beside_one_without_connection_tracking(
    keys: str, written: str, backends: str, other_keys: str
):
    assert len(config(SHARED.format(keys, written, backends, other_keys)).services) == 2


def test_ports_of_the_other_family_are_no_loop():
    top = "[[service]]\nname = 't'\nlisten = '192.0.2.1:443'\nbackends = []"
    made = service("", '["192.0.2.1", "[2001:db8::1]"]', '["198.51.100.1:80", "[2001:db8::9]:443"]', top=top)
    assert len(made.backends) == 2


def test_a_backend_beside_a_listen_address_is_no_loop():
    backends = '["198.51.100.1:81", "198.51.100.2:80"]'
    listens = "['198.51.100.1:82', '198.51.100.2:80/udp', '198.51.100.2:90-99']"
    top = f"[[service]]\nname = 't'\nlisten = {listens}\nbackends = []"
    assert len(service("", backends, top=top).backends) == 2
