"""The real daemon on a host of the lab, and what it says."""

from __future__ import annotations

import re
import sys
import time
from typing import NamedTuple

from lbd.lab.namespaces import Lab, LabError, wait_until

# What lbd does in the lab takes well under a second; a loaded machine may take its time.
DEADLINE = 10.0

# Of what a daemon said before it ended, as the reason why.
LAST_LINES = 5

# A packet as lbd.core.report writes it.
PATH_LINE = re.compile(
    r"\S+: (?P<part>\w+ (?:enters|leaves)): (?P<interface>\S+) "
    r"(?P<source>\S+) > (?P<destination>\S+) tcp ?(?P<flags>.*)"
)


class Hop(NamedTuple):
    """One packet at one point of its way; `part` is "request enters", "reply leaves" and so on."""

    part: str
    interface: str
    source: str
    destination: str
    flags: str


class Daemon:
    """`lbd run` on a host, on a file of its own. It is ready when it is made, and ends with the lab.

    Raises LabError when it does not get ready, ends, or does not say what is waited for.
    """

    def __init__(self, lab: Lab, host: str, text: str) -> None:
        self._host = host
        self._directory = lab.directory(host)
        self._file, self._log = self._directory / "lbd.toml", self._directory / "log"
        self._file.write_text(text)
        argv = [sys.executable, "-m", "lbd", "run", "-c", str(self._file)]
        with self._log.open("wb") as log:
            self._process = lab.popen(host, argv, stdout=log, stderr=log)
        self.line("ready after")

    @property
    def lines(self) -> list[str]:
        """Everything that it said so far; its file is named without the directory."""
        text = self._log.read_text(errors="replace").replace(f"{self._directory}/", "")
        return text.splitlines()

    def line(self, text: str, after: int = 0) -> str:
        """Return the first line with `text` behind the first `after` lines, as soon as there is one."""

        def found() -> str:
            line = next((line for line in self.lines[after:] if text in line), "")
            if not line and self._process.poll() is not None:
                last = "; ".join(self.lines[-LAST_LINES:])
                raise LabError(f"lbd on {self._host} ended with exit code {self._process.returncode}: {last}")
            return line

        if line := wait_until(found, DEADLINE):
            return line
        raise LabError(f"lbd on {self._host} did not say {text!r} within {DEADLINE:.0f} s")

    def edit(self, text: str) -> tuple[str, float]:
        """Write the file; return what is said when it is applied, and the seconds until then."""
        before = len(self.lines)
        self._file.write_text(text)
        start = time.monotonic()
        return self.line("applied", before), time.monotonic() - start

    def path(self, client: str, until: str, count: int = 1) -> list[Hop]:
        """Return the first packet of each part of the way of a `client` ("192.0.2.1:40000"), in order.

        Waits until the part `until` was seen `count` times.
        """

        def enough() -> list[Hop]:
            hops = self._hops(client)
            return hops if sum(hop.part == until for hop in hops) >= count else []

        hops = wait_until(enough, DEADLINE)
        if not hops:
            raise LabError(f"no {count} lines {until!r} of {client} within {DEADLINE:.0f} s")
        firsts: dict[str, Hop] = {}
        for hop in hops:
            firsts.setdefault(hop.part, hop)
        return list(firsts.values())

    def _hops(self, client: str) -> list[Hop]:
        found = (PATH_LINE.search(line) for line in self.lines)
        hops = (Hop(**match.groupdict()) for match in found if match)
        return [hop for hop in hops if client in (hop.source, hop.destination)]
