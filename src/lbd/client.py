"""Ask the running daemon: the other end of the control socket.

Imported by every client command, so it stays light: no asyncio, no pydantic, no pyroute2.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lbd.core.control import FAILED, NO_DAEMON, NO_PERMISSION, SOCKET_NAME, WAIT_MOST

_CHUNK = 64 * 1024

# A count of a large connection tracking table takes some seconds, and another may be under way.
ANSWER_MOST = 30.0


class CallError(Exception):
    """The daemon gave no answer to the question. `exit_code` is that of the command."""

    exit_code = FAILED


class NoDaemonError(CallError):
    """No daemon listens in this runtime directory (EX_UNAVAILABLE)."""

    exit_code = NO_DAEMON


class DeniedError(CallError):
    """The caller may not ask this (EX_NOPERM)."""

    exit_code = NO_PERMISSION


def call(
    runtime_directory: Path, command: str, arguments: Mapping[str, object], timeout: float
) -> dict[str, object]:
    """Return the daemon's answer to `command` within `timeout` seconds in all.

    An answer with "ok": false is the daemon's verdict (say, a refused file) and is returned. Raises
    NoDaemonError, DeniedError, or CallError when there is no verdict.
    """
    path = runtime_directory / SOCKET_NAME
    line = json.dumps({"command": command, "arguments": dict(arguments)}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            answer = _exchange(connection, str(path), line, time.monotonic() + timeout)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemonError(f"no lbd runs here: nobody listens at {path}") from None
        except PermissionError:
            raise DeniedError(f"{path} is not open to this user") from None
        except (TimeoutError, BlockingIOError):
            raise CallError(f"lbd did not answer `{command}` within {timeout:g} s") from None
        except OSError as error:
            raise CallError(f"the conversation with lbd at {path} broke: {error.strerror or error}") from None
    return _verdict(answer, command)


def await_drained(runtime_directory: Path, service: str, backend: str, timeout: float) -> dict[str, object]:
    """Return the daemon's answer when a drain is over, in whatever way, or `timeout` seconds have passed.

    Raises what `call` does.
    """
    deadline = time.monotonic() + timeout
    while True:
        seconds = min(max(0.0, deadline - time.monotonic()), WAIT_MOST)
        arguments = {"service": service, "backend": backend, "seconds": seconds}
        answer = call(runtime_directory, "drained", arguments, seconds + ANSWER_MOST)
        if not answer["ok"] or answer["state"] != "drain" or time.monotonic() >= deadline:
            return answer


def _exchange(connection: socket.socket, path: str, line: bytes, deadline: float) -> bytes:
    _wait_until(connection, deadline)
    connection.connect(path)
    # Refused before it was read (too many connections): the reason is there to be read.
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(line)
    answer = bytearray()
    while not answer.endswith(b"\n"):
        _wait_until(connection, deadline)
        part = connection.recv(_CHUNK)
        if not part:
            break
        answer += part
    return bytes(answer)


def _wait_until(connection: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def _verdict(answer: bytes, command: str) -> dict[str, object]:
    if not answer:
        raise CallError(f"lbd ended the conversation without an answer to `{command}`")
    try:
        verdict = json.loads(answer)
    except ValueError:
        raise CallError(f"lbd's answer to `{command}` is not JSON, or not all of it came") from None
    if not isinstance(verdict, dict):
        raise CallError(f"lbd's answer to `{command}` is not an object")
    kind = verdict.get("kind")
    if verdict.get("ok") is False and kind in {"request", "denied", "busy", "internal"}:
        error = DeniedError if kind == "denied" else CallError
        raise error(str(verdict.get("error")))
    return verdict
