"""The command: exit codes, what it prints, and that clients start fast."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import lbd
from lbd import cli
from lbd.core.control import SOCKET_NAME
from lbd.core.status import Standing, document
from lbd.core.words import LONGEST_LINE
from lbd.host.claim import Claim, ClaimedError
from lbd.reconcile import RefusedError
from lbd.testing import FakeHost

GOOD = """\
[[service]]
name = "web"
listen = "192.0.2.1:80"
backends = ["10.0.0.1", "10.0.0.2"]
[[address]]
address = "192.0.2.1/32"
interface = "eth0"
[[address]]
address = "192.0.2.2/32"
interface = "eth0"
"""
BAD = 'allow_empty = true\n[[service]]\nname = "web"\nlisten = "192.0.2.1:0"\nbackends = []\ncolour = 1\n'


@pytest.fixture(autouse=True)
def directories(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "lbd.toml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(BAD)
    return path


@pytest.fixture
def host(monkeypatch):
    """A host in memory in the place of this one."""
    host = FakeHost()
    host.close = lambda: None
    monkeypatch.setattr("lbd.host.director.Director", lambda _: host)
    # Not in the way of an lbd that works on this host.
    monkeypatch.setattr("lbd.host.claim.NAME", f"\0lbd-test-{os.getpid()}")
    return host


@pytest.fixture
def run(capsys):
    """Run a command here; return its exit code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(map(str, arguments)))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return ended.value.code, said.out, said.err

    return run


@contextmanager
def daemon(tmp_path, answer):
    """Something that answers one question as a daemon would."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection, connection.makefile("r") as question:
                question.readline()
                connection.sendall(json.dumps(answer).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


COMMANDS = ("run", "check", "plan", "apply", "reload", "status", "demo", "version")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"usage: lbd {command}" in out


def test_help_lists_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"    {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("arguments", [(), ("balance",), ("check", "--loud"), ("status", "-o", "xml")])
def test_wrong_usage_is_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "usage:" in err


@pytest.mark.parametrize("arguments", [("version",), ("--version",)])
def test_version(run, arguments):
    assert run(*arguments) == (0, f"lbd {lbd.__version__}\n", "")


def test_check_of_a_good_file(run, good):
    assert run("check", "-c", good) == (0, f"{good}: good: 1 service, 2 backends, 2 addresses\n", "")
    code, out, _ = run("check", "-c", good, "-o", "json")
    assert code == 0
    assert json.loads(out) == {"ok": True, "problems": [], "notes": []}


def test_check_of_a_file_that_asks_for_nothing(run, tmp_path):
    path = tmp_path / "nothing.toml"
    path.write_text("allow_empty = true")
    assert run("check", "-c", path)[1] == f"{path}: good: nothing to do\n"


def test_check_of_a_bad_file_tells_every_problem(run, bad):
    code, out, err = run("check", "-c", bad)
    assert (code, out) == (78, "")
    assert f"{bad}:4:" in err
    assert f"{bad}:6:1: " in err
    assert "^^^" in err

    code, out, _ = run("check", "-c", bad, "-o", "json")
    found = json.loads(out)
    assert code == 78
    assert not found["ok"]
    assert [(p["file"], p["line"]) for p in found["problems"]] == [(str(bad), 4), (str(bad), 6)]
    assert all(p["message"] and p["column"] for p in found["problems"])


@pytest.mark.parametrize("command", ["check", "plan", "apply"])
def test_bad_file_is_78(run, bad, tmp_path, command):
    for path in (bad, tmp_path / "none.toml", tmp_path):
        code, out, err = run(command, "-c", path)
        assert (code, out) == (78, "")
        assert str(path) in err


def test_plan_shows_and_changes_nothing(run, good, host):
    code, out, _ = run("plan", "-c", good)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("+ service web: 192.0.2.1:80, ")
    assert "note what was there before lbd: net.ipv4.ip_forward" in lines
    assert "add address 192.0.2.1/32 dev eth0" in lines
    assert "add table inet lbd" in lines
    # 251 slots on one line are for JSON.
    assert any(line.endswith(" characters)") for line in lines)
    assert max(map(len, lines)) < LONGEST_LINE + 30
    assert not host.applied
    assert run("plan", "-c", good, "--exit-code")[0] == 4


def test_plan_as_json_has_every_operation_whole(run, good, host):
    code, out, _ = run("plan", "-c", good, "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert found.keys() == {
        "before",
        "swap",
        "collect",
        "forget",
        "after",
        "unsafe",
        "lacking",
        "overrides",
        "changes",
        "accident",
    }
    assert any(line.count(" : ") == 251 for line in found["swap"])
    assert not host.applied


def test_apply_then_nothing_to_do_then_remove(run, good, host):
    before = dict(host.sysctls)
    code, out, _ = run("apply", "-c", good)
    assert code == 0
    assert "add table inet lbd" in out
    assert host.ruleset is not None

    assert run("apply", "-c", good) == (0, "nothing to do\n", "")
    assert run("plan", "-c", good, "--exit-code") == (0, "nothing to do\n", "")

    good.write_text(good.read_text().replace('name = "web"', 'name = "web"\nscheduler = "random"'))
    assert run("plan", "-c", good)[1].splitlines()[0] == "~ service web: scheduler maglev -> random"

    code, out, _ = run("apply", "--remove")
    assert code == 0
    assert "delete table inet lbd" in out
    assert (host.ruleset, host.addresses, host.sysctls) == (None, {}, before)


@pytest.mark.parametrize(("permission", "expected"), [(False, 1), (True, 77)])
@pytest.mark.parametrize("arguments", [(), ("--remove",)])
def test_what_the_kernel_refuses_is_told(run, good, host, arguments, permission, expected):
    run("apply", "-c", good)
    host.ruleset.chains["prerouting"].rules.clear()

    def refuse(_):
        raise RefusedError("nftables: not today", permission=permission)

    host.fail = refuse
    code, _, err = run("apply", "-c", good, *arguments)
    assert code == expected
    assert "lbd: nftables: not today\n" in err


@pytest.mark.parametrize("arguments", [("plan",), ("apply",), ("apply", "--remove")])
def test_host_that_cannot_be_read_is_told(run, good, host, monkeypatch, arguments):
    def refuse(_, **__):
        raise RefusedError("Operation not permitted", permission=True)

    monkeypatch.setattr(host, "read", refuse)
    assert run(*arguments, "-c", good) == (77, "", "lbd: Operation not permitted\n")


def test_what_is_unsafe_is_told_and_fails(run, tmp_path, host):
    del host.sysctls["net.ipv6.conf.all.forwarding"]
    path = tmp_path / "lbd.toml"
    path.write_text('[[service]]\nname = "w"\nlisten = "[2001:db8::1]:80"\nbackends = []\n')
    code, out, err = run("apply", "-c", path)
    assert code == 1
    assert "left out: sysctl net.ipv6.conf.all.forwarding does not exist" in out
    assert "net.ipv6.conf.all.forwarding" in err


@pytest.mark.parametrize("arguments", [(), ("--remove",)])
def test_apply_beside_another_lbd_is_refused(run, good, host, arguments):
    claim = Claim({os.geteuid()})
    code, out, err = run("apply", "-c", good, *arguments)
    assert (code, out) == (1, "")
    assert f"(pid {os.getpid()})" in err
    assert "use `lbd reload`" in err
    assert not host.applied
    claim.close()
    assert run("apply", "-c", good, *arguments)[0] == 0


def test_who_holds_the_claim_is_known_however_many_asked_before():
    claim = Claim({os.geteuid()})
    for _ in range(200):  # the queue of a listening socket has 129 places
        with pytest.raises(ClaimedError, match=rf"\(pid {os.getpid()}\)"):
            Claim({os.geteuid()})
    claim.close()
    Claim({os.geteuid()}).close()


@pytest.mark.parametrize("command", ["status", "reload"])
def test_without_a_daemon_it_is_69(run, tmp_path, command):
    code, out, err = run(command)
    assert (code, out) == (69, "")
    assert str(tmp_path / SOCKET_NAME) in err


def test_socket_that_a_dead_daemon_left_is_69(run, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
    assert run("status")[0] == 69


STATUS = document(Standing("converged", "/etc/lbd.toml", hash="0123456789abcdef"), None)


def test_status_as_text_and_json(run, tmp_path):
    with daemon(tmp_path, STATUS | {"ok": True}):
        code, out, _ = run("status")
    assert code == 0
    assert out.startswith("converged: /etc/lbd.toml (0123456789ab)\n")
    assert "\x1b" not in out
    (tmp_path / SOCKET_NAME).unlink()
    with daemon(tmp_path, STATUS | {"ok": True}):
        code, out, _ = run("status", "-o", "json")
    assert code == 0
    assert json.loads(out) == STATUS


@pytest.mark.parametrize(
    ("verdict", "code", "out", "err"),
    [
        ({"ok": True, "operations": 0}, 0, "reloaded: nothing to do\n", ""),
        ({"ok": True, "operations": 1}, 0, "reloaded: 1 operation\n", ""),
        ({"ok": True, "operations": 2}, 0, "reloaded: 2 operations\n", ""),
        ({"ok": False, "error": "lbd.toml:3:1: no", "exit": 78}, 78, "", "lbd.toml:3:1: no\n"),
        ({"ok": False, "error": "not permitted", "exit": 77}, 77, "", "lbd: not permitted\n"),
        ({"ok": False, "error": "refused"}, 1, "", "lbd: refused\n"),
        ({"ok": False, "kind": "denied", "error": "only root"}, 77, "", "lbd: only root\n"),
    ],
)
def test_reload_tells_the_verdict(run, tmp_path, verdict, code, out, err):
    with daemon(tmp_path, verdict):
        assert run("reload") == (code, out, err)


def test_first_of_several_directories_is_ours(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/one:{tmp_path}/two")
    assert f"{tmp_path}/one/{SOCKET_NAME}" in run("status")[2]


def imported(*arguments):
    """The modules that a command imports."""
    source = os.path.dirname(os.path.dirname(lbd.__file__))  # noqa: PTH120 - a string is wanted
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lbd", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    names = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if "import time:" in line}
    assert "lbd.cli" in names
    return ran.returncode, {name.split(".")[0] for name in names}, names


HEAVY = {"pyroute2", "pydantic", "asyncio", "nftables", "watchdog", "sdnotify", "toml_rs"}


@pytest.mark.parametrize(("command", "expected"), [("status", 69), ("reload", 69), ("version", 0)])
def test_client_commands_import_nothing_heavy(command, expected):
    code, packages, names = imported(command)
    assert code == expected
    assert not packages & HEAVY
    assert not {name for name in names if name.startswith("lbd.host")}


def test_check_needs_nothing_of_the_network(good):
    code, packages, _ = imported("check", "-c", good)
    assert code == 0
    assert not packages & {"pyroute2", "nftables", "asyncio", "watchdog", "sdnotify"}


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_error(good, closed):
    command = f'"{sys.executable}" -m lbd check -c "{good}" {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_nobody_reads_is_no_error(good):
    source = os.path.dirname(os.path.dirname(lbd.__file__))  # noqa: PTH120 - a string is wanted
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "lbd", "check", "-c", str(good)],
        env=os.environ | {"PYTHONPATH": source},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_full_disk_is_one_line(good):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lbd", "check", "-c", good],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "lbd: [Errno 28] No space left on device\n"
