"""What an HTTP check sends, and what it makes of status and page."""

from contextlib import suppress

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lbd.core.config import wire
from lbd.core.page import PAGE, Search, authority, fields, fields_of_2, flaw, spoken, status_flaw
from lbd.core.probes import HttpProbe, Tls

# Texts that are likely to be right, or wrong in one character.
TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.text(
    st.sampled_from("aZ0-/ \t\r\n:\0é\x7f\x80"), max_size=8
)
NAMES = st.text(st.sampled_from("aZ0-_"), min_size=1, max_size=8) | TEXT


def sent(probe, address="192.0.2.1", port=8080):
    """The bytes of the request, with nothing between the fields and the wire but line ends."""
    lines = [f"{probe.method} {probe.path} HTTP/1.1", *(f"{n}: {v}" for n, v in fields(probe, address, port))]
    return "\r\n".join([*lines, "", ""]).encode()


@given(NAMES, TEXT, TEXT, st.lists(st.tuples(NAMES, TEXT), max_size=3))
def test_request_without_a_flaw_is_one_request(method, path, host, headers):
    probe = HttpProbe(method=method, path=f"/{path}", host=host, headers=tuple(headers))
    framing = {"transfer-encoding", "content-length", "host", "upgrade", "expect"}
    if flaw(probe) or framing & {name.lower() for name, _ in headers}:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(sent(probe))
    request = server.next_event()
    assert (request.method, request.target) == (method.encode(), f"/{path}".encode())
    assert request.headers.raw_items() == [
        (name.encode(), value.encode()) for name, value in fields(probe, "192.0.2.1", 8080)
    ]
    assert isinstance(server.next_event(), h11.EndOfMessage)
    assert server.trailing_data == (b"", False)


@given(TEXT, TEXT, TEXT, NAMES, TEXT)
@example("GET", "/", "[2001:db8::1]:80", "X-A", "")
@example("OPTIONS", "/a?b=%20", "a.example", "X_a", "b c")
@example("GET\n", "/\n", "a.example\n", "X\n", "a\n")
def test_what_a_file_may_say_has_no_flaw(method, path, host, name, value):
    """A check that the file could have, and that could never be sent, would be a backend that is never up."""
    written = {"method": (wire.method, method), "path": (wire.path, f"/{path}"), "host": (wire.host, host)}
    for key, (read, text) in written.items():
        with suppress(ValueError):
            assert not flaw(HttpProbe(**{key: read(text)}))
    with suppress(ValueError):
        assert not flaw(HttpProbe(headers=((wire.header_name(name), wire.header_value(value)),)))


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (HttpProbe(), ""),
        (HttpProbe(headers=(("X-A", "b c"), ("X-Empty", ""), ("X-Name", "Zoë"))), ""),
        (HttpProbe(method="GET /\r\n"), "is no method"),
        (HttpProbe(method=""), "is no method"),
        (HttpProbe(path="/a b"), "is no path"),
        (HttpProbe(path="/ HTTP/1.1\r\nX: y"), "is no path"),
        (HttpProbe(path="/é"), "is no path"),
        (HttpProbe(path=""), "is no path"),
        (HttpProbe(host="a\r\nX: y"), "cannot be the value"),
        (HttpProbe(headers=(("X", "a\r\nY: z"),)), "cannot be the value"),
        (HttpProbe(headers=(("X", "a\nY: z"),)), "cannot be the value"),
        (HttpProbe(headers=(("X", "a\0"),)), "cannot be the value"),
        (HttpProbe(headers=(("X", " a"),)), "cannot be the value"),
        (HttpProbe(headers=(("X", "a "),)), "cannot be the value"),
        (HttpProbe(headers=(("X", "\ud800"),)), "cannot be the value"),
        (HttpProbe(headers=(("X: y\r\nZ", "a"),)), "is no name"),
        (HttpProbe(headers=(("", "a"),)), "is no name"),
    ],
)
def test_flaw(probe, said):
    assert flaw(probe).endswith(said) if not said else said in flaw(probe)
    assert flaw(probe).isprintable()


@pytest.mark.parametrize(
    ("host", "port", "tls", "said"),
    [
        ("192.0.2.1", 8080, None, "192.0.2.1:8080"),
        ("192.0.2.1", 80, None, "192.0.2.1"),
        ("192.0.2.1", 80, Tls(), "192.0.2.1:80"),
        ("192.0.2.1", 443, Tls(), "192.0.2.1"),
        ("192.0.2.1", 443, None, "192.0.2.1:443"),
        ("2001:db8::1", 8080, None, "[2001:db8::1]:8080"),
        ("2001:db8::1", 80, None, "[2001:db8::1]"),
        ("app.example", 8443, Tls(), "app.example:8443"),
    ],
)
def test_authority(host, port, tls, said):
    assert authority(host, port, tls) == said


def test_fields_stand_in_order_and_the_files_win():
    assert fields(HttpProbe(), "192.0.2.1", 80) == [
        ("Host", "192.0.2.1"),
        ("User-Agent", "lbd"),
        ("Accept", "*/*"),
        ("Connection", "close"),
    ]
    probe = HttpProbe(
        method="POST",
        host="app.example",
        headers=(("X-B", "1"), ("accept", "text/plain"), ("X-A", "2"), ("X-B", "3"), ("USER-AGENT", "me")),
    )
    assert fields(probe, "192.0.2.1", 80) == [
        ("Host", "app.example"),
        ("X-B", "1"),
        ("accept", "text/plain"),
        ("X-A", "2"),
        ("X-B", "3"),
        ("USER-AGENT", "me"),
        ("Content-Length", "0"),
        ("Connection", "close"),
    ]
    assert ("host", "other.example") not in fields(HttpProbe(headers=(("host", "h"),)), "192.0.2.1", 80)
    assert [n for n, _ in fields(HttpProbe(headers=(("host", "h"),)), "192.0.2.1", 80)].count("Host") == 0


def test_fields_of_2_have_no_connection():
    probe = HttpProbe(
        method="HEAD",
        path="/p",
        host="app.example",
        headers=(("X-A", "Y"), ("Connection", "Upgrade"), ("Upgrade", "websocket"), ("TE", "gzip")),
        tls=Tls(),
    )
    assert fields_of_2(probe, "192.0.2.1", 80) == [
        (":method", "HEAD"),
        (":scheme", "https"),
        (":authority", "app.example"),
        (":path", "/p"),
        ("user-agent", "lbd"),
        ("accept", "*/*"),
        ("x-a", "Y"),
    ]


def test_status_has_to_be_in_a_range():
    probe = HttpProbe(status=((200, 299), (404, 404)))
    passing = [status for status in range(100, 1000) if not status_flaw(probe, status)]
    assert passing == [*range(200, 300), 404]
    assert status_flaw(probe, 503) == "status 503"


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=4), st.lists(st.integers(0, 60), max_size=8))
def test_search_finds_what_is_there_however_it_is_cut(page, wanted, cuts):
    search = Search(wanted)
    ends = sorted({*cuts, len(page)} & set(range(len(page) + 1)))
    for start, end in zip([0, *ends], ends, strict=False):
        search.look(page[start:end])
    assert search.found == (wanted in page)
    assert bool(search.flaw()) != search.found


def test_search_ends_at_64_kib():
    search = Search(b"ok")
    search.look(b"x" * (PAGE - 1))
    assert not search.done
    search.look(b"ok")  # its second letter is beyond
    assert search.done
    assert not search.found
    assert search.flaw() == 'the first 64 KiB of the page do not have "ok" in them'
    within = Search(b"ok")
    within.look(b"x" * (PAGE - 2) + b"ok")
    assert within.flaw() == ""


def test_search_says_what_it_missed():
    search = Search(b"\xffok\n")
    search.look(b"nothing")
    assert search.flaw() == 'the page does not have "\\xffok\\n" in it'


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"HTTP/1.1 400 Bad", "HTTP/1"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS"),
        (bytes.fromhex("000012040000000000"), "HTTP/2"),
        (b"220 mail\r\n", '"220 mail\\r\\n"'),
        (b"\xff\x00", '"\\xff\\x00"'),
    ],
)
def test_spoken(start, said):
    assert spoken(start) == f"the answer is {said}"
