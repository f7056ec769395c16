"""TCP connections of checks, in the clear and with TLS: bounded, and gone without a trace when they end.

A connection ends with a reset: at thousands of checks a second the ports in TIME_WAIT would run out.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from lbd.core.health import Target
from lbd.core.probes import Tls
from lbd.host.probe_errors import NetworkSaysError, OwnTroubleError, own, said, trouble

__all__ = ["LIMIT", "bind", "connected", "opened", "said"]

# What a line may have, in bytes. From twice as much that nobody has read, the target is not listened to any
# more; one read takes 256 KiB at most.
LIMIT = 1 << 16

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 s

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; the module socket has it from Python 3.12 on

# By whether the certificate is verified, the file of authorities and the protocols (ALPN); and what the file
# was like when it was read.
_Key = tuple[bool, str, tuple[str, ...]]
_Stamp = tuple[int, ...]
_contexts: dict[_Key, tuple[_Stamp, ssl.SSLContext]] = {}
_loading = threading.Lock()


@asynccontextmanager
async def opened(
    target: Target, tls: Tls | None = None, alpn: Sequence[str] = ()
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a target from its source, with TLS if `tls` is given; the connection is reset at the end.

    A reader's `readline` and `readuntil` fail beyond LIMIT. Raises OwnTroubleError for what is not of the
    target's doing, also for a file of authorities that cannot be read, and OSError (ssl.SSLError is one)
    for what is; `said` puts it in words.
    """
    context = await _context(tls, tuple(alpn)) if tls else None
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(LIMIT, loop)
    protocol = _OverTls(reader, loop=loop) if context else asyncio.StreamReaderProtocol(reader, loop=loop)
    first = asyncio.Protocol() if context else protocol
    sock = await connected(target)
    try:
        transport, _ = await loop.create_connection(lambda: first, sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        over = transport
        if tls and context:
            # OpenSSL sends no SNI for an address, and compares it with the addresses of the certificate.
            name = tls.name or target.address
            encrypted = await loop.start_tls(transport, protocol, context, server_hostname=name)
            if encrypted is None:
                raise ConnectionResetError(errno.ECONNRESET, "closed at the end of the handshake")
            over = encrypted
            protocol.connection_made(over)
        yield reader, asyncio.StreamWriter(over, protocol, reader, loop)
    finally:
        # This and not the one over TLS, whose end would wait for the other side's.
        transport.abort()


async def connected(target: Target, *, silently: bool = False) -> socket.socket:
    """Return a non-blocking socket that is connected to a target; closing it sends a reset.

    `silently` leaves out the last packet of the handshake, so that the reset comes in its place and the
    server is not told of a connection at all. Raises as `opened` does.
    """
    family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise trouble(error) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if silently:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        if target.source:
            bind(sock, target.source)
        # connect_ex and not connect: that it is under way is the rule.
        code = sock.connect_ex((target.address, target.port))
        if code == errno.EINPROGRESS:
            await _established(sock)
        elif code:
            raise OSError(code, os.strerror(code))
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and own(error):
            raise trouble(error) from None
        raise
    return sock


def bind(sock: socket.socket, source: str) -> None:
    """Give a socket its source address, but no port before it is connected.

    So one source has as many ports for each target, instead of for all together: ip(7).
    """
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((source, 0))


class _OverTls(asyncio.StreamReaderProtocol):
    """Knows from the beginning that it is over TLS.

    Else asyncio would warn, in the journal, of a target that closes as soon as the handshake is done.
    """

    def eof_received(self) -> bool:
        super().eof_received()
        return False


async def _established(sock: socket.socket) -> None:
    """Wait until a connection that is under way is there; raise OSError when it fails."""
    loop = asyncio.get_running_loop()
    writable = loop.create_future()
    loop.add_writer(sock, _done, writable)
    try:
        await writable
    finally:
        loop.remove_writer(sock)
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise NetworkSaysError(code, os.strerror(code))


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _context(tls: Tls, alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Return how to speak TLS. To read the authorities takes up to 50 ms: once, and not on the event loop."""
    key = (tls.verify, tls.authorities, alpn)
    try:
        stamp = _stamp(tls)
        known = _contexts.get(key)
        if known is None or known[0] != stamp:
            known = await asyncio.to_thread(_load, key, stamp)
    except OSError as error:
        what = said(error) if isinstance(error, ssl.SSLError) else error.strerror
        raise OwnTroubleError(error.errno, f"authorities {tls.authorities}: {what}") from None
    return known[1]


def _stamp(tls: Tls) -> _Stamp:
    """Return what changes when another file of authorities is put in place."""
    if not tls.verify or not tls.authorities:
        return ()
    found = os.stat(tls.authorities)  # noqa: PTH116 - at every check, and a Path costs as much as the call
    return found.st_ino, found.st_size, found.st_mtime_ns


def _load(key: _Key, stamp: _Stamp) -> tuple[_Stamp, ssl.SSLContext]:
    verify, authorities, alpn = key
    with _loading:
        known = _contexts.get(key)
        if known and known[0] == stamp:  # of the many that wanted it, another was first
            return known
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif authorities:
            context.load_verify_locations(authorities)
        else:
            context.load_default_certs()
        if alpn:
            context.set_alpn_protocols(list(alpn))
        _contexts[key] = (stamp, context)
        return _contexts[key]
