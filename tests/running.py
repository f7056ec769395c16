"""A running `lbd run` on a host of the lab: its file, what it says, and what the kernel has of it."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from lbd import client
from lbd.core.desired import desired
from lbd.core.source import Source
from lbd.host import files, netlink, nft_read
from lbd.intent import build
from lbd.lab.namespaces import wait_until
from lbd.lab.traffic import ask

# What the daemon may take for anything, on a slow machine. Tests that promise less say so themselves.
PATIENCE = 200.0 if "LBD_EMULATED" in os.environ else 10.0

VIP = {4: "192.168.18.58", 6: "2001:db8:18::58"}
CLIENT = {4: "192.168.18.25", 6: "2001:db8:18::25"}
SERVERS = {
    4: ("192.168.2.73", "192.168.2.74", "192.168.2.75"),
    6: ("2001:db8:2::73", "2001:db8:2::74", "2001:db8:2::75"),
}

# A UDP flow is remembered for 30 s to 2 minutes after its last packet: a source port that is used again is
# not a new connection. These stay below the ones that the system gives out (ip_local_port_range).
_source_ports = defaultdict(partial(itertools.count, 10_000))


def answers(lab, family, protocol="tcp", count=1, *, port=8888, client="client"):
    """The servers that answer so many new connections to the VIP (or why none did), in turn."""
    ports = itertools.islice(_source_ports[client, family, protocol], count)
    asked = (ask(lab, client, VIP[family], port, protocol=protocol, source_port=p) for p in ports)
    return [answer.server or answer.failure for answer in asked]


def at(address, port, protocol="tcp"):
    """An address with its port, as the file has it."""
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}" + ("" if protocol == "tcp" else f"/{protocol}")


def backends(count, family=4, port=9999):
    """The first real servers of the lab."""
    return [at(address, port) for address in SERVERS[family][:count]]


def service(listen, backends, name="web", **options):
    """A service as text of the file. A backend is an address, or the keys of its table."""
    keys = {"name": name, "listen": listen, **options, "backends": backends}
    return "\n".join(["[[service]]", *(f"{key} = {_toml(value)}" for key, value in keys.items()), ""])


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(v)}" for key, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


class Director(AbstractContextManager["Director"]):
    """`lbd run` on a host of the lab, from `start` to `stop` or the end of the context. It says `lines`."""

    def __init__(self, lab, host="director"):
        self.lab, self.host = lab, host
        self.directory = lab.directory(host)
        self.path = self.directory / "lbd.toml"
        self.lines = []
        self.process = None
        with lab.inside(host):
            self._sock = netlink.connect()

    def __exit__(self, *exception):
        if self.process:
            self.stop()
        self._sock.close()

    # The daemon.

    def start(self, text=None):
        """Start it, and wait until it is ready for its file (or has said why not)."""
        if text is not None:
            self.write(text)
        mark = len(self.lines)
        self.process = self.lab.popen(
            self.host,
            [sys.executable, "-m", "lbd", "run", "-c", str(self.path)],
            stderr=subprocess.PIPE,
        )
        threading.Thread(target=self._read, args=[self.process.stderr], daemon=True).start()
        self.wait_line(r"ready after|refused|not converged", since=mark)
        return self

    def _read(self, stream):
        with stream:
            self.lines += (line.decode().rstrip("\n").removeprefix("lbd: ") for line in stream)

    def stop(self):
        """End it as the service manager would; the kernel's state stays."""
        process, self.process = self.process, None
        process.terminate()
        assert process.wait(PATIENCE) == 0

    def kill(self):
        """End it as the kernel would when memory is short, and its worker with what that has under way."""
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        self.process = None
        assert wait_until(lambda: not any(map(alive, workers)), PATIENCE)

    @property
    def pid(self):
        return self.process.pid

    def workers(self):
        """The process ids of its nftables workers."""
        # The children of each thread: the one that starts a worker is not the first.
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def kill_worker(self, how=signal.SIGKILL):
        """Send its worker a signal, and return the worker's process id."""
        (worker,) = self.workers()
        os.kill(worker, how)
        return worker

    # What it is told.

    def write(self, text):
        """Replace its file in one step, as careful editors do."""
        aside = self.directory / ".lbd.toml.new"
        aside.write_text(text)
        aside.rename(self.path)

    def apply(self, text):
        """Write the file and have it read; it has to be good and to be in the kernel then."""
        self.write(text)
        verdict = self.reload()
        assert verdict["ok"], verdict["error"]
        return verdict["operations"]

    def reload(self):
        # A test goes from many services to one, and means it.
        return client.call(self.directory / "run", "reload", {"yes": True}, PATIENCE)

    def status(self):
        return client.call(self.directory / "run", "status", {}, PATIENCE)

    def lbd(self, *arguments, timeout=30.0):
        """Run a command of lbd on its host, on its file where the command takes one; exit status unjudged."""
        takes_file = arguments[0] in {"check", "plan", "apply"}
        file = ["-c", str(self.path)] if takes_file else []
        return self.lab.python(self.host, "lbd", *arguments, *file, check=False, timeout=timeout)

    # What it says.

    def wait_status(self, condition, seconds=PATIENCE):
        """Return the first status that fits the condition."""

        def fitting():
            status = self.status()
            return status if condition(status) else None

        status = wait_until(fitting, seconds)
        assert status, f"after {seconds} s: {self.status()}\n{self.said()}"
        return status

    def wait_in_force(self, text, seconds=PATIENCE):
        """Wait until exactly this text is in force and the kernel does what it says."""
        digest = build((Source(str(self.path), text),)).digest
        return self.wait_status(lambda s: (s["state"], s["config"]["hash"]) == ("converged", digest), seconds)

    def wait_line(self, pattern, *, since=0, seconds=PATIENCE):
        """Return the match of the first line of its output that has one, of those after the first `since`."""

        def found():
            matches = (re.search(pattern, line) for line in self.lines[since:])
            return next(filter(None, matches), None)

        match = wait_until(found, seconds)
        assert match, f"no line with {pattern!r} within {seconds} s:\n{self.said(since)}"
        return match

    def said(self, since=0):
        return "\n".join(self.lines[since:])

    # What the kernel has.

    def nft(self, text):
        """Run nft on its host, as an administrator would, and return the process id."""
        process = self.lab.popen(self.host, ["nft", text], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"nft {text}: {said.decode()}"
        return process.pid

    def ip(self, *words):
        return self.lab.run(self.host, ["ip", *words]).stdout

    def table(self):
        """Its table as the kernel has it, as far as its file says what is in it; None when there is none."""
        found = files.read(self.path)
        schema = desired(build(found.sources).config).table.maps
        return nft_read.read(self._sock, schema)[0]

    def generation(self):
        """The number of the last commit in its network namespace, by anybody."""
        return nft_read.generation(self._sock)


def alive(pid):
    """Whether a process still runs; one that has ended and waits for its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
