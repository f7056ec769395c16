"""Who may connect: the prefixes of `allow` and `deny`, and the files of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lbd.core.config.findings import Finding, Place
from lbd.core.config.lists import Lists, collapsed
from lbd.core.config.tables import PrefixEntry
from lbd.core.settings import Access
from lbd.core.words import quote


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of prefixes: what it comes to, and where each entry of it stands."""

    access: Access
    places: Mapping[PrefixEntry, Place]


def listed(entries: Sequence[PrefixEntry], lists: Lists, place: Place, found: list[Finding]) -> Listed:
    """Return what the entries at `place` come to."""
    places: dict[PrefixEntry, Place] = {}
    files = {}
    whole = True
    for i, entry in enumerate(entries):
        here = place / i
        earlier = places.setdefault(entry, here)
        if earlier is not here:
            found.append(Finding(here, f"{_shown(entry)} is listed twice", also=earlier))
        elif isinstance(entry, str):
            try:
                file = lists.get(entry)
            except ValueError as error:
                found.append(Finding(here, str(error)))
                whole = False
            else:
                whole = whole and file is not None
                if file is not None:
                    # Two ways to write one path are one file.
                    files[file.path] = file
    prefixes = collapsed(entry for entry in places if not isinstance(entry, str))
    if place.path[-1] == "allow" and whole and not prefixes and not any(f.prefixes for f in files.values()):
        found.append(Finding(place, "there is no prefix in these files, and nobody could connect"))
    return Listed(Access(prefixes, tuple(files.values())), places)


def contradictions(allow: Listed, deny: Listed, *, tell_in_deny: bool) -> Iterator[Finding]:
    """Find what is in both lists. It is told where the service has written it: in `deny`, or in `allow`."""
    mine, theirs = (deny.places, allow.places) if tell_in_deny else (allow.places, deny.places)
    for entry, place in mine.items():
        if other := theirs.get(entry):
            message = f"{_shown(entry)} is allowed and denied; denied wins, so keep one of them"
            yield Finding(place, message, also=other)


def _shown(entry: PrefixEntry) -> str:
    return quote(entry) if isinstance(entry, str) else str(entry)
