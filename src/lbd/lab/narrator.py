"""Prints the demo: titles, files, edits, packets and sentences, 80 columns wide."""

from __future__ import annotations

import difflib
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from lbd.lab.daemon import Hop

WIDTH = 79  # the last column stays free: some terminals wrap when it is written

# Select Graphic Rendition, ECMA-48 section 8.3.117.
BOLD, RED, GREEN, YELLOW, CYAN = "1", "31", "32", "33", "1;36"

# The longest bar of a count.
BAR = 40


class Narrator:
    """All that the demo says goes through here: coloured or plain, at once, never through a buffer."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def title(self, text: str) -> None:
        """Begin a part."""
        self._line()
        self._line(text, CYAN)
        self._line()

    def says(self, text: str) -> None:
        """Tell something in a paragraph."""
        for line in textwrap.wrap(text, WIDTH - 3, break_on_hyphens=False):
            self._line(f"   {line}")

    def seen(self, text: str, *, good: bool) -> None:
        """Tell what came of it, `good` or not, to somebody who wanted to be served."""
        for line in textwrap.wrap(text, WIDTH - 3, break_on_hyphens=False):
            self._line(f"   {line}", GREEN if good else YELLOW)

    def command(self, where: str, text: str) -> None:
        """Show a command that is run, and on which host."""
        self._line(f"   {where}$ {text}", BOLD)

    def output(self, lines: Iterable[str]) -> None:
        """Show what a program said, as it said it; only what is too long is folded."""
        for line in lines:
            for part in textwrap.wrap(line, WIDTH - 5, subsequent_indent="    ", break_on_hyphens=False):
                self._line(f"     {part}")

    def table(self, lines: Iterable[str]) -> None:
        """Show what a program said in columns: not folded, and from the first column on."""
        for line in lines:
            self._line(line)

    def file(self, name: str, text: str) -> None:
        """Show a file whole."""
        self._line(f"   {name}", BOLD)
        for line in text.splitlines():
            self._line(f"     {line}".rstrip())
        self._line()

    def edit(self, name: str, before: str, after: str) -> None:
        """Show an edit of a file: what went, what came, and a line around."""
        self._line(f"   {name}", BOLD)
        changes = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1))
        for line in changes[2:]:
            if not line.startswith("@@"):
                self._line(f"   {line[0]} {line[1:]}".rstrip(), {"-": RED, "+": GREEN}.get(line[0], ""))
        self._line()

    def path(self, hops: Sequence[Hop], missing: str = "") -> None:
        """Show packets below each other, and what is `missing` after the last of them."""
        widths = [max(len(hop[column]) for hop in hops) for column in range(4)]
        self._line()
        for hop in hops:
            part, interface, source, destination = (
                text.ljust(width) for text, width in zip(hop, widths, strict=False)
            )
            self._line(f"     {part}  {interface}  {source} > {destination}  {hop.flags}".rstrip())
        if missing:
            self._line(f"     (nothing more: {missing})", YELLOW)
        self._line()

    def counts(self, counts: Mapping[str, int]) -> None:
        """Show counts as bars."""
        most, width = max(counts.values()), max(map(len, counts))
        for name, count in counts.items():
            self._line(f"     {name.ljust(width)}  {count:4}  {'#' * round(BAR * count / most)}")

    def picture(self, text: str) -> None:
        """Show a drawing."""
        for line in text.splitlines():
            self._line(f"   {line}".rstrip())

    def gap(self) -> None:
        """Leave a line empty."""
        self._line()

    def failed(self, message: str, last_words: Iterable[str] = ()) -> None:
        """Tell on the error stream why the demo ends here, and what the daemon said last."""
        self._line(f"lbd demo: {message}", RED, sys.stderr)
        for line in last_words:
            self._line(f"  {line}", stream=sys.stderr)

    def _line(self, text: str = "", colour: str = "", stream: TextIO | None = None) -> None:
        # The only print of the lab.
        painted = f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour and text else text
        print(painted, file=stream, flush=True)
