"""Backends that are listen addresses: lbd does not pass a connection through two services."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbd.core.config.findings import Finding
from lbd.core.config.spans import Index, index, owner
from lbd.core.config.written import Written, whose


def loops(entries: Sequence[Written]) -> Iterator[Finding]:
    """Find backends and sorry servers that are listen addresses of their own service or of another.

    A wildcard's addresses are not known here.
    """
    addresses = {listen.address for written in entries for listen in written.service.listen}
    suspects = [
        written
        for written in entries
        if any(server.address in addresses for server in (*written.service.backends, *written.service.sorry))
        and written.right("backends", "listen", "mark")
    ]
    known = _listens(entries) if suspects else {}
    for written in suspects:
        for place, server in written.servers():
            found = owner(server, written, known)
            if found is None:
                continue
            there, listen, other = found
            if other is written:
                message = f"{server} is the service's own listen address, which would be a loop"
            else:
                message = (
                    f"{server} is the listen address {listen} of {whose(other)}; lbd does not pass a "
                    "connection through two services, so list the backends of that one"
                )
            yield Finding(place, message, also=there)


def _listens(entries: Sequence[Written]) -> Index:
    return index(
        (listen.address, listen.ports, (place, listen, written))
        for written in entries
        for place, listen in written.listens()
    )
