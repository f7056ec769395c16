"""The control socket's contract, shared by the daemon and the client commands.

One line of JSON each way: {"command": "reload", "arguments": {}} is answered by {"ok": true, ...} or by
{"ok": false, "error": "...", "exit": 78}, "exit" being the exit code for the command. A `kind` in an
answer says that the question itself failed, before or instead of the command: "request" (not understood),
"denied", "busy" or "internal".
"""

from __future__ import annotations

# Exit codes of the command: those of sysexits.h, where it has one.
OK, FAILED, USAGE, DIFFERENCES, NO_DAEMON, NO_PERMISSION, BAD_FILE = 0, 1, 2, 4, 69, 77, 78

# In the runtime directory (RUNTIME_DIRECTORY, by default /run/lbd).
SOCKET_NAME = "control.sock"

# How long a client waits for what the daemon knows already, in seconds.
STATUS_MOST = 5.0

# Who waits for the end of a drain asks again after so many seconds: one that has gone away costs no more.
WAIT_MOST = 20.0

# What changes nothing and shows nothing that `nft` would hide is for everyone.
_FOR_ANYONE = frozenset({"status"})
_ROOT = 0


def allowed(command: str, uid: int, own_uid: int) -> str | None:
    """Return why the user `uid` may not give `command` to a daemon that runs as `own_uid`, or None."""
    if command in _FOR_ANYONE or uid in {_ROOT, own_uid}:
        return None
    return f"`lbd {command}` is for root and for the user that lbd runs as (uid {own_uid}), not for uid {uid}"
