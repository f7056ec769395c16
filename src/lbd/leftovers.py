"""Connections that backends leave behind when they go: found and ended after the rules have changed."""

from __future__ import annotations

from collections.abc import Callable

from lbd.core.entry import Entry
from lbd.core.observed import Observed
from lbd.core.settings import Config
from lbd.host.store import Store


class Leftovers:
    """What connection tracking still sends to backends that are not there any more."""

    def __init__(self, say: Callable[[Entry], None], store: Store) -> None:
        self.say, self.store = say, store

    async def clear(self, config: Config, observed: Observed, *, thorough: bool) -> None:
        """End what is left over, now that the rules are those of `config`. Runs on the event loop."""
