"""The client's end of the control socket: each way to get no answer is one clear error."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from lbd import client
from lbd.client import CallError, DeniedError, NoDaemonError, await_drained, call
from lbd.core.control import SOCKET_NAME


@pytest.fixture
def path(tmp_path):
    return tmp_path / SOCKET_NAME


def test_no_daemon_is_an_error_of_its_own(path):
    with pytest.raises(NoDaemonError, match="no lbd runs here") as error:
        call(path.parent, "status", {}, 1)
    assert error.value.exit_code == 69
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NoDaemonError):
        call(path.parent, "status", {}, 1)


def answer_with(path, *parts, pause=0.0):
    """A daemon that says what it should not."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run():
        connection, _ = listener.accept()
        with connection, suppress(BrokenPipeError):
            connection.recv(1000)
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        listener.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("parts", "error", "words", "code"),
    [
        ([b'{"ok": false, "kind": "denied", "error": "not you"}\n'], DeniedError, "not you", 77),
        ([b'{"ok": false, "kind": "busy", "error": "later"}\n'], CallError, "later", 1),
        ([], CallError, "without an answer", 1),
        ([b'{"ok": tr'], CallError, "not all of it came", 1),
        ([b"[1]\n"], CallError, "not an object", 1),
    ],
)
def test_what_is_no_verdict_is_raised_with_its_exit_code(path, parts, error, words, code):
    thread = answer_with(path, *parts)
    with pytest.raises(error, match=words) as raised:
        call(path.parent, "reload", {}, 5)
    assert raised.value.exit_code == code
    thread.join(5)


def test_the_deadline_is_for_the_whole_answer(path):
    thread = answer_with(path, *[b" "] * 20, pause=0.1)
    start = time.monotonic()
    with pytest.raises(CallError, match=r"did not answer `status` within 0.5 s"):
        call(path.parent, "status", {}, 0.5)
    assert time.monotonic() - start < 1.5
    thread.join(5)


@pytest.mark.parametrize(
    ("answers", "timeout"),
    [([("drain", 0.0), ("drain", 0.0), ("down", 0.0)], 10.0), ([("drain", 0.1)] * 20, 0.25)],
    ids=["it ends", "it does not"],
)
def test_the_end_of_a_drain_is_asked_for_again_and_again(path, monkeypatch, answers, timeout):
    monkeypatch.setattr(client, "WAIT_MOST", 0.1)
    asked = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run():
            for state, pause in answers:
                connection, _ = listener.accept()
                with connection:
                    asked.append(json.loads(connection.recv(1000))["arguments"])
                    time.sleep(pause)
                    connection.sendall(json.dumps({"ok": True, "state": state}).encode() + b"\n")
                if state != "drain" or asked[-1]["seconds"] < 0.1:
                    return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        found = await_drained(path.parent, "web", "10.0.0.1:80", timeout)
        thread.join(5)
    assert found == {"ok": True, "state": answers[len(asked) - 1][0]}
    assert len(asked) == 3
    assert {(each["service"], each["backend"]) for each in asked} == {("web", "10.0.0.1:80")}
    assert all(0 <= each["seconds"] <= 0.1 for each in asked)


def test_a_daemon_that_hangs_up_hard_is_an_error_in_words(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run():
            connection, _ = listener.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        with pytest.raises(CallError, match=r"without an answer|broke"):
            call(path.parent, "status", {"x": "y" * 1_000_000}, 5)
        thread.join(5)


def test_the_client_imports_nothing_heavy():
    script = "import sys, lbd.client; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=env)
    modules = set(done.stdout.split())
    assert "lbd.client" in modules
    heavy = {
        "asyncio",
        "pydantic",
        "pyroute2",
        "watchdog",
        "sdnotify",
        "nftables",
        "lbd.core.state",
        "tomllib",
    }
    assert not modules & heavy
