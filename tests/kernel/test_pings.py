"""A director with a check that pings lets itself do so, and gives the setting back."""

import pytest

from lbd.lab.namespaces import Lab, wait_until
from lbd.lab.topology import experiment
from running import Director, backends, service

pytestmark = pytest.mark.kernel

RANGE = "net.ipv4.ping_group_range"
WITHOUT = service("192.168.18.58:8888", backends(1))
WITH = WITHOUT + '[service.health]\ntype = "icmp"\ninterval = "100ms"\n'


@pytest.fixture(scope="module")
def lab():
    with Lab(experiment(1)) as lab:
        yield lab


def test_pings_are_allowed_while_a_check_pings(lab):
    lab.sysctl("director", RANGE, "1 0")
    with Director(lab) as director:
        director.start(WITH)
        assert lab.sysctl("director", RANGE) == "0\t2147483647"
        # Nothing is left to do, and what would be is readable.
        assert director.lbd("plan", "--exit-code").returncode == 0
        lab.sysctl("director", RANGE, "5 6")
        plan = director.lbd("plan").stdout
        assert f"set {RANGE} = 0 2147483647" in plan
        director.reload()
        assert lab.sysctl("director", RANGE) == "0\t2147483647"

        def up():
            (backend,) = director.status()["services"][0]["backends"]
            return backend["state"] == "up" and director.status()["state"] == "converged"

        assert wait_until(up, 5.0)
        # A host that is gone does not answer, and this is what the checks find.
        lab.run("server1", ["ip", "link", "set", "eth0", "down"])
        assert wait_until(lambda: not up(), 10.0)
        assert director.status()["services"][0]["backends"][0]["state"] == "down"
        lab.run("server1", ["ip", "link", "set", "eth0", "up"])
        director.apply(WITHOUT)
        assert lab.sysctl("director", RANGE) == "1\t0"


def test_removing_lbd_gives_the_setting_back(lab):
    lab.sysctl("director", RANGE, "1 0")
    with Director(lab) as director:
        director.start(WITH)
        assert lab.sysctl("director", RANGE) == "0\t2147483647"
        director.stop()
        assert lab.sysctl("director", RANGE) == "0\t2147483647"
        assert director.lbd("apply", "--remove").returncode == 0
        assert lab.sysctl("director", RANGE) == "1\t0"
