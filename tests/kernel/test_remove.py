"""`lbd apply` and `lbd apply --remove`: what was there before is there again, and nothing else is left."""

import json

import pytest

from lbd.lab.namespaces import Lab
from lbd.lab.servers import Server
from lbd.lab.topology import experiment
from lbd.lab.traffic import ask
from running import VIP, Director, at, backends, service

pytestmark = pytest.mark.kernel

# Everything that lbd can hold. The default route takes the place of one that is not lbd's. The IPv6 address
# has no subnet: where forwarding is switched while an address comes up, the kernel counts the anycast address
# of its subnet once too often and keeps it (net/ipv6/addrconf.c).
FILE = "\n".join(
    [
        service(at(VIP[4], 8888), backends(2), interface="eth0"),
        service(at(VIP[6], 8888, "udp"), backends(1, 6), name="six", return_path="masquerade", log="path"),
        '[[address]]\naddress = "192.168.18.60/24"\ninterface = "eth0"\n',
        '[[address]]\naddress = "2001:db8:60::60/128"\ninterface = "eth0"\n',
        '[[route]]\nto = "default"\nvia = "192.168.18.25"\nreplace = true\n',
        '[[route]]\nto = "10.9.0.0/16"\nvia = "192.168.2.1"\ntable = 100\n',
        '[[route]]\nto = "2001:db8:9::/48"\nvia = "2001:db8:2::1"\n',
        '[[rule]]\nfrom = "192.168.2.0/24"\ntable = 100\npriority = 1000\n',
        '[[rule]]\nfrom = "2001:db8:2::/64"\ntable = 100\npriority = 1000\n',
    ]
)

FOREIGN = """\
table ip nat {
    chain pre {
        type nat hook prerouting priority 0
        ip daddr 192.0.2.1 dnat to 192.0.2.2
    }
}
"""


@pytest.fixture
def lab():
    """A director with a default route and a table that are not lbd's."""
    with Lab(experiment(2, gateway="director", ipv6=True)) as lab:
        lab.run("director", ["ip", "route", "add", "default", "via", "192.168.2.1"])
        lab.run("director", ["nft", "-f", "-"], text=FOREIGN)
        yield lab


@pytest.fixture
def director(lab):
    """Nothing runs yet."""
    with Director(lab) as director:
        yield director


def everything(lab):
    """All that the director's kernel shows of nftables, routing, addresses and forwarding."""
    commands = {
        "nft": ["nft", "-s", "list", "ruleset"],
        "routes": ["ip", "-j", "route", "show", "table", "all"],
        "routes 6": ["ip", "-6", "-j", "route", "show", "table", "all"],
        "rules": ["ip", "-j", "rule"],
        "rules 6": ["ip", "-6", "-j", "rule"],
        "sysctls": ["sysctl", "-a", "-r", r"net\.ipv[46]\..*(forward|rp_filter|redirects|accept_ra)"],
    }
    shown = {name: lab.run("director", argv).stdout for name, argv in commands.items()}
    addresses = json.loads(lab.run("director", ["ip", "-j", "addr"]).stdout)
    shown["addresses"] = [(link["ifname"], a["local"]) for link in addresses for a in link["addr_info"]]
    return shown


def test_apply_and_remove_leave_no_trace(lab, director):
    before = everything(lab)
    director.write(FILE)
    applied = director.lbd("apply")
    assert applied.returncode == 0, applied.stderr
    during = everything(lab)
    assert all(during[name] != before[name] for name in before), "everything was touched"
    again = director.lbd("apply")
    assert (again.returncode, again.stdout) == (0, "nothing to do\n")
    assert everything(lab) == during
    removed = director.lbd("apply", "--remove")
    assert removed.returncode == 0, removed.stderr
    assert everything(lab) == before
    again = director.lbd("apply", "--remove")
    assert (again.returncode, again.stdout) == (0, "nothing to do\n")


def test_remove_after_a_daemon_that_was_killed_leaves_no_trace(lab, director):
    before = everything(lab)
    director.start(FILE)
    director.kill()
    assert director.lbd("apply", "--remove").returncode == 0
    assert everything(lab) == before


def test_daemon_that_stops_leaves_traffic_flowing(lab, director):
    director.start(FILE)
    during = everything(lab)
    director.stop()
    assert everything(lab) == during
    with Server(lab, "server1", 9999), Server(lab, "server2", 9999):
        assert ask(lab, "client", VIP[4], 8888).server in {"server1", "server2"}


def test_what_the_file_lets_go_is_put_back(lab, director):
    before = everything(lab)
    director.start(FILE)
    director.apply("allow_empty = true\n")
    left = everything(lab)
    different = {name: (before[name], left[name]) for name in before if left[name] != before[name]}
    assert different.keys() == {"nft"}, different
    assert ask(lab, "client", VIP[4], 8888).failure == "refused"


def test_forwarding_that_was_on_stays_on(lab, director):
    lab.sysctl("director", "net.ipv4.ip_forward", "1")
    director.write(FILE)
    director.lbd("apply")
    director.lbd("apply", "--remove")
    assert lab.sysctl("director", "net.ipv4.ip_forward") == "1"
    assert lab.sysctl("director", "net.ipv6.conf.all.forwarding") == "0"


def test_a_foreign_route_is_not_replaced_without_being_asked(lab, director):
    director.start(FILE.replace("replace = true", ""))
    status = director.status()
    assert status["state"] == "degraded"
    assert "is there and not ours" in status["problems"][0]
    assert "via 192.168.2.1" in lab.run("director", ["ip", "route", "show", "default"]).stdout
    verdict = director.reload()
    assert (verdict["ok"], verdict["exit"]) == (False, 1)
    # The rest of the file is in force.
    assert "192.168.18.60" in director.ip("addr")
