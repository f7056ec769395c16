"""What the commands `plan` and `apply` know of backends beside the file and the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lbd.client import CallError, call
from lbd.core.control import STATUS_MOST
from lbd.core.observed import Observed
from lbd.core.settings import Config
from lbd.core.source import Source
from lbd.core.status import known
from lbd.host.store import Store


def with_daemon(runtime: Path, state: Path, observed: Observed) -> Observed:
    """Return what was observed of the host with what the running daemon knows, or was told, of backends.

    Without a daemon what was said of backends is still kept in the state directory, and still holds.
    """
    try:
        found = known(call(runtime, "status", {}, STATUS_MOST))
    except CallError:
        return with_kept(state, observed)
    return replace(
        observed,
        dead=found.dead,
        overrides=found.overrides,
        ended=found.ended,
        portions=found.portions,
        full=found.full,
        shares=found.shares,
    )


def last_applied(state: Path, sources: tuple[Source, ...], config: Config) -> Config:
    """Return what the last file said that was applied, nothing when none is kept.

    `config` is what `sources` say: when they are the same, nothing is to be read again.
    """
    store = Store(state)
    return config if store.last_good().value == sources else store.last_config() or Config()


def with_kept(state: Path, observed: Observed) -> Observed:
    """Return what was observed of the host with what is kept of what was said of backends."""
    said = Store(state).overrides().value
    return replace(observed, overrides={key: each.override for key, each in said.items()})
