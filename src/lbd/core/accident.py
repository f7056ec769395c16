"""A file that looks like a mistake: half of many services are gone at once, as from a script that failed.

Every other edit is taken as it is: a guard that asks often is answered without reading.
"""

from __future__ import annotations

from collections.abc import Iterator

from lbd.core.settings import Config, Listen, Service
from lbd.core.words import many

# A message names so many services.
SHOWN = 5


def accident(before: Config, now: Config, command: str = "reload") -> str:
    """Return why `now` in the place of `before` looks like a mistake, "" if it does not.

    A service is gone when none of its listen addresses is served any more, whatever it is called. That no
    service at all is left is refused by core/config, unless the file says that it may be empty. `command` is
    the one that takes such a file all the same.
    """
    guard, had = now.director, before.services
    if not now.services or len(had) < guard.removed_from:
        return ""
    served = {each for service in now.services for each in _what(service)}
    gone = [service.name for service in had if served.isdisjoint(_what(service))]
    if len(gone) * 100 <= guard.removed_percent * len(had):
        return ""
    names = ", ".join(gone[:SHOWN]) + (f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else "")
    return (
        f"{len(gone)} of {many(len(had), 'service')} are gone at once ({names}), which looks like an "
        f"accident; if it is meant, say so: lbd {command} --yes"
    )


def _what(service: Service) -> Iterator[tuple[str | None, Listen | int | None]]:
    """Give what comes to a service."""
    if service.mark is not None:
        yield service.interface, service.mark
    for listen in service.listen:
        yield service.interface, listen
