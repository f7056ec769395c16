"""What the file asks for, over time: which reading of it is in force, and why another is not.

It blocks on the disk, so the daemon calls it on a thread of its own; what is to be told is returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lbd.core import report
from lbd.core.accident import accident
from lbd.core.config import parse
from lbd.core.desired import desired
from lbd.core.entry import Entry
from lbd.core.observed import Observed, changes
from lbd.core.settings import Config
from lbd.core.source import BadFileError, Problem, Source
from lbd.core.state import Desired
from lbd.host import files
from lbd.host.store import Store, StoreError

# Editors truncate before they write: what was good and is now broken gets a second look this many
# seconds later, before it is called refused.
SECOND_LOOK = 2.0


@dataclass(frozen=True, slots=True)
class InForce:
    """A configuration that was read and is to be in force; `digest` is of its sources."""

    config: Config
    sources: tuple[Source, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of reading the file: entries for the journal, and when to read again, if at all."""

    entries: tuple[Entry, ...] = ()
    again: float | None = None


class Intent:
    """The file at `path` and its last good version in `store`."""

    def __init__(self, path: Path, store: Store) -> None:
        self.path, self.store = path, store
        self.now: InForce | None = None
        self.refusal: BadFileError | None = None
        self.watched: tuple[Path, ...] = ()
        # Somebody says of the file as it is that it is no accident; for the next reading alone.
        self.meant = False
        self._suspect_since: float | None = None
        # What was last asked for, and of what it was made.
        self._wish = Desired()
        self._made_of: tuple[Config, Observed] | None = None
        self._news: tuple[str, ...] = ()

    def read(self, at: float, *, patient: bool) -> Reading:
        """Read the file at the monotonic time `at`.

        `patient`: a file that was good and is broken is read again later before it is refused. The first
        reading of all takes the last good version in the place of a refused file.
        """
        meant, self.meant = self.meant, False
        try:
            found = files.read(self.path)
            # Also when they are refused: the mistake may be mended in a drop-in.
            self.watched = found.watched
            self._enforce(found.sources, meant=meant)
        except BadFileError as error:
            if patient and self.now and not self.refusal:
                self._suspect_since = at if self._suspect_since is None else self._suspect_since
                if at < self._suspect_since + SECOND_LOOK:
                    return Reading(again=self._suspect_since + SECOND_LOOK)
            return Reading(self._refuse(error))
        self._suspect_since = self.refusal = None
        return Reading()

    def wish(self, observed: Observed) -> Desired:
        """Return what is to be the host's state, given what is observed of it.

        The same object as before when nothing of it has changed: what was applied is still what is wanted.
        """
        assert self.now is not None
        config = self.now.config
        known = self._made_of
        if known is None or known[0] is not config or known[1] != observed:
            new = desired(config, observed)
            if known is not None and known[0] is config:
                self._news = changes(known[1], observed)
            if known is None or new != self._wish:
                self._wish = new
            self._made_of = (config, observed)
        return self._wish

    @property
    def observed(self) -> Observed:
        """Return what was observed of the host when it was last said what its state is to be."""
        return self._made_of[1] if self._made_of else Observed()

    def news(self) -> tuple[str, ...]:
        """Return, once, what was observed of the host that changed what is asked for, in words."""
        told, self._news = self._news, ()
        return told

    def keep(self) -> Reading:
        """Keep what is in force as the last good version."""
        if not self.now:
            return Reading()
        try:
            self.store.save_last_good(self.now.sources)
        except StoreError as error:
            return Reading((report.degraded(f"the last good file cannot be kept: {error}"),))
        return Reading()

    def _enforce(self, sources: tuple[Source, ...], *, meant: bool) -> None:
        if self.now and sources == self.now.sources:
            # Ten thousand services take a second to read.
            return
        new = build(sources)
        if not meant:
            # Also what a daemon before this one had in force.
            before = self.now.config if self.now else self.store.last_config(besides=sources)
            if before and (why := accident(before, new.config)):
                raise BadFileError([Problem(str(self.path), None, None, why, "")])
        self.now = new

    def _refuse(self, error: BadFileError) -> tuple[Entry, ...]:
        news = self.refusal is None or str(self.refusal) != str(error)
        self.refusal = error
        said = self._take_last_good() if self.now is None else ()
        if news:
            said += (report.refused(error, kept=self.now is not None),)
        return said

    def _take_last_good(self) -> tuple[Entry, ...]:
        kept = self.store.last_good()
        if not kept.value:
            return (report.degraded(kept.ignored),) if kept.ignored else ()
        try:
            self._enforce(kept.value, meant=True)
        except BadFileError as error:
            # Kept by another version of lbd, to which it was good.
            return (report.degraded(f"the last good file is not good any more: {error.summary}"),)
        return ()


def build(sources: tuple[Source, ...]) -> InForce:
    """Return what the given sources ask for. Raises BadFileError."""
    config = parse(sources[0], sources[1:])
    text = "\0".join(f"{source.path}\0{source.text}" for source in sources)
    # The bytes of a path that are no text are surrogates here.
    digest = sha256(text.encode(errors="surrogateescape"))
    return InForce(config, sources, digest.hexdigest())
