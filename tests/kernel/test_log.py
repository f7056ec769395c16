"""What `log` shows of a service's packets: where they pass the director, and between whom."""

import errno
import json
import os
from itertools import islice
from pathlib import Path

import pytest

from lbd.host.nflog import NfLog
from lbd.lab.traffic import Conversation, ask
from running import CLIENT, SERVERS, VIP, at, backends, service

pytestmark = pytest.mark.kernel

ALL_NAMESPACES = Path("/proc/sys/net/netfilter/nf_log_all_netns")
MANGLE = -150

PATHS = pytest.mark.parametrize(
    ("family", "protocol"), [(4, "tcp"), (4, "udp"), (6, "tcp"), (6, "udp")], ids=str
)


def steps(director, since):
    """The steps that its output shows, in order: (what, interface, source, destination, protocol)."""
    shown = []
    for line in director.lines[since:]:
        service, _, rest = line.partition(": ")
        what, _, packet = rest.partition(": ")
        if service == "web" and what.endswith(("enters", "leaves")):
            interface, source, _, destination, protocol, *_ = packet.split()
            shown.append((what, interface, source, destination, protocol))
    return shown


def packets_after(director, since, count):
    """The first steps, when so many have been shown."""
    director.wait_line(r"(enters|leaves): ", since=since + count - 1)
    return steps(director, since)


@PATHS
def test_path_shows_the_four_steps_of_an_exchange(lab, director, family, protocol):
    director.apply(service(at(VIP[family], 8888, protocol), backends(1, family), log="path"))
    since = len(director.lines)
    port = 23_000 + family
    assert ask(lab, "client", VIP[family], 8888, protocol=protocol, source_port=port).server == "server1"
    director.wait_line("reply leaves", since=since)
    client, listen, backend = (
        at(CLIENT[family], port),
        at(VIP[family], 8888),
        at(SERVERS[family][0], 9999),
    )
    assert steps(director, since)[:4] == [
        ("request enters", "eth0", client, listen, protocol),
        ("request leaves", "eth1", client, backend, protocol),
        ("reply enters", "eth1", backend, client, protocol),
        # Not translated back yet at the priority of mangle.
        ("reply leaves", "eth0", backend, client, protocol),
    ]


def test_path_tells_the_flags_of_tcp(lab, director):
    director.apply(service(at(VIP[4], 8888), backends(1), log="path"))
    since = len(director.lines)
    assert ask(lab, "client", VIP[4], 8888).server
    director.wait_line(r"reply leaves: .* tcp SYN ACK$", since=since)
    assert director.lines[since].endswith("tcp SYN")


@PATHS
def test_path_shows_the_source_that_masquerade_gives(lab, director, family, protocol):
    text = service(at(VIP[family], 8888, protocol), backends(1, family), log="path", return_path="masquerade")
    director.apply(text)
    since = len(director.lines)
    assert ask(lab, "client", VIP[family], 8888, protocol=protocol).server == "server1"
    director.wait_line("reply leaves", since=since)
    back = {4: "192.168.2.90", 6: "[2001:db8:2::90]"}[family]
    first = steps(director, since)[:4]
    assert [step[0] for step in first] == ["request enters", "request leaves", "reply enters", "reply leaves"]
    assert first[2][3].startswith(f"{back}:")
    # The client again, which prerouting has put back for the forwarding.
    assert first[3][3].startswith(at(CLIENT[family], "")), first


@PATHS
def test_new_shows_the_first_packet_only(lab, director, family, protocol):
    director.apply(service(at(VIP[family], 8888, protocol), backends(1, family), log="new"))
    since = len(director.lines)
    with Conversation(lab, "client", VIP[family], 8888, protocol=protocol) as talk:
        assert all(talk.alive() for _ in range(5))
    # A second connection comes after everything of the first.
    with Conversation(lab, "client", VIP[family], 8888, protocol=protocol) as talk:
        director.wait_line("request enters", since=since + 1)
        assert talk.alive()
    shown = steps(director, since)
    assert [step[0] for step in shown] == ["request enters"] * 2, shown
    assert shown[0][2] != shown[1][2]


def test_off_shows_nothing(lab, director):
    shown = service(at(VIP[4], 8888), backends(1), log="path")
    director.apply(shown + service(at(VIP[4], 8889), backends(1), name="silent"))
    since = len(director.lines)
    assert ask(lab, "client", VIP[4], 8889).server
    assert ask(lab, "client", VIP[4], 8888).server
    director.wait_line("reply leaves", since=since)
    assert not [line for line in director.lines[since:] if "8889" in line or "silent" in line]
    director.apply(shown.replace('"path"', '"off"'))
    assert not {"log_prerouting", "log_postrouting"} & director.table().chains.keys()


def test_a_request_that_nobody_takes_is_shown_to_enter_only(lab, director):
    director.apply(service(at(VIP[4], 8888), [], log="path"))
    since = len(director.lines)
    assert ask(lab, "client", VIP[4], 8888).failure == "refused"
    director.apply(service(at(VIP[4], 8888), backends(1), log="path"))
    assert ask(lab, "client", VIP[4], 8888).server
    director.wait_line("reply leaves", since=since)
    shown = steps(director, since)
    assert shown[0][:2] == ("request enters", "eth0")
    assert shown[1][0] != "request leaves"


def kernel_rules(director, chain):
    listing = director.lab.run("director", ["nft", "-j", "list", "chain", "inet", "lbd", chain]).stdout
    items = json.loads(listing)["nftables"]
    (base,) = (item["chain"] for item in items if "chain" in item)
    logs = [
        expression["log"]
        for item in items
        if "rule" in item
        for expression in item["rule"]["expr"]
        if "log" in expression
    ]
    return (base["type"], base["hook"], base["prio"]), logs


def test_kernel_target_logs_at_mangle_with_level_debug(director):
    text = '[director]\nlog_target = "kernel"\n' + service(at(VIP[4], 8888), backends(1), log="path")
    director.apply(text)
    hook, logs = kernel_rules(director, "log_prerouting")
    assert hook == ("filter", "prerouting", MANGLE)
    assert {(log["prefix"], log["level"]) for log in logs} == {("<<<<< PER IN:", "debug")}
    hook, logs = kernel_rules(director, "log_postrouting")
    assert hook == ("filter", "postrouting", MANGLE)
    assert {(log["prefix"], log["level"]) for log in logs} == {(">>>>> POST OUT:", "debug")}


def test_group_is_taken_only_while_a_service_shows_packets(lab, director):
    def taken(group=76):
        try:
            with lab.inside("director"):
                NfLog(group).close()
        except OSError as error:
            return error.errno == errno.EPERM
        return False

    shown = service(at(VIP[4], 8888), backends(1), log="path")
    director.apply(shown)
    assert taken()
    director.apply("[director]\nlog_group = 77\n" + shown)
    assert not taken()
    assert taken(77)
    director.apply('[director]\nlog_target = "kernel"\n' + shown)
    assert not taken(77)
    director.apply(shown.replace("path", "off"))
    assert not taken()


def test_group_of_another_process_is_told_and_the_service_served(lab, director):
    with lab.inside("director"):
        other = NfLog(78)
    since = len(director.lines)
    director.apply("[director]\nlog_group = 78\n" + service(at(VIP[4], 8888), backends(1), log="path"))
    director.wait_line("packets cannot be shown: NFLOG group 78: another process has it", since=since)
    assert ask(lab, "client", VIP[4], 8888).server
    other.close()


@pytest.mark.emulated
def test_kernel_log_has_the_four_lines_of_the_experiment(lab, director):
    if ALL_NAMESPACES.read_text().strip() != "1":
        pytest.skip("net.netfilter.nf_log_all_netns is 0: the kernel log is silent about this namespace")
    director.apply('[director]\nlog_target = "kernel"\n' + service(at(VIP[4], 8888), backends(1), log="path"))
    # Each read gives one record, and a text or buffered file would wait for more.
    with Path("/dev/kmsg").open("rb", buffering=0) as log:
        os.lseek(log.fileno(), 0, os.SEEK_END)
        assert ask(lab, "client", VIP[4], 8888).server
        records = (record.decode() for record in iter(lambda: log.read(8192), b""))
        # The kernel says other things, too.
        ours = (record for record in records if "PER IN:" in record or "POST OUT:" in record)
        lines = list(islice(ours, 4))
    prefixes = ["<<<<< PER IN:", ">>>>> POST OUT:"] * 2
    assert all(prefix in line for prefix, line in zip(prefixes, lines, strict=True)), lines
