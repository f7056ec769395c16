"""The sign of a broken return path: a backend passes its check, and clients' connections are never answered.

Replies that go past the director leave their connections unanswered in its tracking: the client sends SYN
after SYN. A check does not see that, as it comes from the director itself. A backend that is too busy leaves
unanswered connections too, but answers others: so it counts only when no new one was answered meanwhile.

Two samples make it: what the first one saw unanswered, and the second still does, waits for the time between
them at least.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lbd.core import entry
from lbd.core.attribution import Attribution, Sent
from lbd.core.entry import Entry
from lbd.core.health import Belief
from lbd.core.observed import BackendName, name
from lbd.core.settings import Config
from lbd.core.words import many


@dataclass(frozen=True, slots=True)
class Sample:
    """The connections that nobody answered, by how they were sent, and of those the answered beside them.

    Each is known by the kernel's id of it.
    """

    unanswered: Mapping[Sent, frozenset[bytes]] = field(default_factory=dict)
    answered: Mapping[Sent, frozenset[bytes]] = field(default_factory=dict)


def suspects(
    attribution: Attribution, beliefs: Mapping[BackendName, Belief], kinds: Iterable[Sent]
) -> dict[Sent, BackendName]:
    """Return those ways of being sent that lead to a backend whose check passes."""
    found: dict[Sent, BackendName] = {}
    for sent in kinds:
        owners = [name(service, backend) for service, backend in attribution.takers(sent)]
        if owners and all(owner in beliefs and beliefs[owner].up for owner in owners):
            found[sent] = owners[0]
    return found


def waiting(before: Sample, now: Sample, owners: Mapping[Sent, BackendName]) -> Counter[BackendName]:
    """Return how many connections of each backend waited since `before`, while no new one was answered."""
    found: Counter[BackendName] = Counter()
    innocent: set[BackendName] = set()
    by_owner: dict[BackendName, list[Sent]] = defaultdict(list)
    for sent, owner in owners.items():
        by_owner[owner].append(sent)
    for owner, kinds in by_owner.items():
        for sent in kinds:
            # What was unanswered then and is answered now is new among the answered, too.
            if now.answered.get(sent, frozenset()) - before.answered.get(sent, frozenset()):
                innocent.add(owner)
            both = before.unanswered.get(sent, frozenset()) & now.unanswered.get(sent, frozenset())
            found[owner] += len(both)
    return Counter({owner: n for owner, n in found.items() if n and owner not in innocent})


def watched(config: Config) -> bool:
    """Tell whether there are checks that could say another thing than the connections do."""
    return any(service.health for service in config.services)


def problem(backend: BackendName, number: int) -> str:
    """Return what is to be said of a backend whose replies do not come back."""
    service, words = backend
    return (
        f'backend {words} of service "{service}" passes its check, and {many(number, "connection")} of '
        "clients were never answered: do its replies come back through this director (its default gateway)?"
    )


def reported(backend: BackendName, number: int) -> Entry:
    """Say so, once for as long as it goes on."""
    service, words = backend
    fields = {"LBD_SERVICE": service, "LBD_BACKEND": words, "LBD_CONNECTIONS": str(number)}
    return Entry(problem(backend, number), entry.UNANSWERED, entry.WARNING, fields)
