"""host/serve over a real unix socket: who may what, and what a bad client can do (nothing)."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lbd.client import CallError, call
from lbd.core.control import SOCKET_NAME, allowed
from lbd.host.serve import AlreadyRunningError, ControlServer, ControlSocketError, Limits, Peer

FAST = Limits(request=64 * 1024, send=0.3, receive=0.3, connections=8)


async def echo(request):
    return {"command": request.command, "arguments": request.arguments, "peer": request.peer}


async def small(request):
    return {"command": request.command, "arguments": request.arguments}


def serve(path, scenario, answer=small, limits=FAST, failed=lambda _: None):
    """Run the server, and the scenario beside it; the loop must never stand still for long."""

    async def heartbeat():
        worst = 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - before)
            assert worst < 1, f"the loop stood still for {worst} s"

    async def main():
        server = ControlServer(path, answer, failed, limits)
        await server.start()
        heart = asyncio.create_task(heartbeat())
        try:
            await asyncio.wait_for(scenario(), 30)
            assert not heart.done()
        finally:
            heart.cancel()
            await server.close()

    asyncio.run(main())


@pytest.fixture
def path(tmp_path):
    return tmp_path / SOCKET_NAME


def ask(path, command, arguments=None, timeout=5.0):
    return asyncio.to_thread(call, path.parent, command, arguments or {}, timeout)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def send_all(path, data, eof):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        answer = b""
        with suppress(BrokenPipeError, ConnectionResetError):  # it need not read all of it
            connection.sendall(data)
            if eof:
                connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while part := connection.recv(100_000):
                answer += part
        return answer


async def raw(path, data, *, eof=False):
    """Send bytes and return all that comes back."""
    return await asyncio.to_thread(send_all, path, data, eof)


async def served_again(path):
    end = time.monotonic() + 5
    answer = {}
    while not answer.get("ok"):
        assert time.monotonic() < end
        with suppress(CallError):
            answer = await ask(path, "status")


async def refused(path, data, **options):
    answer = json.loads(await raw(path, data, **options))
    assert answer["ok"] is False
    return answer["kind"], answer["error"]


def test_a_command_is_answered(path):
    async def scenario():
        answer = await ask(path, "status", {"a": ["caf\u00e9", 1, None]})
        assert answer == {"ok": True, "command": "status", "arguments": {"a": ["caf\u00e9", 1, None]}}

    serve(path, scenario)


def test_a_verdict_of_the_daemon_is_returned_and_not_raised(path):
    async def refuse(_):
        return {"ok": False, "error": "/etc/lbd.toml:3:1: unknown key"}

    async def scenario():
        assert await ask(path, "reload") == {"ok": False, "error": "/etc/lbd.toml:3:1: unknown key"}

    serve(path, scenario, refuse)


def test_the_peer_is_what_the_kernel_says(path):
    peers = []

    async def note(request):
        peers.append(request.peer)
        return {}

    async def scenario():
        await ask(path, "status")
        assert peers == [Peer(os.getpid(), os.getuid(), os.getgid())]

    serve(path, scenario, note)


def test_a_request_may_come_in_pieces_and_end_in_silence(path):
    async def scenario():
        reader, writer = await asyncio.open_unix_connection(str(path))
        for piece in (b'{"comm', b'and": "sta', b'tus"}\n'):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.write_eof()
        assert json.loads(await reader.read())["ok"] is True
        writer.close()

    serve(path, scenario)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\n", "not a line of JSON"),
        (b"status\n", "not a line of JSON"),
        (b"\xff\xfe\x00\n", "not a line of JSON"),
        (b"[" * 60_000 + b"\n", "not a line of JSON"),
        (b"9" * 60_000 + b"\n", "not a line of JSON"),
        (b"[]\n", "command"),
        (b'"status"\n', "command"),
        (b"{}\n", "command"),
        (b'{"command": 1}\n', "command"),
        (b'{"command": "status", "arguments": []}\n', "arguments"),
        (b'{"command": "status", "arguments": null}\n', "arguments"),
        (b"x" * 70_000 + b"\n", "longer than 65536 bytes"),
        (b"x" * 5_000_000, "longer than 65536 bytes"),
    ],
)
def test_garbage_is_answered_in_words_and_the_next_is_served(path, data, words):
    async def scenario():
        kind, error = await refused(path, data)
        assert kind == "request"
        assert words in error
        assert (await ask(path, "status"))["ok"] is True

    serve(path, scenario)


def test_half_a_request_is_answered_at_its_end(path):
    async def scenario():
        assert "without a newline" in (await refused(path, b'{"command"', eof=True))[1]
        assert await raw(path, b"", eof=True) == b""

    serve(path, scenario)


def test_a_client_that_sends_nothing_is_ended_by_the_deadline(path):
    async def scenario():
        for data in (b"", b'{"command": "st'):
            start = time.monotonic()
            kind, error = await refused(path, data)
            assert (kind, error) == ("request", "no whole line came within 0.3 s")
            assert time.monotonic() - start < 2

    serve(path, scenario)


def test_a_client_that_sends_slowly_has_one_deadline_for_the_whole_line(path):
    async def scenario():
        reader, writer = await asyncio.open_unix_connection(str(path))
        end = time.monotonic() + 5
        while not writer.is_closing() and time.monotonic() < end:
            writer.write(b" ")
            await asyncio.sleep(0.05)
            if reader.at_eof():
                break
        assert time.monotonic() < end
        writer.close()

    serve(path, scenario)


def test_an_answer_larger_than_the_socket_takes_at_once_arrives_whole(path):
    async def large(request):
        return {"text": "x" * int(request.arguments["size"])}

    def slowly(size):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            connection.sendall(
                json.dumps({"command": "status", "arguments": {"size": size}}).encode() + b"\n"
            )
            connection.recv(1, socket.MSG_PEEK)  # the server has written what fits
            answer = b""
            while part := connection.recv(1000):
                answer += part
            return json.loads(answer)

    async def scenario():
        for size in range(150_000, 400_000, 25_000):
            assert len((await asyncio.to_thread(slowly, size))["text"]) == size

    serve(path, scenario, large)


def test_a_client_that_does_not_read_is_ended_and_leaves_no_descriptor(path):
    async def large(_):
        return {"text": "x" * 20_000_000}

    async def scenario():
        assert len((await ask(path, "status"))["text"]) == 20_000_000
        before = descriptors()
        lazy = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for connection in lazy:
            connection.connect(str(path))
            connection.sendall(b'{"command": "status"}\n')
        end = time.monotonic() + 5
        while descriptors() <= before + len(lazy):  # until the server has taken them
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        while descriptors() > before + len(lazy):  # and until it has dropped them
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        for connection in lazy:
            connection.close()

    serve(path, scenario, large)


def test_more_connections_than_allowed_are_told_so_and_closed(path):
    async def scenario():
        idle = [await asyncio.open_unix_connection(str(path)) for _ in range(FAST.connections)]
        # All of them are accepted before ours: the queue is in order.
        with pytest.raises(CallError, match="8 clients are here: try again"):
            await ask(path, "status")
        for _, writer in idle:
            writer.close()
        await served_again(path)

    serve(path, scenario, limits=Limits(send=30, connections=FAST.connections))


def test_ten_thousand_connections_do_not_stop_the_loop(path):
    served = 0

    def storm():
        nonlocal served
        for _ in range(10_000):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                served += 1

    async def scenario():
        before = descriptors()
        await asyncio.to_thread(storm)
        assert served == 10_000
        await served_again(path)
        end = time.monotonic() + 5
        while descriptors() > before:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    serve(path, scenario)


def test_a_command_that_fails_is_an_answer_and_a_report(path):
    failures = []

    async def fail(_):
        raise RuntimeError("no such luck")

    async def scenario():
        with pytest.raises(CallError, match="RuntimeError: no such luck"):
            await ask(path, "status")
        assert [str(error) for error in failures] == ["no such luck"]

    serve(path, scenario, fail, failed=failures.append)


def test_an_answer_that_is_not_json_is_an_answer_and_a_report(path):
    failures = []

    async def scenario():
        with pytest.raises(CallError, match="not JSON"):
            await ask(path, "status")
        assert len(failures) == 1

    serve(path, scenario, echo, failed=failures.append)


def test_everyone_may_connect_under_the_umask_of_the_unit(path):
    async def scenario():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755

    old = os.umask(0o077)
    try:
        path = path.parent / "run" / SOCKET_NAME  # a directory that must be made
        serve(path, scenario)
    finally:
        os.umask(old)


def test_the_socket_goes_with_the_server(path):
    async def scenario():
        assert path.exists()

    serve(path, scenario)
    assert list(path.parent.iterdir()) == []


DAEMON = """
    import asyncio, sys
    from pathlib import Path
    from lbd.host.serve import ControlServer

    async def answer(request):
        return {}

    async def main():
        await ControlServer(Path(sys.argv[1]), answer).start()
        print("ready", flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
"""


def start_daemon(path):
    command = [sys.executable, "-c", textwrap.dedent(DAEMON), str(path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    daemon = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
    assert daemon.stdout.readline() == b"ready\n"
    return daemon


def test_a_second_daemon_is_refused_by_the_pid_of_the_first_and_a_dead_ones_socket_is_taken_over(path):
    async def scenario():
        assert (await ask(path, "status"))["ok"] is True

    with start_daemon(path) as first:
        with pytest.raises(
            AlreadyRunningError, match=rf"another lbd \(pid {first.pid}\) answers at"
        ) as error:
            serve(path, scenario)
        assert error.value.pid == first.pid
        assert call(path.parent, "status", {}, 5) == {"ok": True}  # and the first is undisturbed
        first.kill()
    assert path.exists()
    serve(path, scenario)


def test_a_daemon_too_busy_to_accept_counts_as_alive(path):
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = []
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect(str(path))
        except BlockingIOError:
            pass

        async def scenario():
            raise AssertionError

        with pytest.raises(AlreadyRunningError, match="its pid is not known"):
            serve(path, scenario)
        with pytest.raises(CallError, match=r"did not answer `status` within 0.2 s"):
            call(path.parent, "status", {}, 0.2)
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize("leftover", ["file", "new"])
def test_leftovers_are_replaced(path, leftover):
    if leftover == "file":
        path.write_text("")
    else:
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(f"{path}.new")

    async def scenario():
        assert (await ask(path, "status"))["ok"] is True

    serve(path, scenario)


def test_a_path_that_cannot_be_a_socket_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")

    async def scenario():
        raise AssertionError

    for path in (tmp_path / ("x" * 100) / SOCKET_NAME, tmp_path / "file" / SOCKET_NAME):
        with pytest.raises(ControlSocketError, match=r"cannot listen at .*: "):
            serve(path, scenario)


def test_closing_does_not_take_the_socket_of_the_next_daemon(path):
    async def main():
        server = ControlServer(path, small)
        await server.start()
        path.unlink()
        path.write_text("somebody else's")
        await server.close()
        assert path.exists()

    asyncio.run(main())


def test_closing_ends_a_conversation_that_hangs(path):
    async def hang(_):
        await asyncio.sleep(3600)

    async def main():
        server = ControlServer(path, hang)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"command": "status"}\n')
        await asyncio.sleep(0.05)
        await asyncio.wait_for(server.close(), 2)
        assert await reader.read() == b""
        writer.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("command", "uid", "may"),
    [
        ("status", 0, True),
        ("status", 990, True),
        ("status", 1000, True),
        ("reload", 0, True),
        ("reload", 990, True),
        ("reload", 1000, False),
        ("no such command", 1000, False),
        ("", 65534, False),
    ],
)
def test_status_is_for_everyone_and_the_rest_for_root_and_the_daemons_user(command, uid, may):
    reason = allowed(command, uid, 990)
    assert (reason is None) == may
    assert may or f"uid {uid}" in reason


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_gets_status_and_nothing_else(path):
    path.parent.chmod(0o755)

    def as_nobody(data):
        # Into the directory while still root: nobody has no way through the directories above it.
        script = (
            "import os, socket, sys\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.sendall(sys.argv[2].encode()); print(s.recv(10000).decode())\n"
        )
        done = subprocess.run(
            ["/usr/bin/python3", "-c", script, path.name, data],
            cwd=path.parent,
            check=True,
            capture_output=True,
            timeout=20,
        )
        return json.loads(done.stdout)

    asked = []

    async def note(request):
        asked.append((request.command, request.peer.uid))
        return {}

    async def scenario():
        assert await asyncio.to_thread(as_nobody, '{"command": "status"}\n') == {"ok": True}
        answer = await asyncio.to_thread(as_nobody, '{"command": "reload"}\n')
        assert (answer["ok"], answer["kind"]) == (False, "denied")
        assert asked == [("status", 65534)]

    serve(path, scenario, note)
