"""The packet path of services with `log`: follows the NFLOG group and tells the journal."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator

from lbd.core import report
from lbd.core.desired import wheres
from lbd.core.entry import Entry
from lbd.core.packet import End, Paths
from lbd.core.settings import EVERY_PORT, Config, Service
from lbd.host.nflog import NfLog


class PacketPath:
    """Bound to a group only while the configuration has a service that logs to one."""

    def __init__(self, say: Callable[[Entry], None]) -> None:
        self.say = say
        self.paths = Paths()
        self.nflog: NfLog | None = None

    def follow(self, config: Config | None) -> None:
        """Show what `config` asks for from now on; None shows nothing. Runs on the event loop."""
        logged = [s for s in config.services if s.log != "off"] if config else []
        wanted = (
            config.director.log_group if config and logged and config.director.log_target == "nflog" else None
        )
        if self.nflog and self.nflog.group != wanted:
            asyncio.get_running_loop().remove_reader(self.nflog.fileno())
            self.nflog.close()
            self.nflog = None
        self.paths = Paths.of(row for service in logged for row in _rows(service))
        if wanted is not None and not self.nflog:
            self._bind(wanted)

    def _bind(self, group: int) -> None:
        try:
            self.nflog = NfLog(group)
        except OSError as error:
            # EPERM also means that somebody else has the group (nfulnl_recv_config). A daemon that lacks the
            # right itself does not come this far.
            taken = error.errno in (errno.EBUSY, errno.EPERM)
            why = "another process has it" if taken else error.strerror
            self.say(report.degraded(f"packets cannot be shown: NFLOG group {group}: {why}"))
            return
        asyncio.get_running_loop().add_reader(self.nflog.fileno(), self._show)

    def _show(self) -> None:
        if self.nflog:
            for seen in self.nflog.drain():
                self.say(report.packet(seen, *self.paths.explain(seen)))


def _rows(service: Service) -> Iterator[tuple[str, End, list[End]]]:
    for where, listen in wheres(service):
        backends = [b for b in (*service.backends, *service.sorry) if b.family == where.family]
        found = [(str(b.address), b.ports_behind(listen) if listen else EVERY_PORT) for b in backends]
        yield (
            service.name,
            End(where.protocol, where.address, where.ports.low, where.ports.high),
            [End(where.protocol, address, ports.low, ports.high) for address, ports in found],
        )
