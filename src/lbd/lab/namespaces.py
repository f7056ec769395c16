"""Builds a topology out of network namespaces, runs things in them, and removes it all again.

Needs root. The host's own namespace is never changed: links are made inside the lab's namespaces.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Self, TypeVar

import lbd
from lbd.lab.topology import QUIET, WIRE, Topology, setup, wiring

T = TypeVar("T")
Stream = int | IO[bytes] | None

# Where `ip netns` keeps the names, see ip-netns(8).
NAMES = Path("/run/netns")

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h

# A veth works some milliseconds after both ends are up, but the kernel puts off such events by up to a
# second each when there are many (net/core/link_watch.c).
READY_SECONDS = 10.0

# How long a process may take to end after SIGTERM, and after SIGKILL, before the lab goes on without it.
STOP_SECONDS = 5.0

# What systemd tells the process that runs the lab is not meant for the hosts in it, see sd_notify(3).
SERVICE_VARIABLES = {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "JOURNAL_STREAM", "INVOCATION_ID"}

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab could not be built, or a command in it failed; the text has the command and its stderr."""


class Lab:
    """A topology that runs while the context is open.

    At exit, also after an exception, everything that was entered with `enter` is closed, the processes in
    the lab's namespaces are ended, and the namespaces and directories are removed.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        # The pid tells an operator whether a namespace left by a killed lab may be deleted.
        prefix = f"lbd-{os.getpid()}-{secrets.token_hex(3)}"
        self._namespaces = {name: f"{prefix}-{name}" for name in (WIRE, *(h.name for h in topology.hosts))}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._entered = ExitStack()
        self._stack = ExitStack()
        self._directory = Path()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lbd-lab-")))
            stack.callback(self._delete)
            self._build()
            stack.callback(self._stop)
            stack.enter_context(self._entered)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Open something (a server, a tap) that is closed when the lab ends, before its namespaces go."""
        return self._entered.enter_context(context)

    def namespace(self, host: str) -> str:
        """Return the name of a host's namespace, as `ip netns` and /run/netns have it."""
        self._known(host)
        return self._namespaces[host]

    def directory(self, host: str) -> Path:
        """Return a directory of the host's own, for its lbd.toml; `run` and `state` are in it."""
        self._known(host)
        path = self._directory / host
        for name in ("run", "state"):
            (path / name).mkdir(parents=True, exist_ok=True)
        return path

    def environment(self, host: str) -> dict[str, str]:
        """Return the environment for `lbd` on a host: directories of its own, and the code of this lbd."""
        directory = self.directory(host)
        code = str(Path(lbd.__file__).parents[1])
        rest = os.environ.get("PYTHONPATH")
        outside = {name: value for name, value in os.environ.items() if name not in SERVICE_VARIABLES}
        return {
            **outside,
            "RUNTIME_DIRECTORY": str(directory / "run"),
            "STATE_DIRECTORY": str(directory / "state"),
            "PYTHONPATH": f"{code}:{rest}" if rest else code,
        }

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host, in a session of its own; the lab ends it if the caller does not.

        `env` is added to `environment(host)`. The pid is the command's: `ip netns exec` execs it.
        """
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(host), *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**self.environment(host), **(env or {})},
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        text: str = "",
        timeout: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end, with `text` as its stdin, and return what it said.

        Raises LabError when it exits other than 0 (unless `check` is false) or takes more than `timeout`
        seconds; it is killed then.
        """
        argv_inside = ["ip", "netns", "exec", self.namespace(host), *argv]
        environment = {**self.environment(host), **(env or {})}
        return _run(argv_inside, text=text, timeout=timeout, check=check, env=environment)

    def python(
        self, host: str, module: str, *args: str, timeout: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m module args...` on a host, with this interpreter and this lbd; see `run`."""
        return self.run(host, [sys.executable, "-m", module, *args], timeout=timeout, check=check)

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Put the current thread into a host's namespace for the body.

        Sockets and threads made in the body stay in the namespace after it; other threads do not notice.
        Raises LabError when the namespace cannot be entered.
        """
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(NAMES / self.namespace(host), os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(here)
        finally:
            os.close(here)

    def sysctl(self, host: str, name: str, value: str | None = None) -> str:
        """Return a sysctl of a host ("net.ipv4.ip_forward"), after writing `value` to it if there is one."""
        path = Path("/proc/sys", *name.split("."))
        with self.inside(host):
            if value is not None:
                path.write_text(value)
            return path.read_text().strip()

    def _known(self, host: str) -> None:
        if host not in self._namespaces:
            _ = self.topology[host]  # raises with the names there are

    def _build(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        _batch(f"netns add {namespace}" for namespace in self._namespaces.values())
        # Bridges without addresses: no IPv6 of their own, so that nothing but the hosts talks on the wire.
        self.sysctl(WIRE, "net.ipv6.conf.default.disable_ipv6", "1")
        for host in self.topology.hosts:
            for name, value in {**QUIET, **host.sysctls}.items():
                self.sysctl(host.name, name, value)
        _batch(wiring(self.topology, self._namespaces), self._namespaces[WIRE])
        for host in self.topology.hosts:
            _batch(setup(host), self._namespaces[host.name])
        if not wait_until(lambda: not self._not_ready(), READY_SECONDS):
            raise LabError(f"after {READY_SECONDS} s these links do not work yet: {self._not_ready()}")

    def _not_ready(self) -> list[str]:
        return [
            f"{namespace} {link['ifname']}"
            for namespace in self._namespaces.values()
            for link in json.loads(_run(["ip", "-n", namespace, "-json", "-details", "link"]).stdout)
            if not _works(link)
        ]

    def _stop(self) -> None:
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        _reap(running)
        # What is left did not obey, or was started by what we started. The namespaces are ours alone.
        # Again until none is found: one of them may start another while it is looked for.
        wait_until(lambda: not self._kill(), STOP_SECONDS)
        _reap(running)

    def _kill(self) -> set[int]:
        pids = self._pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids

    def _pids(self) -> set[int]:
        ours = (n for n in self._namespaces.values() if (NAMES / n).exists())
        found = {int(pid) for n in ours for pid in _run(["ip", "netns", "pids", n]).stdout.split()}
        return found - {os.getpid()}

    def _delete(self) -> None:
        for namespace in self._namespaces.values():
            if (NAMES / namespace).exists():
                _run(["ip", "netns", "delete", namespace], check=False)
        left = [n for n in self._namespaces.values() if (NAMES / n).exists()]
        if left:
            raise LabError(f"could not delete these namespaces, use `ip netns delete`: {' '.join(left)}")


def wait_until(condition: Callable[[], T], seconds: float) -> T | None:
    """Return the first true result of `condition`, tried every few milliseconds; None after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)
    return result


def _reap(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def _works(link: Mapping[str, object]) -> bool:
    """Whether a link of `ip -json -details link` carries packets, as far as it is one end of a cable.

    An end in a bridge must also forward. Bridges and lo have no end; their state comes late or never.
    """
    info = link.get("linkinfo")
    if not isinstance(info, dict) or info.get("info_kind") != "veth":
        return True
    return (
        link["operstate"] == "UP"
        and info.get("info_slave_data", {}).get("state", "forwarding") == "forwarding"
    )


def _enter(descriptor: int) -> None:
    # os.setns exists from Python 3.12 on. It moves only the calling thread, see setns(2).
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise LabError(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}; run as root")


def _batch(lines: Iterable[str], namespace: str | None = None) -> None:
    where = ["-n", namespace] if namespace else []
    _run(["ip", *where, "-batch", "-"], text="".join(f"{line}\n" for line in lines))


def _run(
    argv: Sequence[str],
    *,
    text: str = "",
    timeout: float = 30.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, check=False, timeout=timeout, env=env
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]}: not found; the lab needs iproute2") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)}: not done after {timeout} s") from error
    if check and done.returncode != 0:
        raise LabError(
            f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done
