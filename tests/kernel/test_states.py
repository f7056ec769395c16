"""Backends that are drained, down or without weight take no new connections and keep those they have."""

from contextlib import ExitStack

import pytest

from lbd.lab.traffic import Conversation
from running import VIP, answers, at, backends, service

pytestmark = pytest.mark.kernel

# With 30 connections, a backend that still took its third would be missed once in 190,000 runs.
ENOUGH = 30


def table(family, **second):
    """Three backends, the second one with these keys."""
    one, two, three = backends(3, family)
    return [one, {"address": two, **second}, three]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("scheduler", ["maglev", "random", "round-robin"])
@pytest.mark.parametrize(
    "out", [{"state": "drain"}, {"state": "down"}, {"weight": 0}], ids=["drain", "down", "weight 0"]
)
def test_new_connections_go_to_the_others(lab, director, family, protocol, scheduler, out):
    listen = at(VIP[family], 8888, protocol)
    director.apply(service(listen, table(family), scheduler=scheduler))
    assert set(answers(lab, family, protocol, ENOUGH)) == {"server1", "server2", "server3"}
    director.apply(service(listen, table(family, **out), scheduler=scheduler))
    assert set(answers(lab, family, protocol, ENOUGH)) == {"server1", "server3"}
    director.apply(service(listen, table(family, state="up"), scheduler=scheduler))
    assert set(answers(lab, family, protocol, ENOUGH)) == {"server1", "server2", "server3"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("out", [{"state": "drain"}, {"weight": 0}], ids=["drain", "weight 0"])
def test_conversations_of_a_drained_backend_go_on(lab, director, family, protocol, out):
    listen = at(VIP[family], 8888, protocol)
    director.apply(service(listen, table(family), scheduler="round-robin"))
    with ExitStack() as stack:
        talks = [
            stack.enter_context(Conversation(lab, "client", VIP[family], 8888, protocol=protocol))
            for _ in range(6)
        ]
        assert {talk.server for talk in talks} == {"server1", "server2", "server3"}
        director.apply(service(listen, table(family, **out), scheduler="round-robin"))
        assert all(talk.alive() for talk in talks)
        # Also when the service has nobody left for new connections.
        nobody = [{"address": address, **out} for address in backends(3, family)]
        director.apply(service(listen, nobody))
        assert set(answers(lab, family, protocol, ENOUGH)) == {"refused"}
        assert all(talk.alive() for talk in talks)


def test_status_says_why_a_backend_is_out(director):
    one, two, three = backends(3)
    out = [one, {"address": two, "state": "drain"}, {"address": three, "weight": 0}]
    director.apply(service(at(VIP[4], 8888), out))
    (web,) = director.status()["services"]
    assert [backend["reason"] for backend in web["backends"]] == [
        "",
        "state = 'drain' in the file",
        "weight = 0 in the file",
    ]
