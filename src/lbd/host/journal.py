"""Write to the journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

Only when lbd's error stream is the journal's (JOURNAL_STREAM, systemd.exec(5)); otherwise each entry is
a line of text on that stream. Nothing here blocks or fails.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import sys
from array import array
from pathlib import Path
from typing import TextIO

from lbd.core.entry import ERROR, WARNING, Entry

_SOCKET = Path("/run/systemd/journal/socket")

# A descriptor that poll(2) calls writable takes this much (PIPE_BUF) without blocking.
_LINE_LIMIT = select.PIPE_BUF

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_RED, _YELLOW, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"


class Journal:
    """Where the daemon's entries go. `stream` is the error stream (default: sys.stderr)."""

    def __init__(self, stream: TextIO | None = None, socket_path: Path = _SOCKET) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._path = str(socket_path)
        self._native = _is_journal(self._stream)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def send(self, entry: Entry) -> None:
        """Write one entry: to the journal, or as text where there is none or it does not listen."""
        if not (self._native and self._send(_serialise(entry))):
            self._print(entry)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _send(self, data: bytes) -> bool:
        try:
            # By address and not connected: journald may have been restarted since the last entry.
            self._socket.sendto(data, self._path)
        except OSError as error:
            # As libsystemd does: a datagram that does not fit goes as a file.
            return error.errno in {errno.EMSGSIZE, errno.ENOBUFS} and self._send_file(data)
        return True

    def _send_file(self, data: bytes) -> bool:
        try:
            fd = os.memfd_create("lbd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                # journald maps only what nobody can change any more.
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
                self._socket.sendmsg([], rights, 0, self._path)
        except OSError:
            return False
        return True

    def _print(self, entry: Entry) -> None:
        stream = self._stream
        try:
            if not _writable(stream):
                return
            lines = _lines(entry.message, stream.encoding or "utf-8")
            colour = _colour(entry.priority) if stream.isatty() else ""
            stream.write(f"{colour}{lines}{_PLAIN}\n" if colour else f"{lines}\n")
            stream.flush()
        except (OSError, ValueError):
            # The reader of the stream is gone (EPIPE) or it is closed: there is nobody left to tell.
            return


def _serialise(entry: Entry) -> bytes:
    fields = {
        "MESSAGE": entry.message,
        "MESSAGE_ID": entry.message_id,
        "PRIORITY": str(entry.priority),
        "SYSLOG_IDENTIFIER": "lbd",
        **entry.fields,
    }
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: str) -> bytes:
    # Names of files may hold bytes that are no text; they arrive here as lone surrogates.
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _is_journal(stream: TextIO) -> bool:
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _writable(stream: TextIO) -> bool:
    try:
        fd = stream.fileno()
    except OSError:
        return True  # in memory
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def _lines(message: str, encoding: str) -> str:
    # Messages quote what users wrote: no line that looks like an entry, no escape sequence for the terminal.
    lines = ("".join(c if c.isprintable() else " " for c in line) for line in message.split("\n"))
    text = "lbd: " + "\n    ".join(lines)
    # The newline and the colours around it take less than 16 bytes.
    data = text.encode(encoding, "backslashreplace")[: _LINE_LIMIT - 16]
    return data.decode(encoding, "ignore")


def _colour(priority: int) -> str:
    if priority <= ERROR:
        return _RED
    return _YELLOW if priority == WARNING else ""
