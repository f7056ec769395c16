"""The experiment with a real director: lbd installed, started by systemd, a client and two real servers."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from director import ONE, PATH, service
from lbd.lab.namespaces import Lab
from lbd.lab.servers import Server
from lbd.lab.topology import experiment
from machine import Machine, boot, install, tmpfs

Boot = Callable[[Mapping[str, str]], Machine]


@pytest.fixture(scope="session")
def stage() -> Iterator[Path]:
    """Everything `make install` installs, once for all machines."""
    umask = os.umask(0o022)  # the machine's files are for its users
    try:
        with tmpfs() as place:
            install(place)
            yield place
    finally:
        os.umask(umask)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A client, two real servers on port 9999 whose gateway is the director, and the director's network."""
    with Lab(experiment(servers=2, gateway="director")) as lab:
        for host in ("server1", "server2"):
            lab.enter(Server(lab, host, 9999))
        yield lab


@pytest.fixture
def boot_director(stage: Path, lab: Lab) -> Iterator[Boot]:
    """Boot the director's machine with these files (path: text)."""
    with contextlib.ExitStack() as stack:
        yield lambda files: stack.enter_context(boot(stage, lab.namespace("director"), files))


@pytest.fixture
def director(boot_director: Boot) -> Machine:
    """The director, up, with the five-line file and one real server."""
    machine = boot_director({PATH: service(ONE)})
    machine.wait_active()
    return machine
