"""Say that the configuration may have changed (watchdog, inotify(7)), with stat(2) as the backstop.

No data and no verdict: who hears it reads the files and decides. Files are never read here, since a
read would be an event of its own.
"""

from __future__ import annotations

import asyncio
import glob
import os
import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

# What no watch sees (a bind mount over the file, an inotify queue that overflowed, a watch that could not
# be set) is seen after this many seconds.
POLL = 5.0

# At most 20 looks a second, however often somebody writes.
_GAP = 0.05

# Symbolic links in one path before it is taken for a loop (MAXSYMLINKS of the kernel).
_LINKS = 40

# ValueError: a pattern with a NUL in it, which no path can have.
_NO_FILE = (OSError, ValueError)

# Not opening and closing for reading: our own reading would wake us for ever.
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


@dataclass(slots=True)
class _Scope:
    """What decides which files a path means, and those files.

    `names` has, for each directory on the way, the names in it (patterns of fnmatch) that matter.
    """

    names: dict[Path, set[str]] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)


class _Ear(FileSystemEventHandler):
    """Hears one directory, on watchdog's thread. Tells when something happened to a name that matters."""

    def __init__(self, directory: Path, names: set[str], tell: Callable[[], None]) -> None:
        self._directory = directory
        self._tell = tell
        self.names = names
        self.deaf = False

    def dispatch(self, event: FileSystemEvent) -> None:
        for path in (Path(os.fsdecode(event.src_path)), Path(os.fsdecode(event.dest_path))):
            if path == self._directory and isinstance(event, DirDeletedEvent):
                # Its emitter ends silently now. The next directory here may get the same inode number, so
                # this is the only sign.
                self.deaf = True
                self._tell()
            elif path.parent == self._directory and _matches(path.name, self.names):
                self._tell()


@dataclass(frozen=True, slots=True)
class _Watch:
    identity: tuple[int, int]
    observed: ObservedWatch
    ear: _Ear


class FileWatch:
    """Calls `changed` on the loop's thread when the file at `path`, or one of `paths`, may have changed.

    Calls are coalesced and may be for nothing; none is missing for longer than `poll` seconds.
    """

    def __init__(
        self, path: Path, changed: Callable[[], None], loop: asyncio.AbstractEventLoop, poll: float = POLL
    ) -> None:
        self._changed = changed
        self._loop = loop
        self._poll = poll
        self._path = Path(glob.escape(str(path.absolute())))
        self._paths: tuple[Path, ...] = ()
        self._event = asyncio.Event()
        self._told = False
        self._lock = threading.Lock()
        self._closed = False
        self._watches: dict[Path, _Watch] = {}
        self._observer: BaseObserver | None = None
        # Before anybody reads the file, so that no change falls between the reading and the watching.
        self._seen = self._look()
        self._task = loop.create_task(self._run())

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is watched besides the file: paths, with the wildcards of glob in any part (but no `**`)."""
        return self._paths

    @paths.setter
    def paths(self, paths: Iterable[Path]) -> None:
        new = tuple(sorted({path.absolute() for path in paths}))
        # The daemon sets them whenever it has read the file: the same again must not wake it again.
        if new != self._paths:
            self._paths = new
            self._event.set()

    def close(self) -> None:
        """Stop watching. `changed` is not called any more. May take half a second (watchdog's threads)."""
        self._task.cancel()
        with self._lock:
            self._closed = True
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll):
                    await self._event.wait()
            heard = self._event.is_set()
            self._event.clear()
            # In a thread: watchdog ends a watch by joining its thread, which may sleep for 0.5 s.
            seen = await asyncio.to_thread(self._look)
            # First looked, then told: whatever comes after the look differs from it at the next one.
            if heard or seen != self._seen:
                self._seen = seen
                self._changed()
            await asyncio.sleep(_GAP)

    def _tell(self) -> None:
        # On watchdog's threads. One call waits at the loop, however many events there are.
        if not self._told:
            self._told = True
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        self._told = False
        self._event.set()

    def _look(self) -> frozenset[tuple[Path, tuple[int, ...]]]:
        """Watch what must be watched now and return what the files look like."""
        with self._lock:
            scope = _scope((self._path, *self._paths))
            # A directory that came while its parent's watch was being set was not seen to come: look until
            # nothing is new. The bound is for a tree that changes all the time; the poll does the rest.
            for _ in range(5):
                if self._closed or not self._watch(scope.names):
                    break
                scope = _scope((self._path, *self._paths))
            return frozenset((file, _signature(file)) for file in scope.files)

    def _watch(self, names: dict[Path, set[str]]) -> bool:
        """Make the watches those of `names`. Returns whether one was set."""
        observer = self._observer = self._observer or _observer()
        if observer is None:
            return False
        alive = {emitter.watch for emitter in observer.emitters if emitter.is_alive()}
        identities = {directory: _identity(directory) for directory in names}
        for directory, watch in list(self._watches.items()):
            same = watch.identity == identities.get(directory)
            if same and watch.observed in alive and not watch.ear.deaf:
                watch.ear.names = names[directory]
            else:
                del self._watches[directory]
                observer.unschedule(watch.observed)
        added = False
        for directory, identity in identities.items():
            if identity is None or directory in self._watches:
                continue
            ear = _Ear(directory, names[directory], self._tell)
            # Without a watch (fs.inotify.max_user_watches, or no thread to be had) there is the poll.
            with suppress(OSError, RuntimeError):
                observed = observer.schedule(ear, str(directory), event_filter=_EVENTS)
                self._watches[directory] = _Watch(identity, observed, ear)
                added = True
        return added


def _observer() -> BaseObserver | None:
    try:
        observer = Observer()
        observer.start()
    except (OSError, RuntimeError):  # fs.inotify.max_user_instances, or no thread: there is the poll
        return None
    return observer


def _scope(patterns: Iterable[Path]) -> _Scope:
    """Follow absolute paths part by part, through every symbolic link, as the kernel would."""
    scope = _Scope()
    todo = [(Path("/"), pattern.parts[1:], 0) for pattern in patterns if pattern.parts[1:]]
    while todo:
        directory, (part, *others), links = todo.pop()
        rest = tuple(others)
        if part == "..":
            # `directory` has no links left in it, so this is what the kernel does.
            steps = [(directory.parent, rest, links)]
        else:
            scope.names.setdefault(directory, set()).add(part)
            steps = [_step(path, rest, links) for path in _entries(directory, part)]
        scope.files.update(path for path, rest, _ in steps if not rest)
        todo += [step for step in steps if step[1] and step[2] <= _LINKS]
    return scope


def _step(path: Path, rest: tuple[str, ...], links: int) -> tuple[Path, tuple[str, ...], int]:
    try:
        target = path.readlink()
    except _NO_FILE:  # not a link, or not there
        return path, rest, links
    parts = target.parts[1:] if target.is_absolute() else target.parts
    return Path("/") if target.is_absolute() else path.parent, (*map(glob.escape, parts), *rest), links + 1


def _entries(directory: Path, pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        return [directory / pattern]
    try:
        return [path for path in directory.iterdir() if fnmatchcase(path.name, pattern)]
    except _NO_FILE:
        return []


def _matches(name: str, patterns: set[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _identity(directory: Path) -> tuple[int, int] | None:
    """Return device and inode of a directory that can be watched, or None."""
    try:
        status = directory.stat()
    except _NO_FILE:
        return None
    # watchdog takes a directory without read permission (EACCES) for one that it watches.
    watchable = stat.S_ISDIR(status.st_mode) and os.access(directory, os.R_OK)
    return (status.st_dev, status.st_ino) if watchable else None


def _signature(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except _NO_FILE as error:
        return (getattr(error, "errno", 0),)
    # The change time shows what the others do not: a new mode, or an old date put back (cp -p, rsync -t).
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
