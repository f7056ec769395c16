"""A broken return path: the check passes, clients wait in vain, and it is said; otherwise never."""

import threading

import pytest

from lbd.lab.namespaces import Lab
from lbd.lab.servers import Server
from lbd.lab.topology import experiment
from lbd.lab.traffic import Requester, ask
from running import SERVERS, VIP, Director, at, service

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])


def checked(family, count):
    text = service(at(VIP[family], 8888), [at(address, 9999) for address in SERVERS[family][:count]])
    return text + '[service.health]\ntype = "tcp"\ninterval = "1s"\n'


@pytest.mark.timeout(180)
@FAMILIES
def test_broken_return_path_is_told(family):
    with Lab(experiment(2, gateway=("elsewhere", "director"), ipv6=True)) as lab:
        for name in ("server1", "server2"):
            lab.enter(Server(lab, name, 9999))
        with Director(lab) as director:
            director.start(checked(family, 2))
            director.wait_status(lambda s: [b["state"] for b in s["services"][0]["backends"]] == ["up", "up"])
            clients = [
                threading.Thread(target=ask, args=(lab, "client", VIP[family], 8888), kwargs={"timeout": 4.0})
                for _ in range(20)
            ]
            for client in clients:
                client.start()
            said = director.wait_line(
                r"backend (\S+) of service \"web\" passes its check, and (.*)", seconds=40
            )
            assert said.group(1) == at(SERVERS[family][0], 9999)
            assert "default gateway" in said.group(2)
            status = director.status()
            one, two = status["services"][0]["backends"]
            assert one["unanswered"] > 0
            assert "unanswered" not in two
            assert one["state"] == "up"
            assert any("passes its check" in problem for problem in status["problems"])
            for client in clients:
                client.join()


@pytest.mark.timeout(120)
def test_nothing_is_told_of_a_healthy_one_under_load():
    with Lab(experiment(2, gateway="director", ipv6=True)) as lab:
        for name in ("server1", "server2"):
            lab.enter(Server(lab, name, 9999))
        with Director(lab) as director:
            director.start(checked(4, 2))
            with Requester(lab, "client", VIP[4], 8888) as requester:
                requester.wait_for(lambda tally: tally.total > 100)
                threading.Event().wait(25)
                assert not requester.stop().failures
            assert not [line for line in director.lines if "passes its check" in line]
            assert not director.status()["problems"]
