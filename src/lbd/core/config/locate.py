"""Where in a file a value stands.

tomllib decides what a file says; only once something is wrong with it is the text read a second time, by
toml_rs, which remembers positions. The two parsers may disagree, so every answer here has a fallback.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

from lbd.core.source import Source, Span

# The way to a value: keys of tables and indices of lists.
Path = tuple[str | int, ...]
Part = Literal["key", "value"]

# toml_rs overflows the C stack, and the process is gone, somewhere above 100 levels.
NESTING = 64

# Positions take 70 times the memory of the text. In a larger file only the headers are found: 4 MiB are
# 10,000 services with 10 backends, and 280 MiB for their positions.
LARGEST = 4 * 1024 * 1024

_TOP = re.compile(r"^[ \t]*(?P<header>\[\[?[ \t]*[\"']?(?P<name>[A-Za-z0-9_-]+)[\"']?[ \t]*\]\]?)")


class Locator:
    """Finds the places of values in one file. `data` is what tomllib read from `source`."""

    def __init__(self, source: Source, data: dict[str, Any]) -> None:
        self._source = source
        self._data = data

    def find(self, path: Path, part: Part = "value") -> Span | None:
        """Return the place of the value at `path`, or of its key.

        A path that leads further than the file does ends at the last step that is there: a missing key
        is shown at the header of its table.
        """
        here: Any = self._nodes
        place = None
        for at, step in enumerate(path):
            node = _child(here, step)
            if node is None:
                break
            if _is_value(node):
                wants_key = part == "key" and at == len(path) - 1 and "key_line" in node
                place = self._place(node, "key" if wants_key else "value") or place
                here = node["value"]
            else:
                place = self._header(path[: at + 1], place) or self._first(node) or place
                here = node
        return place or self._entry(path)

    @cached_property
    def _nodes(self) -> dict[str, Any]:
        """Return the positions as toml_rs gives them: nested like the data, each value in a node."""
        if len(self._source.text) > LARGEST or _depth(self._data) > NESTING:
            return {}
        import toml_rs  # noqa: PLC0415 - only a bad file needs it

        try:
            read = toml_rs.load_with_metadata(io.BytesIO(self._source.text.encode()))
        except (ValueError, TypeError, RecursionError):
            return {}
        nodes: dict[str, Any] = read.meta["nodes"]
        return nodes

    def _place(self, node: dict[str, Any], part: Part) -> Span | None:
        # A list of tables has a key, in its first header, and no place of its own.
        if f"{part}_line" not in node:
            part = "key"
        line, column = _first_of(node[f"{part}_line"]), _first_of(node[f"{part}_col"])
        if not 1 <= line <= len(self._source.lines):
            return None
        # toml_rs counts bytes; people and editors count characters.
        before = self._source.lines[line - 1].encode()[: column - 1].decode(errors="ignore")
        raw = str(node.get(f"{part}_raw", "")).partition("\n")[0].rstrip("\r")
        return Span(line, len(before) + 1, max(1, len(raw)))

    @cached_property
    def _headers(self) -> dict[str, list[Span]]:
        """Return the places of all headers of one name: `[director]` once, `[[service]]` many times."""
        headers: dict[str, list[Span]] = {}
        for number, line in enumerate(self._source.lines, 1):
            if header := _TOP.match(line):
                span = Span(number, header.start("header") + 1, len(header["header"]))
                headers.setdefault(header["name"], []).append(span)
        return headers

    def _entry(self, path: Path) -> Span | None:
        """Return the place of the entry that `path` leads into, from the text alone."""
        headers = self._headers.get(str(path[0]), []) if path else []
        nth = path[1] if len(path) > 1 and isinstance(path[1], int) else 0
        return headers[nth] if nth < len(headers) else None

    def _header(self, path: Path, after: Span | None) -> Span | None:
        """Return the place of the header `[a.b]` of a table, which toml_rs does not tell."""
        names = r"[ \t]*\.[ \t]*".join(
            rf"[\"']?{re.escape(step)}[\"']?" for step in path if isinstance(step, str)
        )
        header = re.compile(rf"[ \t]*(?P<header>\[[ \t]*{names}[ \t]*(?:\.[^\]]*)?\])")
        first = after.line if after else 1
        for number, line in enumerate(self._source.lines[first - 1 :], first):
            if found := header.match(line):
                return Span(number, found.start("header") + 1, len(found["header"]))
        return None

    def _first(self, table: dict[str, Any]) -> Span | None:
        """Return the place of the first key in a table that dotted keys made."""
        return next((self._place(node, "key") for node in _values(table)), None)


def _child(here: Any, step: str | int) -> dict[str, Any] | None:
    child: dict[str, Any] | None = None
    if isinstance(step, str) and isinstance(here, dict):
        child = here.get(step)
    elif isinstance(step, int) and isinstance(here, list) and step < len(here):
        child = here[step]
    return child


def _is_value(node: dict[str, Any]) -> bool:
    """Tell a value from a table that has a key named like a node's own."""
    return not isinstance(node.get("value_line", node.get("key_line", {})), dict)


def _values(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for node in table.values():
        if _is_value(node):
            yield node
        else:
            yield from _values(node)


def _first_of(number: int | tuple[int, int]) -> int:
    return number[0] if isinstance(number, tuple) else number


def _depth(data: dict[str, Any]) -> int:
    """Return how deeply `data` is nested, by levels rather than by recursion."""
    depth = 0
    level: list[Any] = [data]
    while level:
        depth += 1
        below: list[Any] = []
        for value in level:
            inner = value.values() if isinstance(value, dict) else value
            below.extend(v for v in inner if isinstance(v, dict | list))
        level = below
    return depth
