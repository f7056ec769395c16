"""host/notify against a real datagram socket, in the place of systemd's."""

import os
import socket
import time
from pathlib import Path

import pytest

from lbd.host.notify import Notify


class Systemd:
    """The receiving end, as systemd reads it."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(2)

    def next(self):
        return self.socket.recv(65536).decode("ascii").split("\n")

    def all(self):
        self.socket.setblocking(False)
        datagrams = []
        try:
            while True:
                datagrams.append(self.next())
        except BlockingIOError:
            return datagrams


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return str(tmp_path / "notify")


@pytest.fixture
def systemd(path):
    receiver = Systemd(path)
    yield receiver
    receiver.socket.close()


def fill(path):
    """Fill the receiver's queue (net.unix.max_dgram_qlen)."""
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    filler.connect(path)
    try:
        while True:
            filler.send(b"X_FILLER=1")
    except BlockingIOError:
        filler.close()


def without_filler(datagrams):
    return [datagram for datagram in datagrams if datagram != ["X_FILLER=1"]]


def test_ready_and_status_come_in_one_datagram(systemd):
    Notify().ready("3 services converged")
    assert systemd.next() == ["READY=1", "STATUS=3 services converged"]


def test_reloading_carries_its_time_in_the_same_datagram(systemd):
    Notify().reloading(123456)
    assert systemd.next() == ["RELOADING=1", "MONOTONIC_USEC=123456"]


def test_every_message_has_its_words(systemd):
    notify = Notify()
    notify.status("converging")
    notify.watchdog()
    notify.stopping()
    assert systemd.all() == [["STATUS=converging"], ["WATCHDOG=1"], ["STOPPING=1"]]


def test_a_status_that_is_not_ascii_arrives_with_its_ready(systemd):
    Notify().ready("caf\u00e9 \u2192 \u8ca0\u8377 \udcff")
    assert systemd.next() == ["READY=1", "STATUS=caf? ? ??  "]


def test_a_newline_in_a_status_starts_no_assignment(systemd):
    Notify().status("one\nMAINPID=1\r\x1b[2J\0")
    assert systemd.next() == ["STATUS=one MAINPID=1  [2J "]


def test_a_long_status_stays_within_what_systemd_reads(systemd):
    Notify().ready("x" * 100_000)
    ready, status = systemd.next()
    assert ready == "READY=1"
    assert 500 < len(status) < 4096


def test_an_abstract_socket_is_reached(monkeypatch):
    name = f"lbd-test-{os.getpid()}"
    receiver = Systemd(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    Notify().status("here")
    assert receiver.next() == ["STATUS=here"]
    receiver.socket.close()


def test_without_notify_socket_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify = Notify()
    notify.ready("up")
    notify.reloading(1)
    notify.status("up")
    notify.watchdog()
    notify.stopping()
    assert notify.watchdog_interval is None


def test_a_full_queue_never_blocks_and_nothing_that_matters_is_lost(systemd, path):
    notify = Notify()
    fill(path)
    start = time.monotonic()
    notify.reloading(7)
    notify.status("old")
    notify.watchdog()
    notify.ready("new")
    assert time.monotonic() - start < 0.5
    assert without_filler(systemd.all()) == []
    notify.watchdog()
    assert systemd.all() == [
        ["RELOADING=1", "MONOTONIC_USEC=7", "STATUS=new"],
        ["READY=1"],
        ["WATCHDOG=1"],
    ]


def test_what_is_owed_comes_in_the_order_of_the_last_of_each_kind_and_stays_small(systemd, path):
    notify = Notify()
    fill(path)
    for n in range(1000):
        notify.reloading(n)
        notify.ready(f"round {n}")
    notify.reloading(1000)
    systemd.all()
    notify.status("again")
    assert systemd.all() == [["READY=1", "STATUS=again"], ["RELOADING=1", "MONOTONIC_USEC=1000"]]


def test_a_status_that_was_lost_comes_with_the_next_message_and_then_no_more(systemd, path):
    notify = Notify()
    fill(path)
    notify.status("lost")
    systemd.all()
    notify.watchdog()
    notify.watchdog()
    assert systemd.all() == [["WATCHDOG=1", "STATUS=lost"], ["WATCHDOG=1"]]


def test_a_socket_that_was_made_anew_is_found(path):
    notify = Notify()
    before = Systemd(path)
    notify.status("one")
    before.socket.close()
    Path(path).unlink()
    notify.ready("two")  # nobody is there
    after = Systemd(path)
    notify.watchdog()
    assert after.all() == [["READY=1", "STATUS=two"], ["WATCHDOG=1"]]
    after.socket.close()


def test_a_socket_that_was_replaced_while_the_old_one_lives_is_found(path):
    notify = Notify()
    before = Systemd(path)
    notify.status("one")
    Path(path).unlink()
    after = Systemd(path)
    notify.ready("two")
    assert after.next() == ["READY=1", "STATUS=two"]
    before.socket.close()
    after.socket.close()


def test_no_descriptor_is_left_behind(systemd):
    notify = Notify()
    before = descriptors()
    for _ in range(100):
        notify.watchdog()
        systemd.next()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("30000000", "", 15.0),
        ("30000000", "self", 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("soon", "", None),
        (None, "", None),
    ],
)
def test_the_watchdog_interval_is_half_of_what_systemd_waits_and_only_for_us(
    monkeypatch, usec, pid, interval
):
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    if usec is None:
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_USEC", usec)
    assert Notify().watchdog_interval == interval
