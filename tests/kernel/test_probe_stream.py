"""Connections of checks with TLS: whom they trust, what they say, and what they leave behind."""

import asyncio
import logging
import shutil
import ssl
import threading
import tracemalloc
from pathlib import Path

import pytest

from certificates import Authority
from lbd.core.health import Target
from lbd.core.probes import Tls
from lbd.host import probe_stream
from lbd.host.probe_errors import OwnTroubleError, said
from lbd.host.probe_stream import opened
from lbd.lab.namespaces import Lab, wait_until
from lbd.lab.topology import experiment
from rogues import Rogue, closes, endless, over_tls, resets, says, silent, trickles
from running import SERVERS

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
ADDRESS = {family: addresses[0] for family, addresses in SERVERS.items()}
NAME = "www.example.test"


@pytest.fixture(scope="module")
def lab():
    with Lab(experiment(1, ipv6=True)) as lab:
        yield lab


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def served(authority):
    """The way a server speaks TLS, and the names that it was asked for."""
    made = authority.signs(f"DNS:{NAME}", f"IP:{ADDRESS[4]}", f"IP:{ADDRESS[6]}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    names = []
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    return context, names


@pytest.fixture
def rogue(lab):
    opened = []

    def start(talk):
        opened.append(Rogue(lab, "server1", talk))
        return opened[-1].port

    yield start
    for server in opened:
        server.__exit__()


@pytest.fixture(autouse=True)
def nothing_is_left(caplog):
    """No connection leaves a descriptor behind, and asyncio tells the journal nothing."""
    before = descriptors()
    with caplog.at_level(logging.WARNING):
        yield
    assert wait_until(lambda: descriptors() <= before, 2.0), "a descriptor is left open"
    assert not caplog.get_records("call")


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def read(lab, port, tls=None, family=4, *, alpn=(), within=2.0):
    """Connect from the director; return the protocol agreed on and what is said first, or why it fails."""

    async def asked():
        async with opened(Target(None, ADDRESS[family], port), tls, alpn) as (reader, writer):
            encrypted = writer.get_extra_info("ssl_object")
            return encrypted and encrypted.selected_alpn_protocol(), await reader.read(10_000)

    async def bounded():
        try:
            async with asyncio.timeout(within):
                return await asked()
        except TimeoutError:
            return "timeout"
        except OwnTroubleError:
            raise
        except OSError as error:
            return said(error)
        finally:
            await asyncio.sleep(0.01)  # what is aborted is closed soon

    with lab.inside("director"):
        return asyncio.run(bounded())


@FAMILIES
def test_a_certificate_is_of_a_name_or_of_the_address(lab, rogue, authority, served, family):
    context, names = served
    port = rogue(over_tls(context, says(b"hello")))
    trusted = str(authority.certificate)
    names.clear()
    assert read(lab, port, Tls(NAME, authorities=trusted), family) == (None, b"hello")
    assert read(lab, port, Tls(authorities=trusted), family) == (None, b"hello")
    assert read(lab, port, Tls("other.test", verify=False), family) == (None, b"hello")
    assert names == [NAME, None, "other.test"]
    refused = read(lab, port, Tls("other.test", authorities=trusted), family)
    assert refused == (
        "certificate not verified: Hostname mismatch, certificate is not valid for 'other.test'"
    )
    assert (
        read(lab, port, Tls(NAME), family)
        == "certificate not verified: unable to get local issuer certificate"
    )


def test_a_certificate_of_nobody_is_not_trusted(lab, rogue, authority):
    made = authority.unsigned(f"DNS:{NAME}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    port = rogue(over_tls(context, says(b"hello")))
    refused = read(lab, port, Tls(NAME, authorities=str(authority.certificate)))
    assert refused == "certificate not verified: self-signed certificate"


def test_a_certificate_of_another_address_is_not_trusted(lab, rogue, authority):
    made = authority.signs("IP:192.0.2.1", file="elsewhere")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    port = rogue(over_tls(context, says(b"hello")))
    refused = read(lab, port, Tls(authorities=str(authority.certificate)))
    assert refused.startswith("certificate not verified: IP address mismatch")


@pytest.mark.parametrize(("alpn", "agreed"), [((), None), (("h2",), "h2"), (("http/1.1",), "http/1.1")])
def test_a_protocol_is_agreed_on(lab, rogue, served, alpn, agreed):
    port = rogue(over_tls(served[0], says(b"hello")))
    assert read(lab, port, Tls(verify=False), alpn=alpn) == (agreed, b"hello")


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (says(b"SSH-2.0-OpenSSH_9.2\r\n"), "the answer is not TLS"),
        (says(b"\x15\x03\x01\x00\x02\x02\x28"), "TLS failed: sslv3 alert handshake failure"),
        (closes, "connection closed"),
        (resets, "connection reset"),
        (silent, "timeout"),
        (endless, "the answer is not TLS"),
    ],
)
def test_one_that_does_not_speak_tls_fails(lab, rogue, talk, reason):
    # One that closes with our hello unread resets the connection.
    found = read(lab, rogue(talk), Tls(verify=False), within=0.5)
    assert found == reason or (talk is closes and found == "connection reset")


def test_one_that_closes_after_the_handshake_is_closed(lab, rogue, served):
    port = rogue(over_tls(served[0], closes))
    assert read(lab, port, Tls(verify=False)) in {(None, b""), "connection reset", "connection closed"}


def test_one_that_closes_with_the_end_of_the_handshake_is_closed(lab, rogue, authority):
    made = authority.signs(f"DNS:{NAME}", file="old")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in which the server has the last word
    context.load_cert_chain(made.certificate, made.key)

    def talk(connection):
        came, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        side = context.wrap_bio(came, out, server_side=True)
        for step in (side.do_handshake, side.unwrap):
            while True:
                try:
                    step()
                    break
                except ssl.SSLWantReadError:
                    connection.sendall(out.read())
                    came.write(connection.recv(1 << 16))

    for _ in range(3):
        assert read(lab, rogue(talk), Tls(verify=False)) in {(None, b""), "connection closed"}


def test_what_nobody_reads_is_not_taken(lab, rogue, served):
    async def wait(port, tls):
        async with opened(Target(None, ADDRESS[4], port), tls) as (reader, _):
            await reader.readexactly(1)
            await asyncio.sleep(0.3)

    for talk, tls in ((endless, None), (over_tls(served[0], endless), Tls(verify=False))):
        port = rogue(talk)
        read(lab, port, tls)
        tracemalloc.start()
        with lab.inside("director"):
            asyncio.run(wait(port, tls))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 << 20


def test_a_line_has_an_end_or_is_refused(lab, rogue):
    async def line(port):
        async with opened(Target(None, ADDRESS[4], port)) as (reader, _):
            return await reader.readline()

    with lab.inside("director"), pytest.raises(ValueError, match="limit"):
        asyncio.run(line(rogue(endless)))


def test_connections_leave_nothing_in_time_wait(lab, rogue, served):
    # Of what is unread the kernel would tell by a reset anyway.
    talk = trickles(b"h")
    for port, tls in ((rogue(talk), None), (rogue(over_tls(served[0], talk)), Tls(verify=False))):
        assert read(lab, port, tls)[1] == b"h"
        assert f":{port}" not in lab.run("director", ["ss", "-tanH"]).stdout


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), ("nonsense", "TLS failed: no certificate or crl found")],
)
def test_authorities_that_cannot_be_read_are_our_own_trouble(lab, rogue, tmp_path, content, reason):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    with pytest.raises(OwnTroubleError) as trouble:
        read(lab, rogue(silent), Tls(authorities=str(path)))
    assert str(trouble.value) == f"authorities {path}: {reason}"


def test_authorities_are_read_once_and_again_when_they_change(
    lab, rogue, authority, served, tmp_path, monkeypatch
):
    path = tmp_path / "ca.pem"
    shutil.copy(authority.unsigned("DNS:nobody.test", file="nobody").certificate, path)
    port = rogue(over_tls(served[0], says(b"hello")))
    tls = Tls(NAME, authorities=str(path))
    assert "not verified" in read(lab, port, tls)
    (tmp_path / "new.pem").write_bytes(authority.certificate.read_bytes())
    (tmp_path / "new.pem").rename(path)
    assert read(lab, port, tls) == (None, b"hello")
    monkeypatch.setattr(probe_stream, "_load", None)
    assert read(lab, port, tls) == (None, b"hello")


def test_many_that_want_authorities_at_once_read_them_once(lab, monkeypatch):
    made = []
    monkeypatch.setattr(probe_stream, "_contexts", {})
    create = ssl.SSLContext.load_default_certs

    def load(context):
        made.append(threading.current_thread())
        create(context)

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", load)

    async def want():
        await asyncio.gather(*(probe_stream._context(Tls(NAME), ()) for _ in range(200)))

    asyncio.run(want())
    assert len(made) == 1
    assert made[0] is not threading.main_thread()
