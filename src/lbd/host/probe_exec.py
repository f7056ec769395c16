"""Checks by a program: without a shell, without lbd's rights, and ended with all it started.

setpriv(1) would do for the rights, but cannot under lbd's unit, which forbids capset(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from weakref import WeakKeyDictionary

from lbd.core.health import Result, Target
from lbd.core.probes import ExecProbe
from lbd.core.words import cut, printable, quote
from lbd.host.probe_errors import OwnTroubleError

# What is kept of the output, and what is read of it before the program is ended, in bytes.
KEPT = 4096
MOST = 1 << 20
READ = 1 << 16

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# For root, the program is one of these users, the first that there is.
USERS = ("lbd", "nobody")

# Errors of execve(2) that are about the program; the others are about this host.
CANNOT_RUN = frozenset(
    {
        errno.E2BIG,
        errno.EACCES,
        errno.EISDIR,
        errno.ELIBBAD,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOEXEC,
        errno.ENOTDIR,
        errno.ETXTBSY,
    }
)

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

# linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)


async def execute(target: Target, probe: ExecProbe) -> Result:
    """Run the program of a check to its end, and see whether it exits with 0.

    When this is cancelled, all that is still in the program's session is killed. Raises OwnTroubleError
    when there cannot be another process, and when the rights cannot be given away.
    """
    turn = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    try:
        # To start a process takes milliseconds, in which nothing else runs: one in each turn of the loop.
        async with turn:
            await asyncio.sleep(0)
            running = _Running(target, probe)
    except ValueError as error:  # a null byte
        return Result(False, f"cannot run {quote(probe.command[0])}: {error}")
    except OSError as error:
        if error.errno not in CANNOT_RUN:
            raise
        return Result(False, f"cannot run {quote(probe.command[0])}: {os.strerror(error.errno).lower()}")
    with contextlib.closing(running):
        await running.over
        if running.seen > MOST:
            return Result(False, f"more than {MOST >> 20} MiB of output")
        code = running.end()
    return _judged(code, bytes(running.output))


class _Running:
    """A program that runs; it is in a session of its own. `over` is when it has ended or says too much."""

    def __init__(self, target: Target, probe: ExecProbe) -> None:
        environment = {"PATH": PATH, "LBD_ADDRESS": target.address, "LBD_PORT": str(target.port or "")}
        # Rights are each thread's own, and go on to the processes that it starts: capabilities(7).
        try:
            with ThreadPoolExecutor(1) as thread:
                self._process = thread.submit(_start, probe.command, environment).result()
        except RuntimeError as error:  # as Python calls it when there cannot be another thread
            raise OwnTroubleError(errno.EAGAIN, str(error)) from None
        assert self._process.stdout
        self._pipe = self._process.stdout.fileno()
        self.output = bytearray()
        self.seen = 0
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        os.set_blocking(self._pipe, False)
        # Readable when the process has ended: pidfd_open(2). It is not reaped before its session is killed,
        # so that its number is still its own then.
        try:
            self._exit = os.pidfd_open(self._process.pid)
        except OSError:
            self._kill()
            self._process.stdout.close()
            self._process.wait()
            raise
        self._loop.add_reader(self._pipe, self._read)
        self._loop.add_reader(self._exit, self._ended)

    def end(self) -> int:
        """Kill what is left of it, and return the exit code, or the signal as a negative number."""
        self._kill()
        while self._read():  # what was said last
            pass
        return self._process.wait()

    def close(self) -> None:
        """Kill what is left of it. It is reaped when it is gone, which may be after this."""
        assert self._process.stdout
        self._loop.remove_reader(self._pipe)
        self._process.stdout.close()
        self._loop.remove_reader(self._exit)
        if self._process.returncode is None:
            self._kill()
            self._loop.add_reader(self._exit, self._reap)
        else:
            os.close(self._exit)

    def _read(self) -> bool:
        """Take what has come; return whether there may be more to take."""
        try:
            data = os.read(self._pipe, READ)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._pipe)
        self.seen += len(data)
        self.output += data[: KEPT - len(self.output)]
        if self.seen > MOST:
            self._ended()
        return bool(data) and self.seen <= MOST

    def _ended(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        self._process.wait()
        self._loop.remove_reader(self._exit)
        os.close(self._exit)


def _give_up() -> None:
    """Make this thread one that cannot leave rights to a program, other than those of its user.

    An inheritable capability is left, and is of use only to a file that has been given the same one.
    """
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OwnTroubleError(code, f"a program cannot be started without rights: {os.strerror(code)}")


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program without rights. This takes those of the thread that calls it."""
    _give_up()
    user, group = _ids()
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        cwd="/",
        env=environment,
        start_new_session=True,
        user=user,
        group=group,
        extra_groups=None if group is None else (),
    )


@cache
def _ids() -> tuple[int | None, int | None]:
    """Return the user and group to change to, if lbd is root; with the user go its capabilities."""
    if os.geteuid() != 0:
        return None, None
    for name in USERS:
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return found.pw_uid, found.pw_gid
    raise OwnTroubleError(None, f"there is no user {' or '.join(USERS)} to run a check as")


def _judged(code: int, output: bytes) -> Result:
    if code == 0:
        return Result(True)
    text = printable(" ".join(output.decode(errors="backslashreplace").split()))
    how = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
    return Result(False, cut(f"{how}: {text}" if text else how))
