"""The control socket: client commands come in here, one line of JSON each way.

core/control has the contract. Whatever comes in, the event loop goes on: every wait has a deadline and
every size a limit.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lbd.core.control import allowed

Answer = dict[str, object]

_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the kernel vouches for it (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Request:
    """A command that its peer is allowed to give."""

    command: str
    arguments: Mapping[str, object]
    peer: Peer


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost: bytes of a request, seconds, and connections of all of them at once.

    `send` and `receive` are what the client does: send its request, receive its answer.
    """

    request: int = 64 * 1024
    send: float = 5.0
    receive: float = 5.0
    connections: int = 64


class ControlSocketError(Exception):
    """The control socket cannot be made. The text says where and why."""


class AlreadyRunningError(ControlSocketError):
    """Another lbd answers in this runtime directory; `pid` is None when it is too busy to say."""

    def __init__(self, path: Path, pid: int | None) -> None:
        self.pid = pid
        who = f"pid {pid}" if pid else "its pid is not known"
        super().__init__(
            f"another lbd ({who}) answers at {path}: stop it, or set RUNTIME_DIRECTORY to run one beside it"
        )


class RequestError(Exception):
    """What came in is no request. The text is the answer."""


class ControlServer:
    """Serves `answer` at the unix stream socket `path`.

    An answer is sent as it is, with "ok": true where it has no "ok" of its own. What `answer` raises
    becomes an answer of kind "internal" and goes to `failed` (the daemon's log).
    """

    def __init__(
        self,
        path: Path,
        answer: Callable[[Request], Awaitable[Answer]],
        failed: Callable[[Exception], None] = lambda _: None,
        limits: Limits = Limits(),
    ) -> None:
        self._path = path
        self._answer = answer
        self._failed = failed
        self._limits = limits
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen. Raises AlreadyRunningError, or ControlSocketError when the directory does not allow it."""
        try:
            listener = self._listen()
        except OSError as error:
            raise ControlSocketError(f"cannot listen at {self._path}: {error.strerror or error}") from error
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=self._limits.request
        )

    async def close(self) -> None:
        """Stop listening and end the conversations."""
        if self._server is None:
            return
        self._server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        with suppress(OSError):
            # Not the socket of a daemon that came after us.
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _listen(self) -> socket.socket:
        directory = self._path.parent
        if not directory.exists():
            # Under systemd RuntimeDirectory= made it. By hand: others may look in, whatever the umask.
            directory.mkdir(parents=True)
            directory.chmod(0o755)
        with _locked(directory, self._path):
            pid = _listener(self._path)
            if pid is not None:
                raise AlreadyRunningError(self._path, pid or None)
            # Made under another name and renamed: at `path` there is only ever a socket that listens and has
            # its mode, and a dead daemon's is replaced without a gap.
            new = self._path.with_name(f"{self._path.name}.new")
            new.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                listener.bind(str(new))
                new.chmod(0o666)  # for everyone: core/control says who may do what
                listener.listen(self._limits.connections)
                self._inode = new.stat().st_ino
                new.replace(self._path)
            except OSError:
                listener.close()
                raise
        return listener

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        assert client is not None
        self._clients.add(client)
        try:
            if len(self._clients) > self._limits.connections:
                answer: Answer | None = _refusal(
                    "busy", f"{self._limits.connections} clients are here: try again"
                )
            else:
                answer = await self._converse(reader, writer)
            if answer is not None:
                await self._send(writer, answer)
        except OSError:
            pass  # the client went away
        finally:
            self._clients.discard(client)
            # Not close(), which waits for a reader that does not read: everything sent was drained.
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer | None:
        peer = _peer(writer.get_extra_info("socket"))
        try:
            line = await self._receive(reader)
            if not line:
                return None
            request = _parse(line, peer)
        except RequestError as error:
            return _refusal("request", str(error))
        reason = allowed(request.command, peer.uid, os.geteuid())
        if reason is not None:
            return _refusal("denied", reason)
        try:
            return {"ok": True, **await self._answer(request)}
        except Exception as error:  # noqa: BLE001 - the border of the daemon: one bad request is one bad answer
            self._failed(error)
            return _refusal("internal", f"{type(error).__name__}: {error}")

    async def _receive(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._limits.send):
                return await reader.readuntil(b"\n")
        except TimeoutError:
            raise RequestError(f"no whole line came within {self._limits.send:g} s") from None
        except asyncio.LimitOverrunError:
            raise RequestError(f"the request is longer than {self._limits.request} bytes") from None
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return b""
            raise RequestError("the request ends without a newline") from None

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        try:
            text = json.dumps(answer)
        except (TypeError, ValueError) as error:
            self._failed(error)
            text = json.dumps(_refusal("internal", f"the answer is not JSON: {error}"))
        # drain() then returns when all is sent, not when the rest fits in a buffer.
        writer.transport.set_write_buffer_limits(high=0)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.receive):
                writer.write(text.encode() + b"\n")
                await writer.drain()


def _parse(line: bytes, peer: Peer) -> Request:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise RequestError("the request is not a line of JSON") from None
    command = data.get("command") if isinstance(data, dict) else None
    if not isinstance(command, str):
        raise RequestError('the request is not an object with a "command"')
    arguments = data.get("arguments", {})
    if not isinstance(arguments, dict):
        raise RequestError('"arguments" is not an object')
    return Request(command, arguments, peer)


def _refusal(kind: str, error: str) -> Answer:
    return {"ok": False, "kind": kind, "error": error}


def _peer(connection: socket.socket) -> Peer:
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def _listener(path: Path) -> int | None:
    """Return the pid of the process that listens at `path`, 0 when it cannot be told, None for nobody."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)) as probe:
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return 0  # its queue is full, so there is somebody
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        return _peer(probe).pid


@contextmanager
def _locked(directory: Path, path: Path) -> Iterator[None]:
    """Hold the directory for the moment between asking who listens and listening ourselves."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise AlreadyRunningError(path, None) from None
    finally:
        os.close(fd)
