"""Checks over TCP without another protocol: a connection, a few bytes there and back, and HAProxy's agent."""

from __future__ import annotations

import asyncio
import socket
import struct

from lbd.core import agent as protocol
from lbd.core.health import Result, Target
from lbd.core.probes import AgentProbe, TcpProbe
from lbd.core.words import quote
from lbd.host.probe_stream import connected, opened

# What is read of an answer at most, in bytes.
MOST = 1 << 16

# SO_LINGER: off.
ORDERLY = struct.pack("ii", 0, 0)


async def tcp(target: Target, probe: TcpProbe) -> Result:
    """Connect; send what there is to send, and look for what is expected in the first 64 KiB that come."""
    if not probe.send and not probe.expect:
        sock = await connected(target, silently=True)
        sock.close()
        return Result(True)
    async with opened(target) as (reader, writer):
        writer.write(probe.send)
        await writer.drain()
        if not probe.expect:
            # Nobody says that it has arrived: a reset could overtake it.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ORDERLY)
            return Result(True)
        return await _expect(reader, probe.expect)


async def _expect(reader: asyncio.StreamReader, expected: bytes) -> Result:
    came = bytearray()
    while len(came) < MOST:
        data = await reader.read(MOST - len(came))
        came += data
        if came.find(expected, max(0, len(came) - len(data) - len(expected) + 1)) >= 0:
            return Result(True)
        if not data:
            if not came:
                return Result(False, f"closed without an answer, not with {_shown(expected)}")
            return Result(False, f"answered {_shown(came)}, without {_shown(expected)}")
    return Result(False, f"no {_shown(expected)} in the first {MOST} bytes, which begin with {_shown(came)}")


def _shown(data: bytes | bytearray) -> str:
    return quote(data[:MOST].decode(errors="backslashreplace"))


async def agent(target: Target, probe: AgentProbe) -> Result:
    """Ask an agent; its answer is a line, or what comes before it closes the connection."""
    async with opened(target) as (reader, writer):
        writer.write(probe.send)
        await writer.drain()
        came = b""
        while b"\n" not in came and b"\r" not in came:
            data = await reader.read(protocol.LONGEST)
            came += data
            if not data:
                break
            if len(came) > protocol.LONGEST:
                return Result(False, f"no line, but {_shown(came)}")
    if not came:
        return Result(False, "closed without an answer")
    return protocol.parse(came.splitlines()[0])
