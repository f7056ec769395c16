"""What was said at run time of backends (`lbd drain`, `lbd maintenance`), kept until it is taken back."""

from __future__ import annotations

from collections.abc import Callable

from lbd.core.entry import Entry
from lbd.core.observed import Observed
from lbd.core.settings import Config
from lbd.host.store import Store


class Overrides:
    """`changed` asks for a look."""

    def __init__(self, say: Callable[[Entry], None], changed: Callable[[], None], store: Store) -> None:
        self.say, self.changed, self.store = say, changed, store

    async def follow(self, config: Config | None) -> None:
        """Be of `config` from now on. Runs on the event loop."""

    def merged(self, observed: Observed) -> Observed:
        """Return what was observed of the host with what was said at run time. For any thread."""
        return observed
