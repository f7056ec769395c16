"""Checks that need more than a socket, under the unit's restrictions: a program that is run, and a ping."""

import json

import pytest

from director import ONE, PATH, service
from lbd.lab.namespaces import Lab
from machine import Machine, wait

pytestmark = pytest.mark.systemd

PROGRAM = """\
[service.health]
type = "exec"
command = ["/bin/sh", "-c", "grep -E '^(Uid|Cap(Prm|Eff|Amb)|NoNewPrivs|Seccomp):' /proc/self/status; exit 3"]
interval = "200ms"
"""
PING = """\
[service.health]
type = "icmp"
interval = "200ms"
"""


def backend(machine: Machine) -> dict[str, object]:
    return json.loads(machine.must("lbd", "status", "-o", "json"))["services"][0]["backends"][0]


def test_a_program_is_run_without_the_rights_of_the_daemon(boot_director):
    machine = boot_director({PATH: service(ONE) + PROGRAM})
    machine.wait_active()
    try:
        reason = str(wait(lambda: backend(machine)["reason"]))
    except AssertionError:
        print("\n".join(entry["MESSAGE"] for entry in machine.journal(unit="lbd.service")))
        raise
    assert reason.startswith("exit code 3: Uid: ")
    assert "Uid: 0" not in reason
    none = "0000000000000000"
    assert f"CapPrm: {none} CapEff: {none} CapAmb: {none} NoNewPrivs: 1 Seccomp: 2" in reason
    assert backend(machine)["state"] == "down"


def test_a_daemon_without_root_may_ping(boot_director, lab: Lab):
    machine = boot_director({PATH: service(ONE) + PING})
    machine.wait_active()
    lab.run("server1", ["ip", "link", "set", "eth0", "down"])
    wait(lambda: backend(machine)["state"] == "down")
    lab.run("server1", ["ip", "link", "set", "eth0", "up"])
    wait(lambda: backend(machine)["state"] == "up")
