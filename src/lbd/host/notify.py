"""Tell systemd how lbd is: readiness, status, reloads and the watchdog (sd_notify(3)).

Nothing here blocks or fails: without systemd (NOTIFY_SOCKET is not set) it does nothing, and with a full
queue it keeps what must arrive for the next call.
"""

from __future__ import annotations

import os

from sdnotify import SystemdNotifier

# systemd reads 4096 bytes (NOTIFY_BUFFER_MAX in src/core/manager.c) and throws a longer datagram away,
# with the READY=1 in it.
_STATUS_LIMIT = 1000


class Notify:
    """The way to the service manager that started lbd. For one thread."""

    def __init__(self) -> None:
        self._enabled = bool(os.environ.get("NOTIFY_SOCKET"))
        # Seconds between two calls of `watchdog`: half of WatchdogSec=, as sd_watchdog_enabled(3) asks for.
        # None when the service manager expects none.
        self.watchdog_interval = _watchdog_interval()
        # What systemd has not got yet and must get, by kind: the last of a kind replaces earlier ones, so
        # that this stays small however long nobody reads.
        self._owed: dict[str, str] = {}
        self._status = ""
        self._status_owed = False

    def ready(self, status: str) -> None:
        """Say that lbd is up, or that a reload has ended: systemd waits for it after `reloading`."""
        self._tell(status)
        self._owe("READY", "READY=1")
        self._flush()

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._tell(text)
        if self._flush() and self._status_owed:
            self._send("")

    def reloading(self, monotonic_usec: int) -> None:
        """Say that a reload begins; `monotonic_usec` is CLOCK_MONOTONIC in microseconds."""
        # One datagram: a RELOADING=1 without the time is refused for Type=notify-reload.
        self._owe("RELOADING", f"RELOADING=1\nMONOTONIC_USEC={monotonic_usec}")
        self._flush()

    def stopping(self) -> None:
        """Say that lbd is going down."""
        self._owe("STOPPING", "STOPPING=1")
        self._flush()

    def watchdog(self) -> None:
        """Say that the event loop makes progress."""
        # A lost one is not kept: only a fresh one says anything.
        if self._flush():
            self._send("WATCHDOG=1")

    def _tell(self, text: str) -> None:
        # sdnotify loses the whole datagram when it meets a character that is not Latin-1, and a newline
        # would begin another assignment.
        line = "".join(c if c.isprintable() else " " for c in text)
        self._status = line.encode("ascii", "replace").decode()[:_STATUS_LIMIT]
        self._status_owed = True

    def _owe(self, kind: str, text: str) -> None:
        self._owed.pop(kind, None)
        self._owed[kind] = text

    def _flush(self) -> bool:
        """Send what is owed, oldest first. Returns whether all of it was taken."""
        for kind, text in list(self._owed.items()):
            if not self._send(text):
                return False
            del self._owed[kind]
        return True

    def _send(self, text: str) -> bool:
        if not self._enabled:
            return True
        lines = [text] if text else []
        if self._status_owed:
            lines.append(f"STATUS={self._status}")
        try:
            # A socket for each datagram costs 20 us and finds a service manager that made its socket anew
            # (daemon-reexec), which a kept connection never does. debug: report errors.
            notifier = SystemdNotifier(debug=True)
            with notifier.socket as socket:
                socket.setblocking(False)
                notifier.notify("\n".join(lines))
        except OSError:
            return False
        self._status_owed = False
        return True


def _watchdog_interval() -> float | None:
    pid = os.environ.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):
        return None
    try:
        usec = int(os.environ["WATCHDOG_USEC"])
    except (KeyError, ValueError):
        return None
    return usec / 2_000_000 if usec > 0 else None
