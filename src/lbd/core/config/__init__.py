"""Reading the configuration: the text of the files in, a Config out, or every problem with its place.

Three steps: TOML to plain data (core/source), data to values (tables and values here), values against each
other (conflicts). What is found is collected on the way and located at the end, when there is any (findings).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from lbd.core.config import conflicts, values
from lbd.core.config.findings import Data, Finding, Place, refusal
from lbd.core.config.tables import (
    AddressTable,
    DropInTable,
    Entries,
    MainTable,
    RouteTable,
    RuleTable,
    ServiceTable,
    read,
)
from lbd.core.settings import (
    AddressEntry,
    Backend,
    Config,
    Director,
    ReturnPath,
    RouteEntry,
    RuleEntry,
    Service,
)
from lbd.core.source import BadFileError, Problem, Source, load

E = TypeVar("E")
Raw = tuple[Place, Mapping[str, object]]


def _entries(
    files: Sequence[DropInTable], kind: Literal["service", "address", "route", "rule"]
) -> Iterator[Raw]:
    for i, file in enumerate(files):
        entries: Entries = getattr(file, kind)
        for j, raw in enumerate(entries):
            yield Place(i, (kind, j)), raw


def _right(
    make: Callable[[Place, Mapping[str, object], list[Finding]], E | None],
    raws: Iterable[Raw],
    found: list[Finding],
) -> list[tuple[Place, E]]:
    """Return the entries that are right; one read in part has defaults for what is wrong, and misleads."""
    entries = []
    for place, raw in raws:
        before = len(found)
        entry = make(place, raw, found)
        if entry is not None and len(found) == before:
            entries.append((place, entry))
    return entries


def _service(place: Place, raw: Mapping[str, object], main: MainTable, found: list[Finding]) -> Service:
    table = read(ServiceTable, raw, place, found)
    defaults = main.defaults
    return Service(
        name=table.name,
        listen=tuple(table.listen),
        backends=tuple(
            Backend(b.address.address, b.address.port, b.weight, b.state) for b in table.backends if b.address
        ),
        interface=table.interface,
        scheduler=table.scheduler or defaults.scheduler or "maglev",
        return_path=table.return_path or defaults.return_path or main.director.return_path or ReturnPath(),
        when_empty=table.when_empty or defaults.when_empty or "reject",
        log=table.log or defaults.log or "off",
    )


def _address(place: Place, raw: Mapping[str, object], found: list[Finding]) -> AddressEntry | None:
    table = read(AddressTable, raw, place, found)
    return AddressEntry(table.address, table.interface) if table.address and table.interface else None


def _route(place: Place, raw: Mapping[str, object], found: list[Finding]) -> RouteEntry | None:
    table = read(RouteTable, raw, place, found)
    if "via" not in raw and "interface" not in raw:
        found.append(Finding(place, 'a route needs "via", the next router, or "interface", or both'))
    to = table.to
    if to == "default":
        known = table.via or table.source
        if known is None:
            message = (
                '"default" is of the family of "via" or "source"; without them write "0.0.0.0/0" or "::/0"'
            )
            found.append(Finding(place / "to", message))
            return None
        to = values.network("0.0.0.0/0" if known.version == 4 else "::/0")  # noqa: PLR2004 - the IP version
    if to is None:
        return None
    for key, address in (("via", table.via), ("source", table.source)):
        if address is not None and address.version != to.version:
            found.append(Finding(place / key, f"{address} is IPv{address.version}, but the route is to {to}"))
    if table.via is not None and table.via.is_link_local and "interface" not in raw:
        found.append(
            Finding(place / "via", f'{table.via} is a link-local address; "interface" must say on which link')
        )
    return RouteEntry(to, table.via, table.interface, table.source, table.table, table.metric, table.replace)


def _rule(place: Place, raw: Mapping[str, object], found: list[Finding]) -> RuleEntry:
    table = read(RuleTable, raw, place, found)
    if not raw.keys() & {"from", "to", "interface"}:
        found.append(
            Finding(
                place,
                'a rule needs "from", "to" or "interface"; for all traffic from = "0.0.0.0/0" or "::/0"',
            )
        )
    source, to = table.source, table.to
    if source is not None and to is not None and source.version != to.version:
        found.append(Finding(place / "to", f"{to} is IPv{to.version}, but from is {source}"))
    stated = source or to
    return RuleEntry(
        priority=table.priority,
        table=table.table,
        family=stated.version if stated else 4,
        source=source if source and source.prefixlen else None,
        to=to if to and to.prefixlen else None,
        iif=table.interface,
    )


def _top(main: MainTable, found: list[Finding]) -> None:
    """Find what the tables of the main file say against each other."""
    one, other = main.director.return_path, main.defaults.return_path
    if one is not None and other is not None and one != other:
        here, there = Place(0, ("defaults", "return_path")), Place(0, ("director", "return_path"))
        found.append(Finding(here, f'"{other}" here and "{one}" in [director]; keep one of them', also=there))


def includes(source: Source) -> tuple[str, ...]:
    """Return the patterns of the files that the main file includes, relative to its directory.

    Raises BadFileError if the file is not TOML or `include` is not a list of such patterns.
    """
    data = load(source)
    found: list[Finding] = []
    main = read(MainTable, {key: data[key] for key in data.keys() & {"include"}}, Place(0, ()), found)
    if found:
        raise refusal(found, [Data(source, data)])
    return tuple(main.include)


def parse(main: Source, dropins: Sequence[Source] = ()) -> Config:
    """Return the configuration of the main file and those it includes.

    Raises BadFileError with all problems of all files. Files that ask for nothing are refused unless the
    main file says `allow_empty = true`: an editor or a full disk can leave an empty file behind.
    """
    files: list[Data] = []
    broken: list[tuple[int, Problem]] = []
    for i, source in enumerate((main, *dropins)):
        try:
            files.append(Data(source, load(source)))
        except BadFileError as error:
            files.append(Data(source, {}))
            broken.extend((i, problem) for problem in error.problems)

    found: list[Finding] = []
    top = read(MainTable, files[0].data, Place(0, ()), found)
    rest = [read(DropInTable, file.data, Place(i, ()), found) for i, file in enumerate(files[1:], 1)]
    _top(top, found)
    tables = [top, *rest]
    services = [(place, _service(place, raw, top, found)) for place, raw in _entries(tables, "service")]
    addresses = _right(_address, _entries(tables, "address"), found)
    routes = _right(_route, _entries(tables, "route"), found)
    rules = _right(_rule, _entries(tables, "rule"), found)
    found.extend(conflicts.services(services))
    found.extend(conflicts.addresses(addresses))
    found.extend(conflicts.routes(routes))
    found.extend(conflicts.rules(rules))

    allowed = top.allow_empty or top.director.allow_empty
    if not (found or broken or services or addresses or routes or rules or allowed):
        message = (
            "nothing to do: no service, address, route or rule; if that is meant, write allow_empty = true"
        )
        found.append(Finding(Place(0, ()), message))
    if found or broken:
        raise refusal(found, files, broken)
    director = top.director
    return Config(
        director=Director(director.forwarding, director.log_target, director.log_group, director.audit),
        services=tuple(service for _, service in services),
        addresses=tuple(entry for _, entry in addresses),
        routes=tuple(entry for _, entry in routes),
        rules=tuple(entry for _, entry in rules),
    )
