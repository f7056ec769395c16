"""Health checks of a running daemon: when each is due, what it says, and a look when rules depend on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lbd.core.entry import Entry
from lbd.core.health import Belief
from lbd.core.observed import BackendName, Observed
from lbd.core.settings import Config
from lbd.host.store import Store


class Checking:
    """Checks only while the configuration has a service that wants it. `changed` asks for a look."""

    def __init__(self, say: Callable[[Entry], None], changed: Callable[[], None], store: Store) -> None:
        self.say, self.changed, self.store = say, changed, store
        self.beliefs: Mapping[BackendName, Belief] = {}

    async def follow(self, config: Config | None) -> None:
        """Check for `config` from now on; None checks nothing. Runs on the event loop."""

    def merged(self, observed: Observed) -> Observed:
        """Return what was observed of the host with what the checks say. For any thread."""
        return observed
