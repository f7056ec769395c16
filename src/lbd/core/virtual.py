"""One listen address of a service with the backends that stand behind it now: what the program is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lbd.core.settings import Ports, Service
from lbd.core.shape import Where

# What the slots of a service hold: an address and a port, an address alone (the port stays), or an address
# with the port moved by as much for every backend.
Form = Literal["port", "host", "shift"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a share of a service's connections goes. Without `ports` the port stays what it was."""

    address: str
    ports: Ports | None = None

    @property
    def form(self) -> Form:
        """Return what a slot with this target holds."""
        if self.ports is None:
            return "host"
        return "port" if self.ports.single else "shift"

    @property
    def element(self) -> str:
        """Return the data of an element that sends connections here."""
        one = self.ports is not None and self.ports.single
        return f"{self.address} . {self.ports}" if one else self.address


@dataclass(frozen=True, slots=True)
class Virtual:
    """One listen address of `service` with its backends of its family and protocol.

    `targets` take new connections, by weight. `away` would, by weight, if they were in rotation: a maglev
    table is made of both, so that who goes and comes back moves nobody else's clients. `stay` are those that
    a client who is with them may stay with: the targets and the drained. `total` is the sum of the reduced
    weights of all backends in the file, live or not: the size of a maglev table follows it, so that a backend
    that dies does not change the table's size (which would move every client).
    """

    where: Where
    service: Service
    targets: Mapping[Target, int]
    total: int
    stay: frozenset[Target] = field(default_factory=frozenset)
    away: Mapping[Target, int] = field(default_factory=dict)

    @property
    def form(self) -> Form:
        """Return what the slots hold: all targets are of one form, and only a sorry server may differ."""
        return next((target.form for target in (*self.targets, *self.stay)), "host")
