"""What checking many backends by tcp costs: CPU for each check, how late the event loop gets, descriptors.

    make bench-health

A director checks backends of another network namespace, which has the addresses of all of them. Its event
loop has one CPU, which also does the kernel's work for both sides of each connection. Connection tracking is
on, as it is beside lbd's rules.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from lbd.checking import Checking
from lbd.core.entry import Entry
from lbd.core.observed import Observed
from lbd.core.probes import Health, TcpProbe, Timing
from lbd.core.settings import Backend, Config, Listen, Ports, Service
from lbd.host.store import Store
from lbd.lab.namespaces import Lab
from lbd.lab.topology import Host, Interface, Topology

# Addresses that answer on OPEN and refuse on SHUT, and addresses that nobody has.
THERE, NOWHERE = "2001:db8:5::", "2001:db8:6::"
OPEN, SHUT = 9999, 9998

# A rule that has connections tracked.
HOOK = "type filter hook output priority 0;"
TRACKING = f"add table ip6 t; add chain ip6 t c {{ {HOOK} }}; add rule ip6 t c ct state new accept"

TICK = 0.002
SERVICES = 100

HOSTS = Topology(
    (
        Host("director", (Interface("eth0", "wire0", ("2001:db8:4::1/64",)),)),
        Host("far", (Interface("eth0", "wire0", ("2001:db8:4::2/64",)),)),
    )
)


@dataclass(frozen=True, slots=True)
class Load:
    """How many backends there are, and how many of them never answer or refuse; seconds between checks."""

    backends: int
    silent: int = 0
    refusing: int = 0
    interval: float = 2.0


def config(load: Load) -> Config:
    """Return services with so many backends."""
    ends = [
        Backend(
            IPv6Address(NOWHERE if n < load.silent else THERE) + n + 1,
            Ports(*[SHUT if load.silent <= n < load.silent + load.refusing else OPEN] * 2),
        )
        for n in range(load.backends)
    ]
    timing = Timing(interval=load.interval, fast=load.interval, timeout=1.0)
    listens = [Listen(IPv6Address("2001:db8:18::") + n, Ports(80, 80)) for n in range(SERVICES)]
    services = (
        Service(f"s{n}", (listen,), tuple(ends[n::SERVICES]), health=Health(TcpProbe(), timing))
        for n, listen in enumerate(listens)
    )
    return Config(services=tuple(each for each in services if each.backends))


async def check(load: Load, seconds: float) -> dict[str, float]:
    """Check for so many seconds, after as many as it takes to come to rest, and return what it costs."""
    said: list[Entry] = []
    looks: list[float] = []
    with tempfile.TemporaryDirectory() as state:
        checking = Checking(said.append, lambda: looks.append(time.monotonic()), Store(Path(state)))
        began = time.monotonic()
        await checking.follow(config(load))
        up = time.monotonic() - began
        starting = await _lateness(3 * load.interval)
        first = next(checking.agenda._tickets)  # noqa: SLF001 - one for each check
        used, kernel = time.process_time(), os.times().system
        lateness = await _lateness(seconds, held := [])
        used, kernel = time.process_time() - used, os.times().system - kernel
        count = next(checking.agenda._tickets) - first  # noqa: SLF001
        late = sorted(by for by, _ in lateness)
        began = time.monotonic()
        found = checking.merged(Observed())
        merging = time.monotonic() - began
        await checking.follow(None)
    return {
        "checks per second": count / seconds,
        "CPU, per cent of one": 100 * used / seconds,
        "CPU per check, us": 1e6 * used / count if load.backends else 0,
        "... of it the kernel's, us": 1e6 * kernel / count if load.backends else 0,
        "loop late, median, ms": 1000 * late[len(late) // 2],
        "loop late, 99 %, ms": 1000 * late[len(late) * 99 // 100],
        "loop late, most, ms": 1000 * late[-1],
        "... by its own doing, ms": 1000 * max(own for _, own in lateness),
        "... while they begin, ms": 1000 * max(own for _, own in starting),
        "begun after, ms": 1000 * up,
        "merging, ms": 1000 * merging,
        "descriptors, most": max(held),
        "memory, most, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tracked connections": _tracked(),
        "believed down": len(found.dead),
        "entries told": len(said),
        "looks asked for": len(looks),
    }


def _tracked() -> int:
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


async def _lateness(seconds: float, held: list[int] | None = None) -> list[tuple[float, float]]:
    """Return by how much each of many short sleeps was longer than it was to be, and for its own doing.

    The latter is at most what this thread has used of the CPU meanwhile: the CPU may have others to serve.
    """
    late, end = [], time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        used = time.thread_time()
        await asyncio.sleep(TICK)
        by = time.monotonic() - now - TICK
        late.append((by, min(by, time.thread_time() - used)))
        if held is not None and len(late) % 50 == 0:
            held.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 - as quick as can be
    return late


def measure(lab: Lab, load: Load, seconds: float) -> dict[str, float]:
    """Return what `check` says in a process of its own, on the director and on one CPU."""
    cpu = min(os.sched_getaffinity(0))
    words = [load.backends, load.silent, load.refusing, load.interval, seconds]
    command = ["taskset", "-c", str(cpu), sys.executable, __file__, "--inside", *map(str, words)]
    process = lab.popen("director", command, stdout=subprocess.PIPE)
    said, _ = process.communicate(timeout=60 + 2 * seconds)
    assert process.returncode == 0
    return dict(json.loads(said))


def main() -> None:
    """Print a table, a column for each load."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--inside", nargs=5, help=argparse.SUPPRESS)
    arguments.add_argument("--seconds", type=float, default=20.0)
    arguments.add_argument("--backends", type=int, default=10_000)
    chosen = arguments.parse_args()
    if chosen.inside:
        # Before others that want this CPU, as far as that goes.
        os.nice(-19)
        *counts, interval, seconds = chosen.inside
        print(json.dumps(asyncio.run(check(Load(*map(int, counts), float(interval)), float(seconds)))))
        return
    many, tenth = chosen.backends, chosen.backends // 10
    loads = {
        "nothing": Load(0),
        "all up": Load(many),
        "with silent": Load(many, silent=tenth),
        "and refusing": Load(many, silent=tenth, refusing=tenth),
    }
    with Lab(HOSTS) as lab, ExitStack() as stack:
        lab.run("far", ["ip", "-6", "route", "add", "local", f"{THERE}/112", "dev", "lo"])
        for prefix in (THERE, NOWHERE):
            lab.run("director", ["ip", "-6", "route", "add", f"{prefix}/112", "via", "2001:db8:4::2"])
        lab.run("director", ["nft", TRACKING])
        with lab.inside("far"):
            listener = stack.enter_context(
                socket.create_server(("::", OPEN), family=socket.AF_INET6, backlog=4096)
            )
            assert listener
        columns = {name: measure(lab, load, chosen.seconds) for name, load in loads.items()}
    print(
        f"{many} backends every 2 s, timeout 1 s; silent and refusing are {tenth} each; {chosen.seconds:g} s"
    )
    print(f"{'':28}" + "".join(f"{name:>14}" for name in columns))
    for key in columns["all up"]:
        digits = 0 if re.search("descriptors|connections|down|told|asked", key) else 1
        print(f"{key:28}" + "".join(f"{column.get(key, 0):>14,.{digits}f}" for column in columns.values()))


if __name__ == "__main__":
    main()
