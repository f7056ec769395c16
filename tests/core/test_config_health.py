"""What every way to write a health check means, and that nothing in one can end a line of what is sent."""

import re
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from healths import PROBES
from lbd.core.config import parse
from lbd.core.health import target
from lbd.core.page import fields, flaw
from lbd.core.probes import (
    AgentProbe,
    DnsProbe,
    ExecProbe,
    GrpcProbe,
    Health,
    HttpProbe,
    IcmpProbe,
    Probe,
    TcpProbe,
    Timing,
    Tls,
    UdpProbe,
)
from lbd.core.settings import Config, Service
from lbd.core.source import BadFileError, Source

LISTEN = 'listen = "198.51.100.1:80"'
ONE = '["192.0.2.1"]'


MANUAL = Path(__file__).parents[2] / "docs" / "configuration.md"


def config(text: str, path: str = "/etc/lbd.toml") -> Config:
    return parse(Source(path, text))


def service(health: str, backends: str = ONE, listen: str = LISTEN, top: str = "") -> Service:
    """Return the only service of a file, which has these keys in its health table; "" is none."""
    table = f"[service.health]\n{health}\n" if health else ""
    return config(f"{top}\n[[service]]\nname = 's'\n{listen}\nbackends = {backends}\n{table}").services[0]


def health(keys: str, **more: str) -> Health:
    found = service(keys, **more).health
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("type = 'tcp'", TcpProbe()),
        (
            r"""type = 'tcp'
             send = "PING\r\n"
             expect = "+PONG" """,
            TcpProbe(b"PING\r\n", b"+PONG"),
        ),
        ("type = 'tcp'\nsend = { hex = '00 ff0A' }\nexpect = 'é'", TcpProbe(b"\x00\xff\n", "é".encode())),
        ("type = 'udp'", UdpProbe(b"", None)),
        ("type = 'udp'\nsend = ''\nexpect = ''", UdpProbe(b"", b"")),
        ("type = 'udp'\nsend = 'a'\nexpect = { hex = '01' }", UdpProbe(b"a", b"\x01")),
        ("type = 'agent'", AgentProbe()),
        ("type = 'agent'\nsend = 'web1'", AgentProbe(b"web1")),
        ("type = 'icmp'", IcmpProbe()),
        ("type = 'exec'\ncommand = ['/bin/x', '', 'a b', '$(c)']", ExecProbe(("/bin/x", "", "a b", "$(c)"))),
        ("type = 'dns'\nquery = 'www.example.com.'", DnsProbe("www.example.com.")),
        ("type = 'dns'\nquery = '.'\nrecord = 'NS'", DnsProbe(".", "NS")),
        (
            "type = 'dns'\nquery = '_sip._tcp.a'\nrecord = 'SRV'\nanswers = '0 5 5060 sip.a'",
            DnsProbe("_sip._tcp.a", "SRV", ("0 5 5060 sip.a",)),
        ),
        (
            "type = 'dns'\nquery = 'a'\nanswers = ['192.0.2.1', '192.0.2.2']",
            DnsProbe("a", "A", ("192.0.2.1", "192.0.2.2")),
        ),
        (
            "type = 'dns'\nquery = 'a'\nrecord = 'AAAA'\nanswers = '2001:DB8::0:1'",
            DnsProbe("a", "AAAA", ("2001:db8::1",)),
        ),
        (
            "type = 'dns'\nquery = 'a'\nrecord = 'MX'\nanswers = '10 mail.a.'",
            DnsProbe("a", "MX", ("10 mail.a.",)),
        ),
        (
            "type = 'dns'\nquery = 'a'\nrecord = 'TXT'\nanswers = 'v=spf1 -all'",
            DnsProbe("a", "TXT", ("v=spf1 -all",)),
        ),
        ("type = 'http'", HttpProbe()),
        ("type = 'http'\nstatus = 204", HttpProbe(status=((204, 204),))),
        ("type = 'http'\nstatus = '200-299'", HttpProbe(status=((200, 299),))),
        (
            "type = 'http'\nstatus = [404, '200-299', '301']",
            HttpProbe(status=((200, 299), (301, 301), (404, 404))),
        ),
        ("type = 'http'\nmethod = 'HEAD'\nhttp_version = '2'", HttpProbe("HEAD", version="2")),
        (
            "type = 'http'\npath = '/a?b=%20'\nhost = '[2001:db8::1]:80'",
            HttpProbe(path="/a?b=%20", host="[2001:db8::1]:80"),
        ),
        (
            "type = 'http'\nbody = 'gut ü'\nheaders = { B = '1 2', a = '' }",
            HttpProbe(body="gut ü".encode(), headers=(("B", "1 2"), ("a", ""))),
        ),
        ("type = 'https'", HttpProbe(tls=Tls())),
        ("type = 'https'\nverify = false", HttpProbe(tls=Tls(verify=False))),
        ("type = 'https'\nca = 'tls/ca.pem'", HttpProbe(tls=Tls(authorities="/etc/tls/ca.pem"))),
        ("type = 'https'\nca = '../ca.pem'", HttpProbe(tls=Tls(authorities="/ca.pem"))),
        ("type = 'https'\nca = '/srv/ca.pem'", HttpProbe(tls=Tls(authorities="/srv/ca.pem"))),
        # The host that is asked for is the one that the certificate is for, unless it is said.
        ("type = 'https'\nhost = 'a.example:8443'", HttpProbe(host="a.example:8443", tls=Tls("a.example"))),
        ("type = 'https'\nhost = '[2001:db8::1]'", HttpProbe(host="[2001:db8::1]", tls=Tls("2001:db8::1"))),
        ("type = 'https'\nhost = 'a'\nsni = 'b.example'", HttpProbe(host="a", tls=Tls("b.example"))),
        ("type = 'grpc'", GrpcProbe()),
        ("type = 'grpc'\nservice = 'shop.Orders'", GrpcProbe("shop.Orders")),
        ("type = 'grpc'\ntls = true\nsni = 'a.example'", GrpcProbe(tls=Tls("a.example"))),
    ],
)
def test_what_is_asked(keys: str, expected: Probe):
    assert health(keys) == Health(expected)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", Timing(2.0, 1.0, 2, 3, 2.0, "up")),
        # One that nobody wrote is not longer than the interval, in which the next check is due.
        ("interval = '300ms'", Timing(0.3, 0.3, 2, 3, 0.3)),
        ("interval = '1h'", Timing(3600.0, 1.0, 2, 3, 3600.0)),
        ("interval = '10s'\ntimeout = '10s'", Timing(10.0, 10.0, 2, 3, 10.0)),
        ("interval = '10s'\nfast_interval = '100ms'", Timing(10.0, 1.0, 2, 3, 0.1)),
        ("rise = 1\nfall = 100\nstart = 'down'", Timing(2.0, 1.0, 1, 100, 2.0, "down")),
    ],
)
def test_times(keys: str, expected: Timing):
    assert health(f"type = 'tcp'\n{keys}").timing == expected


def test_what_is_not_of_the_probe():
    keys = """type = "tcp"
    address = "192.0.2.9"
    port = 8080
    source = "192.0.2.250"
    slow_start = "1m"
    panic = 100"""
    where = {"address": ip_address("192.0.2.9"), "source": ip_address("192.0.2.250"), "port": 8080}
    assert health(keys) == Health(TcpProbe(), **where, slow_start=60.0, panic=100)


def test_a_table_of_a_service_takes_the_place_of_the_default_as_a_whole():
    top = "[defaults.health]\ntype = 'http'\npath = '/up'\nrise = 9"
    assert health("", top=top) == Health(HttpProbe(path="/up"), Timing(rise=9))
    assert health("type = 'http'\nfall = 1", top=top) == Health(HttpProbe(), Timing(fall=1))
    assert service("type = 'none'", top=top).health is None


def test_a_default_that_is_wrong_is_told_once_and_not_held_against_services():
    with pytest.raises(BadFileError) as refused:
        service("", listen='listen = "198.51.100.1:80-89"', top="[defaults.health]\ntype = 'tpc'")
    assert len(refused.value.problems) == 1


def test_a_file_of_authorities_is_found_from_the_main_file_by_an_included_one_too():
    text = "[[service]]\nname='s'\nlisten='198.51.100.1:80'\nbackends=[]\nhealth={type='https', ca='ca.pem'}"
    included = Source("/etc/lbd/more/web.toml", text)
    (found,) = parse(Source("/etc/lbd/lbd.toml", "include = ['more/*']"), [included]).services
    assert found.health == Health(HttpProbe(tls=Tls(authorities="/etc/lbd/ca.pem")))


@pytest.mark.parametrize(
    ("defaults", "own", "expected"),
    [
        ("", "", None),
        ("on_down = 'keep'", "", "keep"),
        ("on_down = 'keep'", "on_down = 'reset'", "reset"),
        # There are no connections to keep or to reset, and the default may be for others.
        ("on_down = 'keep'", "return_path = 'direct'\ninterface = 'eth0'", None),
    ],
)
def test_connections_of_those_that_go(defaults: str, own: str, expected: str | None):
    text = f"[defaults]\n{defaults}\n[[service]]\nname = 's'\n{LISTEN}\nbackends = {ONE}\n{own}"
    assert config(text).services[0].on_down == expected


def test_maintenance():
    found = service("", '[{ address = "192.0.2.1", state = "maintenance", weight = 3 }]')
    assert [(each.state, each.weight) for each in found.backends] == [("maintenance", 3)]
    assert not found.backends[0].in_rotation


SIX = '["[2001:db8:1::1]"]'


@pytest.mark.parametrize(
    ("keys", "backends", "listen", "asked"),
    [
        ("type = 'tcp'", ONE, LISTEN, ("192.0.2.1", 80)),
        ("type = 'tcp'", '["192.0.2.1:8080"]', LISTEN, ("192.0.2.1", 8080)),
        ("type = 'tcp'", '["192.0.2.1:8080"]', 'listen = "198.51.100.1:80-89"', ("192.0.2.1", 8080)),
        ("type = 'tcp'\nport = 9", '["192.0.2.1:8080"]', LISTEN, ("192.0.2.1", 9)),
        ("type = 'tcp'\nport = 9", ONE, 'listen = "198.51.100.1:80-89"', ("192.0.2.1", 9)),
        ("type = 'tcp'\nport = 9", ONE, "mark = 7", ("192.0.2.1", 9)),
        ("type = 'icmp'", ONE, 'listen = "198.51.100.1:80-89"', ("192.0.2.1", 0)),
        ("type = 'exec'\ncommand = ['/x']", ONE, "mark = 7", ("192.0.2.1", 0)),
        ("type = 'dns'\nquery = 'a'", ONE, 'listen = "198.51.100.1:53/udp"', ("192.0.2.1", 53)),
        # The first of its family.
        ("type = 'tcp'", SIX, 'listen = ["[2001:db8::1]:81", "[2001:db8::1]:80"]', ("2001:db8:1::1", 81)),
        ("type = 'tcp'\naddress = '192.0.2.9'", ONE, LISTEN, ("192.0.2.9", 80)),
        (
            "type = 'tcp'",
            '["192.0.2.1"]\ninterface = "eth0"\nreturn_path = "direct"',
            LISTEN,
            ("192.0.2.1", 80),
        ),
    ],
)
def test_where_checks_go(keys: str, backends: str, listen: str, asked: tuple[str, int]):
    found = service(keys, backends, listen)
    of = target(found, found.backends[0])
    assert (of.address, of.port) == asked


# What ends a line or begins a header, and what may be around it.
TEXTS = st.text(alphabet="aZ0/:% \t\r\n\0\x1f\x7f\x85\u2028é#-[]", max_size=8)


def toml(text: str) -> str:
    return '"' + "".join(f"\\U{ord(character):08X}" for character in text) + '"'


@given(st.sampled_from(("path", "host", "method", "name", "value", "sni")), TEXTS)
@example("value", "a\r\nX: b")
@example("name", "X: a\r\nY")
@example("path", "/ HTTP/1.0\r\n\r\n")
@example("host", "a\nb")
@example("path", "/a")
@example("value", "a b")
@example("host", "a.b:80")
def test_no_text_of_the_file_is_a_second_header_or_request(key: str, text: str):
    """What is taken is what is sent, in its place: one request, whose lines are as many as they should be."""
    keys = f"{key} = {toml(text)}"
    if key in {"name", "value"}:
        name, value = (toml(text), '"a"') if key == "name" else ("X", toml(text))
        keys = f"headers = {{ {name} = {value} }}"
    try:
        probe = health(f'type = "https"\n{keys}').probe
    except BadFileError:
        return
    assert isinstance(probe, HttpProbe)
    assert flaw(probe) == ""
    sent = [f"{probe.method} {probe.path} HTTP/1.1", *map(": ".join, fields(probe, "192.0.2.1", 80))]
    assert "".join(sent).isprintable()
    assert sent[0].count(" ") == 2


@given(st.lists(st.tuples(st.integers(100, 599), st.integers(0, 30)), min_size=1, max_size=6))
def test_status_codes_are_those_that_were_written(drawn: list[tuple[int, int]]):
    ranges = [(low, min(599, low + more)) for low, more in drawn]
    listed = ", ".join(f'"{low}-{high}"' for low, high in ranges)
    codes = [code for low, high in ranges for code in range(low, high + 1)]
    try:
        probe = health(f'type = "http"\nstatus = [{listed}]').probe
    except BadFileError:
        assert len(codes) > len(set(codes))
        return
    assert isinstance(probe, HttpProbe)
    assert sorted(code for low, high in probe.status for code in range(low, high + 1)) == sorted(codes)
    assert list(probe.status) == sorted(probe.status)


@given(st.binary(max_size=40))
def test_bytes_are_sent_as_they_are_written(data: bytes):
    written = health(f'type = "udp"\nsend = {{ hex = "{data.hex(" ") if data else ""}" }}').probe
    assert written == UdpProbe(data)


def test_equal_checks_are_equal_values_however_they_are_written():
    keys = 'type = "http"\nstatus = "200-399"\nmethod = "GET"\ninterval = "2000ms"\nfast_interval = "2s"'
    assert health(keys) == health('type = "http"')


def test_the_examples_of_the_manual_are_right():
    section = MANUAL.read_text().partition("\n## Health checks\n")[2].partition("\n## ")[0]
    examples = re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)
    texts = [re.sub("^    ", "", each, flags=re.MULTILINE) for each in examples]
    shown = {type(health(text.replace("[service.health]", "", 1)).probe) for text in texts}
    assert shown == {type(probe) for probe in PROBES}
