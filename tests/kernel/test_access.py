"""Who may connect: lists written in a service, lists in files, and what those get who may not."""

import pytest

from lbd.lab.traffic import Conversation, Requester, ask
from running import CLIENT, VIP, at, backends, service
from serving import FAMILIES, PROTOCOLS, bare, serve

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("family", FAMILIES)]

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
CLIENT2 = {4: "192.168.18.26", 6: "2001:db8:18::26"}
NETWORK = {4: "192.168.18.0/24", 6: "2001:db8:18::/64"}
# .24 to .25: the one client without the other.
PAIR = {4: "192.168.18.24/31", 6: "2001:db8:18::24/127"}
ELSEWHERE = {4: "198.51.100.0/24", 6: "2001:db8:51::/48"}


@pytest.fixture(scope="module", autouse=True)
def associations(lab, servers):
    lab.enter(serve(lab, "server1", 9999, "sctp"))


@pytest.fixture
def both(lab, family):
    """What the two clients get: a server's name, or why not."""

    def asked(protocol="tcp", port=8888, timeout=0.3):
        answers = (
            ask(lab, host, VIP[family], port, protocol=protocol, timeout=timeout)
            for host in ("client", "client2")
        )
        return [answer.server or answer.failure for answer in answers]

    return asked


def web(family, protocol="tcp", **options):
    return service(at(VIP[family], 8888, protocol), backends(1, family), **options)


@protocols
def test_only_who_is_allowed(director, both, family, protocol):
    director.apply(web(family, protocol, allow=[ELSEWHERE[family], PAIR[family]]))
    assert both(protocol) == ["server1", "timeout"]
    director.apply(web(family, protocol, allow=[ELSEWHERE[family], CLIENT2[family]]))
    assert both(protocol) == ["timeout", "server1"]
    director.apply(web(family, protocol, allow=[NETWORK[family]]))
    assert both(protocol) == ["server1", "server1"]


@protocols
def test_nobody_who_is_denied(director, both, family, protocol):
    director.apply(web(family, protocol, deny=[ELSEWHERE[family], PAIR[family]]))
    assert both(protocol) == ["timeout", "server1"]
    director.apply(web(family, protocol, deny=[]))
    assert both(protocol) == ["server1", "server1"]


def test_deny_comes_before_allow(director, both, family):
    director.apply(web(family, allow=[NETWORK[family]], deny=[CLIENT[family]]))
    assert both() == ["timeout", "server1"]


def test_a_family_that_no_prefix_is_of(director, both, family):
    other = 10 - family
    listen = [at(VIP[4], 8888), at(VIP[6], 8888)]
    servers = [*backends(1, 4), *backends(1, 6)]
    director.apply(service(listen, servers, deny=[NETWORK[other]]))
    assert both() == ["server1", "server1"]
    director.apply(service(listen, servers, allow=[NETWORK[other]]))
    assert both() == ["timeout", "timeout"]


@protocols
@pytest.mark.parametrize("key", ["allow", "deny"])
def test_who_is_refused_is_told_so_where_the_file_says_it(director, both, family, protocol, key):
    prefix = ELSEWHERE[family] if key == "allow" else NETWORK[family]
    director.apply(web(family, protocol, **{key: [prefix]}, refuse="reject"))
    assert both(protocol) == ["refused", "refused"]
    director.apply(web(family, protocol, **{key: [prefix]}, refuse="drop"))
    assert both(protocol) == ["timeout", "timeout"]


@pytest.mark.parametrize(
    ("listen", "port", "options"),
    [
        ("{vip}:8800-8899", 8888, {}),
        ("{vip}:*", 8888, {"ssh": True}),
        ("{vip}:*/any", 9999, {"ssh": True}),
        ("{vip}:8888", 8888, {"interface": "eth0"}),
        ("{vip}:8800-8899", 8888, {"interface": "eth0"}),
        ("{wild}:8888", 8888, {"interface": "eth0"}),
        ("{wild}:8800-8899", 8888, {"interface": "eth0"}),
        ("{wild}:*", 8888, {"interface": "eth0", "ssh": True}),
        ("{wild}:*/any", 9999, {"interface": "eth0", "ssh": True}),
    ],
    ids=str,
)
def test_however_the_service_is_addressed(director, both, family, listen, port, options):
    wild, vip = (("0.0.0.0", VIP[4]), ("[::]", f"[{VIP[6]}]"))[family == 6]
    listen = listen.format(wild=wild, vip=vip)
    servers = bare(backends(1, family)) if listen.endswith("/any") else backends(1, family)
    names = written(director, [CLIENT2[family]])
    for lists, expected in (
        ({"allow": [PAIR[family]]}, ["server1", "refused"]),
        ({"deny": [PAIR[family]]}, ["refused", "server1"]),
        ({"allow": [{"file": names}]}, ["refused", "server1"]),
        ({"deny": [{"file": names}]}, ["server1", "refused"]),
    ):
        director.apply(service(listen, servers, refuse="reject", **options, **lists))
        assert both(port=port, timeout=2.0) == expected, lists


def written(director, prefixes, name="clients.txt"):
    """Write a file of prefixes in one step; return its name in the configuration."""
    aside = director.directory / "aside.txt"
    aside.write_text("\n".join(["# the clients", *prefixes, ""]))
    aside.rename(director.directory / name)
    return name


def strangers(family, count, first=0):
    """Prefixes that no client of the lab is in, and that do not touch each other."""
    if family == 4:
        return [f"10.{n >> 8}.{n & 255}.0/25" for n in range(first, first + count)]
    return [f"2001:db8:{0x1000 + n:x}::/49" for n in range(first, first + count)]


def test_a_file_allows_and_one_denies(director, both, family):
    allowed = written(director, [NETWORK[family]], "allowed.txt")
    denied = written(director, [CLIENT2[family], *strangers(family, 3)], "denied.txt")
    director.apply(web(family, allow=[{"file": allowed}], deny=[{"file": denied}]))
    assert both() == ["server1", "timeout"]
    written(director, strangers(family, 3), "denied.txt")
    director.apply(web(family, allow=[{"file": allowed}], deny=[{"file": denied}], log="new"))
    assert both() == ["server1", "server1"]
    # Prefixes and a file in one list.
    director.apply(web(family, allow=[CLIENT[family], {"file": denied}]))
    assert both() == ["server1", "timeout"]


def replacing(lab, director, family, *starts):
    """Replace a file of 5,000 prefixes and the client by others, under traffic; return how that went."""
    lists = [[*strangers(family, 5000, first), CLIENT[family]] for first in starts]
    name = written(director, lists[0])
    director.apply(web(family, allow=[{"file": name}], refuse="reject"))
    with Requester(lab, "client", VIP[family], 8888) as requests:
        for prefixes in lists[1:]:
            before = requests.tally().total
            written(director, prefixes)
            verdict = director.reload()
            assert verdict["ok"], verdict["error"]
            assert director.table().elements[_list(director, family)].keys() == set(prefixes)
            requests.wait_for(lambda tally, before=before: tally.total > before + 10)
        tally = requests.stop()
    assert ask(lab, "client2", VIP[family], 8888).failure == "refused"
    return tally


def test_a_large_file_that_changes_a_little_refuses_nobody_meanwhile(lab, director, family):
    assert not replacing(lab, director, family, 0, 20).failures


def test_a_large_file_that_changes_as_a_whole_refuses_nobody_meanwhile(lab, director, family):
    assert not replacing(lab, director, family, 0, 2500, 20_000).failures


def _list(director, family):
    (name,) = [n for n in director.table().elements if n.startswith("list_") and n.endswith(f"_{family}")]
    return name


def test_a_file_that_is_noticed(director, both, family):
    name = written(director, [CLIENT[family]])
    director.apply(web(family, allow=[{"file": name}]))
    assert both() == ["server1", "timeout"]
    mark = len(director.lines)
    written(director, [CLIENT2[family]])
    director.wait_line("applied", since=mark)
    assert both() == ["timeout", "server1"]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_an_open_conversation_is_not_ended(lab, director, family, protocol):
    director.apply(web(family, protocol))
    with Conversation(lab, "client", VIP[family], 8888, protocol=protocol) as talk:
        director.apply(web(family, protocol, deny=[NETWORK[family]]))
        assert talk.alive()
