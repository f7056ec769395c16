"""Files of prefixes: one a line, with `#` comments. Which ones a configuration names, and what is in them.

Such files come from elsewhere and have tens of thousands of lines, so what is right is read here with little
ado; whatever looks odd goes through values like any other text, for the words of a mistake.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import AddressValueError, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from lbd.core.config import values
from lbd.core.settings import Network, PrefixFile
from lbd.core.source import BadFileError, Problem, Source, Span, load, problem

# After so many mistakes it is not a file of prefixes, and each further one would be a line in the journal.
MOST_PROBLEMS = 20

_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}(?:/([1-2]?[0-9]|3[0-2]))?")
_IPV6 = re.compile(r"([0-9A-Fa-f:]+)(?:/([0-9]{1,2}|1[01][0-9]|12[0-8]))?")
# The bits before an IPv4 address in IPv6 form (RFC 4291, 2.5.5.2).
_MAPPED = 0xFFFF

# A key that names such a file, or an escape that might hide one. Looking costs nothing beside reading TOML.
_MENTION = re.compile(r"\bfile[\"']?[ \t]*=|\\[uU]")

# A prefix as numbers: its first address and its length.
Pair = tuple[int, int]


def resolved(main: str, name: str) -> str:
    """Return the path of a file that is named `name` in the configuration whose main file is `main`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(main), name))


def paths(sources: Sequence[Source]) -> tuple[str, ...]:
    """Return the paths of all files of prefixes that the files of a configuration name, each once.

    The first is the main file. Nothing is raised: what is wrong is told when the configuration is parsed.
    """
    names = (name for source in sources for name in _names(source))
    return tuple(dict.fromkeys(resolved(sources[0].path, name) for name in names))


def _names(source: Source) -> Iterator[str]:
    if not _MENTION.search(source.text):
        return
    try:
        data = load(source)
    except BadFileError:
        return
    for table in (data.get("defaults"), *_items(data.get("service"))):
        yield from _named(table)


def _named(table: Any) -> Iterator[str]:
    for key in ("allow", "deny"):
        for entry in _items(table.get(key) if isinstance(table, dict) else None):
            name = entry.get("file") if isinstance(entry, dict) else None
            try:
                yield values.file_name(name or "")
            except (ValueError, AttributeError):
                continue


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class Lists:
    """The files of prefixes that came with a configuration, each read once, when it is first asked for."""

    def __init__(self, main: Source, sources: Sequence[tuple[int, Source]]) -> None:
        self._main = main.path
        self._sources = {source.path: (i, source) for i, source in sources}
        self._read: dict[str, PrefixFile | None] = {}
        self.broken: list[tuple[int, Problem]] = []

    def path(self, name: str) -> str:
        """Return the path of a file of any kind that is named `name`."""
        return resolved(self._main, name)

    def get(self, name: str) -> PrefixFile | None:
        """Return what is in the file named `name`, or None if there is a mistake in it, which is in `broken`.

        Raises ValueError if it is not there.
        """
        path = self.path(name)
        if path in self._read:
            return self._read[path]
        if path not in self._sources:
            raise ValueError(f"{path} was not read together with the configuration")
        i, source = self._sources[path]
        if source.unread:
            raise ValueError(source.unread)
        prefixes, problems = read(source)
        self.broken.extend((i, each) for each in problems)
        self._read[path] = None if problems else PrefixFile(path, prefixes)
        return self._read[path]


def read(source: Source) -> tuple[tuple[Network, ...], list[Problem]]:
    """Return the prefixes of a file, collapsed and in order, IPv4 first; and what is wrong with it."""
    pairs: dict[int, set[Pair]] = {4: set(), 6: set()}
    problems: list[Problem] = []
    for number, line in enumerate(source.lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if (four := _four(text)) is not None:
            pairs[4].add(four)
            continue
        if (six := _six(text)) is not None:
            pairs[6].add(six)
            continue
        try:
            found = values.network(text)
        except ValueError as error:
            place = Span(number, line.index(text) + 1, len(text))
            problems.append(problem(source, place, str(error)))
            if len(problems) == MOST_PROBLEMS:
                message = f"{MOST_PROBLEMS} mistakes so far; the rest of this file is not looked at"
                problems.append(problem(source, place, message))
                break
        else:
            pairs[found.version].add((int(found.network_address), found.prefixlen))
    prefixes: list[Network] = [IPv4Network(pair) for pair in _collapsed(pairs[4], 32)]
    prefixes += [IPv6Network(pair) for pair in _collapsed(pairs[6], 128)]
    return tuple(prefixes), problems


def _four(text: str) -> Pair | None:
    match = _IPV4.fullmatch(text)
    if match is None:
        return None
    a, b, c, d, prefix = match.groups()
    first = int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)
    length = int(prefix) if prefix else 32
    return None if first & (0xFFFFFFFF >> length) else (first, length)


def _six(text: str) -> Pair | None:
    match = _IPV6.fullmatch(text)
    if match is None:
        return None
    try:
        first = int(IPv6Address(match[1]))
    except AddressValueError:
        return None
    length = int(match[2]) if match[2] else 128
    odd = first >> 32 == _MAPPED or first & ((1 << (128 - length)) - 1)
    return None if odd else (first, length)


def collapsed(prefixes: Iterable[Network]) -> tuple[Network, ...]:
    """Return prefixes without those inside others, halves put together, in order, IPv4 first."""
    pairs: dict[int, set[Pair]] = {4: set(), 6: set()}
    for prefix in prefixes:
        pairs[prefix.version].add((int(prefix.network_address), prefix.prefixlen))
    return (
        *(IPv4Network(pair) for pair in _collapsed(pairs[4], 32)),
        *(IPv6Network(pair) for pair in _collapsed(pairs[6], 128)),
    )


def _collapsed(pairs: set[Pair], bits: int) -> list[Pair]:
    """Do what ipaddress.collapse_addresses does, in a sixth of its time."""
    kept: list[Pair] = []
    # In this order a prefix comes after all that it could be inside of, and behind its other half.
    for first, length in sorted(pairs):
        if kept and first >> (bits - kept[-1][1]) == kept[-1][0] >> (bits - kept[-1][1]):
            continue
        half = first, length
        while kept and kept[-1] == (half[0] & ~(1 << (bits - half[1])), half[1]):
            half = kept.pop()[0], half[1] - 1
        kept.append(half)
    return kept
