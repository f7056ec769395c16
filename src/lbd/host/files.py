"""Reads the files of the configuration (open(2), fstat(2)): their bytes as they are, nothing decided.

A path may lead to anything: a FIFO that never ends, a device, a file of 1 GiB. Each is one clear refusal.
"""

from __future__ import annotations

import glob
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from lbd.core.config import includes, lists, parse
from lbd.core.settings import Config
from lbd.core.source import BadFileError, Problem, Source, decode

# All files together. 44,000 services with 100,000 backends are about 12 MiB; what is five times that is
# not a configuration, and reading it would take the memory of the host.
LARGEST = 64 * 1024 * 1024

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True)
class FileSet:
    """The main file, those it includes, and the files of prefixes that they name, as they were read.

    `watched` are glob patterns whose matches are these files.
    """

    sources: tuple[Source, ...]
    watched: tuple[Path, ...]


def read(path: Path) -> FileSet:
    """Read the main file at `path`, what its patterns match in sorted order, and the files of prefixes.

    A main file with a mistake in it is read too, without what it includes: whoever parses it tells all that
    is wrong. A file of prefixes that cannot be read is there as such, to be refused where it is named.
    Raises BadFileError if another file cannot be read, is too large or is not UTF-8.
    """
    data = _read(path, LARGEST)
    left = LARGEST - len(data)
    sources = [decode(str(path), data)]
    try:
        patterns = includes(sources[0])
    except BadFileError:
        patterns = ()
    for included in _matches(path, patterns):
        data = _read(included, left)
        left -= len(data)
        sources.append(decode(str(included), data))
    named = lists.paths(sources)
    for each in named:
        found, size = _read_prefixes(each, left)
        left -= size
        sources.append(found)
    directory = Path(glob.escape(str(path.absolute().parent)))
    return FileSet(
        sources=tuple(sources),
        watched=(
            directory / glob.escape(path.name),
            *(directory / pattern for pattern in patterns),
            *(Path(glob.escape(str(Path(each).absolute()))) for each in named),
        ),
    )


def load(path: Path) -> Config:
    """Read and parse the configuration at `path`. Raises BadFileError with every problem."""
    main, *others = read(path).sources
    return parse(main, others)


def _matches(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return each file once, and not the main file itself, in the order of patterns and names."""
    # Not Path.glob: it would find the hidden files that editors leave beside the one they edit.
    names: list[str] = []
    for pattern in patterns:
        names += sorted(glob.glob(pattern, root_dir=path.parent))  # noqa: PTH207 - see above
    return [path.parent / name for name in dict.fromkeys(map(os.path.normpath, names)) if name != path.name]


def _read_prefixes(path: str, limit: int) -> tuple[Source, int]:
    """Return a file of prefixes, or why there is none, and its size in bytes."""
    try:
        data = _read(Path(path), limit)
        return replace(decode(path, data), kind="prefixes"), len(data)
    except BadFileError as error:
        return Source(path, "", "prefixes", unread=error.problems[0].headline), 0


def _read(path: Path, limit: int) -> bytes:
    try:
        # Without O_NONBLOCK the open of a FIFO waits for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise _refused(path, "cannot be read: no path has a NUL in it") from None
    try:
        status = os.fstat(fd)
        kind = next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), None)
        if kind is not None:
            raise _refused(path, f"is {kind}, not a file")
        data = _bounded(fd, limit)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    if len(data) > limit:
        raise _refused(path, f"is too large; all files of a configuration have {LARGEST >> 20} MiB at most")
    return data


def _bounded(fd: int, limit: int) -> bytes:
    """Return what is in the file, or one byte more than `limit`."""
    with os.fdopen(fd, "rb", closefd=False) as file:
        return file.read(limit + 1)


def _refused(path: Path, message: str) -> BadFileError:
    return BadFileError([Problem(str(path), None, None, message, "")])
