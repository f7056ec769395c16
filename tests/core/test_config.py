"""What valid files mean, where problems point, and that nothing but BadFileError comes out."""

import re
import sys
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbd.core.config import includes, parse
from lbd.core.probes import Health, HttpProbe, TcpProbe, Timing, Tls
from lbd.core.settings import (
    Access,
    AddressEntry,
    Backend,
    Config,
    Director,
    Limits,
    Listen,
    Persistence,
    Pin,
    Ports,
    Rate,
    ReturnPath,
    RouteEntry,
    RuleEntry,
    Service,
)
from lbd.core.source import BadFileError, Problem, Source

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = (ROOT / "etc" / "lbd.toml").read_text()

WEB = """
[[service]]
name = "web"
listen = "192.168.18.58:8888"
interface = "eth0"
backends = ["192.168.2.73:9999"]
"""

FULL = """
include = ["lbd.d/*.toml"]
[director]
forwarding = true
log_target = "kernel"
log_group = 5
audit = "2m"
ssh_ports = [22, 2222]
mark_mask = 0xff
devices = ["eth0", "eth1"]
[defaults]
scheduler = "random"
return_path = "masquerade"
when_empty = "drop"
log = "new"
on_down = "keep"
health = { type = "tcp", interval = "500ms", port = 8080 }
[[service]]
name = "web"
listen = ["192.168.18.58:8888", "[2001:db8::1]:53/udp"]
interface = "eth0"
scheduler = "round-robin"
return_path = "gateway"
persistence = { timeout = "10m", prefix_v4 = 24 }
pin = [{ client = "198.51.100.7", backend = "192.168.2.73:9999" }]
allow = ["198.51.100.0/24", "2001:db8:9::/48"]
deny = ["198.51.100.8"]
refuse = "reject"
limits = { new_per_second = 1000, client_connections = 20 }
when_empty = "reject"
sorry_server = "192.168.2.80:80"
offload = true
log = "path"
ssh = false
on_down = "reset"
backends = [
  "192.168.2.73:9999", "192.168.2.75", "[2001:db8::2]",
  { address = "192.168.2.74:9999", weight = 0, state = "drain", backup = 2 },
  { address = "192.168.2.77:9999", state = "maintenance" },
]
[service.health]
type = "https"
interval = "5s"
fast_interval = "1s"
timeout = "700ms"
rise = 1
fall = 2
start = "down"
port = 443
slow_start = "30s"
panic = 40
method = "POST"
path = "/healthz?full=1"
host = "www.example.com:8443"
status = [301, "200-204"]
body = "all is well"
http_version = "2"
sni = "internal.example.com"
verify = true
ca = "tls/ca.pem"
[service.health.headers]
X-Check = "lbd"
Accept = ""
[[service]]
name = "api.v2_x-1"
listen = "192.168.18.58:8888/udp"
return_path = "gateway"
backends = []
[[service]]
name = "marked"
mark = 7
scheduler = "maglev"
hash = ["source-address"]
table_size = 251
backends = ["192.168.2.76"]
health = { type = "none" }
[[address]]
address = "192.168.18.58/24"
interface = "eth0"
[[route]]
to = "default"
via = "192.168.2.90"
replace = true
[[route]]
to = "2001:db8:9::/48"
via = "fe80::1"
interface = "eth1"
source = "2001:db8::1"
table = 100
metric = 7
[[rule]]
from = "192.168.2.0/24"
interface = "eth1"
table = 100
priority = 1000
[[rule]]
from = "::/0"
table = 4294967295
priority = 32765
"""


def read(text: str, *dropins: str) -> Config:
    return parse(
        Source("/etc/lbd.toml", text), [Source(f"/etc/lbd.d/{i}.toml", t) for i, t in enumerate(dropins)]
    )


def problems(text: str, *dropins: str) -> tuple[Problem, ...]:
    with pytest.raises(BadFileError) as refused:
        read(text, *dropins)
    return refused.value.problems


def test_the_five_lines():
    assert read(WEB) == Config(
        services=(
            Service(
                name="web",
                listen=(Listen(ip_address("192.168.18.58"), Ports(8888, 8888)),),
                backends=(Backend(ip_address("192.168.2.73"), Ports(9999, 9999)),),
                interface="eth0",
            ),
        )
    )


def test_every_key_that_is_built():
    config = read(FULL)
    assert config.director == Director(
        forwarding=True,
        log_target="kernel",
        log_group=5,
        audit=120.0,
        ssh_ports=(22, 2222),
        mark_mask=0xFF,
        devices=("eth0", "eth1"),
    )
    web, api, marked = config.services
    assert web == Service(
        name="web",
        listen=(
            Listen(ip_address("192.168.18.58"), Ports(8888, 8888), "tcp"),
            Listen(ip_address("2001:db8::1"), Ports(53, 53), "udp"),
        ),
        backends=(
            Backend(ip_address("192.168.2.73"), Ports(9999, 9999)),
            Backend(ip_address("192.168.2.75"), None),
            Backend(ip_address("2001:db8::2"), None),
            Backend(ip_address("192.168.2.74"), Ports(9999, 9999), weight=0, state="drain", backup=2),
            Backend(ip_address("192.168.2.77"), Ports(9999, 9999), state="maintenance"),
        ),
        interface="eth0",
        scheduler="round-robin",
        return_path=ReturnPath("gateway"),
        persistence=Persistence(600.0, 24, 128),
        pins=(Pin(ip_network("198.51.100.7"), Backend(ip_address("192.168.2.73"), Ports(9999, 9999))),),
        allow=Access((ip_network("198.51.100.0/24"), ip_network("2001:db8:9::/48"))),
        deny=Access((ip_network("198.51.100.8"),)),
        refusal="reject",
        limits=Limits(new=Rate(1000, 1000), client_connections=20),
        when_empty="reject",
        sorry=(Backend(ip_address("192.168.2.80"), Ports(80, 80)),),
        offload=True,
        log="path",
        on_down="reset",
        health=Health(
            HttpProbe(
                method="POST",
                path="/healthz?full=1",
                host="www.example.com:8443",
                headers=(("X-Check", "lbd"), ("Accept", "")),
                status=((200, 204), (301, 301)),
                body=b"all is well",
                version="2",
                tls=Tls("internal.example.com", authorities="/etc/tls/ca.pem"),
            ),
            Timing(interval=5.0, timeout=0.7, rise=1, fall=2, fast=1.0, start="down"),
            port=443,
            slow_start=30.0,
            panic=40,
        ),
    )
    assert (api.on_down, marked.on_down, marked.health) == ("keep", "keep", None)
    assert api.health == Health(TcpProbe(), Timing(interval=0.5, timeout=0.5, fast=0.5), port=8080)
    assert (marked.mark, marked.listen, marked.hash, marked.table_size) == (7, (), ("source-address",), 251)
    assert (api.scheduler, api.when_empty, api.log, api.backends) == ("random", "drop", "new", ())
    assert config.addresses == (AddressEntry(ip_interface("192.168.18.58/24"), "eth0"),)
    assert config.routes == (
        RouteEntry(ip_network("0.0.0.0/0"), via=ip_address("192.168.2.90"), replace=True),
        RouteEntry(
            ip_network("2001:db8:9::/48"),
            via=ip_address("fe80::1"),
            interface="eth1",
            source=ip_address("2001:db8::1"),
            table=100,
            metric=7,
        ),
    )
    assert config.rules == (
        RuleEntry(1000, 100, 4, source=ip_network("192.168.2.0/24"), iif="eth1"),
        RuleEntry(32765, 4294967295, 6),
    )
    assert hash(config) == hash(read(FULL))


def test_values_are_written_as_the_file_writes_them():
    web = read(FULL).services[0]
    assert [str(listen) for listen in web.listen] == ["192.168.18.58:8888", "[2001:db8::1]:53/udp"]
    assert [str(b) for b in web.backends[:3]] == ["192.168.2.73:9999", "192.168.2.75", "[2001:db8::2]"]
    assert str(ReturnPath("snat", (ip_address("203.0.113.5"),))) == "snat:203.0.113.5"


@pytest.mark.parametrize(
    ("top", "own", "expected"),
    [
        ("", "", ReturnPath("gateway")),
        ('[director]\nreturn_path = "masquerade"', "", ReturnPath("masquerade")),
        ('[defaults]\nreturn_path = "masquerade"', "", ReturnPath("masquerade")),
        ('[defaults]\nreturn_path = "masquerade"', 'return_path = "gateway"', ReturnPath("gateway")),
        ("", 'return_path = "snat:203.0.113.5"', ReturnPath("snat", (ip_address("203.0.113.5"),))),
    ],
)
def test_return_path_of_a_service_comes_before_the_defaults(top: str, own: str, expected: ReturnPath):
    assert read(f"{top}\n{WEB}{own}").services[0].return_path == expected


def test_the_shipped_example_is_valid_as_it_is():
    assert read(EXAMPLE) == Config()


def test_the_shipped_example_is_valid_with_every_setting_taken_in():
    """Settings are commented out as `#key`, prose as `# prose`."""
    taken = re.sub(r"^#(?=[^ #\n])", "", EXAMPLE, flags=re.MULTILINE)
    config = read(taken)
    assert config.services
    assert config.addresses
    assert config.routes
    assert config.rules


@pytest.mark.parametrize("text", ["allow_empty = true", "[director]\nallow_empty = true"])
def test_an_empty_file_needs_to_say_so(text: str):
    assert read(text) == Config()
    assert "allow_empty = true" in problems("")[0].message


def test_dropins_add_entries_in_order():
    config = read('include = ["x"]', WEB, WEB.replace("web", "b").replace("8888", "80"))
    assert [service.name for service in config.services] == ["web", "b"]


def test_dropins_may_not_set_what_is_the_directors():
    found = problems(
        WEB,
        '[director]\nforwarding = true\n[defaults]\nlog = "off"\n',
        "include = []\nallow_empty = true\nx = 1",
    )
    assert [(p.path, p.line, p.message) for p in found] == [
        ("/etc/lbd.d/0.toml", 1, '"director" belongs in the main file, not in an included one'),
        ("/etc/lbd.d/0.toml", 3, '"defaults" belongs in the main file, not in an included one'),
        ("/etc/lbd.d/1.toml", 1, '"include" belongs in the main file, not in an included one'),
        ("/etc/lbd.d/1.toml", 2, '"allow_empty" belongs in the main file, not in an included one'),
        ("/etc/lbd.d/1.toml", 3, 'unknown key "x"'),
    ]


def test_duplicates_across_files_name_both_places():
    name, listen = problems(WEB, WEB)
    assert (name.path, name.line) == ("/etc/lbd.d/0.toml", 3)
    assert "/etc/lbd.toml:3" in name.message
    assert (listen.path, listen.line) == ("/etc/lbd.d/0.toml", 4)
    assert 'service "web" (/etc/lbd.toml:4)' in listen.message


def test_problems_of_all_files_come_together_in_order():
    found = problems("[", WEB + "x = 1", "y = [", WEB.replace("8888", "0"))
    assert [(p.path, p.line) for p in found] == [
        ("/etc/lbd.toml", 1),
        ("/etc/lbd.d/0.toml", 7),
        ("/etc/lbd.d/1.toml", 1),
        ("/etc/lbd.d/2.toml", 3),
        ("/etc/lbd.d/2.toml", 4),
    ]


def test_what_is_wrong_in_itself_is_not_compared_with_others():
    rules = "[[rule]]\nfrom = '10.0.0.0/8'\ntable = 0\npriority = 7\n" * 2
    routes = "[[route]]\nto = '10.0.0.0/8'\ninterface = 'eth0'\nmetric = -1\n" * 2
    assert [p.line for p in problems(rules + routes)] == [3, 7, 12, 16]


def test_includes_are_read_from_a_file_with_other_mistakes():
    assert includes(Source("f", 'include = ["a", "lbd.d/*.toml"]\nbogus = 1')) == ("a", "lbd.d/*.toml")
    assert includes(Source("f", "")) == ()
    assert includes(Source("f", '"\\u0069nclude" = ["a"]')) == ("a",)
    for bad in ("include = [1]", "include = 'x'", 'include = ["/etc/*"]', "include = ["):
        with pytest.raises(BadFileError):
            includes(Source("f", bad))


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("[[service]]\nname = 'é'\nlisten = '192.0.2.1:0' # é", "'é'"),
        ("[[service]]\n'name' = 'a b'", "'a b'"),
        ('[[service]]\n"näme" = "x"', '"näme"'),
        ('[[service]]\nname = """\na\nb"""', '"""'),
        ("[[service]]\nbackends = ['é', {address = 'é', weight = -1}]", "-1"),
        ("[[service]]\nbackends = ['é', {address = 'é', wight = 1}]", "wight"),
        ("[[service]]\nlimits = { new_per_second = 0 }", "0"),
        ("[[service]]\nlimits.new_per_second = 0", "0"),
        ("[[service]]\nlimits.new_burst = 5", "5"),
        ("[[service]]\nallow = ['10.0.0.0/8', 'é']", "'é'"),
        ("[[service]]\nbackends = []\n[[service.pin]]\nclient = 'é'\nbackend = '192.0.2.1'", "'é'"),
        ("[[service]]\n[service.persistence]\ntimeout = '0s'", "'0s'"),
        ("[[service]]\n  [service.limits]\n  x = 5", "x"),
        ("[[service]]\n[service.limit]\nx = 5", "[service.limit]"),
        ("[director]\nforwarding = 0x1", "0x1"),
        ("director.forwarding = 1979-05-27", "1979-05-27"),
        ("director = 5", "5"),
        ("[ 'bogus' ]", "[ 'bogus' ]"),
        ("[[bogus]]\n[[bogus]]", "bogus"),
        ("a.b.c = 1", "c"),
        ("[x.value_line]\nkey_line = 1", "[x.value_line]"),
    ],
)
def test_a_problem_points_at_its_token(text: str, token: str):
    lines = text.split("\n")
    pointed = set()
    for found in problems(text):
        assert found.line is not None
        assert found.column is not None
        width = found.excerpt.splitlines()[1].count("^")
        pointed.add(lines[found.line - 1][found.column - 1 :][:width])
    assert token in pointed


def test_a_file_too_large_for_positions_still_names_the_entry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lbd.core.config.locate.LARGEST", 10)
    (found,) = problems(WEB + WEB.replace("web", "b").replace(":8888", ":0"))
    assert (found.line, found.column) == (8, 1)


def test_names_may_be_63_characters_and_no_more():
    assert read(WEB.replace("web", "w" * 63)).services[0].name == "w" * 63
    assert problems(WEB.replace("web", "w" * 64))


@pytest.mark.parametrize("name", ["eth0", "br-lan", "eth0.100", "veth@x", "a" * 15])
def test_interface_names(name: str):
    assert read(WEB.replace("eth0", name)).services[0].interface == name


@pytest.mark.parametrize("name", ["", ".", "..", "a" * 16, "eth0 ", "eth*", 'eth0\\"', "a/b", "é", "eth0\\n"])
def test_names_that_no_interface_has(name: str):
    assert [p.line for p in problems(WEB.replace('"eth0"', f'"{name}"'))] == [5]


def test_more_backends_than_slots_make_sense_of():
    def backends(count: int) -> str:
        return WEB.replace(
            '["192.168.2.73:9999"]', str([f"10.0.{i >> 8}.{i & 255}:80" for i in range(256, 256 + count)])
        )

    assert len(read(backends(4096)).services[0].backends) == 4096
    assert "4096" in problems(backends(4097))[0].message


def test_a_director_that_does_not_forward_may_have_services():
    assert read("[director]\nforwarding = false\n" + WEB).director.forwarding is False


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1.0), ("1000ms", 1.0), ("60m", 3600.0), ("1h", 3600.0)])
def test_durations(text: str, seconds: float):
    assert read(f'allow_empty = true\n[director]\naudit = "{text}"').director.audit == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "1.5s", "-1s", "1 s", "1d", "999ms", "61m", "٣s", "9999999999s"]
)
def test_durations_that_are_none(text: str):
    assert [p.line for p in problems(f'allow_empty = true\n[director]\naudit = "{text}"')] == [3]


def outcome(text: str) -> tuple[Problem, ...]:
    """Return what is wrong with a text, which may be nothing; any error but BadFileError gets through."""
    try:
        read(text)
    except BadFileError as refused:
        return refused.problems or pytest.fail("refused without a problem")
    return ()


def only_bad_file(text: str) -> None:
    for found in outcome(text):
        assert "\n" not in found.headline
        assert found.render().startswith(found.headline)
        assert found.line is None or 1 <= found.line <= text.count("\n") + 1


def test_every_prefix_of_a_file_is_read_or_refused():
    for text in (FULL, WEB):
        for end in range(len(text)):
            only_bad_file(text[:end])


@given(st.text())
@settings(max_examples=300, deadline=None)
@example("\ud800 = 1")
@example("\r")
def test_any_text_is_read_or_refused(text: str):
    only_bad_file(text)


PIECES = st.one_of(
    st.text(alphabet="[]{}=\"'\\.,#\n\r\t 0a-é:/%*_", max_size=4),
    st.sampled_from(
        [*FULL.splitlines(keepends=True), "-1", "[[service]]\n", "true", "[x]", "1979-05-27", "nan", "[{}]"]
    ),
)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), PIECES), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_read_or_refused(edits: list[tuple[float, int, str]]):
    text = FULL
    for where, length, piece in edits:
        start = int(where * len(text))
        text = text[:start] + piece + text[start + length :]
    only_bad_file(text)


VALUES = st.recursive(
    st.sampled_from(
        ["1", "-1", "true", "1.5", "inf", '""', '"x"', "'1.2.3.4:5'", "12:00:00", "1979-05-27", '"é"']
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"k{i} = {v}" for i, v in enumerate(items)) + "}"
        ),
    ),
    max_leaves=5,
)
KEYS = re.findall(r"^(?:\w+) = ", FULL, re.MULTILINE)


@given(st.integers(0, len(KEYS) - 1), VALUES)
@settings(max_examples=300, deadline=None)
def test_any_value_of_any_key_is_read_or_refused_where_it_stands(which: int, value: str):
    """The file stays TOML, so that every problem is one of meaning, and has a line."""
    flat = FULL.replace(",\n  ", ", ").replace("[\n  ", "[").replace(",\n]", "]")
    place = list(re.finditer(r"^(\w+) = .*$", flat, re.MULTILINE))[which]
    text = f"{flat[: place.start()]}{place[1]} = {value}{flat[place.end() :]}"
    assert all(found.line is not None for found in outcome(text))


ENTRY = '[[service]]\nname = "s{0}"\nlisten = "{1}"\nbackends = ["{2}"]\n'
LARGE = {
    "services": lambda n: "".join(ENTRY.format(i, f"10.1.{i}.1:80", f"10.2.{i}.1:80") for i in range(n)),
    "ports of one address": lambda n: "".join(
        ENTRY.format(i, f"10.1.0.1:{1000 + i}", f"10.1.0.1:{2000 + i}") for i in range(n)
    ),
    "ranges of one address": lambda n: "".join(
        ENTRY.format(i, f"10.1.0.1:{1000 + 9 * i}-{1005 + 9 * i}", "10.2.0.1") for i in range(n)
    ),
    "keys of one service": lambda n: (
        ENTRY.format(0, "10.1.0.1:80", '", "'.join(f"10.2.{i}.1" for i in range(n)))
        + f"allow = {[f'10.3.{i}.0/24' for i in range(n)]}\n"
        + f"deny = {[f'10.3.{i}.1' for i in range(n)]}\n"
        + "".join(f"[[service.pin]]\nclient = '10.3.{i}.1'\nbackend = '10.2.{i}.1'\n" for i in range(n))
    ),
}


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
def test_the_cost_does_not_grow_with_the_square(text: Callable[[int], str]):
    """Counted in calls rather than seconds: four times the services may make four times the calls."""

    def calls(size: int) -> int:
        source = Source("f", text(size))
        count = 0

        def on_event(_frame: object, event: str, _arg: object) -> None:
            nonlocal count
            count += event in {"call", "c_call"}

        previous = sys.getprofile()
        sys.setprofile(on_event)
        try:
            parse(source)
        finally:
            sys.setprofile(previous)
        return count

    assert calls(240) < 5 * calls(60)


def test_deep_tables_do_not_crash_the_second_parser():
    """40 inline tables, each under a key of 60 parts: tomllib reads them, toml_rs overflows the stack."""
    key = ".".join("k" * 60)
    (found,) = problems("a = " + f"{{{key} = " * 40 + "1" + "}" * 40)
    assert found.message == 'unknown key "a"'
