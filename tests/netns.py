"""A network namespace for a test: the test's thread is in it, and it is gone afterwards."""

import contextlib
import ctypes
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

CLONE_NEWNET = 0x40000000

# Two interfaces that are up, with the addresses of a director.
DIRECTOR = """\
link set lo up
link add eth0 type veth peer name far0
link add eth1 type veth peer name far1
link set eth0 up
link set far0 up
link set eth1 up
link set far1 up
addr add 192.168.18.58/24 dev eth0
addr add 192.168.2.90/24 dev eth1
addr add 2001:db8:18::58/64 dev eth0 nodad
addr add 2001:db8:2::90/64 dev eth1 nodad
"""

_serial = itertools.count()
_setns = ctypes.CDLL(None, use_errno=True).setns


@dataclass(frozen=True, slots=True)
class Namespace:
    """What an operator would type, beside what lbd does."""

    name: str

    def run(self, *argv: str) -> str:
        """Run a command inside that has to succeed; return what it says."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *argv], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
        return done.stdout

    def ip(self, *words: str) -> str:
        return self.run("ip", *words)

    def batch(self, lines: str, *options: str) -> None:
        subprocess.run(["ip", "-n", self.name, *options, "-batch", "-"], input=lines, text=True, check=True)

    def routes(self, *words: str, family: str = "-4") -> list[dict[str, object]]:
        return json.loads(self.ip("-j", "-d", family, "route", "show", *words))

    def state(self) -> list[object]:
        """Return all addresses, routes and rules there are, as ip prints them."""
        both = ("-4", "-6")
        return [
            json.loads(self.ip("-j", "-d", "addr")),
            *(self.routes("table", "all", family=family) for family in both),
            *(json.loads(self.ip("-j", "-d", family, "rule")) for family in both),
        ]


@contextlib.contextmanager
def inside(batch: str = "") -> Iterator[Namespace]:
    """Make a namespace, do what `batch` says in the words of ip(8), and enter it with this thread."""
    namespace = Namespace(f"lbdtest-{os.getpid()}-{next(_serial)}")
    subprocess.run(["ip", "netns", "add", namespace.name], check=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        namespace.batch(batch)
        there = os.open(f"/run/netns/{namespace.name}", os.O_RDONLY)
        assert _setns(there, CLONE_NEWNET) == 0
        os.close(there)
        yield namespace
    finally:
        assert _setns(home, CLONE_NEWNET) == 0
        os.close(home)
        subprocess.run(["ip", "netns", "del", namespace.name], check=True)
