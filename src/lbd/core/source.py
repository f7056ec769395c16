"""The text of a configuration file, what is wrong with it, and where.

This module knows TOML and nothing of load balancing: it turns bytes into text, text into plain data, and
a mistake into a problem that shows the line and points at the place.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from lbd.core.words import printable

# An excerpt is as wide as a terminal; a longer line is cut around the place.
EXCERPT_WIDTH = 100
EXCERPT_LEAD = 40

# tomllib takes quadratic time for a key of many parts (100,000 parts: minutes). No key of lbd has over two.
LONGEST_KEY = 64
_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*(?P<key>(?:{_PART}){{{LONGEST_KEY}}})", re.MULTILINE)

# What can hold a bracket that does not count, or is one. Only valid up to the first mistake in the text.
_BRACKET = re.compile(
    r'"""(?:\\.|[^\\])*?"""|' + r"'''.*?'''|" + r'"(?:\\.|[^"\\\n])*+"|' + r"'[^'\n]*+'|#[^\n]*+|[\[\]{}]",
    re.DOTALL,
)

_LONG_NUMBER = re.compile(r"[0-9][0-9_]{4299,}")
_POSITION = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")

# tomllib's words for the two mistakes that are not of spelling.
_CLEARER = (
    (re.compile(r"^Cannot overwrite a value$"), "the key before this place is set a second time"),
    (re.compile(r"^Cannot (?:declare|mutate) .*$"), "this table is declared a second time or is not a table"),
)


@dataclass(frozen=True)
class Source:
    """A file as read: `text` is decoded, and `path` is shown and what the file is known by.

    A file of `prefixes` is a list that the others name. When one could not be read, `unread` says why: it
    is refused where it is named. No slots: `lines` is kept once computed.
    """

    path: str
    text: str
    kind: Literal["toml", "prefixes"] = "toml"
    unread: str = ""

    @cached_property
    def lines(self) -> list[str]:
        """Return the lines without their ends, as TOML counts them (LF or CRLF, nothing else)."""
        return self.text.replace("\r\n", "\n").split("\n")


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a text: `line` and `column` count characters from 1, `width` is at least 1."""

    line: int
    column: int
    width: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` and `column` are None when the whole file is meant; `excerpt` is then empty."""

    path: str
    line: int | None
    column: int | None
    message: str
    excerpt: str

    @property
    def headline(self) -> str:
        """Return `PATH:LINE:COLUMN: MESSAGE`, one line, whatever bytes the file name is made of."""
        place = "".join(f":{n}" for n in (self.line, self.column) if n is not None)
        return f"{printable(self.path)}{place}: {self.message}"

    def render(self) -> str:
        """Return the headline, the line of the file and a line of carets under the place."""
        return f"{self.headline}\n{self.excerpt}" if self.excerpt else self.headline


class BadFileError(Exception):
    """The configuration is refused. `problems` has all of them, in the order of files and places."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(problem.render() for problem in self.problems)

    @property
    def summary(self) -> str:
        """Return one line for a status: the first problem and how many follow."""
        more = len(self.problems) - 1
        return self.problems[0].headline + (f" (and {more} more)" if more else "")


def decode(path: str, data: bytes) -> Source:
    """Return the text of a file. Raises BadFileError with the place of the first byte that is not UTF-8."""
    try:
        return Source(path, data.decode())
    except UnicodeDecodeError as error:
        before = Source(path, data[: error.start].decode())
        place = Span(len(before.lines), len(before.lines[-1]) + 1)
        hint = "; it looks like UTF-16, save it as UTF-8" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        shown = Source(path, data.decode(errors="replace"))
        message = f"not UTF-8 text: byte 0x{data[error.start]:02x}{hint}"
        raise BadFileError([problem(shown, place, message)]) from None


def load(source: Source) -> dict[str, Any]:
    """Return the file as plain data. Raises BadFileError with one problem if it is not TOML 1.0."""
    text = source.text
    if text.startswith("\ufeff"):
        raise _refusal(source, 0, "the file begins with a byte order mark; save it as UTF-8 without one")
    if "\0" in text:
        raise _refusal(source, text.index("\0"), "a NUL byte; this is not a text file, or it was cut off")
    if long_key := _LONG_KEY.search(text):
        raise _refusal(
            source,
            long_key.start("key"),
            f"a key of more than {LONGEST_KEY} parts; none in this file has more than two",
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadFileError([_not_toml(source, str(error))]) from None
    except RecursionError:
        raise _refusal(
            source, _deepest(text), "brackets are nested too deeply; four levels are all this file has"
        ) from None
    except ValueError:
        # The one ValueError that tomllib lets through is Python's bound on the digits of an integer.
        number = _LONG_NUMBER.search(text)
        raise _refusal(source, number.start() if number else 0, "a number of too many digits") from None


def problem(source: Source, span: Span | None, message: str) -> Problem:
    """Return the problem at `span`, with the line shown and marked."""
    if span is None:
        return Problem(source.path, None, None, message, "")
    line = source.lines[span.line - 1] if span.line <= len(source.lines) else ""
    start = max(0, span.column - 1 - EXCERPT_LEAD) if len(line) > EXCERPT_WIDTH else 0
    lead = "..." if start else ""
    shown = line[start : start + EXCERPT_WIDTH]
    tail = "..." if start + EXCERPT_WIDTH < len(line) else ""
    at = span.column - 1 - start
    carets = "^" * max(1, min(span.width, len(shown) - at))
    number = str(span.line)
    # One character of the file is one column here, so that the carets stand right.
    shown = "".join(c if c.isprintable() else " " if c == "\t" else "?" for c in shown)
    excerpt = f"  {number} | {lead}{shown}{tail}\n  {' ' * len(number)} | {' ' * (len(lead) + at)}{carets}"
    return Problem(source.path, span.line, span.column, message, excerpt)


def _refusal(source: Source, offset: int, message: str) -> BadFileError:
    line = source.text.count("\n", 0, offset) + 1
    column = offset - (source.text.rfind("\n", 0, offset) + 1) + 1
    return BadFileError([problem(source, Span(line, column), message)])


def _not_toml(source: Source, message: str) -> Problem:
    """Turn tomllib's `... (at line X, column Y)` or `... (at end of document)` into a problem."""
    place = _POSITION.search(message)
    reason = message[: place.start()] if place else message
    for pattern, clearer in _CLEARER:
        reason = pattern.sub(clearer, reason)
    if place is None or place["line"] is None:
        # The end is after the last line that has something; a cut-off file ends in the middle of it.
        number = next((n for n in range(len(source.lines), 1, -1) if source.lines[n - 1].strip()), 1)
        span = Span(number, len(source.lines[number - 1]) + 1)
        reason += ", and the file ends here"
    else:
        span = Span(int(place["line"]), int(place["column"]))
    return problem(source, span, f"not valid TOML: {printable(reason)}")


def _deepest(text: str) -> int:
    """Return the offset of the most deeply nested bracket."""
    depth = deepest = offset = 0
    for token in _BRACKET.finditer(text):
        if token[0] in {"[", "{"}:
            depth += 1
            if depth > deepest:
                deepest, offset = depth, token.start()
        elif token[0] in {"]", "}"}:
            depth -= 1
    return offset
