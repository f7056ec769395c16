"""A service as the file has it: what was made of it, which keys were written, and which were wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lbd.core.config.findings import Finding, Place
from lbd.core.settings import Backend, Listen, Service


@dataclass(frozen=True, slots=True)
class Written:
    """A service and its table at `place`.

    `given` are the keys of the table, and `wrong` those that could not be read and are at their defaults
    in `service`: a check that looks at one of them would mislead. `entries` tells for each listen address
    which entry of the list `listen` it is of. `inherited` has the places of what comes from elsewhere.
    """

    place: Place
    service: Service
    given: frozenset[str]
    wrong: frozenset[str]
    entries: tuple[int, ...]
    inherited: Mapping[str, Place]

    def right(self, *keys: str) -> bool:
        """Tell whether all these keys were read, or are right to be at their defaults."""
        return self.wrong.isdisjoint(keys)

    def finding(self, key: str, message: str) -> Finding:
        """Return a mistake in the value of `key`, which may come from [defaults] or [director]."""
        also = None if key in self.given else self.inherited.get(key)
        return Finding(self.place / key, message, also=also)

    def listens(self) -> Iterator[tuple[Place, Listen]]:
        """Return the listen addresses with their places."""
        for i, listen in zip(self.entries, self.service.listen, strict=True):
            yield self.place / "listen" / i, listen

    def backends(self) -> Iterator[tuple[Place, Backend]]:
        """Return the backends with their places."""
        for i, backend in enumerate(self.service.backends):
            yield self.place / "backends" / i, backend

    def servers(self) -> Iterator[tuple[Place, Backend]]:
        """Return whatever connections are sent to, with its place."""
        yield from self.backends()
        for i, server in enumerate(self.service.sorry):
            yield self.place / "sorry_server" / i, server


def whose(written: Written) -> str:
    """Return what a service is called in a message."""
    return f'service "{written.service.name}"' if written.service.name else "another service"
