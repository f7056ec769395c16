"""TCP connects of checks, thousands a second: no task and no timer for each, and a poll of their own.

A connection is given up with a reset before the handshake is done (see probe_stream.connected): the server
is not told of it, and nobody keeps a port in TIME_WAIT.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from lbd.core.health import Result, Target
from lbd.host.probe_errors import OwnTroubleError, own, said, trouble
from lbd.host.probe_stream import RESET, bind

Key = TypeVar("Key")

PASSED = Result(passed=True)

# What is looked at in one go, before the event loop gets its turn: a millisecond or so.
AT_ONCE = 64

# Connects that are late are looked for this often, in seconds.
LATE = 0.01


class _Attempt(Generic[Key]):
    __slots__ = ("deadline", "key", "sock", "within")

    def __init__(self, key: Key, sock: socket.socket, within: float, deadline: float) -> None:
        self.key, self.sock, self.within, self.deadline = key, sock, within, deadline


class Connects(Generic[Key]):
    """Connects under way. `done` is told, on the event loop, what came of each: a result or a trouble."""

    def __init__(self, done: Callable[[Key, Result | OwnTroubleError], None]) -> None:
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._poll = select.epoll()
        self._attempts: dict[int, _Attempt[Key]] = {}
        self._by_key: dict[Key, int] = {}
        # By timeout: they were begun in this order, and so end in it.
        self._late: dict[float, deque[_Attempt[Key]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._poll, self._ready)

    def begin(self, key: Key, target: Target, within: float) -> None:
        """Connect to a target, within so many seconds. It may be done before this returns."""
        try:
            sock = _socket(target)
        except OSError as error:
            self._done(key, trouble(error))
            return
        code = sock.connect_ex((target.address, target.port))
        if code != errno.EINPROGRESS:
            sock.close()
            self._done(key, _at_once(code))
            return
        fd = sock.fileno()
        try:
            self._poll.register(fd, select.EPOLLOUT)
        except OSError as error:  # ENOMEM, or fs.epoll.max_user_watches
            sock.close()
            self._done(key, OwnTroubleError(error.errno, error.strerror))
            return
        attempt = _Attempt(key, sock, within, self._loop.time() + within)
        self._attempts[fd], self._by_key[key] = attempt, fd
        if within not in self._late:
            self._late[within] = deque()
        self._late[within].append(attempt)
        if self._timer is None:
            self._timer = self._loop.call_at(attempt.deadline, self._look_for_late)

    def give_up(self, key: Key) -> None:
        """Forget a connect, if it is under way: nobody is told what came of it."""
        if (fd := self._by_key.get(key)) is not None:
            self._end(self._attempts[fd])

    def close(self) -> None:
        """Forget them all."""
        for attempt in list(self._attempts.values()):
            self._end(attempt)
        if self._timer:
            self._timer.cancel()
        self._loop.remove_reader(self._poll)
        self._poll.close()

    def _ready(self) -> None:
        for fd, events in self._poll.poll(0, AT_ONCE):
            attempt = self._attempts[fd]
            code = 0
            if events & (select.EPOLLERR | select.EPOLLHUP):
                code = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._end(attempt)
            self._done(attempt.key, _result(code))

    def _look_for_late(self) -> None:
        self._timer = None
        now = self._loop.time()
        nexts = []
        for within, attempts in list(self._late.items()):
            while attempts and (attempts[0].sock.fileno() < 0 or attempts[0].deadline <= now):
                attempt = attempts.popleft()
                if attempt.sock.fileno() >= 0:
                    self._end(attempt)
                    self._done(attempt.key, Result(passed=False, reason=f"no answer within {within:g}s"))
            if attempts:
                nexts.append(attempts[0].deadline)
            else:
                del self._late[within]
        if nexts and self._timer is None:
            self._timer = self._loop.call_at(max(min(nexts), now + LATE), self._look_for_late)

    def _end(self, attempt: _Attempt[Key]) -> None:
        del self._attempts[attempt.sock.fileno()], self._by_key[attempt.key]
        # That takes it out of the poll as well.
        attempt.sock.close()


def _result(code: int) -> Result:
    """Return what an error code means that came later, hence from the network; 0 is none."""
    return Result(passed=False, reason=said(OSError(code, os.strerror(code)))) if code else PASSED


def _at_once(code: int) -> Result | OwnTroubleError:
    """Return what an error code of connect(2) itself means."""
    error = OSError(code, os.strerror(code))
    return trouble(error) if own(error) else _result(code)


def _socket(target: Target) -> socket.socket:
    """Return a socket for a target, at its source address; closing it sends a reset. Raises OSError."""
    family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        if target.source:
            bind(sock, target.source)
    except OSError:
        sock.close()
        raise
    return sock
