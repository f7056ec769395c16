"""Checks by a program: what it may, what is seen of it, and that nothing is left of it."""

import asyncio
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lbd.core.health import Result, Target
from lbd.core.probes import ExecProbe
from lbd.host import probe_exec
from lbd.host.probe import OwnTroubleError, run
from lbd.lab.namespaces import wait_until

pytestmark = pytest.mark.kernel

# A second of sleep that can be found among all processes.
MARK = f"1{secrets.randbelow(10**9):09}"


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No check leaves a descriptor, a child or a zombie behind."""
    before = descriptors()
    yield
    assert not processes(MARK), "a child lives on"
    assert wait_until(lambda: descriptors() <= before, 2.0), "a descriptor is left open"
    assert not children(), "a child is not reaped"


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def processes(word):
    """Return the processes that have a word of their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (path / "cmdline").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def checked(*command, within=10.0):
    """Run the program of a check; "timeout" stands for one that its caller has to end."""

    async def bounded():
        try:
            async with asyncio.timeout(within):
                return await run(Target(ExecProbe(command), "192.0.2.1", 8080), within)
        except TimeoutError:
            return "timeout"
        finally:
            # The daemon's loop goes on, and this one until the child is reaped.
            deadline = time.monotonic() + 2.0
            while children() and time.monotonic() < deadline:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.005)

    return asyncio.run(bounded())


def shell(script, **options):
    return checked("/bin/sh", "-c", script, **options)


def test_exit_code_0_is_good():
    assert checked("/bin/true") == Result(True)
    assert shell("echo all is well") == Result(True)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "exit code 1"),
        ("exit 127", "exit code 127"),
        ("echo 'DB CRITICAL: no answer'; exit 2", "exit code 2: DB CRITICAL: no answer"),
        ("echo out; echo err >&2; exit 3", "exit code 3: out err"),
        ("printf 'a\\033[31m\\377'; exit 3", "exit code 3: a\\x1b[31m\\xff"),
        ("kill -SEGV $$", "killed by signal 11 (Segmentation fault)"),
        ("kill -34 $$", "killed by signal 34 (Real-time signal 0)"),
    ],
)
def test_anything_else_is_told_with_what_it_said(script, reason):
    assert shell(script) == Result(False, reason)


def test_a_long_story_is_cut():
    reason = shell("head -c 100000 /dev/zero | tr '\\0' x; exit 1").reason
    assert reason.startswith("exit code 1: xxx")
    assert len(reason) < 400


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("/usr/lib/nagios/check_nothing", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
        ("/etc", "permission denied"),
    ],
)
def test_a_program_that_cannot_run_fails(program, reason):
    assert checked(program) == Result(False, f'cannot run "{program}": {reason}')


def test_it_is_told_whom_to_check_and_nothing_else(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    said = shell("env | sort | tr '\\n' ' '; pwd; exit 1").reason
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    # PWD is the shell's own.
    assert said == f"exit code 1: LBD_ADDRESS=192.0.2.1 LBD_PORT=8080 PATH={path} PWD=/ /"


def test_its_arguments_are_no_shell():
    script, word = "test \"$1\" = '; touch x $HOME *'", "; touch x $HOME *"
    assert checked("/bin/sh", "-c", script, "sh", word) == Result(True)
    assert checked("/bin/test", "--", "=", "--") == Result(True)
    assert checked("/bin/echo", "a\0b") == Result(False, 'cannot run "/bin/echo": embedded null byte')


def test_it_reads_nothing_and_has_no_descriptor_of_ours():
    with Path("/etc/hostname").open() as inheritable:
        os.set_inheritable(inheritable.fileno(), True)
        assert shell("cat; ls /proc/self/fd | tr '\\n' ' '; exit 1").reason == "exit code 1: 0 1 2 3"


RIGHTS = "grep -E '^(Uid|Groups|Cap(Inh|Prm|Eff|Amb)|NoNewPrivs):' /proc/self/status; exit 1"
NONE = "CapInh: 0000000000000000 CapPrm: 0000000000000000 CapEff: 0000000000000000 CapAmb: 0000000000000000"


def test_it_has_none_of_the_rights_of_root():
    before = os.getgroups()
    os.setgroups([0, 4, 27])
    try:
        said = shell(RIGHTS).reason
    finally:
        os.setgroups(before)
    assert f"{NONE} NoNewPrivs: 1" in said
    assert "Uid: 0" not in said
    assert "Groups: Cap" in said  # none


def test_it_has_none_of_the_rights_of_the_user_that_lbd_is():
    program = f"""
import asyncio
from lbd.core.health import Target
from lbd.core.probes import ExecProbe
from lbd.host.probe import run
print(asyncio.run(run(Target(ExecProbe(("/bin/sh", "-c", {RIGHTS!r})), "192.0.2.1"), 5)).reason)
# The rights of lbd itself stay.
print(open("/proc/self/status").read())
"""
    reason, _, own = _as_user(program).partition("\n")
    for still in ("CapEff:\t0000000000001000", "CapAmb:\t0000000000001000", "NoNewPrivs:\t0"):
        assert still in own
    # What it may inherit is of no use to a file without capabilities of its own.
    assert "Uid: 65534 65534 65534 65534 Groups: CapInh: " in reason
    assert NONE.partition(" CapPrm")[2] + " NoNewPrivs: 1" in reason


def _as_user(program):
    """Return what a program of Python says that runs as lbd does under its unit."""
    done = subprocess.run(
        [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *("--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin"),
            *(sys.executable, "-c", program),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_that_does_not_end_is_ended_with_all_it_started():
    script = f"trap '' TERM INT HUP; sleep {MARK} & (sleep {MARK} & sleep {MARK}) & sleep {MARK}"
    began = time.monotonic()
    assert shell(script, within=0.5) == "timeout"
    assert time.monotonic() - began < 2.0
    assert wait_until(lambda: not processes(MARK), 2.0)


def test_one_that_is_stopped_is_ended():
    assert shell("kill -STOP $$", within=0.3) == "timeout"


def test_what_it_leaves_running_is_ended_and_not_waited_for():
    began = time.monotonic()
    assert shell(f"sleep {MARK} & exit 0") == Result(True)
    assert time.monotonic() - began < 2.0
    assert wait_until(lambda: not processes(MARK), 2.0)


@pytest.mark.parametrize(
    "script",
    ["exec head -c 104857600 /dev/zero", "exec yes", f"yes & sleep {MARK}"],
    ids=["head", "yes", "child"],
)
def test_who_talks_without_end_is_ended(script):
    began = time.monotonic()
    assert shell(script) == Result(False, "more than 1 MiB of output")
    assert time.monotonic() - began < 2.0
    assert wait_until(lambda: not processes(MARK), 2.0)


def test_output_without_harm_is_no_failure():
    assert shell("head -c 1000000 /dev/zero") == Result(True)
    assert shell("exec >&- 2>&-; sleep 0.1; exit 3") == Result(False, "exit code 3")


def test_many_at_once():
    async def all_of_them():
        target = Target(ExecProbe(("/bin/sh", "-c", "sleep 0.05; exit 1")), "192.0.2.1")
        return await asyncio.gather(*(run(target, 10.0) for _ in range(50)))

    assert set(asyncio.run(all_of_them())) == {Result(False, "exit code 1")}


def test_others_have_their_turn_between_two_starts(monkeypatch):
    turns, starts = [0], []
    start = probe_exec._start
    monkeypatch.setattr(probe_exec, "_start", lambda *words: starts.append(turns[0]) or start(*words))

    async def turn():
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def all_of_them():
        turning = asyncio.create_task(turn())
        target = Target(ExecProbe(("/bin/true",)), "192.0.2.1")
        await asyncio.gather(*(run(target, 10.0) for _ in range(20)))
        turning.cancel()

    asyncio.run(all_of_them())
    assert len(set(starts)) == len(starts) == 20


def test_rights_that_cannot_be_given_away_are_our_own_trouble(monkeypatch):
    monkeypatch.setattr("lbd.host.probe_exec.PR_CAP_AMBIENT_CLEAR_ALL", 99)
    with pytest.raises(OwnTroubleError, match=r"^a program cannot be started without rights: Invalid argum"):
        checked("/bin/true")


def test_no_processes_left_are_our_own_trouble():
    program = """
import asyncio, resource
from lbd.core.health import Target
from lbd.core.probes import ExecProbe
from lbd.host.probe import OwnTroubleError, run
target = Target(ExecProbe(("/bin/true",)), "192.0.2.1")
asyncio.run(run(target, 5.0))
resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
try:
    print(asyncio.run(run(target, 5.0)))
except OwnTroubleError as error:
    print("trouble:", error)
"""
    assert _as_user(program).startswith("trouble: ")
