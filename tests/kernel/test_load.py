"""Editing the file while clients ask: no request fails, and what is open stays open."""

from contextlib import ExitStack

import pytest

from lbd.lab.traffic import Conversation, Requester
from running import VIP, at, backends, service

pytestmark = pytest.mark.kernel

EDITS = 50
SERVER = {address: f"server{n}" for n, address in enumerate(backends(3), 1)}


def some_of(n):
    """The backends of the n-th file, of three."""
    first, second, third = backends(3)
    return [[first], [first, second], [first, second, third], [second, third], [third, first]][n % 5]


def edition(n):
    """The n-th file: backends come and go, weights, scheduler, interface and class change."""
    some = some_of(n)
    weighted = [
        {"address": a, "weight": 1 + (n * k) % 4, "state": "up" if k else ["up", "drain"][n % 2]}
        for k, a in enumerate(some)
    ]
    up = weighted if len(weighted) > 1 else [{**weighted[0], "state": "up"}]
    options = {
        "scheduler": ["maglev", "random", "round-robin"][n % 3],
        "return_path": ["gateway", "masquerade"][n // 2 % 2],
        "log": ["off", "path", "new"][n // 3 % 3],
    }
    six = backends(1 + n % 3, 6)
    return "\n".join(
        [
            service(at(VIP[4], 8888), up, name="tcp", **options),
            service(at(VIP[4], 8888, "udp"), up, name="udp", **options),
            service(at(VIP[6], 8888), six, name="six", **options),
            *(service(at(VIP[4], 7000 + k), some, name=f"other{k}") for k in range(n % 7)),
        ]
    )


def test_no_request_fails_and_no_conversation_ends_in_fifty_edits(lab, director):
    director.apply(edition(2))
    asked = [("tcp", 4), ("udp", 4), ("tcp", 6)]
    with ExitStack() as stack:
        talks = [
            stack.enter_context(Conversation(lab, "client2", VIP[family], 8888, protocol=protocol))
            for protocol, family in asked
            for _ in range(3)
        ]
        requesters = [
            stack.enter_context(Requester(lab, "client", VIP[family], 8888, protocol=protocol))
            for protocol, family in asked
        ]
        for n in range(EDITS):
            text = edition(n)
            if n % 10:
                director.apply(text)
            else:
                # As an editor's user would: nobody tells the daemon.
                director.write(text)
                director.wait_in_force(text, 2.0)
            # Those by UDP with a backend that is not in the file any more are sent to another one.
            servers = {SERVER[address] for address in some_of(n)}
            talks = [talk for talk in talks if talk.protocol == "tcp" or talk.server in servers]
            dead = [talk.server for talk in talks if not talk.alive()]
            assert not dead, f"after edit {n}:\n{text}"
        tallies = [requester.stop() for requester in requesters]
    for tally in tallies:
        assert not tally.failures
        assert tally.total > EDITS
        assert len(tally.answers) == 3
        # A connection that met the change of classes is dropped once and asked again after a second.
        assert tally.worst < 2.0
    assert director.status()["drift"]["count"] == 0


def test_a_removed_backend_keeps_its_conversations_and_gets_no_new_ones(lab, director):
    director.apply(service(at(VIP[4], 8888), backends(2), scheduler="round-robin"))
    with ExitStack() as stack:
        talks = [stack.enter_context(Conversation(lab, "client", VIP[4], 8888)) for _ in range(4)]
        assert {talk.server for talk in talks} == {"server1", "server2"}
        director.apply(service(at(VIP[4], 8888), backends(1)))
        assert all(talk.alive() for talk in talks)
        with Conversation(lab, "client", VIP[4], 8888) as new:
            assert new.server == "server1"
