"""A whole machine for a test: this host's files under an overlay, its own systemd, journald and network.

Boots in about a second, without a disk image; the network is a namespace of the caller's. Everything lives
on one tmpfs and is gone afterwards.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).resolve().parents[1]

BOOT_DEADLINE = 60.0  # seconds; an idle host needs one
START_DEADLINE = 15.0
COMMAND_DEADLINE = 60.0
STOP_DEADLINE = 15.0

# The machine has no clock, console, login or package database to look after.
MASKED = (
    "systemd-timesyncd.service",
    "console-getty.service",
    "systemd-firstboot.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-logind.service",
    "ldconfig.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-done.service",
)

# What the machine boots into. lbd is wanted, not required: the machine is up even when lbd refuses to start.
TARGET = """\
[Unit]
Requires=basic.target
After=basic.target
Wants=lbd.service
"""

JOURNALD = """\
[Journal]
Storage=volatile
RateLimitIntervalSec=0
ReadKMsg=no
"""

Entry = dict[str, str]
T = TypeVar("T")


def wait(condition: Callable[[], T], deadline: float = 10.0, *, step: float = 0.01) -> T:
    """Return the first truthy value of the condition; fail when there is none within `deadline` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"still {value!r} after {deadline} s"
        time.sleep(step)
    return value


def command(
    *argv: str | Path, deadline: float = COMMAND_DEADLINE, **options
) -> subprocess.CompletedProcess[str]:
    """Run a command of this host; its output is captured, its exit status is the caller's to judge."""
    return subprocess.run(
        argv,
        text=True,
        capture_output=True,
        check=False,
        timeout=deadline,
        stdin=subprocess.DEVNULL,
        **options,
    )


def must(*argv: str | Path, deadline: float = COMMAND_DEADLINE, **options) -> str:
    """Return the standard output of a command of this host that has to succeed."""
    done = command(*argv, deadline=deadline, **options)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class Machine:
    """A booted machine: `leader` is its systemd's process id, `root` its file system, both seen from here."""

    root: Path
    leader: int

    def run(self, *argv: str, deadline: float = COMMAND_DEADLINE) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root, in all the machine's namespaces."""
        return command("nsenter", "-t", str(self.leader), "-a", "--", *argv, deadline=deadline)

    def must(self, *argv: str) -> str:
        """Return the standard output of a command inside that has to succeed."""
        return must("nsenter", "-t", str(self.leader), "-a", "--", *argv)

    def systemctl(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", *argv)

    def show(self, unit: str = "lbd.service") -> Entry:
        """Return the unit's properties as systemd has them."""
        lines = self.must("systemctl", "show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def told(self) -> str:
        """Return what the daemon last told systemd of itself (STATUS=)."""
        return self.show().get("StatusText", "")

    def wait_active(self, unit: str = "lbd.service") -> None:
        """Wait until the unit has told systemd that it is ready."""
        try:
            wait(lambda: self.show(unit)["ActiveState"] == "active", START_DEADLINE)
        except AssertionError:
            said = "\n".join(entry["MESSAGE"] for entry in self.journal(unit=unit))
            raise AssertionError(f"{unit} is not active; its journal:\n{said}") from None

    def main_pid(self) -> str:
        """Return the daemon's process id as the machine's own processes see it."""
        return self.show()["MainPID"]

    def table(self) -> str:
        """Return lbd's nftables table as text, without counters; empty when there is none."""
        return self.run("nft", "--stateless", "list", "table", "inet", "lbd").stdout

    def cursor(self) -> str:
        """Return the place in the journal after which new entries come."""
        return self.journal()[-1]["__CURSOR"]

    def journal(self, *, unit: str = "", after: str = "") -> list[Entry]:
        """Return the journal's entries, of one unit and after a cursor if given, with all their fields."""
        argv = ["journalctl", "-D", f"/proc/{self.leader}/root/run/log/journal", "-o", "json", "--all", "-q"]
        argv += ["-u", unit] if unit else []
        argv += [f"--after-cursor={after}"] if after else []
        return [json.loads(line) for line in must(*argv).splitlines()]

    def write(self, path: str, text: str) -> float:
        """Replace a file as careful editors do, write aside and rename; return when, in monotonic seconds."""
        target = self.root / path.lstrip("/")
        aside = target.with_name(f".{target.name}.new")
        aside.write_text(text)
        aside.chmod(0o644)
        aside.rename(target)
        return time.monotonic()


@contextlib.contextmanager
def tmpfs() -> Iterator[Path]:
    """Mount an empty tmpfs: overlayfs accepts it as an upper layer, and as a lower one beside / itself."""
    place = Path(tempfile.mkdtemp(prefix="lbd-machine-"))
    try:
        must("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)
        try:
            yield place
        finally:
            must("umount", "--lazy", place)
    finally:
        place.rmdir()


def install(stage: Path) -> None:
    """Install lbd into `stage` as an administrator would: what is tested is what is shipped."""
    must("make", "-C", REPOSITORY, "install", f"DESTDIR={stage}", deadline=300)


@contextlib.contextmanager
def boot(stage: Path, netns: str, files: Mapping[str, str]) -> Iterator[Machine]:
    """Boot in a network namespace: this host's / below, the installed `stage` above it, then `files`.

    `files` maps paths to texts. The files end up readable for every user of the machine only if the umask
    lets them.
    """
    with tmpfs() as place:
        for name in ("up", "work", "root", "notify"):
            (place / name).mkdir()
        root = place / "root"
        layers = f"lowerdir={stage}:/,upperdir={place}/up,workdir={place}/work"
        must("mount", "-t", "overlay", "overlay", "-o", layers, root)
        try:
            _furnish(root, files)
            with _nspawn(root, netns, place / "notify/socket") as leader:
                yield Machine(root, leader)
        finally:
            must("umount", "--lazy", root)


def _furnish(root: Path, files: Mapping[str, str]) -> None:
    units = root / "etc/systemd/system"
    for pattern in ("*.wants", "*.requires"):
        for directory in units.glob(pattern):
            shutil.rmtree(directory)
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    own = {
        "etc/systemd/system/test.target": TARGET,
        "etc/systemd/journald.conf.d/test.conf": JOURNALD,
        "etc/machine-id": os.urandom(16).hex() + "\n",
    }
    for name, text in {**own, **files}.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    must("systemd-sysusers", f"--root={root}", "lbd.conf")


@contextlib.contextmanager
def _nspawn(root: Path, netns: str, notify: Path) -> Iterator[int]:
    """Boot systemd in `root`; yield its process id once it is up, and end it and its container afterwards."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, tempfile.TemporaryFile() as console:
        listener.bind(os.fspath(notify))
        container = subprocess.Popen(
            _nspawn_command(root, netns),
            env={
                **os.environ,
                "NOTIFY_SOCKET": os.fspath(notify),
                "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
            },
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
        leader = 0
        try:
            leader = _leader(listener)
            # Nobody reads on: nspawn, and systemd behind it, would wait for ever at a full queue.
            listener.close()
            # Not nspawn's own READY=1: that one waits for every unit, and some tests have one that never is.
            wait(lambda: _systemd_answers(leader), BOOT_DEADLINE)
            yield leader
        except (AssertionError, TimeoutError):
            console.seek(0)
            sys.stderr.write(console.read().decode(errors="replace"))
            raise
        finally:
            _end(container, leader)


def _leader(listener: socket.socket) -> int:
    """Return the process id of the machine's systemd, which nspawn tells as soon as it has one."""
    listener.settimeout(BOOT_DEADLINE)
    while True:
        for line in listener.recv(4096).decode().splitlines():
            if line.startswith("X_NSPAWN_LEADER_PID="):
                return int(line.partition("=")[2])


def _systemd_answers(leader: int) -> bool:
    return (
        command("nsenter", "-t", str(leader), "-a", "--", "systemctl", "show", "-P", "Version").returncode
        == 0
    )


def _nspawn_command(root: Path, netns: str) -> Sequence[str]:
    return (
        "systemd-nspawn",
        "--quiet",
        f"--directory={root}",
        "--boot",
        "--register=no",
        "--keep-unit",
        "--console=pipe",
        f"--machine={netns}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--capability=CAP_NET_ADMIN",
        f"--network-namespace-path=/run/netns/{netns}",
        "--",
        "systemd.unit=test.target",
    )


def _end(container: subprocess.Popen[bytes], leader: int) -> None:
    """Ask systemd to halt (SIGRTMIN+4, systemd(1)); kill it when it does not."""
    with contextlib.suppress(ProcessLookupError):
        if leader:
            os.kill(leader, signal.SIGRTMIN + 4)
        else:
            container.terminate()
    try:
        container.wait(STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            if leader:
                os.kill(leader, signal.SIGKILL)
        container.kill()
        container.wait()
