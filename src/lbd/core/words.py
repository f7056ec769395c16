"""How things are said: counts, lines that are cut, text from outside shown inside ours, near words."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

# What EPERM means, wherever the kernel says it.
NEEDS_CAPABILITY = "lbd needs the capability CAP_NET_ADMIN in this network namespace"

# What is shown of an operation: one with all elements of a map is for the kernel to read.
LONGEST_LINE = 300


def many(count: int, word: str) -> str:
    """Return "1 service", "2 services", "2 addresses"."""
    return f"{count} {word}" + ("" if count == 1 else "es" if word.endswith("s") else "s")


def cut(line: str) -> str:
    """Return a line that is too long to read as its beginning and its length."""
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ... ({len(line)} characters)"


def printable(text: str) -> str:
    """Return `text` with what a terminal would obey, or cannot show, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quote(text: str) -> str:
    """Return `text` in quotes for a message: on one line, and not longer than is of use there."""
    longest = 64
    return f'"{printable(text[:longest])}{"..." if len(text) > longest else ""}"'


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """Return `; did you mean "x"?`, or nothing when no choice is near. Long words are not compared."""
    near = get_close_matches(word.lower(), choices, n=1) if len(word) <= 32 else []  # noqa: PLR2004 - above
    return f'; did you mean "{near[0]}"?' if near else ""
