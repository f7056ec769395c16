"""Whatever bytes come back, a check by HTTP says something; and none sends what the file could slip in."""

import asyncio
import socket

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import hostile
from hostile import ANSWER, CHUNKED, ENDED, OK, READY, frame, literal
from lbd.core.health import Target
from lbd.core.probes import GrpcProbe, HttpProbe
from lbd.host import probe_h1, probe_h2
from lbd.host.probe_http import http

TARGET = Target(HttpProbe(), "192.0.2.1", 80)
PAGE = HttpProbe(body=b"ok")

# What HTTP/1.1 is made of, and bytes that are nothing of it.
LINES = st.sampled_from(
    [
        OK,
        CHUNKED,
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.0 204 \r\n",
        b"\r\n",
        b"\n\n",
        b"Content-Length: 2\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Upgrade: x\r\nConnection: upgrade\r\n",
        b" folded\r\n",
        b"0\r\n",
        b"ffffffff\r\n",
        b"2;x=y\r\nok\r\n",
        b"ok",
    ]
)
HTTP1 = st.lists(LINES | st.binary(max_size=20), max_size=8).map(b"".join)

# Frames of every type with any flags and payload, and such as make sense.
ANY_FRAME = st.builds(
    frame,
    st.integers(0, 12),
    st.binary(max_size=20),
    stream=st.sampled_from([0, 1, 2, 3, 1 << 31 | 1]),
    flags=st.integers(0, 255),
    length=st.sampled_from([None, None, None, 0, 3]),
)
HEADERS = st.lists(
    st.sampled_from(
        [b"\x88", b"\x20", b"\xff\xff", literal(b":status", b"200"), literal(b"content-length", b"x")]
    )
    | st.builds(literal, st.binary(max_size=8), st.binary(max_size=8)),
    max_size=4,
).map(lambda fields: frame(hostile.HEADERS, b"".join(fields), stream=1, flags=hostile.END_HEADERS))
FRAMES = st.sampled_from([READY, ANSWER, ENDED, frame(hostile.GOAWAY, bytes(8))]) | ANY_FRAME | HEADERS
HTTP2 = st.lists(FRAMES, max_size=6).map(lambda frames: READY + b"".join(frames))


def said(ask, probe, answer):
    """What a check says to an answer, and what it sent."""

    async def converse():
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(answer)
            theirs.shutdown(socket.SHUT_WR)
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                async with asyncio.timeout(10):
                    reason = await ask(reader, writer, TARGET, probe)
                theirs.setblocking(False)
                try:
                    return reason, theirs.recv(1 << 16)
                except BlockingIOError:
                    return reason, b""
            finally:
                writer.transport.abort()

    return asyncio.run(converse())


SLOWLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOWLY
@given(HTTP1 | st.binary())
@example(b"")
@example(OK + b"\r\nok")
def test_any_answer_of_http1(answer):
    reason, _ = said(probe_h1.ask, PAGE, answer)
    assert reason.isprintable()
    assert reason or (b"o" in answer and b"k" in answer)


@SLOWLY
@given(HTTP2 | st.binary())
@example(READY + ANSWER + ENDED)
def test_any_answer_of_http2(answer):
    for ask, probe in ((probe_h2.ask, PAGE), (probe_h2.ask_health, GrpcProbe())):
        reason, _ = said(ask, probe, answer)
        assert reason.isprintable()
        assert reason or answer.startswith(READY)


def test_page_that_is_right_passes():
    assert said(probe_h1.ask, PAGE, OK + b"\r\nok")[0] == ""
    assert said(probe_h2.ask, PAGE, READY + ANSWER + ENDED)[0] == ""


LINE_ENDS = [
    "\r\nX-Evil: yes",
    "\nX-Evil: yes",
    "\rX-Evil: yes",
    "\r\n\r\nGET /evil HTTP/1.1\r\nHost: x",
    "\0",
]


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("evil", LINE_ENDS)
@pytest.mark.parametrize(
    "place",
    [
        lambda evil: {"method": f"GET{evil}"},
        lambda evil: {"path": f"/{evil}"},
        lambda evil: {"host": f"a.example{evil}"},
        lambda evil: {"headers": (("X-A", f"a{evil}"),)},
        lambda evil: {"headers": ((f"X-A{evil}", "a"),)},
    ],
    ids=["method", "path", "host", "value", "name"],
)
def test_nothing_can_be_slipped_in(place, evil, version):
    probe = HttpProbe(version=version, **place(evil))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        result = asyncio.run(http(Target(probe, "127.0.0.1", server.getsockname()[1]), probe))
        assert not result.passed
        assert result.reason.startswith("the request cannot be sent: ")
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody came
    # h11, which writes the lines, would not do it either.
    if version == "1.1":
        reason, sent = said(probe_h1.ask, probe, OK + b"\r\n")
        assert reason.startswith("the request cannot be sent: ")
        assert sent == b""


def test_headers_that_contradict_the_empty_request_are_not_sent():
    for header in (("Content-Length", "5"), ("Transfer-Encoding", "gzip")):
        reason, _ = said(probe_h1.ask, HttpProbe(headers=(header,)), OK + b"\r\n")
        assert reason.startswith("the request cannot be sent: ")
