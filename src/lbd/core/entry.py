"""What lbd tells the journal: one value per entry, and the identities by which entries are found again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# Drawn once at random (`systemd-id128 new`) and never changed: scripts and catalogs select by them.
# Only add; what an id means is said in docs/journal.md.
STARTED = "06d22d44bbf948e2b9b906f3328c80be"
READY = "cbfb6b80a7fb4f54a0203ed2ec405b6e"
APPLIED = "23168a7d9795446484110a882fc0f8ed"
REFUSED = "c0054c964cad412e9076be4e2cdbf5f1"
DRIFT = "0c1b89c9b6d9465392fc6e10c5d58c4a"
DEGRADED = "74f0afebb5c4476eb6e175369e25062a"
FAILED = "c654b0c76f6246098584d88365fe3c29"
STOPPED = "946203f15fcc405c939d193395f97912"
PACKET = "c5b22c1621124fc3b544ea3be70256b5"
WORKER = "7e29f0ea2d9e4b368de368e8c41b1307"
ADAPTED = "81d328990554494391c65b457b9e69a5"
ENDED = "cb2b536c7c1d4a6d805f748befca40b4"
UNANSWERED = "35cca9e24b494ce39d967b3bab4ab82f"
HEALTH = "e46e1fb4d96f423fbce1a036163fc6c9"
PANIC = "7b64dcb3261d4faf8abaf3d9cb07e534"
OVERRIDE = "bab406fe5f1c486fbd333c402b854e8e"
DRAINED = "0fd101fc126a40ff99105196e1c3e132"

MESSAGE_IDS: Mapping[str, str] = {
    "STARTED": STARTED,
    "READY": READY,
    "APPLIED": APPLIED,
    "REFUSED": REFUSED,
    "DRIFT": DRIFT,
    "DEGRADED": DEGRADED,
    "FAILED": FAILED,
    "STOPPED": STOPPED,
    "PACKET": PACKET,
    "WORKER": WORKER,
    "ADAPTED": ADAPTED,
    "ENDED": ENDED,
    "UNANSWERED": UNANSWERED,
    "HEALTH": HEALTH,
    "PANIC": PANIC,
    "OVERRIDE": OVERRIDE,
    "DRAINED": DRAINED,
}

# The priorities of syslog(3) that lbd uses.
ERROR = 3
WARNING = 4
NOTICE = 5
INFO = 6
DEBUG = 7

_MESSAGE_ID = re.compile(r"[0-9a-f]{32}")
# journald drops fields whose name is longer than 64 characters or not of this alphabet.
_FIELD = re.compile(r"LBD_[A-Z0-9_]{1,60}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One journal entry.

    `message_id` is 32 lower-case hex digits, `priority` 0 (emergency) to 7 (debug) as in syslog(3), and
    the names in `fields` begin with LBD_. Raises ValueError for anything else: that is an error in lbd,
    never in what a user wrote.
    """

    message: str
    message_id: str
    priority: int = INFO
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _MESSAGE_ID.fullmatch(self.message_id):
            raise ValueError(f"message id {self.message_id!r} is not 32 lower-case hex digits")
        if not 0 <= self.priority <= DEBUG:
            raise ValueError(f"priority {self.priority} is not between 0 and 7")
        for name in self.fields:
            if not _FIELD.fullmatch(name):
                raise ValueError(f"journal field {name!r} is not LBD_ and up to 60 of A-Z, 0-9 and _")
