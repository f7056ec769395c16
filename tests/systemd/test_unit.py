"""The unit as systemd judges and runs it, before any question of what lbd does."""

import time
from pathlib import Path

import pytest

from director import PORT, VIP
from lbd.lab.namespaces import Lab
from lbd.lab.traffic import ask
from machine import Machine, command

pytestmark = pytest.mark.systemd

UNIT = "usr/lib/systemd/system/lbd.service"

CAP_NET_ADMIN = 1 << 12  # include/uapi/linux/capability.h
SECCOMP_FILTER = "2"  # proc(5)


def test_verify_has_nothing_to_say(director: Machine):
    done = director.run("systemd-analyze", "verify", f"/{UNIT}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exposure_is_at_most_1_6(stage: Path):
    done = command("systemd-analyze", "security", "--offline=true", "--threshold=16", str(stage / UNIT))
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_boot_starts_it_when_enabled(director: Machine):
    assert director.systemctl("enable", "lbd.service").returncode == 0
    assert (director.root / "etc/systemd/system/multi-user.target.wants/lbd.service").is_symlink()


def test_daemon_is_a_plain_user_with_one_capability_and_a_seccomp_filter(director: Machine):
    lines = director.must("cat", f"/proc/{director.main_pid()}/status").splitlines()
    status = {key: value.split() for key, value in (line.split(":", 1) for line in lines)}
    assert "0" not in status["Uid"]
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(status[kind][0], 16) == CAP_NET_ADMIN, kind
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == [SECCOMP_FILTER]


def test_it_is_watched_and_brought_back(director: Machine):
    unit = director.show()
    assert (unit["WatchdogUSec"], unit["Restart"], unit["NotifyAccess"]) == ("10s", "on-failure", "main")


def test_ready_means_that_the_service_serves(director: Machine, lab: Lab, record_property):
    """READY=1 comes after the first converged state, so the first request already gets its answer."""
    assert ask(lab, "client", VIP, PORT).server == "server1"
    unit = director.show()
    started, ready = (int(unit[f"{name}TimestampMonotonic"]) for name in ("ExecMainStart", "ActiveEnter"))
    seconds = (ready - started) / 1e6
    record_property("start_to_ready_seconds", seconds)
    assert seconds < 5


def test_status_line_says_how_it_is(director: Machine):
    assert "converged" in director.told()


def test_status_is_for_everyone_and_fast(director: Machine):
    argv = ("runuser", "-u", "nobody", "--", "lbd", "status")
    assert director.must(*argv).startswith("converged")
    times = []
    for _ in range(5):
        start = time.monotonic()
        director.must(*argv)
        times.append(time.monotonic() - start)
    # nsenter and runuser are in it too, with some 15 ms.
    assert min(times) < 0.2


def test_reload_is_not_for_everyone(director: Machine):
    done = director.run("runuser", "-u", "nobody", "--", "lbd", "reload")
    assert done.returncode == 77
    assert "root" in done.stderr
