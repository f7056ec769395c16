"""The six steps of the demo: from a director without a service to one whose rules somebody deletes."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping
from contextlib import closing

from lbd.core.packet import Packet, endpoint
from lbd.host.nft_events import NftEvents
from lbd.lab.daemon import Daemon, Hop
from lbd.lab.namespaces import Lab, LabError
from lbd.lab.narrator import Narrator
from lbd.lab.servers import Server
from lbd.lab.tap import Tap
from lbd.lab.traffic import Answer, Requester, ask

VIP, PORT, BACKEND_PORT, CLIENT = "192.168.18.58", 8888, 9999, "192.168.18.25"
SERVERS = {"server1": "192.168.2.73", "server2": "192.168.2.74", "server3": "192.168.2.75"}

NOTHING = "allow_empty = true\n"
FIVE_LINES = """\
[[service]]
name = "web"
listen = "192.168.18.58:8888"
interface = "eth0"
backends = ["192.168.2.73:9999"]
"""
WITH_LOG = FIVE_LINES + 'log = "path"\n'
NOT_FORWARDING = f"[director]\nforwarding = false\n\n{WITH_LOG}"
KERNEL_LOG = f'[director]\nlog_target = "kernel"\n\n{WITH_LOG}'
THREE_SERVERS = WITH_LOG.replace(
    '["192.168.2.73:9999"]',
    '[\n    "192.168.2.73:9999",\n    "192.168.2.74:9999",\n    "192.168.2.75:9999",\n]',
)
GATEWAY = '[[route]]\nto = "default"\nvia = "192.168.2.90"\nreplace = true\n'

# A SYN is sent again after 1 s (RFC 6298, 2.1). Who waits longer shows two of them, and the lines of the
# second tell that all lines of the first are there.
PATIENCE = 1.3
SYNS = 2

# Enough to tell shares from chance: of 400 requests to three servers the standard deviation of a share is
# 0.024, and half of an even share is 7 of those away.
REQUESTS = 400

# Requests that must all be served after the repair.
AGAIN = 100

# How long the client's requests and the kernel's events may take in all, on a loaded machine.
DEADLINE = 20.0


class WrongError(Exception):
    """A step did not show what it must."""


class Steps:
    """The steps. Each goes on where the one before it ended, and raises when it does not show its thing."""

    def __init__(self, lab: Lab, tell: Narrator) -> None:
        self.lab, self.tell = lab, tell
        self.daemon: Daemon | None = None
        for name in SERVERS:
            lab.enter(Server(lab, name, BACKEND_PORT, "page"))

    @property
    def all(self) -> tuple[Callable[[], None], ...]:
        """The steps in their order."""
        return self.refused, self.enters, self.leaves, self.served, self.grows, self.repaired

    def refused(self) -> None:
        """Show the director without a service."""
        tell = self.tell
        tell.title("1. No service: the director refuses")
        tell.file("lbd.toml", NOTHING)
        tell.command("director", "lbd run -c lbd.toml &")
        self.daemon = Daemon(self.lab, "director", NOTHING)
        with Tap(self.lab, "director") as tap:
            answer = self._ask(1)
            _must(answer.failure == "refused", f"the client was to be refused, but: {_said(answer)}")
            tap.wait_for(lambda packet: "RST" in packet.flags)
            seen = [packet for packet in tap.seen if packet.protocol == "tcp"]
        tell.seen(f"The client is refused after {answer.seconds * 1000:.1f} ms.", good=False)
        tell.path([_hop(packet) for packet in seen])
        _must(
            [packet.direction for packet in seen] == ["in", "out"],
            "one packet was to enter, and one to leave",
        )
        tell.says(
            f"Nobody listens on port {PORT} of the director, so it answers with a reset. (Without a service "
            "lbd has nothing to log: these two packets were seen by a tap of the lab on the director.)"
        )

    def enters(self) -> None:
        """Show the service without forwarding."""
        tell = self.tell
        tell.title("2. The five-line service, without forwarding: connections go nowhere")
        tell.file("lbd.toml", NOT_FORWARDING)
        self._edit(NOT_FORWARDING)
        self._forwarding("0")
        hops = self._times_out(2, "request enters")
        tell.path(hops, "no request leaves")
        tell.says(
            "The destination is translated to the real server, which is another host. So the packet is to be "
            "forwarded, forwarding is off, and the kernel drops it without a word."
        )

    def leaves(self) -> None:
        """Show forwarding while the real server's gateway is elsewhere."""
        tell = self.tell
        tell.title("3. Forwarding, as is the default: requests leave, no reply comes")
        tell.edit("lbd.toml", NOT_FORWARDING, WITH_LOG)
        self._edit(WITH_LOG)
        self._forwarding("1")
        hops = self._times_out(3, "request leaves")
        tell.path(hops, "no reply enters")
        tell.says(
            "The request reaches the real server; its destination is translated, its source is still the "
            "client. The real server answers the client by its own default gateway, 192.168.2.1, and there "
            "the reply is lost."
        )

    def served(self) -> None:
        """Show the whole path, after a second lbd has set the real server's gateway."""
        tell = self.tell
        tell.title("4. The director as the real server's gateway: the page is served")
        self._default_route()
        tell.file("lbd.toml of the real server", GATEWAY)
        tell.command("server1", "lbd run -c lbd.toml &")
        Daemon(self.lab, "server1", GATEWAY)
        route = self._default_route()
        _must("via 192.168.2.90" in route, f"the default route was to be replaced, but is: {route}")
        answer = self._ask(4)
        _must(answer.server == "server1", f"server1 was to serve the page, but: {_said(answer)}")
        tell.seen(f"The client has the page after {answer.seconds * 1000:.1f} ms.", good=True)
        hops = self._path(4, "reply leaves")
        parts = ["request enters", "request leaves", "reply enters", "reply leaves"]
        _must([hop.part for hop in hops] == parts, f"four parts were to be seen, in order, not {hops}")
        tell.path(hops)
        tell.says(
            "The reply comes back through the director, which knows the connection. Its source is translated "
            f"back to {VIP}:{PORT} just after the point where the last line is taken."
        )
        self._kernel_log()

    def grows(self) -> None:
        """Show that servers are added without a request lost."""
        tell = self.tell
        tell.title("5. Two more real servers, while the client keeps requesting")
        tell.edit("lbd.toml", WITH_LOG, THREE_SERVERS)
        with Requester(self.lab, "client", VIP, PORT, protocol="http") as requester:
            before = requester.wait_for(lambda tally: tally.total >= AGAIN, DEADLINE)
            _must(set(before.answers) == {"server1"}, f"only server1 was to serve so far: {before}")
            self._edit(THREE_SERVERS)
            then = requester.tally()
            requester.wait_for(lambda tally: tally.total - then.total >= REQUESTS, DEADLINE)
            tally = requester.stop()
        _must(not tally.failures, f"no request was to fail, but: {_many(tally.failures)}")
        tell.seen(f"{tally.total} requests, 0 failed. Who served since the edit was applied:", good=True)
        counts = {name: tally.answers.get(name, 0) - then.answers.get(name, 0) for name in SERVERS}
        tell.gap()
        tell.counts({f"{name} {SERVERS[name]}": count for name, count in counts.items()})
        tell.gap()
        share = sum(counts.values()) / len(SERVERS)
        _must(all(count > share / 2 for count in counts.values()), f"shares were to be about even: {counts}")
        tell.says(
            "The scheduler maglev hashes the client's address and port: a connection has one server, and "
            "many connections have about even shares. (The new servers had the director as their gateway "
            "already.)"
        )
        tell.gap()
        tell.command("director", "lbd status")
        tell.table(self.lab.python("director", "lbd", "status").stdout.splitlines())

    def repaired(self) -> None:
        """Show that lbd repairs what somebody breaks, and says who it was."""
        tell = self.tell
        assert self.daemon
        tell.title("6. Somebody deletes all rules: lbd repairs, and says who it was")
        with self.lab.inside("director"):
            events = NftEvents()
        with closing(events), Requester(self.lab, "client", VIP, PORT, protocol="http") as requester:
            requester.wait_for(lambda tally: tally.total >= AGAIN, DEADLINE)
            tell.command("director", "nft flush ruleset")
            culprit = self.lab.popen("director", ["nft", "flush", "ruleset"])
            away = _away(events, culprit.pid)
            _must(culprit.wait(DEADLINE) == 0, f"nft failed with exit code {culprit.returncode}")
            tell.output([self.daemon.line(f"changed by nft (pid {culprit.pid}")])
            tell.gap()
            # The request under way may have begun before the repair; those after it may not fail.
            last = requester.tally().total + 1
            then = requester.wait_for(lambda tally: tally.total >= last, DEADLINE)
            requester.wait_for(lambda tally: tally.total - then.total >= AGAIN, DEADLINE)
            tally = requester.stop()
        _must(tally.failures == then.failures, f"requests still fail: {_many(tally.failures)}")
        tell.seen(
            f"The rules were away for {away * 1000:.0f} ms. Requests that failed meanwhile: "
            f"{_many(then.failures)}; the slowest answer took {then.worst * 1000:.0f} ms. "
            f"All of the {tally.total - then.total} requests after it were served.",
            good=True,
        )
        tell.gap()
        tell.says(
            "The kernel announces every change of the rules, and which process made it. lbd listens, reads "
            "its own table, puts back what is missing in one transaction, and reads again to be sure."
        )

    # What several steps do.

    def _ask(self, number: int) -> Answer:
        # A port for each step, by which its packets are told from those of the others.
        port = 40000 + number
        return ask(self.lab, "client", VIP, PORT, protocol="http", timeout=PATIENCE, source_port=port)

    def _path(self, number: int, until: str, count: int = 1) -> list[Hop]:
        assert self.daemon
        return self.daemon.path(f"{CLIENT}:{40000 + number}", until, count)

    def _times_out(self, number: int, last: str) -> list[Hop]:
        """Ask in vain, and return the path, which must end with the part `last`."""
        answer = self._ask(number)
        _must(answer.failure == "timeout", f"the client was to wait in vain, but: {_said(answer)}")
        hops = self._path(number, last, SYNS)
        said = f"The client sends its SYN twice, gets no answer for {PATIENCE} s, and gives up."
        self.tell.seen(said, good=False)
        _must(hops[-1].part == last, f"nothing was to follow after {last!r}, but: {hops[-1]}")
        return hops

    def _edit(self, text: str) -> None:
        assert self.daemon
        line, seconds = self.daemon.edit(text)
        self.tell.output([line])
        self.tell.says(f"In the kernel {seconds:.2f} s after the file was written.")
        self.tell.gap()

    def _forwarding(self, value: str) -> None:
        found = self.lab.sysctl("director", "net.ipv4.ip_forward")
        _must(found == value, f"net.ipv4.ip_forward was to be {value}, not {found}")
        self.tell.says(f"net.ipv4.ip_forward of the director is {found}.")

    def _default_route(self) -> str:
        self.tell.command("server1", "ip route show default")
        said = self.lab.run("server1", ["ip", "route", "show", "default"]).stdout.strip()
        self.tell.output(said.splitlines())
        self.tell.gap()
        return said

    def _kernel_log(self) -> None:
        """Show the rules of the kernel log, and put the file back."""
        tell = self.tell
        tell.gap()
        tell.says("The same as kernel log lines, as one does it by hand:")
        tell.gap()
        tell.edit("lbd.toml", WITH_LOG, KERNEL_LOG)
        self._edit(KERNEL_LOG)
        for chain, prefix in (("log_prerouting", "<<<<< PER IN:"), ("log_postrouting", ">>>>> POST OUT:")):
            tell.command("director", f"nft list chain inet lbd {chain}")
            said = self.lab.run("director", ["nft", "list", "chain", "inet", "lbd", chain]).stdout
            lines = [line.strip() for line in said.splitlines()]
            shown = [line for line in lines if line.startswith(("type filter", "meta l4proto {"))]
            tell.output(shown)
            text = " ".join(shown)
            _must(
                "priority mangle" in text and f'log prefix "{prefix}" level debug' in text,
                f"{chain} was to log with {prefix!r} at level debug and priority mangle",
            )
        tell.gap()
        tell.says(
            "(The kernel log shows lines of a namespace only with net.netfilter.nf_log_all_netns = 1 on the "
            "host itself, which the demo does not touch. The file is put back now.)"
        )
        assert self.daemon
        self.daemon.edit(WITH_LOG)


def _must(right: bool, otherwise: str) -> None:
    if not right:
        raise WrongError(otherwise)


def _said(answer: Answer) -> str:
    return f"served by {answer.server}" if answer.server else answer.failure


def _many(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} ({failure})" for failure, count in failures.items()) or "none"


def _hop(packet: Packet) -> Hop:
    part = {"in": "request enters", "out": "answer leaves"}[packet.direction]
    source = endpoint(packet.source, packet.source_port)
    destination = endpoint(packet.destination, packet.destination_port)
    return Hop(part, packet.interface, source, destination, " ".join(packet.flags))


def _away(events: NftEvents, culprit: int) -> float:
    """Return the seconds from the commit of the process `culprit` to the next one, which is lbd's."""
    seen: list[tuple[int, float]] = []
    deadline = time.monotonic() + DEADLINE
    while (left := deadline - time.monotonic()) > 0:
        select.select([events], [], [], left)
        now = time.monotonic()
        seen += [(commit.pid, now) for commit in events.drain()]
        pids = [pid for pid, _ in seen]
        if culprit in pids[:-1]:
            at = pids.index(culprit)
            return seen[at + 1][1] - seen[at][1]
    raise LabError(f"within {DEADLINE:.0f} s no repair was announced, only commits of {seen}")
