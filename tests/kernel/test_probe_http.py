"""Checks by HTTP/1.1, HTTPS, HTTP/2 and of gRPC against nginx and a real gRPC server, good and bad."""

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

import grpc_server
from certificates import Authority
from lbd.core.config import parse
from lbd.core.health import Result, Target, checks
from lbd.core.probes import GrpcProbe, HttpProbe, Tls
from lbd.core.source import Source
from lbd.host import probe
from lbd.host.probe_errors import OwnTroubleError
from lbd.host.probe_http import grpc, http
from lbd.lab.namespaces import Lab
from lbd.lab.topology import experiment
from running import PATIENCE, SERVERS, service
from web import HTTP2, ONCE, OTHER, PLAIN, SELF_SIGNED, TLS, TLS_ONLY_1, Nginx

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
BOTH = pytest.mark.parametrize("version", ["1.1", "2"])
PASSED = Result(True)
GRPC, GRPC_TLS, NOBODY = 9000, 9100, 9999
DIRECTOR = {4: "192.168.2.90", 6: "2001:db8:2::90"}


@pytest.fixture(scope="module")
def lab():
    with Lab(experiment(1, ipv6=True)) as lab:
        yield lab


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def web(lab, authority):
    web = Nginx(lab, "server1", authority)
    # The word is at the end of one that is just read to its end, and of one that is longer.
    (web.files / "64k").write_bytes(b"x" * (64 * 1024 - 6) + b"needle")
    (web.files / "65k").write_bytes(b"x" * (65 * 1024 - 6) + b"needle")
    return web


@pytest.fixture(scope="module")
def health(lab, authority):
    """gRPC servers in the clear and with TLS, each with one beside it that has no health service."""
    made = authority.signs("DNS:grpc.example", f"IP:{SERVERS[4][0]}", file="grpc")
    for arguments in ([GRPC], [GRPC_TLS, made.key, made.certificate]):
        argv = [sys.executable, grpc_server.__file__, *map(str, arguments)]
        process = lab.popen("server1", argv, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"


def checked(lab, function, family, port, probe, source=""):
    """The result of one check from the director of server1."""

    async def check():
        async with asyncio.timeout(PATIENCE):
            return await function(Target(probe, SERVERS[family][0], port, source), probe)

    with lab.inside("director"):
        return asyncio.run(check())


def page(lab, port, family=4, source="", **probe):
    return checked(lab, http, family, port, HttpProbe(**probe), source)


def plain(version):
    """The port that speaks this version of HTTP without TLS."""
    return {"1.1": PLAIN, "2": HTTP2}[version]


# Pages.


@FAMILIES
@BOTH
@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ({"path": "/ok"}, ""),
        ({"path": "/ok", "method": "HEAD"}, ""),
        ({"path": "/empty"}, ""),
        ({"path": "/moved"}, ""),  # not followed
        ({"path": "/moved", "status": ((200, 299),)}, "status 302"),
        ({"path": "/down"}, "status 503"),
        ({"path": "/down", "status": ((503, 503),)}, ""),
        ({"path": "/down", "status": ((200, 299), (500, 599)), "body": b"ok"}, ""),
        ({"path": "/nowhere"}, "status 404"),
        ({"path": "/ok", "body": b"is ok\n"}, ""),
        ({"path": "/ok", "body": b"is bad"}, 'the page does not have "is bad" in it'),
        ({"path": "/empty", "body": b"ok"}, 'the page does not have "ok" in it'),
        ({"path": "/down", "body": b"ok"}, "status 503"),
        ({"path": "/files/64k", "body": b"needle"}, ""),
        (
            {"path": "/files/65k", "body": b"needle"},
            'the first 64 KiB of the page do not have "needle" in them',
        ),
        ({"path": "/chunked/64k", "body": b"needle"}, ""),
        (
            {"path": "/chunked/65k", "body": b"needle"},
            'the first 64 KiB of the page do not have "needle" in them',
        ),
        (
            {"path": "/chunked/64k", "body": b"haystack"},
            'the first 64 KiB of the page do not have "haystack" in them',
        ),
        ({"path": "/files/65k"}, ""),
    ],
    ids=str,
)
def test_page(lab, web, family, version, probe, reason):
    assert page(lab, plain(version), family, version=version, **probe) == Result(not reason, reason)


@FAMILIES
def test_request_is_what_the_file_says(lab, web, family):
    host = {4: "192.168.2.73", 6: "[2001:db8:2::73]"}[family]
    asked = f"GET|/asked?x=%20y|{host}:{PLAIN}|lbd|*/*||close|HTTP/1.1|\n".encode()
    assert page(lab, PLAIN, family, path="/asked?x=%20y", body=asked) == PASSED
    # The default port is not named.
    asked = f"GET|/asked|{host}|lbd|*/*||close|HTTP/1.1|\n".encode()
    assert page(lab, OTHER, family, path="/asked", body=asked) == PASSED
    asked = f"GET|/asked|{host}:{HTTP2}|lbd|*/*|||HTTP/2.0|\n".encode()
    assert page(lab, HTTP2, family, version="2", path="/asked", body=asked) == PASSED


@BOTH
def test_method_host_and_headers_are_sent(lab, web, version):
    probe = {
        "method": "POST",
        "path": "/asked",
        "host": "some.example",
        "headers": (("X-A", "Zoë b"), ("User-Agent", "me/1"), ("accept", "text/plain")),
        "version": version,
    }
    ends = {"1.1": "close|HTTP/1.1", "2": "|HTTP/2.0"}[version]
    asked = f"POST|/asked|some.example|me/1|text/plain|Zoë b|{ends}|\n".encode()
    assert page(lab, plain(version), **probe, body=asked) == PASSED


def test_host_chooses_the_site(lab, web):
    assert page(lab, PLAIN, host="app.example", body=b"of app") == PASSED
    assert page(lab, PLAIN, path="/ok", host="other.example", body=b"all is ok") == PASSED


@FAMILIES
@BOTH
def test_source_address_is_used(lab, web, family, version):
    body = DIRECTOR[family].encode() + b"\n"
    assert (
        page(lab, plain(version), family, DIRECTOR[family], path="/peer", version=version, body=body)
        == PASSED
    )


def test_foreign_source_address_is_no_verdict(lab, web):
    with pytest.raises(OwnTroubleError, match="source address"):
        page(lab, PLAIN, source="192.0.2.77")


@FAMILIES
@BOTH
def test_nobody_listens(lab, web, family, version):
    assert page(lab, NOBODY, family, version=version) == Result(False, "connection refused")
    assert page(lab, NOBODY, family, version=version, tls=Tls()) == Result(False, "connection refused")


def test_no_answer_is_the_callers_timeout(lab):
    probe = HttpProbe()

    async def check():
        async with asyncio.timeout(0.3):
            # Nobody has this address, and to find that out takes the kernel three seconds.
            await http(Target(probe, "192.168.2.200", 80), probe)

    with lab.inside("director"), pytest.raises(TimeoutError):
        asyncio.run(check())


def test_server_may_end_the_connection_after_each_request(lab, web):
    # It says so before it answers; h2 would take no frame after that.
    assert page(lab, ONCE, version="2", path="/ok", body=b"all is ok") == PASSED


def test_other_version_is_said(lab, web):
    assert page(lab, PLAIN, version="2").reason.startswith("not HTTP/2: the answer is ")
    assert page(lab, HTTP2, version="1.1").reason == "not HTTP/1: the answer is HTTP/2"


# TLS.


@BOTH
@pytest.mark.parametrize("name", ["a.example", "b.example"])
def test_name_chooses_the_certificate(lab, web, authority, version, name):
    tls = Tls(name, authorities=str(authority.certificate))
    body = f"sni={name} alpn={'h2' if version == '2' else 'http/1.1'}\n".encode()
    assert page(lab, TLS, tls=tls, version=version, path="/sni", host=name, body=body) == PASSED


@FAMILIES
@BOTH
def test_certificate_may_be_of_the_address(lab, web, authority, family, version):
    tls = Tls(authorities=str(authority.certificate))
    assert page(lab, TLS, family, tls=tls, version=version, path="/sni", body=b"sni= ") == PASSED


@BOTH
@pytest.mark.parametrize(
    ("port", "name", "reason"),
    [
        (TLS, "c.example", "hostname mismatch"),  # the site without a name answers
        (SELF_SIGNED, "a.example", "self-signed certificate"),
    ],
)
def test_certificate_that_is_not_right(lab, web, authority, version, port, name, reason):  # noqa: PLR0917
    tls = Tls(name, authorities=str(authority.certificate))
    refused = page(lab, port, tls=tls, version=version, path="/ok")
    assert not refused.passed
    assert refused.reason.startswith("certificate not verified: ")
    assert reason in refused.reason.lower()
    assert page(lab, port, tls=Tls(name, verify=False), version=version, path="/ok") == PASSED


def test_system_does_not_know_the_authority(lab, web):
    assert page(lab, TLS, tls=Tls("a.example")).reason.startswith("certificate not verified: ")


def test_authorities_that_are_not_there_are_no_verdict(lab, web, tmp_path):
    with pytest.raises(OwnTroubleError):
        page(lab, TLS, tls=Tls("a.example", authorities=str(tmp_path / "none.pem")))


def test_server_has_to_offer_the_version(lab, web, health):
    refused = page(lab, TLS_ONLY_1, tls=Tls(verify=False), version="2")
    assert refused == Result(False, "the server does not offer HTTP/2 (ALPN)")
    # gRPC's own server has nothing else than HTTP/2, and goes away without a word.
    assert page(lab, GRPC_TLS, tls=Tls(verify=False)) == Result(False, "closed before an answer")


def test_server_that_knows_nothing_of_alpn(lab, authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.signs(f"IP:{SERVERS[4][0]}", file="without"))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            with connection, suppress(OSError), context.wrap_socket(connection, server_side=True) as talk:
                talk.recv(4096)
                talk.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with lab.inside("server1"):
        listener = socket.create_server(("", 8500))
    with listener:
        threading.Thread(target=serve, daemon=True).start()
        refused = page(lab, 8500, tls=Tls(verify=False), version="2")
        assert refused == Result(False, "the server does not offer HTTP/2 (ALPN)")
        assert page(lab, 8500, tls=Tls(verify=False)) == PASSED
        listener.shutdown(socket.SHUT_RDWR)


@BOTH
def test_tls_with_a_server_that_has_none(lab, web, version):
    assert page(lab, PLAIN, tls=Tls(verify=False), version=version) == Result(False, "the answer is not TLS")


def test_no_tls_with_a_server_that_wants_it(lab, web):
    assert page(lab, TLS_ONLY_1) == Result(False, "status 400")  # nginx says so in the clear


# As a file has them.


@pytest.mark.parametrize(
    ("port", "table"),
    [
        (PLAIN, {"type": "http", "path": "/asked", "body": "GET|/asked|"}),
        (PLAIN, {"type": "http", "path": "/asked", "method": "POST", "headers": {"X-A": "b"}, "body": "|b|"}),
        (TLS, {"type": "https", "path": "/sni", "host": "a.example", "body": "sni=a.example", "ca": ""}),
        (TLS, {"type": "https", "path": "/sni", "http_version": "2", "body": "alpn=h2", "ca": ""}),
        (TLS, {"type": "https", "path": "/down", "verify": False, "status": [204, "500-599"]}),
        (GRPC, {"type": "grpc", "service": "good"}),
        (GRPC_TLS, {"type": "grpc", "tls": True, "sni": "grpc.example", "ca": ""}),
    ],
    ids=str,
)
def test_check_of_a_file(lab, web, health, authority, port, table):
    if "ca" in table:
        table = {**table, "ca": str(authority.certificate)}
    text = service("192.0.2.1:80", [f"{SERVERS[4][0]}:{port}"], health=table)
    (check,) = checks(parse(Source("lbd.toml", text))).values()

    async def run():
        return await probe.run(check.target, PATIENCE)

    with lab.inside("director"):
        assert asyncio.run(run()) == PASSED


# gRPC.


@FAMILIES
@pytest.mark.parametrize(
    ("port", "service", "reason"),
    [
        (GRPC, "", ""),
        (GRPC, "good", ""),
        (GRPC, "bad", "NOT_SERVING"),
        (GRPC, "unknown", "NOT_FOUND (5)"),
        (GRPC + 1, "", "UNIMPLEMENTED (12): Method not found!"),
        (NOBODY, "", "connection refused"),
        (PLAIN, "", "not HTTP/2: the answer is "),
        (HTTP2, "", "status 404"),
    ],
)
def test_grpc(lab, web, health, family, port, service, reason):  # noqa: PLR0917
    result = checked(lab, grpc, family, port, GrpcProbe(service))
    assert result.passed == (not reason)
    assert result.reason.startswith(reason)


def test_grpc_with_tls(lab, health, authority):
    for tls in (Tls("grpc.example", authorities=str(authority.certificate)), Tls(verify=False)):
        assert checked(lab, grpc, 4, GRPC_TLS, GrpcProbe("good", tls)) == PASSED
        assert checked(lab, grpc, 4, GRPC_TLS, GrpcProbe("bad", tls)) == Result(False, "NOT_SERVING")
        assert checked(lab, grpc, 4, GRPC_TLS + 1, GrpcProbe("", tls)).reason.startswith("UNIMPLEMENTED (12)")
    trusted = checked(lab, grpc, 4, GRPC_TLS, GrpcProbe(tls=Tls(authorities=str(authority.certificate))))
    assert trusted == PASSED  # by its address
    refused = checked(
        lab, grpc, 4, GRPC_TLS, GrpcProbe(tls=Tls("other.example", authorities=str(authority.certificate)))
    )
    assert refused.reason.startswith("certificate not verified: ")
    assert checked(lab, grpc, 4, GRPC, GrpcProbe(tls=Tls())).reason == "the answer is not TLS"
    assert not checked(lab, grpc, 4, GRPC_TLS, GrpcProbe()).passed
