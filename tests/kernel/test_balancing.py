"""Least connections and `max_connections` with a real daemon and real connections."""

from collections import Counter
from contextlib import ExitStack
from functools import partial

import pytest

from lbd.lab.namespaces import wait_until
from lbd.lab.traffic import Conversation
from running import PATIENCE, VIP, answers, at, backends, service

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
MOST = 20


@pytest.fixture
def held():
    """Connections that stay open until the test ends."""
    with ExitStack() as stack:
        yield stack


def hold(lab, held, family, number, client="client"):
    """Open connections and return the servers that have them."""
    talks = [held.enter_context(Conversation(lab, client, VIP[family], 8888)) for _ in range(number)]
    return Counter(talk.server for talk in talks)


def known(director, seen=None):
    """What the status says of each backend of the first service, as server names: its `seen` or all of it."""
    rows = director.status()["services"][0]["backends"]
    return {f"server{n}": row.get(seen, 0) if seen else row for n, row in enumerate(rows, 1)}


def counted(director, number):
    """Whether so many connections of the service have been counted."""
    return sum(known(director, "connections").values()) >= number


def slots(director, family):
    """How many slots each backend address has."""
    found = director.table().elements.get(f"slots_tcp{family}", {})
    return Counter(value.split(" . ")[0] for value in found.values())


@FAMILIES
def test_new_connections_go_to_who_has_few(lab, servers, director, held, family):
    listed = backends(3, family)
    director.apply(service(at(VIP[family], 8888), listed[:1]))
    assert hold(lab, held, family, 120) == {"server1": 120}
    director.apply(service(at(VIP[family], 8888), listed, scheduler="least-connections"))
    director.wait_status(lambda s: s["services"][0]["backends"][0]["connections"] == 120)
    busy = listed[0].rpartition(":")[0].strip("[]")
    # A quarter of its weight beside four times theirs is 1/33 of 251 slots.
    assert wait_until(lambda: slots(director, family)[busy] <= 251 * 0.1, PATIENCE), slots(director, family)
    got = Counter(answers(lab, family, count=200))
    assert sum(got.values()) == 200
    assert set(got) <= {"server1", "server2", "server3"}
    assert got["server1"] <= 40
    assert min(got["server2"], got["server3"]) >= 40
    # Who had many keeps them.
    assert known(director, "connections")["server1"] >= 120


@FAMILIES
def test_full_backend_takes_no_more_and_again_when_it_has_fewer(lab, servers, director, family):
    limited = [{"address": address, "max_connections": MOST} for address in backends(1, family)]
    text = service(at(VIP[family], 8888), [*limited, *backends(2, family)[1:]], scheduler="round-robin")
    director.apply(text)
    # Those of another test may just be ending.
    assert wait_until(lambda: not any(known(director, "connections").values()), PATIENCE)
    since = len(director.lines)
    with ExitStack() as held:
        had = Counter()
        # Ten at a time, as they may come within one sample, and the counter gets its turn in between.
        while had["server2"] < 3 * MOST:
            had += hold(lab, held, family, 10)
            assert wait_until(partial(counted, director, had.total()), PATIENCE)
        assert MOST <= had["server1"] <= MOST + 10
        row = known(director)["server1"]
        assert (row["state"], row["reason"]) == ("full", f"max_connections = {MOST} in the file")
        assert row["connections"] == had["server1"]
        director.wait_line("has as many connections as it may", since=since)
        assert set(answers(lab, family, count=20)) == {"server2"}
        assert "full" in director.lbd("status").stdout
    # What has ended is not there any more, and so it takes connections again.
    director.wait_line("takes connections again", since=since)
    director.wait_status(lambda s: s["services"][0]["backends"][0]["state"] == "up")
    assert "server1" in answers(lab, family, count=20)


@FAMILIES
def test_client_of_a_full_backend_stays_with_it(lab, servers, director, held, family):
    limited = [{"address": address, "max_connections": MOST} for address in backends(2, family)]
    director.apply(service(at(VIP[family], 8888), limited, persistence="10m", scheduler="round-robin"))
    ((mine, _),) = hold(lab, held, family, MOST + 5).items()
    director.wait_status(lambda s: "full" in {b["state"] for b in s["services"][0]["backends"]})
    (other,) = {"server1", "server2"} - {mine}
    assert known(director, "state") == {mine: "full", other: "up"}
    assert set(answers(lab, family, count=5)) == {mine}
    assert set(answers(lab, family, count=5, client="client2")) == {other}


def test_restarted_daemon_writes_nothing_that_was_right(lab, servers, director, held):
    limited = [{"address": address, "max_connections": MOST} for address in backends(1)]
    director.apply(service(at(VIP[4], 8888), [*limited, *backends(2)[1:]], scheduler="round-robin"))
    hold(lab, held, 4, 2 * MOST + 6)
    director.wait_status(lambda s: s["services"][0]["backends"][0]["state"] == "full")
    assert wait_until(lambda: len(slots(director, 4)) == 1, PATIENCE)
    director.stop()
    before = director.generation()
    director.start()
    assert known(director, "state")["server1"] == "full"
    assert director.generation() == before


def test_what_needs_no_counting_has_none(director):
    director.apply(service(at(VIP[4], 8888), backends(2)))
    assert not any("connections" in row for row in known(director).values())
    assert "CONNECTIONS" not in director.lbd("status").stdout
