"""The state directory: what lbd must still know after a restart, in files that are whole or not there.

Blocking (fsync): the daemon calls it off its event loop when that matters.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lbd.core.config import parse
from lbd.core.health import Belief
from lbd.core.incidents import Incident
from lbd.core.memory import (
    decode_beliefs,
    decode_incidents,
    decode_memory,
    decode_overrides,
    decode_sources,
    encode_beliefs,
    encode_incidents,
    encode_memory,
    encode_overrides,
    encode_sources,
)
from lbd.core.observed import BackendName
from lbd.core.overrides import Said
from lbd.core.settings import Config
from lbd.core.source import BadFileError, Source
from lbd.core.state import Memory

T = TypeVar("T")
U = TypeVar("U")

# Another one after each boot: random(4). Monotonic times of another boot say nothing.
_BOOT = Path("/proc/sys/kernel/random/boot_id")

# 5,000 services are 3 MiB of TOML. More than this is not a file that lbd wrote.
_LIMIT = 64 * 1024 * 1024


class StoreError(Exception):
    """Nothing could be kept; what was kept before is untouched. The text says why and where."""


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """What was found. `ignored` says why a file that is there was not used, and is empty otherwise."""

    value: T
    ignored: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    """The files of one state directory (STATE_DIRECTORY, by default /var/lib/lbd)."""

    directory: Path

    def last_good(self) -> Loaded[tuple[Source, ...] | None]:
        """Return the last configuration that was applied; None when there is none, or none to be trusted."""
        return self._load("last-good.json", decode_sources, None)

    def last_config(self, besides: Sequence[Source] = ()) -> Config | None:
        """Return what the last configuration says that was applied. None: there is none, or it is `besides`.

        One that another version of lbd has kept, and that is not good to this one, is none.
        """
        kept = self.last_good().value
        if not kept or kept == tuple(besides):
            return None
        try:
            return parse(kept[0], kept[1:])
        except BadFileError:
            return None

    def save_last_good(self, sources: Sequence[Source]) -> None:
        """Keep the files of a configuration that was applied. Raises StoreError."""
        self._save("last-good.json", encode_sources(sources))

    def memory(self) -> Loaded[Memory]:
        """Return what the kernel cannot tell; an empty Memory when there is none, or none to be trusted."""
        return self._load("memory.json", decode_memory, Memory())

    def save_memory(self, memory: Memory) -> None:
        """Keep what the kernel cannot tell. Raises StoreError."""
        self._save("memory.json", encode_memory(memory))

    def incidents(self) -> Loaded[tuple[Incident, ...]]:
        """Return the incidents that were kept, the newest last; none when there are none to be trusted."""
        return self._load("incidents.json", decode_incidents, ())

    def save_incidents(self, incidents: Sequence[Incident]) -> None:
        """Keep who changed the host, and when. Raises StoreError."""
        self._save("incidents.json", encode_incidents(incidents))

    def beliefs(self) -> Loaded[Mapping[str, Belief]]:
        """Return what was believed of backends, by digest of the check; nothing that is of another boot."""
        found: Loaded[tuple[str, dict[str, Belief]]] = self._load("health.json", decode_beliefs, ("", {}))
        boot, beliefs = found.value
        return Loaded(beliefs if boot and boot == _this_boot() else {}, found.ignored)

    def save_beliefs(self, beliefs: Mapping[str, Belief]) -> None:
        """Keep what is believed of backends. Raises StoreError."""
        boot = _this_boot()
        if not boot:
            raise StoreError(f"{_BOOT} cannot be read")
        self._save("health.json", encode_beliefs(boot, beliefs))

    def overrides(self) -> Loaded[Mapping[BackendName, Said]]:
        """Return what was said of backends at run time; nothing when there is none, or none to be trusted."""
        return self._load("overrides.json", decode_overrides, {})

    def save_overrides(self, said: Mapping[BackendName, Said]) -> None:
        """Keep what was said of backends at run time. Raises StoreError."""
        self._save("overrides.json", encode_overrides(said))

    def _load(self, name: str, decode: Callable[[str], T], absent: U) -> Loaded[T | U]:
        path = self.directory / name
        try:
            return Loaded(decode(_read(path)))
        except FileNotFoundError:
            return Loaded(absent)
        except (OSError, ValueError) as error:
            return Loaded(absent, f"{path} is ignored: {error}")

    def _save(self, name: str, text: str) -> None:
        path = self.directory / name
        # Always the same name, so that a crash leaves at most one of them behind.
        new = self.directory / f"{name}.new"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                _write(new, text)
                new.replace(path)
            except OSError:
                with suppress(OSError):
                    new.unlink()
                raise
            _sync(self.directory)
        except OSError as error:
            raise StoreError(f"{path} could not be written: {error.strerror or error}") from error


def _this_boot() -> str:
    """Return which boot of the host this is, "" when that cannot be told."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> str:
    # O_NONBLOCK: a FIFO in the place of the file must not stop lbd.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > _LIMIT:
            raise ValueError(f"it has {status.st_size} bytes, lbd writes at most {_LIMIT}")
        return file.read(_LIMIT).decode()


def _write(path: Path, text: str) -> None:
    # A leftover of a crash is removed and not reused: it may have another owner or mode.
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        if os.geteuid() == 0:
            # Written by `lbd apply` as root, and read by a daemon that is not.
            owner = path.parent.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)
        file.write(text.encode())
        file.flush()
        os.fsync(fd)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
