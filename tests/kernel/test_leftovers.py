"""What backends leave behind: one-way senders and open connections, with a real daemon."""

import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from lbd.lab.namespaces import wait_until
from lbd.lab.servers import Server
from lbd.lab.traffic import Conversation, ask
from running import PATIENCE, SERVERS, VIP, at, backends, service
from tracked import raw

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
# An edit is in force, and the old backend has nothing more, within so many seconds.
SOON = 2.0
PORT, OTHER_PORT = 9998, 9997


class Datagrams:
    """A UDP socket of a host, and a thread that does `_go_on` with it until `ending`."""

    def __init__(self, lab, host, family):
        with lab.inside(host):
            self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.ending.set()
        self.thread.join(2)
        self.socket.close()


class Sink(Datagrams):
    """Takes datagrams on a port of a host and never answers; `times` is when each came."""

    def __init__(self, lab, host, port):
        super().__init__(lab, host, socket.AF_INET6)
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(("::", port))
        self.socket.settimeout(0.1)
        self.times = []

    def _go_on(self):
        while not self.ending.is_set():
            with suppress(TimeoutError):
                self.socket.recv(100)
                self.times.append(time.monotonic())


class Sender(Datagrams):
    """Sends 50 datagrams a second from one port, whatever comes back; `sent` counts them."""

    def __init__(self, lab, address, port, host="client"):
        super().__init__(lab, host, socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.socket.bind(("", 0))
        self.to = (address, port)
        self.sent = 0

    def _go_on(self):
        while not self.ending.wait(0.02):
            try:
                self.socket.sendto(b"x", self.to)
            except OSError:  # what an earlier one came back as
                continue
            self.sent += 1

    def wait_more(self, number):
        until = self.sent + number
        assert wait_until(lambda: self.sent >= until, 10)


@pytest.fixture
def sinks(lab):
    with ExitStack() as stack:
        places = [("server1", PORT), ("server1", OTHER_PORT), ("server2", PORT)]
        yield {place: stack.enter_context(Sink(lab, *place)) for place in places}


def udp(family, listed, **options):
    return service(at(VIP[family], 8888, "udp"), listed, **options)


ONE, TWO, MOVED = ("server1", PORT), ("server2", PORT), ("server1", OTHER_PORT)


def listed(family, *places):
    address = {"server1": SERVERS[family][0], "server2": SERVERS[family][1]}
    return [at(address[host], port) for host, port in places]


def goes_to(sinks, place, sender, seconds=PATIENCE):
    """Wait until what is sent arrives at this place (or at none), and return since when it does."""
    before = len(sinks[place].times)
    assert wait_until(lambda: len(sinks[place].times) > before + 3, seconds), f"nothing came to {place}"
    return sinks[place].times[before]


def nothing_after(sinks, place, moment, sender):
    """Nothing came to the place later than two seconds after a moment, while more was sent than waits."""
    sender.wait_more(75)
    late = [when - moment for when in sinks[place].times if when > moment + SOON]
    assert not late, f"{len(late)} datagrams came too late to {place}, the last after {late[-1]:.2f} s"


CHANGES = {
    "removed": lambda family: (listed(family, TWO), TWO),
    "replaced by another port": lambda family: (listed(family, MOVED), MOVED),
    "down": lambda family: (
        [{"address": listed(family, ONE)[0], "state": "down"}, *listed(family, TWO)],
        TWO,
    ),
    "in maintenance": lambda family: (
        [{"address": listed(family, ONE)[0], "state": "maintenance"}, *listed(family, TWO)],
        TWO,
    ),
}


@FAMILIES
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{}, {"interface": "eth0", "scheduler": "random"}])
def test_one_way_sender_follows_its_service(lab, director, sinks, family, change, options):
    director.apply(udp(family, listed(family, ONE), **options))
    with Sender(lab, VIP[family], 8888) as sender:
        goes_to(sinks, ONE, sender)
        new, place = CHANGES[change](family)
        mark = len(director.lines)
        moment = time.monotonic()
        director.write(udp(family, new, **options))
        assert goes_to(sinks, place, sender) < moment + SOON
        nothing_after(sinks, ONE, moment, sender)
        line = director.wait_line(r"ended 1 connection that would go nowhere: (.*)", since=mark)
        assert f"1 of backend {listed(family, ONE)[0]}" in line.group(1)


@FAMILIES
def test_one_way_sender_leaves_who_is_dead_by_its_checks(lab, director, sinks, family):
    checked = '[service.health]\ntype = "tcp"\nport = 7070\ninterval = "200ms"\nfall = 2\nrise = 1\n'
    with Server(lab, "server2", 7070), Server(lab, "server1", 7070) as alive:
        director.apply(udp(family, listed(family, ONE)) + checked)
        with Sender(lab, VIP[family], 8888) as sender:
            goes_to(sinks, ONE, sender)
            director.apply(udp(family, listed(family, ONE, TWO)) + checked)
            goes_to(sinks, ONE, sender)
            alive.close()
            moment = time.monotonic()
            assert goes_to(sinks, TWO, sender) < moment + SOON
            nothing_after(sinks, ONE, moment, sender)


@FAMILIES
def test_service_emptied_and_refilled(lab, director, sinks, family):
    director.apply(udp(family, listed(family, ONE)))
    with Sender(lab, VIP[family], 8888) as sender:
        goes_to(sinks, ONE, sender)
        moment = time.monotonic()
        director.write(udp(family, []))
        nothing_after(sinks, ONE, moment, sender)
        sender.wait_more(75)
        moment = time.monotonic()
        director.write(udp(family, listed(family, TWO)))
        assert goes_to(sinks, TWO, sender) < moment + SOON
        nothing_after(sinks, ONE, moment, sender)


@FAMILIES
def test_service_removed(lab, director, sinks, family):
    director.apply(udp(family, listed(family, ONE)))
    with Sender(lab, VIP[family], 8888) as sender:
        goes_to(sinks, ONE, sender)
        moment = time.monotonic()
        # Another keeps forwarding on: without any, nothing would go anywhere.
        director.write(service(at(VIP[family], 7777), listed(family, TWO)))
        nothing_after(sinks, ONE, moment, sender)


@FAMILIES
@pytest.mark.parametrize("options", [{}, {"interface": "eth0"}], ids=["", "interface"])
def test_sender_that_was_there_before_the_service(lab, director, sinks, family, options):
    """Its entry says that it goes to the director itself, and it keeps that alive."""
    director.apply(service(at(VIP[family], 7777), listed(family, ONE)))
    with Sender(lab, VIP[family], 8888) as sender:
        sender.wait_more(20)
        moment = time.monotonic()
        director.write(udp(family, listed(family, ONE), **options))
        assert goes_to(sinks, ONE, sender) < moment + SOON


@FAMILIES
def test_killed_before_it_could_end_what_was_left(lab, director, sinks, family):
    director.apply(udp(family, listed(family, ONE)))
    with Sender(lab, VIP[family], 8888) as sender:
        goes_to(sinks, ONE, sender)
        director.kill()
        # What a daemon would have done that was killed between its rules and its clearing.
        director.write(udp(family, listed(family, TWO)))
        moment = time.monotonic()
        director.start()
        goes_to(sinks, TWO, sender)
        nothing_after(sinks, ONE, moment + 2, sender)


@FAMILIES
@pytest.mark.parametrize("kept", ["drain", "standby", "idle"])
def test_who_takes_nothing_new_keeps_what_it_has(lab, director, sinks, family, kept):
    director.apply(udp(family, listed(family, ONE)))
    one, two = listed(family, ONE, TWO)
    options = {"drain": {"state": "drain"}, "standby": {"backup": 1}, "idle": {"weight": 0}}[kept]
    with Sender(lab, VIP[family], 8888) as sender:
        goes_to(sinks, ONE, sender)
        director.apply(udp(family, [{"address": one, **options}, two]))
        sender.wait_more(50)
        goes_to(sinks, ONE, sender)
        assert not sinks[TWO].times


FOREIGN = """
table ip foreign {
    chain pre {
        type nat hook prerouting priority -90
        udp dport 7000 dnat to 192.168.2.73:9998
        udp dport 8888 ip daddr 192.168.18.59 dnat to 192.168.2.73:9998
    }
}
"""


def test_what_is_not_lbds_stays(lab, director, sinks):
    director.apply(udp(4, listed(4, ONE)))
    director.ip("address", "add", "192.168.18.59/24", "dev", "eth0")
    lab.run("director", ["nft", "-f", "-"], text=FOREIGN)
    try:
        with ExitStack() as stack:
            for address, port in ((VIP[4], 7000), ("192.168.18.59", 8888), (VIP[4], 8887)):
                stack.enter_context(Sender(lab, address, port))
            mine = stack.enter_context(Sender(lab, VIP[4], 8888))
            mine.wait_more(20)

            def foreign():
                with lab.inside("director"):
                    found = raw()
                return [each for each in found if listening(each) != (VIP[4], 8888)]

            assert wait_until(lambda: len(foreign()) >= 3, PATIENCE)
            before = foreign()
            director.apply(udp(4, []))
            director.apply(udp(4, listed(4, TWO)))
            goes_to(sinks, TWO, mine)
            director.apply("allow_empty = true\n")
            assert set(before) <= set(foreign())
    finally:
        director.nft("delete table ip foreign")
        director.ip("address", "del", "192.168.18.59/24", "dev", "eth0")


def listening(payload):
    """Where a raw entry was addressed."""
    from lbd.host.conntrack_messages import tracked  # noqa: PLC0415

    sent = tracked(bytes(16) + payload, 0, 16 + len(payload)).sent
    return sent.address, sent.port


# TCP.


def tcp(family, listed, **options):
    return service(at(VIP[family], 8888), listed, **options)


def how_it_ends(talk, seconds=5.0):
    """What a client gets for its next line: an answer, a reset, or nothing in time."""
    try:
        return talk.say(seconds)
    except ConnectionResetError:
        return "reset"
    except BrokenPipeError:
        return "reset"
    except TimeoutError:
        return "nothing"


TABLE = [
    # state of the backend, on_down, what becomes of its connections
    ("down", None, "reset"),
    ("down", "keep", "server1"),
    ("down", "reset", "reset"),
    ("maintenance", None, "server1"),
    ("maintenance", "keep", "server1"),
    ("maintenance", "reset", "reset"),
    ("removed", None, "server1"),
    ("removed", "keep", "server1"),
    ("removed", "reset", "reset"),
    ("drain", None, "server1"),
    ("drain", "reset", "server1"),
]


@FAMILIES
@pytest.mark.parametrize(("gone", "on_down", "expected"), TABLE)
@pytest.mark.usefixtures("servers")
def test_open_connections(lab, director, family, gone, on_down, expected):
    options = {"on_down": on_down} if on_down else {}
    one, two = backends(2, family)
    director.apply(tcp(family, [one], **options))
    with Conversation(lab, "client", VIP[family], 8888) as talk:
        assert talk.server == "server1"
        first = [] if gone == "removed" else [{"address": one, "state": gone}]
        director.apply(tcp(family, [*first, two], **options))
        assert how_it_ends(talk) == expected
    assert ask(lab, "client", VIP[family], 8888).server == "server2"


@FAMILIES
@pytest.mark.parametrize("loose", ["1", "0"])
@pytest.mark.parametrize("left", ["another", "reject", "drop"])
@pytest.mark.parametrize("path", ["gateway", "masquerade"])
@pytest.mark.usefixtures("servers")
def test_reset_reaches_the_client(lab, director, family, loose, left, path):
    """With the next packet of the client: sent elsewhere, or refused, or taken for the director's own."""
    one, two = backends(2, family)
    options = {"return_path": path, "when_empty": "drop" if left == "drop" else "reject"}
    director.apply(tcp(family, [one], **options))
    lab.sysctl("director", "net.netfilter.nf_conntrack_tcp_loose", loose)
    try:
        with Conversation(lab, "client", VIP[family], 8888) as talk:
            rest = [two] if left == "another" else []
            director.apply(tcp(family, [{"address": one, "state": "down"}, *rest], **options))
            got = how_it_ends(talk)
        assert got == ("nothing" if (left, loose) == ("drop", "1") else "reset")
    finally:
        lab.sysctl("director", "net.netfilter.nf_conntrack_tcp_loose", "1")
