"""Servers that answer HTTP as none should: each costs only itself, and the reason can be read."""

import asyncio
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress

import pytest

import hostile
from lbd.core.health import Result, Target
from lbd.core.probes import GrpcProbe, HttpProbe, Tls
from lbd.host.probe_http import grpc, http
from lbd.lab.namespaces import Lab
from lbd.lab.topology import experiment
from running import PATIENCE, SERVERS

pytestmark = pytest.mark.kernel

PORT = 9000
MEMORY = 2 << 20  # bytes that a check may take at once; its library, when it is loaded, is another MiB
LAG = 0.1  # seconds that it may keep the event loop; 3 ms were measured

FLOOD = "more than 500 frames or 256 KiB, and no end"
MIDDLE = "closed in the middle of the answer"
LATE = None  # the caller has to end it

# What a check says that wants status 200 and "ok" in the page.
REASONS = {
    ("1.1", "closes"): "closed before an answer",
    ("1.1", "resets"): "connection reset",
    ("1.1", "garbage"): 'not HTTP/1: the answer is "',
    ("1.1", "endless garbage"): 'not HTTP/1: the answer is "',
    ("1.1", "endless line"): 'not HTTP/1: the answer is "HHHHHH',
    ("1.1", "http/0.9"): 'not HTTP/1: the answer is "<html>ok</html>',
    ("1.1", "mail"): 'not HTTP/1: the answer is "220 mail.example ESMTP',
    ("1.1", "tls alert"): "not HTTP/1: the answer is TLS",
    ("1.1", "http/2"): "not HTTP/1: the answer is HTTP/2",
    ("1.1", "endless header"): "not HTTP/1: its header is longer than 16 KiB",
    ("1.1", "huge header"): "not HTTP/1: its header is longer than 16 KiB",
    ("1.1", "no header"): 'not HTTP/1: illegal header line: "no colon"',
    ("1.1", "status of words"): 'not HTTP/1: illegal status line: "HTTP/1.1 fine"',
    ("1.1", "half a header"): MIDDLE,
    ("1.1", "half a page"): "closed before the page ended",
    ("1.1", "half a chunk"): "closed before the page ended",
    ("1.1", "endless page"): 'the first 64 KiB of the page do not have "ok" in them',
    ("1.1", "endless chunks"): "the page comes in more than 2000 pieces",
    ("1.1", "endless chunk header"): "not HTTP/1: what is between its chunks is longer than 16 KiB",
    ("1.1", "endless trailers"): "not HTTP/1: what is between its chunks is longer than 16 KiB",
    ("1.1", "chunk of words"): 'not HTTP/1: illegal chunk header: "many',
    ("1.1", "huge chunk"): 'the first 64 KiB of the page do not have "ok" in them',
    ("1.1", "two lengths"): "not HTTP/1: conflicting Content-Length headers",
    ("1.1", "length of words"): "not HTTP/1: bad Content-Length",
    ("1.1", "negative length"): "not HTTP/1: bad Content-Length",
    ("1.1", "endless interim"): "more than 16 answers of status 1xx, and no other",
    ("1.1", "endless switching"): "not HTTP/1: status 101, for which nobody asked",
    ("1.1", "some interim"): "",
    ("1.1", "without a length"): "",
    ("1.1", "in pieces"): "",
    ("1.1", "drips"): LATE,
    ("1.1", "says nothing"): LATE,
    ("2", "closes"): "closed before an answer",
    ("2", "resets"): "connection reset",
    ("2", "garbage"): 'not HTTP/2: the answer is "',
    ("2", "http/1"): "not HTTP/2: the answer is HTTP/1",
    ("2", "tls alert"): "not HTTP/2: the answer is TLS",
    ("2", "no settings"): "not HTTP/2: the answer is ",
    ("2", "half a frame"): MIDDLE,
    ("2", "only settings"): MIDDLE,
    ("2", "huge frame"): "not HTTP/2: a frame of 1000000 bytes",
    ("2", "reset stream"): "RST_STREAM: REFUSED_STREAM",
    ("2", "reset flood"): "RST_STREAM: REFUSED_STREAM",
    ("2", "reset of others"): FLOOD,
    ("2", "unknown error code"): "RST_STREAM: 256",
    ("2", "ping flood"): FLOOD,
    ("2", "settings flood"): FLOOD,
    ("2", "settings in full"): FLOOD,
    ("2", "priority flood"): FLOOD,
    ("2", "unknown frames"): FLOOD,
    ("2", "window flood"): FLOOD,
    ("2", "window too wide"): "not HTTP/2: May not increment flow control window",
    ("2", "window of 0"): "not HTTP/2: ",
    ("2", "push"): "not HTTP/2: Received pushed stream",
    ("2", "continuation flood"): "not HTTP/2: Too many continuation frames",
    ("2", "long continuation"): FLOOD,
    ("2", "header bomb"): "not HTTP/2: Oversized header block",
    ("2", "broken header"): "not HTTP/2: Error decoding header block",
    ("2", "no status"): "not HTTP/2: Header block missing",
    ("2", "status of words"): 'not HTTP/2: the status is "fine"',
    ("2", "line in a header"): "not HTTP/2: Illegal character",
    ("2", "page before its header"): "not HTTP/2: cannot receive data before headers",
    ("2", "endless interim"): FLOOD,
    ("2", "endless page"): 'the first 64 KiB of the page do not have "ok" in them',
    ("2", "endless small frames"): FLOOD,
    ("2", "endless empty frames"): FLOOD,
    ("2", "page without an end"): MIDDLE,
    ("2", "goaway with a reason"): 'GOAWAY: ENHANCE_YOUR_CALM "too_many\\npings"',
    ("2", "goaway for all"): "GOAWAY: NO_ERROR",
    ("2", "goaway, then the answer"): "",
    ("2", "goaway flood"): FLOOD,
    ("2", "in pieces"): "",
    ("2", "drips"): LATE,
    ("2", "window closed"): LATE,
    ("2", "says nothing"): LATE,
}

# What the health check of gRPC says instead: it reads to the end.
GRPC = {
    "status of words": MIDDLE,
    "endless page": "not a health answer: it has more than 4 KiB",
    "goaway, then the answer": 'not gRPC: the content type is ""',
    "in pieces": 'not gRPC: the content type is ""',
}


@pytest.fixture(scope="module")
def lab():
    with Lab(experiment(1)) as lab:
        process = lab.popen("server1", [sys.executable, hostile.__file__, str(PORT)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        yield lab


async def timed(check, seconds):
    """The result of a check, LATE if there is none, and for how long it kept the event loop at most."""
    lag = 0.0

    async def watch():
        nonlocal lag
        before = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            before, lag = now, max(lag, now - before)

    watching = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(seconds):
            return await check, lag
    except TimeoutError:
        return LATE, lag
    finally:
        watching.cancel()


def checked(lab, function, kind, probe):
    """What a check says: a result, or LATE. It must not take too much of memory or of the event loop."""
    number = hostile.KINDS.index(kind)
    late = REASONS[kind] is LATE
    target = Target(probe, SERVERS[4][0], PORT + number)
    with lab.inside("director"):
        result, lag = asyncio.run(timed(function(target, probe), 0.3 if late else PATIENCE))
        assert lag < LAG
        tracemalloc.start()  # which makes all of it several times slower
        try:
            assert asyncio.run(timed(function(target, probe), 0.3 if late else PATIENCE))[0] == result
            assert tracemalloc.get_traced_memory()[1] < MEMORY
        finally:
            tracemalloc.stop()
    return result


def says(result, reason):
    """Whether a result has a reason that begins so, and that can be shown as it is."""
    if reason is LATE or result is LATE:
        return result is reason
    return (
        result.passed == (not reason)
        and result.reason.startswith(reason)
        and bool(result.reason) == bool(reason)
        and result.reason.isprintable()
        and len(result.reason) < 200
    )


@pytest.mark.parametrize("kind", hostile.KINDS, ids=str)
def test_page(lab, kind):
    result = checked(lab, http, kind, HttpProbe(version=kind[0], body=b"ok"))
    assert says(result, REASONS[kind]), result


@pytest.mark.parametrize("kind", [kind for kind in hostile.KINDS if kind[0] == "2"], ids=str)
def test_grpc(lab, kind):
    result = checked(lab, grpc, kind, GrpcProbe())
    assert says(result, GRPC.get(kind[1], REASONS[kind])), result


@pytest.mark.parametrize("kind", hostile.KINDS, ids=str)
def test_tls(lab, kind):
    """The same servers in the place of TLS: the handshake is where each ends, if it does."""
    result = checked(lab, http, kind, HttpProbe(version=kind[0], tls=Tls(verify=False)))
    if kind[1] in {"says nothing", "drips"}:
        assert result is LATE or not result.passed
    else:
        assert result is not LATE
        assert not result.passed
        assert result.reason.isprintable()


def test_all_at_once(lab):
    """A good server beside all the others is up, and each of them costs only itself."""
    probes = [HttpProbe(version=version, body=b"ok") for version, _ in hostile.KINDS]
    good = hostile.KINDS.index(("1.1", "some interim"))

    async def one(number, probe):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5 if REASONS[hostile.KINDS[number]] is LATE else PATIENCE):
                return await http(Target(probe, SERVERS[4][0], PORT + number), probe)
        return LATE

    async def everything():
        bad = [asyncio.create_task(one(number, probe)) for number, probe in enumerate(probes)]
        asked = [await one(good, probes[good]) for _ in range(20)]
        return asked, await asyncio.gather(*bad)

    with lab.inside("director"):
        asked, found = asyncio.run(everything())
    assert asked == [Result(True)] * 20
    for kind, result in zip(hostile.KINDS, found, strict=True):
        assert says(result, REASONS[kind]), (kind, result)
