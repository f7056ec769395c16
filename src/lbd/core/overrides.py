"""What an administrator says of backends at run time: which one is meant, what is kept, what is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from lbd.core.observed import BackendName, Observed, Override, name
from lbd.core.rotation import condition, rotation
from lbd.core.settings import Backend, Config, Service, bracketed
from lbd.core.words import did_you_mean, many, quote

# What a backend is to be; "up" ends what was said before.
Wish = Literal["drain", "maintenance", "up"]
COMMANDS: Mapping[str, Wish] = {"drain": "drain", "maintenance": "maintenance", "undrain": "up"}

# Of ten thousand services an error lists the first.
LISTED = 20


class UnknownError(Exception):
    """No backend is meant by these words. The text says which there are."""


class StandsInFileError(Exception):
    """A command cannot undo what the file says. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the user `uid` said of a backend at the time `at` (ISO 8601)."""

    state: Literal["drain", "maintenance"]
    uid: int
    at: str

    @property
    def override(self) -> Override:
        """What the rules and the status are made from."""
        what = "drained" if self.state == "drain" else "in maintenance"
        return Override(self.state, f"{what} by uid {self.uid} at {self.at} (lbd undrain ends it)")


def find(config: Config, service: str, backend: str) -> tuple[Service, Backend]:
    """Return the backend that is called so: as in the file, or by its address where that is enough.

    Raises UnknownError.
    """
    found = next((each for each in config.services if each.name == service), None)
    if found is None:
        names = [each.name for each in config.services]
        raise UnknownError(f"there is no service {quote(service)}{_instead(service, names)}")
    address, wanted = _normal(backend)
    named = [each for each in found.backends if str(each) == wanted]
    named = named or [each for each in found.backends if address and wanted == bracketed(each.address)]
    if len(named) == 1:
        return found, named[0]
    if named:
        several = _listed([str(each) for each in named])
        raise UnknownError(f"{quote(backend)} is several backends of service {quote(service)}: {several}")
    names = [str(each) for each in found.backends]
    raise UnknownError(f"service {quote(service)} has no backend {quote(backend)}{_instead(wanted, names)}")


def _normal(text: str) -> tuple[bool, str]:
    """Return whether it is an address without a port, and a backend as the file's are shown."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
    elif text.count(":") > 1:
        host, rest = text, ""
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
    try:
        return not rest, bracketed(ip_address(host)) + rest
    except ValueError:
        return False, text


def _instead(word: str, names: Sequence[str]) -> str:
    return f"{did_you_mean(word, names)}; there {'is' if len(names) == 1 else 'are'} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return (", ".join(names[:LISTED]) or "none") + (f" and {more} more" if more > 0 else "")


def decide(
    said: Mapping[BackendName, Said], service: Service, backend: Backend, wish: Said | None
) -> Mapping[BackendName, Said]:
    """Return what is said of all backends when `wish` is said of this one; None takes back what was.

    The same object when nothing changes. Raises StandsInFileError.
    """
    key = name(service, backend)
    before = said.get(key)
    if wish is None:
        if before is None and backend.state != "up":
            message = f"{' '.join(key)}: state = {backend.state!r} stands in the file; change it there"
            raise StandsInFileError(message)
        return said if before is None else {k: each for k, each in said.items() if k != key}
    if before and before.state == wish.state:
        return said
    return {**said, key: wish}


def within(said: Mapping[BackendName, Said], config: Config) -> Mapping[BackendName, Said]:
    """Return what is said of backends that there are; the same object when that is all."""
    services = {service for service, _ in said}
    known = {name(s, b) for s in config.services if s.name in services for b in s.backends}
    return said if known >= said.keys() else {key: each for key, each in said.items() if key in known}


@dataclass(frozen=True, slots=True)
class Asked:
    """A command and what came of it: what was said `before` and is said `now` of a backend.

    `connections` are those that are open, None when they are not tracked or could not be counted.
    """

    service: Service
    backend: Backend
    before: Said | None
    now: Said | None
    connections: int | None = None


def answer(asked: Asked, observed: Observed) -> dict[str, object]:
    """Return what `lbd drain` and the like are told, now that the rules are made of `observed`."""
    found = condition(asked.service, asked.backend, observed)
    key = name(asked.service, asked.backend)
    ended = key in observed.ended and found.state == "down" and not found.dead
    words = "; ".join([*_words(asked, found.state, found.reason, ended=ended), *_alone(asked, observed)])
    state = "drained" if ended else found.state
    return {
        "service": asked.service.name,
        "backend": str(asked.backend),
        "state": found.state,
        "reason": found.reason,
        "connections": asked.connections,
        "ended": ended,
        "message": f"{asked.service.name} {asked.backend}: {state}" + (f" ({words})" if words else ""),
    }


def _words(asked: Asked, state: str, reason: str, *, ended: bool) -> list[str]:
    before, now = asked.before, asked.now
    if now is None:
        nothing = ["nothing was to be undone"] if before is None else []
        if state == "up":
            return nothing
        by_file = "; change it there" if asked.backend.state != "up" else ""
        return [*nothing, (reason or "its checks say so") + by_file]
    words = []
    if asked.backend.state not in ("up", now.state) and state != now.state and not ended:
        words.append(
            f"{reason}, which is stronger; what you say holds when the file does not say so any more"
        )
    elif asked.backend.state == now.state:
        words.append(f"state = {asked.backend.state!r} stands in the file as well")
    if before and before.state == now.state:
        words.append(f"since {before.at}, said by uid {before.uid}")
    return [*words, left(asked.service, asked.connections)]


def _alone(asked: Asked, observed: Observed) -> list[str]:
    """Say when nobody else of its family takes the connections: that may not be what was meant."""
    if asked.now is None:
        return []
    active = rotation(asked.service, asked.backend.family, observed).active
    if not active:
        return ["nobody takes new connections now"]
    return (
        ["only the sorry server takes new connections now"] if set(active) <= set(asked.service.sorry) else []
    )


def left(service: Service, connections: int | None) -> str:
    """Say how many connections a backend of this service has."""
    if not tracked(service):
        return "its connections are not tracked"
    if connections is None:
        return "its connections could not be counted"
    if not connections:
        return "no connection is left"
    return f"{many(connections, 'connection')} {'is' if connections == 1 else 'are'} left"


def tracked(service: Service) -> bool:
    """Tell whether the connections of a service can be counted."""
    return service.return_path.kind not in ("direct", "stateless")
