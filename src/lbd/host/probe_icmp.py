"""Pings, through the kernel's ping sockets, which need no capability: icmp(7), ip-sysctl.rst."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct

from lbd.core.health import Result, Target
from lbd.core.probes import IcmpProbe
from lbd.host.probe_errors import OwnTroubleError
from lbd.host.probe_udp import datagrams, received

ASK, ANSWER = {4: 8, 6: 128}, {4: 0, 6: 129}  # RFC 792, RFC 4443
PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}

RANGE = "net.ipv4.ping_group_range"  # of both families; core/desired sets it

# Type, code, checksum, identifier, sequence. The kernel fills in the checksum and the identifier, which is
# the socket's port.
_HEADER = struct.Struct("!BBHHH")
SEQUENCE = 1

# Nobody can guess so many bytes of chance, and so nobody can answer for a target.
PAYLOAD = 16

# Where the kernel refuses, it is asked again after this part of the time a check may take.
LATER = 0.5

# Answers to something else that are looked at, before a target is told to be talking nonsense.
PATIENCE = 16


async def icmp(target: Target, probe: IcmpProbe, within: float) -> Result:  # noqa: ARG001 - as all
    """Send an echo request and wait for the reply to it.

    Raises OwnTroubleError if the kernel refuses, also after a part of `within`, in seconds: at start, checks
    begin while lbd still sets the range.
    """
    try:
        return await _ping(target)
    except OwnTroubleError as error:
        if error.errno != errno.EACCES:
            raise
    await asyncio.sleep(within * LATER)
    try:
        return await _ping(target)
    except OwnTroubleError as error:
        if error.errno == errno.EACCES:
            why = f"{RANGE} does not include group {os.getegid()}"
            raise OwnTroubleError(error.errno, why) from None
        raise


async def _ping(target: Target) -> Result:
    family = 6 if ":" in target.address else 4
    payload = os.urandom(PAYLOAD)
    with datagrams(target, PROTOCOL[family]) as sock:
        request = _HEADER.pack(ASK[family], 0, 0, 0, SEQUENCE) + payload
        await asyncio.get_running_loop().sock_sendall(sock, request)
        for _ in range(PATIENCE):
            data, sender = await received(sock)
            if sender == target.address and _answers(data, ANSWER[family], payload):
                return Result(True)
    return Result(False, "answers to something else")


def _answers(data: bytes, kind: int, payload: bytes) -> bool:
    if len(data) < _HEADER.size:
        return False
    got, _, _, _, sequence = _HEADER.unpack_from(data)
    return got == kind and sequence == SEQUENCE and data[_HEADER.size :] == payload
