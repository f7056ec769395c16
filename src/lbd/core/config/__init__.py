"""Reading the configuration: the text of the files in, a Config out, or every problem with its place.

Three steps: TOML to plain data (core/source), data to values (tables, services and entries here), values
against each other (checks inside a service, conflicts between entries). What is found is collected on the
way and located at the end, when there is any (findings).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from lbd.core.config import checks, conflicts, entries, services
from lbd.core.config.findings import Data, Finding, Place, refusal
from lbd.core.config.lists import Lists
from lbd.core.config.tables import (
    DefaultsTable,
    DirectorTable,
    DropInTable,
    Entries,
    MainTable,
    RealServerTable,
    read,
)
from lbd.core.settings import Config, Director
from lbd.core.source import BadFileError, Problem, Source, load

E = TypeVar("E")
Raw = tuple[Place, Mapping[str, object]]

# The key, or an escape that might hide it: to look is cheap, and to read a large file twice is not.
_INCLUDE = re.compile(r"include|\\[uU]")


def _entries(
    files: Sequence[DropInTable], kind: Literal["service", "address", "route", "rule"]
) -> Iterator[Raw]:
    for i, file in enumerate(files):
        raws: Entries = getattr(file, kind)
        for j, raw in enumerate(raws):
            yield Place(i, (kind, j)), raw


def _right(
    make: Callable[[Place, Mapping[str, object], list[Finding]], E | None],
    raws: Iterable[Raw],
    found: list[Finding],
) -> list[tuple[Place, E]]:
    """Return the entries that are right; one read in part has defaults for what is wrong, and misleads."""
    right = []
    for place, raw in raws:
        before = len(found)
        entry = make(place, raw, found)
        if entry is not None and len(found) == before:
            right.append((place, entry))
    return right


def _return_paths(director: DirectorTable, defaults: DefaultsTable) -> Iterator[Finding]:
    one, other = director.return_path, defaults.return_path
    if one is not None and other is not None and one != other:
        here, there = Place(0, ("defaults", "return_path")), Place(0, ("director", "return_path"))
        yield Finding(here, f'"{other}" here and "{one}" in [director]; keep one of them', also=there)


def includes(source: Source) -> tuple[str, ...]:
    """Return the patterns of the files that the main file includes, relative to its directory.

    Raises BadFileError if `include` is not a list of such patterns, or if the file is not TOML; one that
    does not have the word is not looked into.
    """
    if not _INCLUDE.search(source.text):
        return ()
    data = load(source)
    found: list[Finding] = []
    main = read(MainTable, {key: data[key] for key in data.keys() & {"include"}}, Place(0, ()), found)
    if found:
        raise refusal(found, [Data(source, data)])
    return tuple(main.include)


def parse(main: Source, dropins: Sequence[Source] = ()) -> Config:
    """Return the configuration of the main file and all further ones: those it includes, files of prefixes.

    Raises BadFileError with all problems of all files. Files that ask for nothing are refused unless the
    main file says `allow_empty = true`: an editor or a full disk can leave an empty file behind.
    """
    files: list[Data] = []
    broken: list[tuple[int, Problem]] = []
    for i, source in enumerate((main, *dropins)):
        try:
            files.append(Data(source, load(source) if source.kind == "toml" else {}))
        except BadFileError as error:
            files.append(Data(source, {}))
            broken.extend((i, problem) for problem in error.problems)
    lists = Lists(main, [(i, file.source) for i, file in enumerate(files) if file.source.kind == "prefixes"])

    found: list[Finding] = []
    top = read(MainTable, files[0].data, Place(0, ()), found)
    tables = [
        top,
        *(read(DropInTable, file.data, Place(i, ()), found) for i, file in enumerate(files[1:], 1)),
    ]
    here = Place(0, ("director",))
    stated = read(DirectorTable, top.director, here, found)
    doubtful = services.unread(DirectorTable, here, found)
    common = services.common(top.defaults, stated, lists, found)
    real_server = read(RealServerTable, top.real_server, Place(0, ("real_server",)), found)
    director = _director(stated)

    written = [
        services.service(place, raw, common, lists, found) for place, raw in _entries(tables, "service")
    ]
    addresses = _right(entries.address, _entries(tables, "address"), found)
    routes = _right(entries.route, _entries(tables, "route"), found)
    rules = _right(entries.rule, _entries(tables, "rule"), found)
    direct = [(Place(0, ("real_server", "direct", i)), each) for i, each in enumerate(real_server.direct)]

    found.extend(_return_paths(stated, common.table))
    if common.table.offload and "devices" not in doubtful:
        found.extend(checks.offload(common.places["offload"], director))
    for each in written:
        found.extend(checks.service(each, director, doubtful))
    found.extend(conflicts.services(written))
    found.extend(conflicts.addresses(addresses))
    found.extend(conflicts.routes(routes))
    found.extend(conflicts.rules(rules))
    found.extend(conflicts.real_server(direct, written, addresses))
    broken.extend(lists.broken)

    allowed = top.allow_empty or stated.allow_empty
    if not (found or broken or written or addresses or routes or rules or direct or allowed):
        message = (
            "nothing to do: no service, address, route or rule; if that is meant, write allow_empty = true"
        )
        found.append(Finding(Place(0, ()), message))
    if found or broken:
        raise refusal(found, files, broken)
    return Config(
        director=director,
        services=tuple(each.service for each in written),
        addresses=tuple(entry for _, entry in addresses),
        routes=tuple(entry for _, entry in routes),
        rules=tuple(entry for _, entry in rules),
        real_server=tuple(each for _, each in direct),
    )


def _director(table: DirectorTable) -> Director:
    return Director(
        table.forwarding,
        table.log_target,
        table.log_group,
        table.audit,
        tuple(table.ssh_ports),
        table.mark_mask,
        tuple(table.devices),
        table.removed_percent,
        table.removed_from,
    )
