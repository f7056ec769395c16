"""Who a process is, while it lives: proc(5)."""

from __future__ import annotations

import pwd
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# What is read of a command line; the kernel lets it be megabytes.
LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was alive a moment ago. `command` is its command line, words with spaces between."""

    command: str
    user: str


def process(pid: int, name: str) -> Process | None:
    """Return the process `pid` if it still lives and is called `name` (another may have got its number)."""
    directory = Path("/proc") / str(pid)
    try:
        if (directory / "comm").read_bytes().rstrip(b"\n").decode(errors="replace") != name:
            return None
        with (directory / "cmdline").open("rb") as file:
            words = file.read(LONGEST)
        owner = directory.stat().st_uid
    except OSError:
        return None
    if not words:
        # It has ended, and its parent has not asked for it yet.
        return None
    return Process(words.replace(b"\0", b" ").strip().decode(errors="replace"), _user(owner))


@lru_cache(maxsize=64)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
