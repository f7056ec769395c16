"""The checks that speak HTTP: a page, by HTTP/1.1 or 2, and the health service of gRPC.

Each makes one request over a connection of its own. What the target does is a result, whatever it is;
OwnTroubleError is raised for what the director lacks.
"""

from __future__ import annotations

import asyncio
import ssl
from importlib import import_module
from types import ModuleType

from lbd.core.health import Result, Target
from lbd.core.page import flaw
from lbd.core.probes import GrpcProbe, HttpProbe
from lbd.host.probe_errors import own, said, trouble
from lbd.host.probe_stream import opened

# OpenSSL's words for the alert of a server that speaks none of the protocols that were asked for.
UNCHOSEN = "alert no application protocol"

_loaded: dict[str, ModuleType] = {}


async def http(target: Target, probe: HttpProbe) -> Result:
    """Ask for a page, and look at its status and perhaps for a text in it."""
    if wrong := flaw(probe):
        return Result(False, f"the request cannot be sent: {wrong}")
    return await _asked(target, probe, "probe_h2" if probe.version == "2" else "probe_h1", "ask")


async def grpc(target: Target, probe: GrpcProbe) -> Result:
    """Ask the health service of a gRPC server."""
    return await _asked(target, probe, "probe_h2", "ask_health")


async def _asked(target: Target, probe: HttpProbe | GrpcProbe, module: str, function: str) -> Result:
    speaker = _loaded.get(module)
    if speaker is None:
        # Its library takes some 20 ms, which are not to be the event loop's.
        speaker = _loaded[module] = await asyncio.to_thread(import_module, f"lbd.host.{module}")
    try:
        async with opened(target, probe.tls, speaker.ALPN) as (reader, writer):
            reason = await getattr(speaker, function)(reader, writer, target, probe)
    except OSError as error:
        if own(error):
            raise trouble(error) from None
        unchosen = isinstance(error, ssl.SSLError) and UNCHOSEN in str(error)
        reason = f"the server does not offer {speaker.NAME} (ALPN)" if unchosen else said(error)
    return Result(not reason, reason)
