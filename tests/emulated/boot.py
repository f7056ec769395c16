"""Run tests on Debian's own kernel, for features that the kernel of this host may lack (flowtables, SCTP).

    .venv/bin/python tests/emulated/boot.py                        # the tests marked `emulated`
    .venv/bin/python tests/emulated/boot.py tests/kernel -k udp    # or what pytest is told

qemu emulates a machine without a network: no KVM is needed, and Python is about 20 times slower in it. It is
up after 4 s, and pytest starts some 20 s later, with LBD_EMULATED in its environment. The machine's root is
this host's `/` (so also the checkout and .venv) by virtiofs, read-only, an overlay in memory on top: what
tests write is gone in the end. It has three serial ports: what pytest says, the kernel's log, and pytest's
exit status, which becomes ours. The kernel is fetched once, into .emulated/.

Needs root (apt-get, virtiofsd) on amd64, and Debian's qemu-system-x86, busybox-static and kmod.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
CACHE = REPOSITORY / ".emulated"

# The flavour for virtual machines: a third of the size, with all that is needed, but no 9p.
META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/bin/busybox")  # busybox-static: it runs before there is a libc
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"  # qemu-system-common

# What the first process loads itself; for all other modules the kernel then finds modprobe.
FIRST_MODULES = ("virtio_pci", "virtiofs", "overlay")

MEMORY = "2G"
DEADLINE = 1200.0  # seconds for everything in the machine; the default tests need about 100
TEST_DEADLINE = 600  # seconds for one test: the 120 of pyproject.toml, for a slow machine

# Only directories with such tests: what is collected is imported, and that takes its time.
DEFAULT_TESTS = ("tests/emulated", "tests/kernel", "-m", "emulated")

EXIT_TIMEOUT = 124  # as timeout(1) has it
EXIT_NO_STATUS = 125


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description="pytest on Debian's kernel, emulated")
    parser.add_argument("--deadline", type=float, default=DEADLINE, metavar="SECONDS")
    options, tests = parser.parse_known_args()
    # So that what is open is closed also when we are told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    kernel = cached_kernel()
    with tempfile.TemporaryDirectory(prefix="lbd-emulated-") as place:
        return run(kernel, tests or DEFAULT_TESTS, Path(place), options.deadline)


def run(kernel: Path, tests: Sequence[str], place: Path, deadline: float) -> int:
    """Boot, run pytest with these arguments, and return its exit status, or one of ours with the reason."""
    initramfs, log, status = (place / name for name in ("initramfs", "log", "status"))
    initramfs.write_bytes(packed(kernel, tests, place))
    start = time.monotonic()
    with shared_files(place) as files:
        argv = qemu(kernel, initramfs, files, log, status)
        try:
            subprocess.run(argv, stdin=subprocess.DEVNULL, check=True, timeout=deadline)
        except subprocess.TimeoutExpired:
            say(f"not done after {deadline:.0f} s (--deadline): the machine was switched off")
            return EXIT_TIMEOUT
        except subprocess.CalledProcessError as error:
            say(f"qemu: exit {error.returncode}")
            return EXIT_NO_STATUS
    try:
        code = int(status.read_text())
    except ValueError:
        lines = log.read_text(errors="replace").splitlines()
        say("the machine ended without a status of pytest; its kernel said last:", *lines[-30:])
        return EXIT_NO_STATUS
    say(f"{kernel_version(kernel)}: pytest ended with {code} after {time.monotonic() - start:.0f} s")
    return code


def qemu(kernel: Path, initramfs: Path, files: Path, log: Path, status: Path) -> list[str]:
    """Return the command; the serial ports are stdout, `log` and `status`, `files` is virtiofsd's socket."""
    # A panic reboots at once, which is switching off here. The machine is trusted and slow: no mitigations.
    words = "console=ttyS1 rdinit=/init panic=-1 mitigations=off nowatchdog quiet loglevel=5"
    return [
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
        # Never KVM: where it is nested, it is there and hangs. With la57, Debian 12's does not boot.
        *("-M", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off"),
        *("-smp", "2", "-m", MEMORY, "-nodefaults", "-no-reboot", "-net", "none", "-display", "none"),
        *("-serial", "stdio", "-serial", f"file:{log}", "-serial", f"file:{status}"),
        # virtiofsd reads and writes the machine's memory.
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"),
        *("-chardev", f"socket,id=files,path={files}", "-device", "vhost-user-fs-pci,chardev=files,tag=host"),
        *("-kernel", str(vmlinuz(kernel)), "-initrd", str(initramfs), "-append", words),
    ]


@contextlib.contextmanager
def shared_files(place: Path) -> Iterator[Path]:
    """Serve this host's files; the machine mounts them read-only. Yields the socket."""
    path = place / "files"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        # Its other sandbox pivots its root to the source, which `/` is already.
        argv = [VIRTIOFSD, f"--fd={listener.fileno()}", "-o", "source=/,sandbox=chroot,cache=always"]
        process = subprocess.Popen(
            argv,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # a complaint whenever a machine ends; what it lacks, qemu tells
        )
    try:
        yield path
    finally:
        process.terminate()  # it ends by itself when the machine does, but there may have been none
        process.wait()


def packed(kernel: Path, tests: Sequence[str], place: Path) -> bytes:
    """Return the initramfs: busybox, the first modules, the script `init`, and what it has to know."""
    root = place / "root"
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    shutil.copy(BUSYBOX, root / "bin")
    shutil.copy(HERE / "init", root)
    (root / "init").chmod(0o755)
    for number, module in enumerate(first_modules(kernel)):
        shutil.copy(module, root / "modules" / f"{number:02}-{module.name}")
    color = "yes" if sys.stdout.isatty() else "no"
    arguments = [f"--timeout={TEST_DEADLINE}", f"--color={color}", "-p", "no:cacheprovider", *tests]
    (root / "settings").write_text(
        f"repository={shlex.quote(str(REPOSITORY))}\n"
        f"modules={shlex.quote(str(kernel / 'lib/modules'))}\n"
        f"export COLUMNS={shutil.get_terminal_size().columns}\n"
        f"set -- {shlex.join(arguments)}\n"
    )
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    argv = [str(BUSYBOX), "cpio", "-o", "-H", "newc"]
    return subprocess.run(argv, cwd=root, input=names.encode(), capture_output=True, check=True).stdout


def first_modules(kernel: Path) -> list[Path]:
    """Return the files of the first modules and of those they need, in the order to load them in."""
    argv = [
        "modprobe",
        "-d",
        str(kernel),
        "-S",
        kernel_version(kernel),
        "--show-depends",
        "-a",
        *FIRST_MODULES,
    ]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Path(path) for path in dict.fromkeys(line.removeprefix("insmod ").strip() for line in lines)]


def cached_kernel() -> Path:
    """Return the directory of the unpacked kernel package, after fetching it if it is not there."""
    kernel = CACHE / "kernel"
    if kernel.exists():
        return kernel
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as place:
        try:
            package = fetched(place)
        except subprocess.CalledProcessError:
            say("the package lists may be old, updating them")
            apt("apt-get", "update", "-qq")
            package = fetched(place)
        unpacked = Path(place, "kernel")
        subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
        subprocess.run(["depmod", "-b", str(unpacked), kernel_version(unpacked)], check=True)
        unpacked.rename(kernel)  # only now, so that an interrupted run leaves none
    return kernel


def fetched(place: str) -> Path:
    """Download the kernel package that the meta package now depends on."""
    depends = apt("apt-cache", "depends", META_PACKAGE)
    name = next(line.split()[1] for line in depends.splitlines() if "Depends: linux-image-" in line)
    say(f"fetching {name}, once")
    apt("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name, cwd=place)
    return next(Path(place).glob("*.deb"))


def apt(*argv: str, cwd: str | None = None) -> str:
    """Run a command of apt that has to succeed, and return what it said."""
    return subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True).stdout


def vmlinuz(kernel: Path) -> Path:
    return next((kernel / "boot").glob("vmlinuz-*"))


def kernel_version(kernel: Path) -> str:
    return vmlinuz(kernel).name.removeprefix("vmlinuz-")


def say(*lines: str) -> None:
    # The order to pytest's lines counts where both go to one file.
    print(*(f"emulated: {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("emulated: needs root, for apt-get and virtiofsd")
    sys.exit(main())
