"""Checks of name servers. dnspython writes the question and reads the answer; the socket is ours."""

from __future__ import annotations

import asyncio
import os
import struct

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from lbd.core.answers import Answer, judge
from lbd.core.health import Result, Target
from lbd.core.probes import DnsProbe
from lbd.core.words import cut, printable
from lbd.host.probe_udp import datagrams, received

# An answer to a question without EDNS is no longer (RFC 1035, 4.2.1). The worst that fits into it takes
# dnspython some milliseconds, a long one would hold up the event loop.
MOST = 512

# What dnspython raises for bytes that are no answer.
UNREADABLE = (dns.exception.DNSException, ValueError, IndexError, struct.error)


async def ask(target: Target, probe: DnsProbe) -> Result:
    """Ask once, without EDNS, with a random id; the next datagram of the server has to be the answer."""
    try:
        query = dns.message.make_query(probe.query, probe.record, id=int.from_bytes(os.urandom(2), "big"))
        asked = query.to_wire()
    except UNREADABLE as error:
        return Result(False, cut(printable(f"cannot ask for {probe.query} {probe.record}: {error}")))
    with datagrams(target) as sock:
        await asyncio.get_running_loop().sock_sendall(sock, asked)
        came, _ = await received(sock, MOST)
    try:
        answer = dns.message.from_wire(came, ignore_trailing=True)
    except UNREADABLE:
        return Result(False, f"{len(came)} bytes that are no answer of a name server")
    if not query.is_response(answer):
        return Result(False, "an answer to another question")
    kind = dns.rdatatype.from_text(probe.record)
    return judge(
        probe,
        Answer(
            dns.rcode.to_text(answer.rcode()),
            [record.to_text() for rrset in answer.answer if rrset.rdtype == kind for record in rrset],
            bool(answer.flags & dns.flags.TC),
        ),
    )
