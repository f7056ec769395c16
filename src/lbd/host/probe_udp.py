"""Checks by datagrams: the socket that UDP, name servers and ping share, and the check of any UDP service."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from lbd.core.health import Result, Target
from lbd.core.probes import UdpProbe
from lbd.core.words import quote
from lbd.host.probe_errors import NetworkSaysError, trouble
from lbd.host.probe_stream import bind

# No datagram is larger, in bytes.
MOST = 1 << 16

# Who says nothing is given this part of the time a check may take: a router that knows of no way may ask
# around for a while before it says so.
QUIET = 0.8

# linux/in.h and linux/in6.h: tell also of errors that may pass, such as "no route to host".
IP_RECVERR, IPV6_RECVERR = 11, 25


async def udp(target: Target, probe: UdpProbe, within: float) -> Result:
    """Send a datagram and look at the first that comes back from the target, or at the error.

    Where no answer is expected, it is enough that there is no error for most of `within`, in seconds.
    """
    with datagrams(target) as sock:
        await asyncio.get_running_loop().sock_sendall(sock, probe.send)
        if probe.expect is not None:
            answer, _ = await received(sock)
            if probe.expect in answer:
                return Result(True)
            return Result(False, f"answered {shown(answer)}, without {shown(probe.expect)}")
        try:
            async with asyncio.timeout(within * QUIET):
                await received(sock)
        except TimeoutError:
            pass
        return Result(True)


@contextmanager
def datagrams(target: Target, protocol: int = 0) -> Iterator[socket.socket]:
    """Give a socket that is connected to a target: it takes datagrams of that address and port only.

    Of ping sockets, `protocol` other than 0, the kernel looks at the address of what is sent alone. Raises
    OwnTroubleError when there cannot be such a socket, and OSError when there is no way to the target.
    """
    ipv6 = ":" in target.address
    try:
        sock = socket.socket(
            socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, protocol
        )
    except OSError as error:
        raise trouble(error) from None
    with sock:
        sock.setsockopt(*(socket.IPPROTO_IPV6, IPV6_RECVERR) if ipv6 else (socket.IPPROTO_IP, IP_RECVERR), 1)
        if target.source:
            bind(sock, target.source)
        sock.connect((target.address, target.port))
        yield sock


async def received(sock: socket.socket, most: int = MOST) -> tuple[bytes, str]:
    """Return the next datagram, or as many bytes of it, and the address of its sender."""
    try:
        data, sender = await asyncio.get_running_loop().sock_recvfrom(sock, most)
    except OSError as error:
        raise NetworkSaysError(error.errno, error.strerror) from None
    return data, sender[0]


def shown(data: bytes) -> str:
    """Return bytes from outside, or of the file, as they are shown: the beginning, in quotes."""
    return quote(data.decode(errors="backslashreplace"))
