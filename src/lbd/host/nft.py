"""The door to nftables: a worker process, watched with deadlines."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lbd.core.ops import AddElements, DeleteElements, NftOp
from lbd.core.state import LiveTable, Map, TableFamily
from lbd.host import nft_worker
from lbd.reconcile import RefusedError

# Ten thousand services take the worker under a second to load and to read; a kernel under emulation is
# twenty times slower. A worker that needs longer than this hangs.
DEADLINE = 30.0

# libnftables 1.0.6 prepares an element anew when a netlink message is full, and then swaps the bytes of an
# index, mark or interface beside a range a second time: another element is made. A message has 64 KiB, and
# an element of two IPv6 prefixes below 200 bytes.
ELEMENTS_AT_ONCE = 250


class WorkerEndedError(RefusedError):
    """The worker died while it was asked."""


class Nft:
    """One worker, started when first needed and again whenever it was lost. Not for use by two threads."""

    def __init__(self, deadline: float = DEADLINE, lost: Callable[[str], None] = lambda _: None) -> None:
        """`lost` is told why a worker had to be given up."""
        self.deadline, self.lost = deadline, lost
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Return the worker's process id, None before the first request and after a loss."""
        return self._process.pid if self._process else None

    def read(
        self, schema: Mapping[str, Map], *, learned: bool = False, family: TableFamily = "inet"
    ) -> tuple[LiveTable | None, int]:
        """Return our table of a family and the generation it was read at; see nft_read.read()."""
        table, generation = self._ask_twice(("read", dict(schema), learned, family))
        return table, generation

    def commit(self, ops: Sequence[NftOp]) -> int:
        """Do `ops` in one transaction; return its generation, 0 when that cannot be told."""
        return int(self._ask(("commit", "\n".join(str(part) for op in ops for part in _parts(op)))))

    def can_offload(self) -> bool:
        """Tell whether this kernel has flowtables. Nothing is changed to find that out."""
        return bool(self._ask_twice(("probe",)))

    def close(self) -> None:
        """End the worker; one that is in the middle of a transaction finishes it first."""
        if self._sock:
            self._sock.close()
        if self._process:
            try:
                self._process.wait(self.deadline)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._sock = None

    def _ask_twice(self, request: tuple[Any, ...]) -> Any:
        """Ask what changes nothing: when the worker dies of it, the next one is asked.

        One that hangs is not given up for another within the patience of whoever waits for us.
        """
        try:
            return self._ask(request)
        except WorkerEndedError:
            return self._ask(request)

    def _ask(self, request: tuple[Any, ...]) -> Any:
        try:
            sock = self._sock or self._start()
        except OSError as error:
            raise RefusedError(f"nftables: no worker process can be started: {error.strerror}") from error
        try:
            nft_worker.send(sock, request)
            answer = nft_worker.receive(sock)
        except (OSError, EOFError) as error:
            hangs = isinstance(error, TimeoutError)
            why = "did not answer in time" if hangs else "ended"
            self._give_up(why)
            # What the transaction became is for the next look to find: it is whole or not there.
            kind = RefusedError if hangs else WorkerEndedError
            raise kind(f"nftables: the worker process {why} during {request[0]!r}") from error
        match answer:
            case ("ok", value):
                return value
            case ("busy", why):
                raise RefusedError(f"nftables: {why}")
            case (_, why, permission):
                raise RefusedError(why, permission=permission)
        raise AssertionError(answer)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            # The worker finds our modules where we found them, wherever lbd is installed.
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lbd.host.nft_worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                # A Ctrl-C at the terminal is the daemon's to handle.
                start_new_session=True,
            )
        ours.settimeout(self.deadline)
        self._sock = ours
        return ours

    def _give_up(self, why: str) -> None:
        process, self._process = self._process, None
        if self._sock:
            self._sock.close()
            self._sock = None
        if process:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            self.lost(f"the nftables worker (pid {process.pid}) {why}")


def _parts(op: NftOp) -> Iterator[NftOp]:
    """Give an operation as several, each of which is one message."""
    match op:
        case AddElements(items=items, map=shape) if shape.interval and len(shape.key) > 1:
            for at in range(0, len(items), ELEMENTS_AT_ONCE):
                yield replace(op, items=items[at : at + ELEMENTS_AT_ONCE])
        case DeleteElements(keys=keys, map=shape) if shape.interval and len(shape.key) > 1:
            for at in range(0, len(keys), ELEMENTS_AT_ONCE):
                yield replace(op, keys=keys[at : at + ELEMENTS_AT_ONCE])
        case _:
            yield op
