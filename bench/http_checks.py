"""What a check by HTTP or of gRPC costs the director in CPU time, against nginx and a real gRPC server.

    .venv/bin/python bench/http_checks.py

Everything happens in network namespaces made for it. Needs root, nginx and what the tests need.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import grpc_server
from certificates import Authority
from lbd.core.health import Result, Target
from lbd.core.probes import GrpcProbe, HttpProbe, Tls
from lbd.host.probe_http import grpc, http
from lbd.lab.namespaces import Lab
from lbd.lab.topology import experiment
from running import SERVERS
from web import HTTP2, PLAIN, TLS, Nginx

ROUNDS, CHECKS, AT_ONCE = 5, 400, 20
GRPC, GRPC_TLS = 9000, 9100

Probe = HttpProbe | GrpcProbe
Check = Callable[[Target, Probe], Awaitable[Result]]


def cpu_of_one(check: Check, port: int, probe: Probe) -> float:
    """Return CPU seconds of this process for one check, of many that are carried out some at a time."""
    target = Target(probe, SERVERS[4][0], port)

    async def several() -> None:
        for _ in range(CHECKS // AT_ONCE):
            results = await asyncio.gather(*(check(target, probe) for _ in range(AT_ONCE)))
            assert all(result.passed for result in results), results

    before = time.process_time()
    asyncio.run(several())
    return (time.process_time() - before) / CHECKS


def main() -> None:
    """Print a line for each kind of check."""
    with tempfile.TemporaryDirectory() as directory, Lab(experiment(1, ipv6=True)) as lab:
        authority = Authority(Path(directory))
        Nginx(lab, "server1", authority)
        made = authority.signs(f"IP:{SERVERS[4][0]}", file="grpc")
        for arguments in ([GRPC], [GRPC_TLS, made.key, made.certificate]):
            argv = [sys.executable, grpc_server.__file__, *map(str, arguments)]
            process = lab.popen("server1", argv, stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        tls = Tls(authorities=str(authority.certificate))
        page = {"path": "/ok", "body": b"is ok"}
        kinds: list[tuple[str, Check, int, Probe]] = [
            ("HTTP/1.1", http, PLAIN, HttpProbe(path="/ok")),
            ("HTTP/1.1, body", http, PLAIN, HttpProbe(**page)),
            ("HTTP/1.1, TLS", http, TLS, HttpProbe(**page, tls=tls)),
            ("HTTP/2, body", http, HTTP2, HttpProbe(**page, version="2")),
            ("HTTP/2, TLS", http, TLS, HttpProbe(**page, version="2", tls=tls)),
            ("gRPC", grpc, GRPC, GrpcProbe("good")),
            ("gRPC, TLS", grpc, GRPC_TLS, GrpcProbe("good", tls)),
        ]
        with lab.inside("director"):
            rounds = [[cpu_of_one(*kind[1:]) for kind in kinds] for _ in range(ROUNDS + 1)][1:]
        for (name, *_), seconds in zip(kinds, zip(*rounds, strict=True), strict=True):
            print(f"{name:16} {statistics.median(seconds) * 1e6:6.0f} us of CPU for a check")


if __name__ == "__main__":
    main()
