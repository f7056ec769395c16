"""Tables of addresses, routes and rules to values."""

from __future__ import annotations

from collections.abc import Mapping

from lbd.core.config import values
from lbd.core.config.findings import Finding, Place
from lbd.core.config.tables import AddressTable, RouteTable, RuleTable, read
from lbd.core.settings import AddressEntry, RouteEntry, RuleEntry


def address(place: Place, raw: Mapping[str, object], found: list[Finding]) -> AddressEntry | None:
    """Return an `[[address]]`; what is wrong goes to `found`."""
    table = read(AddressTable, raw, place, found)
    return AddressEntry(table.address, table.interface) if table.address and table.interface else None


def route(place: Place, raw: Mapping[str, object], found: list[Finding]) -> RouteEntry | None:
    """Return a `[[route]]`; what is wrong goes to `found`."""
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


def rule(place: Place, raw: Mapping[str, object], found: list[Finding]) -> RuleEntry:
    """Return a `[[rule]]`; what is wrong goes to `found`."""
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
