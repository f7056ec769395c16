"""Who takes connections when those of the first level cannot: backups, the sorry server, and nobody."""

import itertools

import pytest

from lbd.lab.traffic import Conversation, ask
from running import VIP, at, backends, service
from serving import FAMILIES, PROTOCOLS, serve

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parametrize("family", FAMILIES),
    pytest.mark.parametrize("protocol", PROTOCOLS),
]

# A flow of UDP or SCTP from a port that was used before is no new connection.
_ports = itertools.count(20_000)


@pytest.fixture(scope="module", autouse=True)
def associations(lab, servers):
    for host in ("server1", "server2", "server3"):
        lab.enter(serve(lab, host, 9999, "sctp"))


@pytest.fixture
def served(lab, director, family, protocol):
    """Apply a service whose backends have these keys; return who takes its connections."""

    def asked(*keys, count=12, **options):
        each = [{"address": b, **k} for b, k in zip(backends(3, family), keys, strict=False)]
        # In turns, so that nobody is missed by chance.
        text = service(at(VIP[family], 8888, protocol), each, scheduler="round-robin", **options)
        director.apply(text)
        answers = (
            ask(lab, "client", VIP[family], 8888, protocol=protocol, timeout=0.3, source_port=next(_ports))
            for _ in range(count)
        )
        return {answer.server or answer.failure for answer in answers}

    return asked


def test_a_backup_takes_over_and_gives_back(served):
    down = {"state": "down"}
    backup = {"backup": True}
    assert served({}, backup, backup) == {"server1"}
    assert served(down, backup, backup) == {"server2", "server3"}
    assert served({"weight": 0}, backup, down) == {"server2"}
    assert served({"state": "drain"}, {"backup": 1}, {"backup": 2}) == {"server2"}
    assert served(down, {"backup": 1, **down}, {"backup": 2}) == {"server3"}
    assert served({}, {"backup": 1}, {"backup": 2}) == {"server1"}


def test_the_sorry_server_comes_last(served, family):
    sorry = backends(3, family)[2]
    down = {"state": "down"}
    assert served({}, {"backup": True}, sorry_server=sorry) == {"server1"}
    assert served(down, {"backup": True}, sorry_server=sorry) == {"server2"}
    assert served(down, {"backup": True, **down}, sorry_server=sorry) == {"server3"}
    assert served(sorry_server=sorry) == {"server3"}


@pytest.mark.parametrize(("when_empty", "failure"), [("reject", "refused"), ("drop", "timeout")])
def test_when_there_is_nobody(served, when_empty, failure):
    assert served({"state": "down"}, {"weight": 0}, count=2, when_empty=when_empty) == {failure}


def test_an_open_conversation_stays_where_it_is(lab, director, family, protocol):
    if protocol == "sctp":
        pytest.skip("SCTP of the lab is one question and its answer")
    one, two, _ = backends(3, family)
    listen = at(VIP[family], 8888, protocol)

    def apply(state):
        director.apply(service(listen, [{"address": one, "state": state}, {"address": two, "backup": True}]))

    apply("up")
    with Conversation(lab, "client", VIP[family], 8888, protocol=protocol) as talk:
        apply("drain")
        assert ask(lab, "client", VIP[family], 8888, protocol=protocol).server == "server2"
        assert talk.server == "server1"
        assert talk.alive()
