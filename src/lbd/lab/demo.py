"""`lbd demo`: the experiment that lbd comes from, step by step, on real packets.

Each step shows what it says and fails when it does not: the demo is also a test. All of it happens in the
lab's namespaces, with the real daemon; the host itself is left alone.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from lbd.lab.namespaces import Lab, LabError
from lbd.lab.narrator import Narrator
from lbd.lab.steps import PORT, SERVERS, VIP, Steps, WrongError
from lbd.lab.topology import experiment

PICTURE = """\
client               director                   real server
192.168.18.25 ------ eth0 192.168.18.58
                     eth1 192.168.2.90 ----+--- 192.168.2.73:9999
                                           |    default gateway 192.168.2.1
                                           |
                                           +--- 192.168.2.1, a router that
                                                knows no way to the client"""

# Of the daemon's words when a step fails.
LAST_LINES = 12


class Interrupt(AbstractContextManager["Interrupt"]):
    """The first SIGINT, SIGTERM or SIGHUP ends the steps, but never the making or removing of the lab."""

    def __init__(self) -> None:
        self._came = self._allowed = False
        numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
        self._before = {number: signal.signal(number, self._note) for number in numbers}

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Raise KeyboardInterrupt in the body when a signal comes, or came before it."""
        self._allowed = True
        try:
            self._act()
            yield
        finally:
            self._allowed = False

    def _note(self, *_: object) -> None:
        self._came = True
        self._act()

    def _act(self) -> None:
        if self._came and self._allowed:
            self._allowed = False
            raise KeyboardInterrupt


def run(*, colour: bool) -> int:
    """Walk through the six steps; return 0, or 1 when one of them did not show what it must."""
    tell = Narrator(colour=colour)
    start = time.monotonic()
    topology = experiment(len(SERVERS), gateway=("elsewhere", "director", "director"))
    try:
        with Interrupt() as interrupt, Lab(topology) as lab:
            steps = Steps(lab, tell)
            with interrupt.allowed():
                _walk(steps, tell)
    except WrongError:
        return 1
    except LabError as error:
        tell.failed(str(error))
        return 1
    tell.title(f"Done in {time.monotonic() - start:.0f} s; namespaces, daemons and files are gone again.")
    return 0


def _walk(steps: Steps, tell: Narrator) -> None:
    tell.title("lbd demo: a client, a director and real servers, as network namespaces")
    tell.picture(PICTURE)
    tell.gap()
    tell.says(f"The client asks for http://{VIP}:{PORT}/, and is to get the page of the real server.")
    for number, step in enumerate(steps.all, 1):
        try:
            step()
        except (WrongError, LabError, TimeoutError) as error:
            said = steps.daemon.lines[-LAST_LINES:] if steps.daemon else []
            tell.failed(f"step {number} did not show what it must: {error}", said)
            raise WrongError from error
