"""The lab itself: it is up at once, isolated, and gone without a trace."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lbd.lab.namespaces import NAMES, Lab, LabError, wait_until
from lbd.lab.servers import PAGE, Server
from lbd.lab.tap import Tap
from lbd.lab.topology import experiment
from lbd.lab.traffic import Conversation, Requester, _exchange, ask

pytestmark = pytest.mark.kernel

FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
DIRECTOR = {4: "192.168.18.58", 6: "2001:db8:18::58"}
DIRECTOR_BACK = {4: "192.168.2.90", 6: "2001:db8:2::90"}
SERVER = {4: "192.168.2.73", 6: "2001:db8:2::73"}


@pytest.fixture(scope="module")
def lab():
    with Lab(experiment(2, ipv6=True, gateway=("director", "elsewhere"))) as lab:
        for route in ("192.168.2.0/24 via 192.168.18.58", "2001:db8:2::/64 via 2001:db8:18::58"):
            lab.run("client", ["ip", "route", "add", *route.split()])
        yield lab


@pytest.fixture
def forwarding(lab):
    for name in FORWARDING:
        lab.sysctl("director", name, "1")
    yield
    for name in FORWARDING:
        lab.sysctl("director", name, "0")


def ours():
    return {path.name for path in NAMES.glob(f"lbd-{os.getpid()}-*")}


def own_network():
    views = ("link", "route", "rule")
    return {v: subprocess.check_output(["ip", "-json", v, "show"]) for v in views}


def own_sysctls():
    return {name: Path("/proc/sys", *name.split(".")).read_text() for name in FORWARDING}


def processes_with(text):
    """The processes that have the text in their environment; what has just ended is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found += [path] if text.encode() in path.read_bytes() else []
    return found


# Coming and going


def test_experiment_is_up_in_two_seconds():
    start = time.monotonic()
    with Lab(experiment(3, ipv6=True)) as lab:
        elapsed = time.monotonic() - start
        assert ask(lab, "client", DIRECTOR[6], 8888).failure == "refused"
    assert elapsed < 2.0


@pytest.mark.parametrize("family", [4, 6])
def test_first_packet_after_start_arrives(family):
    for _ in range(5):
        with Lab(experiment(ipv6=True)) as lab, Server(lab, "director", 7):
            answer = ask(lab, "client", DIRECTOR[family], 7)
            assert answer.server == "director"
            # A lost first packet would be sent again after 1 s.
            assert answer.seconds < 0.9


def test_nothing_of_the_host_itself_changes():
    before, sysctls = own_network(), own_sysctls()
    with Lab(experiment(ipv6=True)) as lab:
        lab.sysctl("director", "net.ipv4.ip_forward", "1")
        assert own_network() == before
        assert own_sysctls() == sysctls
    assert own_network() == before
    assert own_sysctls() == sysctls


def test_namespaces_are_there_and_then_gone():
    before = ours()
    with Lab(experiment()):
        names = {name.split("-")[-1] for name in ours() - before}
        assert names == {"wire", "client", "director", "router", "server1"}
    assert ours() == before


def test_two_labs_run_side_by_side():
    with Lab(experiment()) as one, Lab(experiment()) as two, Server(one, "director", 7, name="one"):
        assert ask(one, "client", DIRECTOR[4], 7).server == "one"
        assert ask(two, "client", DIRECTOR[4], 7).failure == "refused"


def crash(lab, orphan_file, stubborn):
    """Leave a process that ignores SIGTERM, its orphan in another session, a server and a tap; then raise."""
    script = "trap '' TERM; setsid sleep 300 & echo $! >\"$1\"; echo ready; while :; do sleep 0.01; done"
    process = lab.popen("director", ["sh", "-c", script, "sh", str(orphan_file)], stdout=subprocess.PIPE)
    stubborn.append(process)
    assert process.stdout.readline() == b"ready\n"
    lab.enter(Server(lab, "server1", 9999))
    lab.enter(Tap(lab, "director"))
    raise RuntimeError("the body failed")


def test_failing_body_leaves_no_namespace_process_thread_or_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("lbd.lab.namespaces.STOP_SECONDS", 0.5)
    before, threads, stubborn = ours(), threading.active_count(), []
    orphan_file = tmp_path / "pid"
    lab = Lab(experiment())
    with pytest.raises(RuntimeError, match="the body failed"), lab:
        crash(lab, orphan_file, stubborn)
    assert ours() == before
    assert stubborn[0].returncode == -9
    assert not Path("/proc", orphan_file.read_text().strip(), "ns", "net").exists()
    assert not processes_with(str(lab._directory))
    assert threading.active_count() == threads
    assert not lab._directory.exists()
    stubborn[0].stdout.close()


def test_processes_end_by_sigterm_where_they_obey():
    with Lab(experiment()) as short:
        process = short.popen("director", ["sleep", "300"])
        # `ip netns exec` becomes the command itself.
        assert wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", 5)
    assert process.returncode == -15


def test_lab_that_cannot_be_built_leaves_nothing(monkeypatch):
    before = ours()
    monkeypatch.setattr("lbd.lab.namespaces.setup", lambda _: ["address add nonsense dev eth0"])
    with pytest.raises(LabError, match="nonsense"), Lab(experiment()):
        pass
    assert ours() == before


def test_lab_without_root_says_so(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="run it as root"), Lab(experiment()):
        pass


# Hosts


@pytest.mark.parametrize("family", [4, 6])
def test_client_and_director_and_server_reach_their_neighbours(lab, family):
    with Server(lab, "director", 7), Server(lab, "server1", 7), Server(lab, "client", 7):
        assert ask(lab, "client", DIRECTOR[family], 7).server == "director"
        assert ask(lab, "director", lab.topology["client"].address(family), 7).server == "client"
        assert ask(lab, "director", SERVER[family], 7).server == "server1"
        assert ask(lab, "server1", DIRECTOR_BACK[family], 7).server == "director"


@pytest.mark.parametrize("family", [4, 6])
def test_client_cannot_reach_the_server_without_forwarding(lab, family):
    with Server(lab, "server1", 7) as server:
        assert ask(lab, "client", SERVER[family], 7, timeout=0.3).failure == "timeout"
        assert not server.clients


@pytest.mark.usefixtures("forwarding")
@pytest.mark.parametrize("family", [4, 6])
def test_client_reaches_a_server_whose_gateway_is_the_director(lab, family):
    with Server(lab, "server1", 7) as server:
        assert ask(lab, "client", SERVER[family], 7).server == "server1"
        assert server.clients == {lab.topology["client"].address(family): 1}


@pytest.mark.usefixtures("forwarding")
@pytest.mark.parametrize("family", [4, 6])
def test_reply_by_way_of_elsewhere_is_lost(lab, family):
    with Server(lab, "server2", 7), Tap(lab, "router") as router:
        address = lab.topology["server2"].address(family)
        assert ask(lab, "client", address, 7, timeout=0.3).failure == "timeout"
        assert router.wait_for(lambda p: p.flags == ("SYN", "ACK") and p.source == address)


def test_address_nobody_has_is_unreachable_without_a_route(lab):
    assert ask(lab, "client", "203.0.113.1", 7).failure == "unreachable"


def test_command_that_fails_or_hangs_says_so(lab):
    with pytest.raises(LabError, match=r"ip link show nope: exit 1: .*does not exist"):
        lab.run("director", ["ip", "link", "show", "nope"])
    with pytest.raises(LabError, match=r"sleep 60: not done after 0\.1 s"):
        lab.run("director", ["sleep", "60"], timeout=0.1)
    assert lab.run("director", ["false"], check=False).returncode == 1
    assert lab.run("director", ["cat"], text="hello").stdout == "hello"


def test_unknown_host_is_an_error_that_names_the_known(lab):
    with pytest.raises(LookupError, match="no host 'nobody' in the lab, only client"):
        lab.run("nobody", ["true"])


def test_each_host_has_its_own_runtime_and_state_directory(lab):
    script = "import os; print(os.environ['RUNTIME_DIRECTORY'], os.environ['STATE_DIRECTORY'])"
    for host in ("director", "server1"):
        out = lab.run(host, [sys.executable, "-c", script]).stdout.split()
        assert out == [str(lab.directory(host) / "run"), str(lab.directory(host) / "state")]
        assert all(Path(path).is_dir() for path in out)
    assert lab.directory("director") != lab.directory("server1")


def test_environment_of_a_host_has_nothing_of_a_service_around_the_lab(lab, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("PATH_OF_MINE", "/here")
    script = "import os; print('NOTIFY_SOCKET' in os.environ, os.environ['PATH_OF_MINE'])"
    assert lab.run("director", [sys.executable, "-c", script]).stdout == "False /here\n"


def test_python_runs_a_module_of_this_lbd_in_the_host(lab):
    out = lab.python("director", "timeit", "-n1", "-r1", "-s", "import lbd; print(lbd.__file__)").stdout
    assert str(Path(__file__).parents[2] / "src" / "lbd") in out


def test_inside_moves_only_this_thread_and_back(lab):
    def interfaces():
        return {name for _, name in socket.if_nameindex()}

    def elsewhere():
        seen.append(interfaces())

    host, seen = interfaces(), []
    go = threading.Event()
    other = threading.Thread(target=lambda: go.wait(5) and elsewhere())
    other.start()
    with lab.inside("director"):
        assert interfaces() == {"lo", "eth0", "eth1"}
        with lab.inside("server1"):
            assert interfaces() == {"lo", "eth0"}
        assert interfaces() == {"lo", "eth0", "eth1"}
        go.set()
        other.join()
    assert interfaces() == host
    assert seen == [host]


def test_inside_comes_back_after_an_exception(lab):
    host = socket.if_nameindex()
    with pytest.raises(RuntimeError), lab.inside("director"):
        raise RuntimeError
    assert socket.if_nameindex() == host


# Traffic


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("kind", "protocol"), [("lines", "tcp"), ("page", "http"), ("datagrams", "udp")])
def test_servers_answer_with_their_name(lab, family, kind, protocol):
    with Server(lab, "director", 80, kind, name="d") as server:
        answer = ask(lab, "client", DIRECTOR[family], 80, protocol=protocol)
        assert (answer.server, answer.failure) == ("d", "")
        assert server.clients == {lab.topology["client"].address(family): 1}


@pytest.mark.parametrize("protocol", ["tcp", "http", "udp"])
def test_port_without_a_server_is_refused(lab, protocol):
    assert ask(lab, "client", DIRECTOR[4], 81, protocol=protocol).failure == "refused"


def test_page_is_plain_http(lab):
    with Server(lab, "director", 80, "page"), lab.inside("client"):
        script = (
            "import urllib.request as u; print(u.urlopen('http://192.168.18.58/').read().decode(), end='')"
        )
        assert lab.run("client", [sys.executable, "-c", script]).stdout == PAGE


@pytest.mark.parametrize("kind", ["lines", "datagrams"])
@pytest.mark.parametrize("family", [4, 6])
def test_source_port_is_used_and_free_again_at_once(lab, kind, family):
    protocol = {"lines": "tcp", "datagrams": "udp"}[kind]
    with Server(lab, "director", 80, kind), Tap(lab, "director", ["eth0"]) as tap:
        for _ in range(3):
            answer = ask(lab, "client", DIRECTOR[family], 80, protocol=protocol, source_port=5555)
            assert answer.server == "director"
        assert {p.source_port for p in tap.seen if p.direction == "in" and p.protocol == protocol} == {5555}


def test_datagrams_are_answered_from_the_address_that_was_asked(lab):
    lab.run("director", ["ip", "address", "add", "192.168.18.60/24", "dev", "eth0"])
    with Server(lab, "director", 80, "datagrams"):
        for address in ("192.168.18.60", DIRECTOR[4]):
            assert ask(lab, "client", address, 80, protocol="udp").server == "director"
    lab.run("director", ["ip", "address", "delete", "192.168.18.60/24", "dev", "eth0"])


@pytest.mark.parametrize(("kind", "protocol"), [("lines", "tcp"), ("datagrams", "udp")])
def test_conversation_lives_as_long_as_its_server(lab, kind, protocol):
    with (
        Server(lab, "director", 80, kind) as server,
        Conversation(lab, "client", DIRECTOR[4], 80, protocol=protocol) as talk,
    ):
        assert talk.server == "director"
        assert all(talk.alive() for _ in range(20))
        assert sum(server.clients.values()) == 21
        server.close()
        assert not talk.alive(timeout=0.5)


def test_answer_that_comes_late_is_not_taken_for_the_next():
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"slow 1\nquick 2\n")
        assert _exchange(near, b"2", b"", time.monotonic() + 5) == ("quick", b"")


def test_conversation_goes_on_after_a_pause_of_the_network(lab):
    with Server(lab, "director", 80), Conversation(lab, "client", DIRECTOR[4], 80) as talk:
        lab.run("director", ["ip", "route", "add", "blackhole", "192.168.18.25"])
        assert not talk.alive(timeout=0.05)
        lab.run("director", ["ip", "route", "delete", "blackhole", "192.168.18.25"])
        assert talk.alive(timeout=5.0)


def test_conversation_with_nobody_is_refused(lab):
    with pytest.raises(ConnectionRefusedError):
        Conversation(lab, "client", DIRECTOR[4], 81)


def test_requester_counts_answers_and_failures(lab):
    with Requester(lab, "client", DIRECTOR[4], 80) as requester:
        with Server(lab, "director", 80, name="first"):
            requester.wait_for(lambda tally: tally.answers.get("first", 0) >= 20)
        requester.wait_for(lambda tally: tally.failures.get("refused", 0) >= 5)
        with Server(lab, "director", 80, name="second"):
            requester.wait_for(lambda tally: tally.answers.get("second", 0) >= 20)
        tally = requester.stop()
    assert set(tally.answers) == {"first", "second"}
    # A request under way at the moment of the stop may be reset.
    assert set(tally.failures) <= {"refused", "reset"}
    assert 0 < tally.worst < 2.0
    assert tally.total == sum(tally.answers.values()) + sum(tally.failures.values())
    assert requester.tally() == tally


def test_requester_ends_by_itself(lab):
    with Requester(lab, "client", DIRECTOR[4], 81, seconds=0.1) as requester:
        assert wait_until(lambda: not requester._thread.is_alive(), 5)
    assert requester.tally().total > 0


# What passes


@pytest.mark.parametrize("family", [4, 6])
def test_tap_sees_the_syn_and_the_reset_of_a_closed_port(lab, family):
    client = lab.topology["client"].address(family)
    with Tap(lab, "director", ["eth0"]) as tap:
        assert ask(lab, "client", DIRECTOR[family], 8888).failure == "refused"
        tap.wait_for(lambda p: "RST" in p.flags)
        syn, reset = (p for p in tap.seen if p.protocol == "tcp")
    assert (syn.interface, syn.direction, syn.flags) == ("eth0", "in", ("SYN",))
    assert (syn.source, syn.destination, syn.destination_port) == (client, DIRECTOR[family], 8888)
    assert (reset.interface, reset.direction, reset.flags) == ("eth0", "out", ("RST", "ACK"))
    assert (reset.source, reset.source_port, reset.destination_port) == (
        DIRECTOR[family],
        8888,
        syn.source_port,
    )


@pytest.mark.usefixtures("forwarding")
def test_tap_sees_a_forwarded_exchange_in_its_order(lab):
    with Server(lab, "server1", 9999, "datagrams"), Tap(lab, "director") as tap:
        assert ask(lab, "client", SERVER[4], 9999, protocol="udp").server == "server1"
        tap.wait_for(lambda p: (p.interface, p.direction, p.protocol) == ("eth0", "out", "udp"))
        path = [(p.direction, p.interface, p.ttl) for p in tap.seen if p.protocol == "udp"]
    assert path == [("in", "eth0", 64), ("out", "eth1", 63), ("in", "eth1", 64), ("out", "eth0", 63)]


def test_tap_shows_only_the_interfaces_it_was_asked_for(lab):
    with Tap(lab, "director", ["eth1"]) as back, Tap(lab, "director", ["eth0"]) as front:
        ask(lab, "client", DIRECTOR[4], 8888)
        front.wait_for(lambda p: "RST" in p.flags)
        assert not [p for p in back.seen if p.protocol == "tcp"]


def test_tap_tells_what_it_saw_when_the_expected_did_not_come(lab):
    with Tap(lab, "director", ["eth0"]) as tap:
        ask(lab, "client", DIRECTOR[4], 8888)
        with pytest.raises(
            TimeoutError, match=r"in eth0 192\.168\.18\.25:\d+ > 192\.168\.18\.58:8888 tcp SYN"
        ):
            tap.wait_for(lambda p: p.destination_port == 1, seconds=0.1)
        tap.clear()
        with pytest.raises(TimeoutError) as error:
            tap.wait_for(lambda p: p.destination_port == 8888, seconds=0.1)
        assert "8888" not in str(error.value)
