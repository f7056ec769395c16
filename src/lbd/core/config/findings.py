"""Mistakes as they are found, and as they are told: with the place of the value, and whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lbd.core.config.locate import Locator, Part, Path
from lbd.core.source import BadFileError, Problem, Source, problem
from lbd.core.words import quote

# What an entry is called by in a message.
_CALLED_BY = {"service": "name", "address": "address", "route": "to", "rule": "from"}


@dataclass(frozen=True, slots=True)
class Place:
    """A value in one of the files: `file` is an index, `path` leads from the top of that file."""

    file: int
    path: Path

    def __truediv__(self, step: str | int) -> Place:
        return Place(self.file, (*self.path, step))


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake before its place in the text is looked up. `also` is the other place of a conflict."""

    place: Place
    message: str
    part: Part = "value"
    also: Place | None = None


@dataclass(frozen=True)
class Data:
    """A file and what TOML makes of it. No slots: the locator is kept once made."""

    source: Source
    data: dict[str, Any]

    @cached_property
    def locator(self) -> Locator:
        """Return what finds places in this file."""
        return Locator(self.source, self.data)


def keys_of(found: Iterable[Finding], place: Place) -> frozenset[str]:
    """Return the keys of the table at `place` that something was found in."""
    depth = len(place.path)
    places = (finding.place for finding in found)
    return frozenset(
        str(each.path[depth])
        for each in places
        if each.file == place.file and len(each.path) > depth and each.path[:depth] == place.path
    )


def refusal(
    found: Iterable[Finding], files: Sequence[Data], broken: Iterable[tuple[int, Problem]] = ()
) -> BadFileError:
    """Return the error for all findings, and for problems that are located already, in order of place."""
    problems = [(finding.place.file, _problem(finding, files)) for finding in found]
    problems.extend(broken)
    problems.sort(key=lambda at: (at[0], at[1].line or 0, at[1].column or 0))
    return BadFileError(each for _, each in problems)


def _problem(finding: Finding, files: Sequence[Data]) -> Problem:
    file = files[finding.place.file]
    path = finding.place.path
    label = _label(path[:-1] if finding.part == "key" else path, file.data)
    also = f" ({_reference(finding.also, files)})" if finding.also else ""
    span = file.locator.find(path, finding.part)
    return problem(file.source, span, ": ".join([*label, finding.message + also]))


def _reference(place: Place, files: Sequence[Data]) -> str:
    file = files[place.file]
    span = file.locator.find(place.path)
    return f"{file.source.path}:{span.line}" if span else file.source.path


def _label(path: Path, data: dict[str, Any]) -> list[str]:
    """Return `service "web"` and the keys that lead to the value, as far as the file has them."""
    label: list[str] = []
    here: Any = data
    for step in path:
        try:
            here = here[step]
        except (KeyError, IndexError, TypeError):
            break
        if isinstance(step, str):
            label.append(step)
        elif len(label) == 1 and label[0] in _CALLED_BY:
            label[0] += f" {_name(here, _CALLED_BY[label[0]], step + 1)}"
    return label


def _name(entry: Any, key: str, number: int) -> str:
    """Return what the entry calls itself, or its number among its kind."""
    name = entry.get(key) if isinstance(entry, dict) else None
    return quote(name) if isinstance(name, str) else str(number)
