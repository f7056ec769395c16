"""Health checks with a real daemon, real servers and real connections."""

import re
import resource
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lbd.host.store import Store
from lbd.lab.namespaces import wait_until
from lbd.lab.servers import Server
from lbd.lab.traffic import ask
from running import PATIENCE, VIP, Director, answers, at, backends, service

pytestmark = pytest.mark.kernel

INTERVAL, FALL, RISE = 0.2, 3, 2
CHECK = {"type": "tcp", "interval": "200ms", "timeout": "150ms", "rise": RISE, "fall": FALL}
LISTEN = at(VIP[4], 8888)
TWO = backends(2)[1]


def web(count=3, listed=None, check=(), **options):
    return service(LISTEN, listed or backends(count), health={**CHECK, **dict(check)}, **options)


class Machines:
    """The real servers, each of which can be ended and begun again."""

    def __init__(self, lab):
        self.lab, self.running = lab, {}

    def begin(self, *names):
        for name in names:
            self.running[name] = Server(self.lab, name, 9999, "lines")

    def end(self, *names):
        for name in names:
            self.running.pop(name).close()


@pytest.fixture
def machines(lab):
    found = Machines(lab)
    found.begin("server1", "server2", "server3")
    yield found
    found.end(*found.running)


@pytest.fixture
def director(lab, machines):
    """A daemon without a past."""
    with Director(lab) as director:
        (director.directory / "state/health.json").unlink(missing_ok=True)
        yield director


def known(director, seen="state", index=0):
    """What the status says of each backend of a service: by server name."""
    rows = director.status()["services"][index]["backends"]
    return {f"server{n}": row[seen] for n, row in enumerate(rows, 1)}


def wait_known(director, **states):
    """Wait until the status says this of servers."""
    return director.wait_status(
        lambda s: (
            states.items()
            <= {f"server{n}": row["state"] for n, row in enumerate(s["services"][0]["backends"], 1)}.items()
        )
    )


def slots(director):
    """How many slots each server has."""
    found = director.table().elements.get("slots_tcp4", {})
    return Counter(f"server{int(value.split(' . ')[0].rpartition('.')[2]) - 72}" for value in found.values())


def wait_used(director, *servers):
    """Wait until these servers, and no others, take new connections: status knows it before the kernel."""
    assert wait_until(lambda: set(slots(director)) == set(servers), PATIENCE), slots(director)


@contextmanager
def ruled(lab, host, rule):
    """A host with a rule for what comes in, which counts the packets that it met."""
    table = "table ip test"
    chain = f"add {table}; add chain ip test in {{ type filter hook input priority 0; }}"
    lab.run(host, ["nft", f"{chain}; add rule ip test in {rule}"])

    def met():
        said = lab.run(host, ["nft", "-j", "list", table]).stdout
        return int(re.search(r'"packets": (\d+)', said)[1])

    try:
        yield met
    finally:
        lab.run(host, ["nft", f"delete {table}"])


SYN = "tcp dport 9999 tcp flags & (syn | ack) == syn"


class Load:
    """A client that asks all the time, and notes of each request when it began and how it went."""

    def __init__(self, lab):
        self.lab, self.requests, self.over = lab, [], threading.Event()
        self.thread = threading.Thread(target=self._go_on)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.over.set()
        self.thread.join()

    def _go_on(self):
        while not self.over.wait(0.002):
            began = time.monotonic()
            answer = ask(self.lab, "client", VIP[4], 8888, timeout=0.5)
            self.requests.append((began, answer.server, answer.failure))


# Out of rotation and back.


def test_killed_backend_is_out_of_rotation_in_time_and_later_requests_succeed(lab, machines, director):
    director.start(web())
    with Load(lab) as load:
        assert wait_until(lambda: len({server for _, server, _ in load.requests}) == 3, PATIENCE)
        killed = time.monotonic()
        machines.end("server2")
        wait_known(director, server2="down")
        # So many more after the bound as could show a late failure.
        late = killed + FALL * INTERVAL + 0.2
        assert wait_until(lambda: sum(began > late for began, *_ in load.requests) > 100, PATIENCE)
    failed = [began - killed for began, _, failure in load.requests if failure]
    print(
        f"\n{len(failed)} of {len(load.requests)} requests failed, the last {failed[-1]:.3f} s after the kill"
    )
    assert failed
    assert min(failed) > -0.1
    assert max(failed) <= FALL * INTERVAL + 0.2
    assert {server for began, server, _ in load.requests if began > late} == {"server1", "server3"}
    line = director.wait_line(r"backend (\S+) of service \"web\": up -> down: (.*) \(after [\d.]+ s\)")
    assert line.groups() == (TWO, "connection refused")
    assert known(director, "reason")["server2"] == "connection refused"


def test_backend_comes_back_after_as_many_checks_as_it_takes(lab, machines, director):
    director.start(web())
    machines.end("server2")
    wait_known(director, server2="down")
    wait_used(director, "server1", "server3")
    assert "server2" not in answers(lab, 4, count=20)
    began = time.monotonic()
    machines.begin("server2")
    director.wait_line(r"server|192.168.2.74:9999 of service \"web\": down -> up")
    wait_known(director, server2="up")
    took = time.monotonic() - began
    print(f"\nup after {took:.3f} s")
    wait_used(director, "server1", "server2", "server3")
    assert INTERVAL * (RISE - 1) * 0.9 <= took <= INTERVAL * RISE + 0.5
    assert set(answers(lab, 4, count=40)) == {"server1", "server2", "server3"}


def test_backend_that_never_answers_is_down_by_its_timeout(lab, machines, director):
    with ruled(lab, "server2", "tcp dport 9999 counter drop"):
        director.start(web())
        wait_known(director, server1="up", server2="down", server3="up")
        assert known(director, "reason")["server2"] == "no answer within 0.15s"
    wait_known(director, server2="up")


@pytest.mark.parametrize("state", ["up", "down"])
def test_flapping_backend_stays_what_it_was(lab, machines, director, state):
    if state == "down":
        machines.end("server2")
    director.start(web(check={"interval": "100ms", "timeout": "90ms"}))
    wait_known(director, server1="up", server2=state)
    with ruled(lab, "server2", f"{SYN} numgen inc mod 2 0 counter reject with tcp reset") as met:
        if state == "down":
            machines.begin("server2")
        assert wait_until(lambda: met() > 2, PATIENCE)
        said, seen, states = len(director.lines), met(), set()

        def enough():
            states.add(known(director)["server2"])
            return met() > seen + 10

        assert wait_until(enough, PATIENCE)
        assert states == {state}
        assert TWO not in director.said(said)


# When too few are up.


def test_without_panic_a_service_with_all_down_is_empty(lab, machines, director):
    director.start(web(2))
    machines.end("server1", "server2")
    director.wait_status(lambda s: s["services"][0]["state"] == "empty")
    wait_used(director)
    assert set(answers(lab, 4, count=3)) == {"refused"}
    machines.begin("server1")
    assert wait_until(lambda: answers(lab, 4) == ["server1"], PATIENCE)


def test_with_panic_all_are_used_and_it_is_said_loudly(lab, machines, director):
    director.start(web(3, check={"panic": 50}))
    machines.end("server2")
    wait_known(director, server2="down")
    assert director.status()["services"][0]["state"] == "up"
    wait_used(director, "server1", "server3")
    machines.end("server3")
    director.wait_status(lambda s: s["services"][0]["state"] == "panic")
    wait_used(director, "server1", "server2", "server3")
    assert set(answers(lab, 4, count=40)) == {"server1", "refused"}
    director.wait_line(r'service "web" fails open: 2 of 3 backends are down')
    assert len(re.findall("fails open", director.said())) == 1
    (problem,) = director.status()["problems"]
    assert problem in director.lbd("status").stdout
    assert "fails open" in problem
    machines.begin("server3")
    director.wait_line("does not fail open any more")
    director.wait_status(lambda s: s["services"][0]["state"] == "up")
    wait_used(director, "server1", "server3")


# Slow start.


def test_backend_that_came_up_gets_its_weight_step_by_step(lab, machines, director):
    slow = 4.0
    director.start(web(2, check={"slow_start": "4s"}, scheduler="random"))
    wait_known(director, server1="up", server2="up")
    machines.end("server2")
    wait_known(director, server2="down")
    machines.begin("server2")
    director.wait_line(r'192.168.2.74:9999 of service "web": down -> up')
    came_up = time.monotonic()
    seen = []
    while (now := time.monotonic()) < came_up + slow + 1:
        has = slots(director)
        seen.append((now - came_up, has["server2"] / has["server1"]))
        if len(seen) == 20:
            assert known(director)["server2"] == "starting"
            assert known(director, "reason")["server2"].endswith("% of its weight")
        time.sleep(0.05)
    for after, share in seen:
        # A step is 0.4 s, and the look for it takes its time.
        least, most = (min(10, int((after + by) / slow * 10) + 1) / 10 for by in (-0.25, 0.1))
        assert (least if after > 0.25 else 0) - 0.02 <= share <= most + 0.02, (after, share)
    assert len({round(share, 1) for _, share in seen}) >= 9
    assert seen[-1][1] == 1
    assert known(director)["server2"] == "up"


# Who is checked how often.


def test_services_share_the_checks_of_a_backend(lab, machines, director):
    two = service(at(VIP[4], 8889), backends(1), name="other", health=CHECK)
    with ruled(lab, "server1", f"{SYN} counter") as met:
        director.start(web(1) + two)
        assert wait_until(lambda: met() > 2, PATIENCE)
        seen, began = met(), time.monotonic()
        assert wait_until(lambda: met() >= seen + 20, PATIENCE)
        per_second = (met() - seen) / (time.monotonic() - began)
    print(f"\n{per_second:.2f} checks a second, every {INTERVAL} s")
    assert 0.8 / INTERVAL <= per_second <= 1.2 / INTERVAL
    machines.end("server1")
    director.wait_status(lambda s: [each["state"] for each in s["services"]] == ["empty", "empty"])
    # Each service has its entry.
    assert (
        len(re.findall(r'backend 192.168.2.73:9999 of service "(?:web|other)": up -> down', director.said()))
        == 2
    )


def test_many_that_die_at_once_are_few_transactions(lab, machines, director):
    listed = [at("192.168.2.73", port) for port in range(10001, 10051)]
    rule = "tcp dport 10001-10050 counter reject with tcp reset"
    with ExitStack() as stack:
        with lab.inside("server1"):
            for port in range(10001, 10051):
                stack.enter_context(socket.create_server(("", port)))
        director.start(web(listed=listed, check={"interval": "100ms", "timeout": "90ms"}))
        assert wait_until(lambda: set(known(director).values()) == {"up"}, PATIENCE)
        time.sleep(0.5)  # all have been checked, and are spread over the interval
        before, mark = director.generation(), len(director.lines)
        with ruled(lab, "server1", rule):
            director.wait_status(lambda s: s["services"][0]["state"] == "empty")
            transactions = director.generation() - before
            director.wait_line(
                r"30 more backends within a second: 30 -> down; of service \"web\"", since=mark
            )
    print(f"\n{transactions} transactions for 50 backends")
    # They are found within an interval, of which each 50 ms are one transaction.
    assert transactions <= 4
    assert len(re.findall(": up -> down: connection refused", director.said(mark))) == 20


# What goes on.


def down(director, machines):
    director.start(web(2))
    wait_used(director, "server1", "server2")
    machines.end("server2")
    wait_known(director, server2="down")
    director.wait_status(lambda s: s["state"] == "converged")
    wait_used(director, "server1")


def kept(director):
    """The phases that are kept, in order."""
    beliefs = Store(director.directory / "state").beliefs().value
    return sorted(belief.phase for belief in beliefs.values())


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_daemon_that_starts_knows_who_is_down_and_writes_nothing(lab, machines, director, end):
    down(director, machines)
    assert wait_until(lambda: "down" in kept(director), PATIENCE)
    generation = director.generation()
    getattr(director, end)()
    mark = len(director.lines)
    director.start()
    assert known(director) == {"server1": "up", "server2": "down"}
    assert known(director, "reason")["server2"] == "connection refused"
    assert director.generation() == generation
    assert set(answers(lab, 4, count=20)) == {"server1"}
    machines.begin("server2")
    wait_known(director, server2="up")
    assert "up -> down" not in director.said(mark)


def test_reload_keeps_who_is_down(lab, machines, director):
    down(director, machines)
    mark = len(director.lines)
    one, two = backends(2)
    director.apply(web(listed=[{"address": one, "weight": 3}, two]))
    assert known(director)["server2"] == "down"
    # Another check of it begins with what is known.
    director.apply(web(listed=[one, two], check={"rise": 4}))
    assert known(director)["server2"] == "down"
    wait_used(director, "server1")
    assert "->" not in director.said(mark)
    # Without checks all take connections.
    director.apply(service(LISTEN, backends(2)))
    wait_used(director, "server1", "server2")


def test_damaged_file_is_told_and_nothing_else(lab, machines, director):
    (director.directory / "state/health.json").write_text("{")
    director.start(web(2))
    director.wait_line("health.json is ignored: it is not JSON")
    wait_known(director, server1="up", server2="up")
    assert wait_until(lambda: kept(director) == ["up", "up"], PATIENCE)


def test_maintenance_ends_checks_until_it_is_undone(lab, machines, director):
    with ruled(lab, "server2", f"{SYN} counter") as met:
        director.start(web(2))
        wait_known(director, server1="up", server2="up")
        assert director.lbd("maintenance", "web", TWO).returncode == 0
        wait_known(director, server2="maintenance")
        wait_used(director, "server1")
        seen = met()
        time.sleep(4 * INTERVAL)
        assert met() <= seen + 1
        machines.end("server2")
        assert director.lbd("undrain", "web", TWO).returncode == 0
        # The first check decides: one that died meanwhile is out at once.
        wait_known(director, server2="down")
        wait_used(director, "server1")


# What lbd itself lacks.


def limit(director, soft, hard=None):
    """Let the daemon have so many descriptors from now on."""
    resource.prlimit(director.pid, resource.RLIMIT_NOFILE, (soft, hard or 1024))


SILENT = [at("192.168.2.75", port) for port in range(10001, 10061)]


def test_checks_without_descriptors_are_no_verdict_and_reconciling_goes_on(lab, machines, director):
    with ruled(lab, "server3", "tcp dport 10001-10060 counter drop") as met:
        check = {"interval": "500ms", "timeout": "480ms", "start": "down"}
        director.start(web(listed=[*backends(2), *SILENT], check=check))
        wait_known(director, server1="up", server2="up", server3="down")
        assert wait_until(lambda: met() > 180, PATIENCE)
        descriptors = Path(f"/proc/{director.pid}/fd")
        assert wait_until(lambda: len([*descriptors.iterdir()]) > 66, PATIENCE)
        mark = len(director.lines)
        limit(director, 64, 64)
        director.wait_line(r"health checks cannot be made, of \S+ for one: too many open files", since=mark)
        director.nft("flush table inet lbd")
        wait_used(director, "server1", "server2")
        # Checks go on with half of what there is, and find what happens.
        machines.end("server2")
        wait_known(director, server2="down")
        said = director.said(mark)
    assert said.count("health checks cannot be made") == 1
    assert said.count("->") == 1


def test_few_descriptors_make_checks_wait_and_none_fail(lab, machines, director):
    # At most 24 of them at a time.
    with ruled(lab, "server3", "tcp dport 10001-10060 counter drop") as met:
        director.start(service(LISTEN, backends(2)))
        limit(director, 48, 48)
        director.apply(web(listed=[*backends(2), *SILENT], check={"timeout": "50ms"}))
        director.wait_status(lambda s: [b["state"] for b in s["services"][0]["backends"]].count("down") == 60)
        assert met() >= 60
        assert "cannot be made" not in director.said()
        assert {known(director)[name] for name in ("server1", "server2")} == {"up"}
