"""Settings of a network namespace of each test's own, through the real /proc/sys."""

import os
import subprocess
import sys

import pytest

import netns
from lbd.host import sysctl
from lbd.host.sysctl import SysctlRefusedError

pytestmark = pytest.mark.kernel

FORWARD, FORWARD6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"


@pytest.fixture(autouse=True)
def host():
    with netns.inside() as namespace:
        yield namespace


@pytest.mark.parametrize("name", [FORWARD, FORWARD6])
def test_what_is_written_is_read(host, name):
    for value in ("1", "0", "1"):
        sysctl.write(name, value)
        assert sysctl.read([name]) == {name: value}
        assert host.run("sysctl", "-n", name) == f"{value}\n"


def test_a_value_of_several_words_is_read_as_it_is_written():
    sysctl.write("net.ipv4.ping_group_range", "5 7")
    assert sysctl.read(["net.ipv4.ping_group_range"]) == {"net.ipv4.ping_group_range": "5 7"}


def test_what_does_not_exist_is_absent():
    assert sysctl.read([FORWARD, "net.ipv6.conf.eth7.forwarding"]).keys() == {FORWARD}


def test_an_interface_name_may_have_dots(host):
    host.ip("link", "add", "eth0.100", "type", "veth", "peer", "name", "far0")
    for name in ("net/ipv4/conf/eth0.100/forwarding", "net.ipv4.conf.eth0/100.forwarding"):
        sysctl.write(name, "0")
        assert sysctl.read([name]) == {name: "0"}


@pytest.mark.parametrize(
    "name",
    [
        *("kernel.hostname", "net.core.somaxconn", "net.ipv4", "", "net.ipv44.x", "/etc/passwd"),
        *("net/ipv4/../../kernel/hostname", "net.ipv4.//.//.kernel.hostname"),
    ],
)
def test_other_settings_are_out_of_reach(name):
    with pytest.raises(SysctlRefusedError, match=r"only touches settings below net\.ipv4 and net\.ipv6"):
        sysctl.read([name])
    with pytest.raises(SysctlRefusedError, match="only touches settings"):
        sysctl.write(name, "1")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            FORWARD,
            "yes",
            r"^sysctl net\.ipv4\.ip_forward cannot be set to yes: Invalid argument \(the kernel does",
        ),
        ("net.ipv6.conf.eth7.forwarding", "1", r"No such file or directory \(there is no such setting"),
        ("net.ipv4.conf", "1", r"cannot be set to 1: Is a directory$"),
    ],
)
def test_what_the_kernel_refuses_is_said_in_words(name, value, words):
    with pytest.raises(SysctlRefusedError, match=words) as refused:
        sysctl.write(name, value)
    assert not refused.value.permission


def test_without_the_capability_the_refusal_names_it():
    before = sysctl.read([FORWARD])
    os.seteuid(65534)
    try:
        with pytest.raises(SysctlRefusedError, match=r"Permission denied .*CAP_NET_ADMIN") as refused:
            sysctl.write(FORWARD, "1")
    finally:
        os.seteuid(0)
    assert refused.value.permission
    assert sysctl.read([FORWARD]) == before


def test_a_read_only_proc_says_what_to_do():
    mount = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"
    code = f"from lbd.host import sysctl; sysctl.write({FORWARD!r}, '1')"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Read-only file system (/proc/sys is read-only here: a systemd unit needs ReadWrite" in done.stderr
