"""Carries out one check. Each kind has a file of its own, which is loaded when there is such a check."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module

from lbd.core.health import Result, Target
from lbd.core.probes import (
    AgentProbe,
    DnsProbe,
    ExecProbe,
    GrpcProbe,
    HttpProbe,
    IcmpProbe,
    Probe,
    TcpProbe,
    UdpProbe,
)
from lbd.host.probe_errors import OwnTroubleError, own, said, trouble

__all__ = ["OwnTroubleError", "run"]

# Module and function, which takes the target and its probe.
_BY: Mapping[type[Probe], tuple[str, str]] = {
    TcpProbe: ("lbd.host.probe_tcp", "tcp"),
    AgentProbe: ("lbd.host.probe_tcp", "agent"),
    UdpProbe: ("lbd.host.probe_udp", "udp"),
    DnsProbe: ("lbd.host.probe_dns", "ask"),
    IcmpProbe: ("lbd.host.probe_icmp", "icmp"),
    ExecProbe: ("lbd.host.probe_exec", "execute"),
    HttpProbe: ("lbd.host.probe_http", "http"),
    GrpcProbe: ("lbd.host.probe_http", "grpc"),
}

_CarryOut = Callable[..., Awaitable[Result]]
_loaded: dict[type[Probe], _CarryOut] = {}


async def run(target: Target, within: float) -> Result:
    """Check a target once.

    The caller ends it after `within` seconds, which here is only to know how long there is to wait.
    Whatever the target does is a result. Raises OwnTroubleError for what the director lacks.
    """
    probe = target.probe
    carry_out = _loaded.get(type(probe))
    if carry_out is None:
        carry_out = await asyncio.to_thread(_load, type(probe))
    # Those that wait for something that may not come, and go on then.
    more = (within,) if isinstance(probe, UdpProbe | IcmpProbe) else ()
    try:
        return await carry_out(target, probe, *more)
    except OSError as error:
        if own(error):
            raise trouble(error) from None
        return Result(False, said(error))


def _load(kind: type[Probe]) -> _CarryOut:
    """Import what checks of a kind need; not on the event loop, since a library takes a tenth of a second."""
    module, function = _BY[kind]
    carry_out: _CarryOut = getattr(import_module(module), function)
    _loaded[kind] = carry_out
    return carry_out
