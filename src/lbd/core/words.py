"""How things are said: counts, and text from outside that is shown inside a line of ours."""

from __future__ import annotations


def many(count: int, word: str) -> str:
    """Return "1 service", "2 services", "2 addresses"."""
    return f"{count} {word}" + ("" if count == 1 else "es" if word.endswith("s") else "s")


def printable(text: str) -> str:
    """Return `text` with what a terminal would obey, or cannot show, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quote(text: str) -> str:
    """Return `text` in quotes for a message: on one line, and not longer than is of use there."""
    longest = 64
    return f'"{printable(text[:longest])}{"..." if len(text) > longest else ""}"'
