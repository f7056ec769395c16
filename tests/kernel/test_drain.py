"""A drain ends when the connections of the backend do; who is out has no share of new connections."""

import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from lbd.lab.namespaces import wait_until
from lbd.lab.traffic import Conversation
from running import PATIENCE, VIP, answers, at, backends, service
from serving import forget_connections

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
ENOUGH = 30


def web(family, protocol="tcp", second=(), count=3, **options):
    """Three backends in turn, the second one with these keys."""
    one, two, *more = backends(count, family)
    listed = [one, {"address": two, **dict(second)}, *more]
    return service(at(VIP[family], 8888, protocol), listed, **{"scheduler": "round-robin", **options})


@pytest.fixture
def talks():
    """Conversations that stay open until the test ends them."""
    with ExitStack() as stack:
        yield stack


def open_one(lab, talks, family, server="server2", protocol="tcp"):
    """A conversation with this server."""
    for port in range(12_000 + next(_ports), 13_000):
        talk = Conversation(lab, "client", VIP[family], 8888, protocol=protocol, source_port=port)
        if talk.server == server:
            return talks.enter_context(talk)
        talk.close()
    raise AssertionError(server)


_ports = iter(range(0, 1000, 20))


def waiting(lab, address, *options):
    """`lbd drain --wait` as a process."""
    argv = [sys.executable, "-m", "lbd", "drain", "web", address, "--wait", *options]
    return lab.popen("director", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def row(director, address):
    (found,) = [
        r for each in director.status()["services"] for r in each["backends"] if r["address"] == address
    ]
    return found


def undone(director, *addresses):
    for address in addresses:
        done = director.lbd("undrain", "web", address)
        assert done.returncode == 0, done.stderr


@FAMILIES
def test_waiting_returns_when_the_last_conversation_ends_and_not_before(lab, director, talks, family):
    director.apply(web(family))
    address = backends(2, family)[1]
    first, last = (open_one(lab, talks, family) for _ in range(2))
    since = len(director.lines)
    process = waiting(lab, address)
    director.wait_status(lambda _: row(director, address).get("connections", 0) >= 2)
    first.close()
    director.wait_status(lambda _: row(director, address).get("connections") == 1)
    # More than two samples later it still waits.
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3.0)
    assert row(director, address)["state"] == "drain"
    assert last.alive()
    last.close()
    ended = time.monotonic()
    assert process.wait(PATIENCE) == 0
    assert time.monotonic() - ended < 5.0
    out = process.stdout.read().decode().splitlines()
    assert out[0].startswith(f"web {address}: drain (")
    assert out[1].startswith(f"web {address}: drained (")
    assert out[1].endswith("no connection is left)")
    found = director.wait_status(lambda _: row(director, address)["state"] == "down") and row(
        director, address
    )
    assert found["reason"].startswith("drained, no connection is left; drained by uid 0 at ")
    assert found["drained"] is True
    assert sum("is drained after" in line for line in director.lines[since:]) == 1
    # It is over: who asks again has the answer at once, and the plan agrees.
    assert waiting(lab, address).wait(PATIENCE) == 0
    assert director.lbd("plan", "--exit-code").stdout.splitlines()[-1] == "nothing to do"
    undone(director, address)
    assert row(director, address)["state"] == "up"
    assert "server2" in answers(lab, family, count=ENOUGH)


@FAMILIES
@PROTOCOLS
def test_a_drain_of_the_file_ends_as_well(lab, director, talks, family, protocol):
    director.apply(web(family, protocol))
    address = backends(2, family)[1]
    talk = open_one(lab, talks, family, protocol=protocol)
    since = len(director.lines)
    director.apply(web(family, protocol, second={"state": "drain"}))
    director.wait_status(lambda _: row(director, address).get("connections", 0) >= 1)
    assert talk.alive()
    assert row(director, address)["state"] == "drain"
    talk.close()
    if protocol == "udp":
        # Flows have no end: the kernel forgets them.
        forget_connections(lab)
    director.wait_line(rf"{re.escape(address)} .* is drained after \d+ s: no connection is left", since=since)
    director.wait_status(lambda _: row(director, address)["state"] == "down")
    assert row(director, address)["reason"] == "drained, no connection is left; state = 'drain' in the file"


def test_waiting_has_an_end(lab, director, talks):
    director.apply(web(4))
    address = backends(2)[1]
    talk = open_one(lab, talks, 4)
    process = waiting(lab, address, "--timeout", "2s")
    assert process.wait(PATIENCE) == 1
    told = process.stderr.read().decode()
    assert told.startswith(f"lbd: not drained: web {address}: drain (")
    assert "left)" in told
    assert talk.alive()
    # Undone meanwhile is no end either.
    process = waiting(lab, address)
    assert process.stdout.readline()
    undone(director, address)
    assert process.wait(PATIENCE) == 1
    assert process.stderr.read().decode().startswith(f"lbd: not drained: web {address}: up")


def test_a_client_that_may_come_back_is_waited_for(lab, director):
    director.apply(web(4, persistence="6s", count=2))
    one, two = backends(2)
    (mine,) = set(answers(lab, 4, count=3))
    address = {"server1": one, "server2": two}[mine]
    began = time.monotonic()
    process = waiting(lab, address)
    # It comes back before its time is over, and is let in.
    assert set(answers(lab, 4, count=3)) == {mine}
    assert process.wait(2 * PATIENCE) == 0
    assert time.monotonic() - began >= 6.0
    (other,) = {"server1", "server2"} - {mine}
    assert set(answers(lab, 4, count=3)) == {other}
    # What the daemon has found is no difference to what is planned.
    director.wait_status(lambda _: row(director, address)["state"] == "down")
    done = director.lbd("plan", "--exit-code")
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["nothing to do"])
    undone(director, address)


def test_ended_drains_are_found_again_after_a_restart(lab, director):
    director.apply(web(4))
    address = backends(2)[1]
    assert waiting(lab, address).wait(2 * PATIENCE) == 0
    director.wait_status(lambda _: row(director, address)["state"] == "down")
    director.stop()
    director.start()
    director.wait_status(lambda _: row(director, address)["state"] == "down")
    assert set(answers(lab, 4, count=ENOUGH)) == {"server1", "server3"}
    # Drained anew it is counted anew.
    undone(director, address)
    with ExitStack() as talks:
        open_one(lab, talks, 4)
        assert director.lbd("drain", "web", address).stdout.startswith(f"web {address}: drain (1 ")
        assert row(director, address)["state"] == "drain"
    undone(director, address)


def test_what_is_not_tracked_cannot_be_waited_for(lab, director):
    text = service(
        at(VIP[4], 8888), backends(3), return_path="stateless", interface="eth0", scheduler="source-hash"
    )
    director.apply(text)
    address = backends(2)[1]
    process = waiting(lab, address)
    assert process.wait(PATIENCE) == 0
    assert (
        process.stdout.read().decode().strip() == f"web {address}: drained (its connections are not tracked)"
    )
    assert row(director, address)["reason"].startswith("drained, its connections are not tracked; drained by")
    undone(director, address)


def test_nothing_is_counted_when_nothing_drains(director):
    director.apply(web(4))
    address = backends(2)[1]
    assert not any("connections" in each for each in director.status()["services"][0]["backends"])
    director.lbd("drain", "web", address)
    director.wait_status(lambda _: "connections" in row(director, address))
    undone(director, address)
    assert not any("connections" in each for each in director.status()["services"][0]["backends"])


def slots(director):
    found = director.table().elements.get("slots_tcp4", {})
    return Counter(value.split(" . ")[0] for value in found.values())


@pytest.mark.parametrize("out", ["down", "drain", "maintenance", "undrain"])
def test_who_is_out_has_no_share(lab, director, talks, out):
    """With `undrain` it is out and comes back."""
    director.apply(web(4, scheduler="least-connections"))
    one, two, three = backends(3)
    # The first one has many, so that there are shares.
    before = web(4, scheduler="least-connections", second={"state": "down"}).replace(
        f'"{three}"', f'{{ address = "{three}", state = "down" }}'
    )
    director.apply(before)
    for _ in range(100):
        talks.enter_context(Conversation(lab, "client", VIP[4], 8888))
    director.apply(web(4, scheduler="least-connections", second={"state": "down"} if out == "down" else ()))
    if out != "down":
        director.lbd("drain" if out == "undrain" else out, "web", two)
    gone = two.partition(":")[0]
    busy, free = (each.partition(":")[0] for each in (one, three))
    assert wait_until(lambda: gone not in slots(director) and slots(director)[busy] < 251 / 8, PATIENCE)
    assert "share" not in row(director, two)
    assert {"share"} <= row(director, one).keys() & row(director, three).keys()
    assert slots(director)[free] + slots(director)[busy] == 251
    assert "server2" not in answers(lab, 4, count=ENOUGH)
    if out == "undrain":
        undone(director, two)
        # At once it has a share that is in proportion to the others', not the weight of the file beside them.
        assert slots(director)[gone] > 251 / 8
    elif out != "down":
        undone(director, two)
